"""Strangers and senders who share a proxy, and its one connection to the receiver."""

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.nginx import SERVERS, in_front
from tests.receive.test_framing import LAST, SMUGGLED, UPGRADES, exchange, proof, request
from tests.receive.web import WEBHOOK, Web, in_thread, prediction

BODIES = [
    SMUGGLED,
    SMUGGLED + b" " * 70_000,
    b" " * 70_000 + SMUGGLED,
    SMUGGLED.replace(b"/healthz", b"/metrics"),
]


@pytest.fixture(scope="module", params=SERVERS)
def proxy(
    valkey_url: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("nginx")
    with (
        in_thread(valkey_url, tmp_path_factory.mktemp("behind")) as web,
        in_front(web, folder, SERVERS[request.param]) as running,
    ):
        yield running


def test_no_stranger_answers_for_the_next_delivery(proxy: Web, redis: Redis) -> None:
    for number, lines in enumerate(UPGRADES):
        for place, body in enumerate(BODIES):
            for chunked in (False, True):
                head, wire = request(body, lines, chunked=chunked)
                assert exchange(proxy, [head + wire + LAST]) == [404, 404]
                # nginx closes where it was answered before it had read the body.
                assert exchange(proxy, [head, wire, LAST]) in ([404], [404, 404])
                assert proxy.outcome(prediction(f"victim-{number}-{place}-{chunked}")) == "accepted"


def test_a_delivery_that_asks_for_an_upgrade_passes_through(proxy: Web, redis: Redis) -> None:
    body = prediction("through", logs="x" * 100_000)
    start = f"POST {WEBHOOK} HTTP/1.1".encode()
    for lines in UPGRADES:
        for chunked in (False, True):
            head, wire = request(body, proof(body, WEBHOOK), lines, start=start, chunked=chunked)
            assert exchange(proxy, [head, wire, LAST]) == [202, 404]


@pytest.mark.parametrize(
    "path", ["/metrics", "/%6detrics", "/metric%73", "/metrics%2f", "//metrics", "/x/../metrics"]
)
def test_what_the_proxy_keeps_to_itself_is_not_reached(proxy: Web, path: str) -> None:
    assert proxy.ask("GET", path).status in {403, 404}


def test_a_large_delivery_passes(proxy: Web, redis: Redis) -> None:
    assert proxy.outcome(prediction("large", logs="x" * (3 << 20))) == "accepted"
