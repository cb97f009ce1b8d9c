"""The webhook secret, fetched with the token: at start, after a rotation, and while it cannot be had."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis

from app.core.signature import parse_signing_keys, signed_headers
from app.receive.limits import Limits
from app.receive.listening import free_port
from app.simulator import Simulator
from tests.receive.web import SECRET, WEBHOOK, Answer, Web, in_process, in_thread, prediction, wait_until

SECRET_PATH = "/v1/webhooks/default/secret"
OTHER = "whsec_b3RoZXIgc2VjcmV0IG9mIDI0IGJ5dGVz"
AT_ONCE = Limits(secret_seconds=0)
"""Asks again for each signature that does not fit."""


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as running:
        yield running


def settings(simulator: Simulator, **changes: str | None) -> dict[str, str | None]:
    """A token, and no secret."""
    given = {"REPLICATE_API_TOKEN": simulator.token, "REPLICATE_BASE_URL": simulator.url}
    return {"REPLICATE_WEBHOOK_SECRET": None, **given, **changes}


def deliver(web: Web, secret: str, identity: str = "a") -> Answer:
    body = prediction(identity)
    headers = signed_headers("msg_1", int(time.time()), body, parse_signing_keys(secret))
    return web.ask("POST", WEBHOOK, body, headers)


def readiness(web: Web) -> tuple[int, str]:
    """The status of `/readyz`, and what it says of the secret."""
    answer = web.ask("GET", "/readyz")
    return answer.status, "".join(
        line for line in answer.body.decode().splitlines() if "webhook secret" in line
    )


def is_filled(web: Web) -> bool:
    return readiness(web) == (200, "")


def test_the_secret_is_fetched_at_start_and_asked_for_no_more(
    simulator: Simulator, valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    with in_thread(valkey_url, tmp_path, AT_ONCE, **settings(simulator)) as web:
        wait_until(lambda: is_filled(web))
        assert [deliver(web, simulator.secret, str(number)).status for number in range(5)] == [202] * 5
        assert simulator.requests(SECRET_PATH) == 1


def test_a_rotation_needs_no_restart(
    simulator: Simulator, valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    old = simulator.secret
    with in_thread(valkey_url, tmp_path, AT_ONCE, **settings(simulator)) as web:
        wait_until(lambda: is_filled(web))
        new = simulator.rotate_secret()
        with ThreadPoolExecutor(8) as senders:
            answers = list(senders.map(lambda number: deliver(web, new, str(number)), range(8)))
        assert [answer.status for answer in answers] == [202] * 8
        assert simulator.requests(SECRET_PATH) < 9
        assert deliver(web, old).status == 401


def test_strangers_cannot_make_us_ask_again_and_again(
    simulator: Simulator, valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    with in_thread(valkey_url, tmp_path, Limits(secret_seconds=3600), **settings(simulator)) as web:
        wait_until(lambda: is_filled(web))
        assert {deliver(web, OTHER).status for _ in range(20)} == {401}
        assert simulator.requests(SECRET_PATH) == 1


def test_a_secret_that_is_set_is_never_fetched(
    simulator: Simulator, valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    configured = settings(simulator, REPLICATE_WEBHOOK_SECRET=SECRET)
    with in_thread(valkey_url, tmp_path, AT_ONCE, **configured) as web:
        assert (deliver(web, SECRET).status, deliver(web, simulator.secret).status) == (202, 401)
    assert simulator.requests(SECRET_PATH) == 0


def test_until_there_is_a_secret_deliveries_are_put_off_and_then_accepted(
    simulator: Simulator, valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    port = free_port()
    away = settings(simulator, REPLICATE_BASE_URL=f"http://127.0.0.1:{port}")
    with in_thread(valkey_url, tmp_path, AT_ONCE, **away) as web:
        answer = deliver(web, simulator.secret)
        assert (answer.status, answer.json()["error"]) == (503, "secret_missing")
        assert int(answer.headers["retry-after"]) > 0
        wait_until(lambda: "set REPLICATE_WEBHOOK_SECRET" in readiness(web)[1])
        status, line = readiness(web)
        assert status == 503
        assert line.startswith("fail webhook secret: ")
        with Simulator(port=port, token=simulator.token, secret=simulator.secret):
            wait_until(lambda: is_filled(web))
            assert deliver(web, simulator.secret).status == 202


def test_a_refused_token_is_named_in_readiness_and_log(
    simulator: Simulator, valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    wrong = settings(simulator, REPLICATE_API_TOKEN="r8_a_wrong_token")
    with in_process(valkey_url, tmp_path, **wrong) as (web, _):
        wait_until(lambda: "REPLICATE_API_TOKEN is refused" in readiness(web)[1])
        assert deliver(web, simulator.secret).status == 503
        wait_until(lambda: simulator.requests(SECRET_PATH) > 2)
    lines = [json.loads(line) for line in (tmp_path / "serve.log").read_text().splitlines()]
    [said] = [line for line in lines if line["event"] == "secret_missing"]
    assert said["level"] == "error"
    assert "REPLICATE_API_TOKEN is refused" in said["message"]


def test_while_it_cannot_be_fetched_again_the_old_one_counts(
    valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    with Simulator() as simulator:
        given = settings(simulator)
        with in_thread(valkey_url, tmp_path, AT_ONCE, **given) as web:
            wait_until(lambda: is_filled(web))
            simulator.refuse(1, status=500)
            assert deliver(web, OTHER).status == 401
            assert deliver(web, simulator.secret).status == 202


def test_what_was_fetched_is_in_no_line_of_the_log(valkey_url: str, redis: Redis, tmp_path: Path) -> None:
    """It is sent as the id of a prediction, which is logged."""
    bare = OTHER.removeprefix("whsec_")
    with (
        Simulator(secret=OTHER) as simulator,
        in_process(valkey_url, tmp_path, LOG_LEVEL="debug", **settings(simulator)) as (web, process),
    ):
        wait_until(lambda: is_filled(web))
        assert deliver(web, OTHER, bare).status == 202
        process.terminate()
        process.wait()
    log = (tmp_path / "serve.log").read_text()
    assert '"secret_fetched"' in log
    assert '"id": "[hidden]"' in log
    assert bare not in log
