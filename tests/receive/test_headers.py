"""What every answer carries, under which names pages are served, and how often a token may be guessed."""

import socket
from collections.abc import Iterator

import pytest

from app.core.links import file_path
from app.core.names import Kind
from app.receive.listening import free_port
from app.receive.rate_limit import GUESSES as LIMIT
from app.receive.rate_limit import GUESSES_WINDOW as WINDOW
from app.receive.rate_limit import MOST_ADDRESSES, Guesses
from app.storage.store import Storage
from tests.receive.web import WEBHOOK, Answer, Web, in_thread, prediction

TOKEN = "the-token-of-the-admin"
PATH = file_path(Kind.PREDICTION, "abc", "output-0.png")
OUTSIDE = {"x-forwarded-for": "203.0.113.7"}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("headers")
    Storage((folder / "outputs").as_uri()).put_bytes("predictions/abc/output-0.png", b"png")
    settings = {"OUTKEEP_ADMIN_TOKEN": TOKEN, "OUTKEEP_ALLOWED_HOSTS": "outkeep.test *.lan"}
    with in_thread(f"redis://127.0.0.1:{free_port()}", folder, **settings) as running:
        yield running


def get(web: Web, path: str, **headers: str) -> Answer:
    return web.ask("GET", path, headers={"host": "outkeep.test", **headers})


def admin(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/nothing", 404), (PATH, 403), (WEBHOOK, 405)],
)
def test_every_answer_tells_browsers_to_do_nothing_with_it(web: Web, path: str, status: int) -> None:
    require_inert(get(web, path), status)


def test_so_do_the_answers_to_deliveries_which_pass_by_what_all_others_go_through(web: Web) -> None:
    require_inert(web.deliver(prediction("inert")), 202)
    require_inert(web.deliver(prediction("inert"), headers={"webhook-signature": "v1,x"}), 400)


def require_inert(answer: Answer, status: int) -> None:
    assert answer.status == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "server" not in answer.headers


def test_what_is_no_http_is_answered_with_them_too(web: Web) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head = connection.makefile("rb").read().lower()

    assert b" 400 " in head
    assert b"x-content-type-options: nosniff\r\n" in head
    assert b"\r\nserver:" not in head


def test_a_stored_file_keeps_its_stricter_policy(web: Web) -> None:
    answer = get(web, PATH, **admin(TOKEN))

    assert answer.status == 200
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


@pytest.mark.parametrize("host", ["127.0.0.1", "evil.test", "outkeep.test.evil.test", "lan", ""])
def test_files_are_not_served_under_a_name_that_is_not_allowed(web: Web, host: str) -> None:
    for path in (PATH, "/files/x", "/", "/nothing"):
        answer = get(web, path, host=host, **admin(TOKEN))
        assert (answer.status, answer.json()["error"]) == (400, "host_refused")


def test_the_name_of_a_proxy_does_not_count(web: Web) -> None:
    assert get(web, PATH, host="evil.test", **{"x-forwarded-host": "outkeep.test"}).status == 400


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1", ""])
def test_webhooks_health_and_metrics_are_served_under_any_name(web: Web, host: str) -> None:
    assert get(web, "/healthz", host=host).status == 200
    assert get(web, "/readyz", host=host).status in {200, 503}
    assert get(web, "/metrics", host=host).status == 200
    assert web.deliver(prediction(), headers={"host": host}).status in {202, 503}


def test_whoever_guesses_tokens_has_to_wait_and_others_do_not(web: Web) -> None:
    for _ in range(LIMIT):
        assert get(web, PATH, **OUTSIDE, **admin("a guess")).status == 401
    for token in ("a guess", TOKEN):
        answer = get(web, PATH, **OUTSIDE, **admin(token))
        assert (answer.status, answer.json()["error"]) == (429, "too_many_tokens")
        assert 1 <= int(answer.headers["retry-after"]) <= WINDOW + 1
    assert get(web, PATH, **OUTSIDE).status == 403, "who sends no token is not concerned"
    assert get(web, "/healthz", **OUTSIDE).status == 200
    assert get(web, PATH, **{"x-forwarded-for": "203.0.113.8"}, **admin(TOKEN)).status == 200
    assert web.deliver(prediction(), headers={**OUTSIDE, **admin("a guess")}).status in {202, 503}


def test_a_guesser_waits_until_the_window_ends() -> None:
    guesses = Guesses()
    for second in range(LIMIT):
        assert guesses.wait("203.0.113.7", second) == 0
        guesses.wrong("203.0.113.7", second)
    assert guesses.wait("203.0.113.7", LIMIT) == WINDOW - LIMIT
    assert guesses.wait("203.0.113.7", WINDOW) == 0
    guesses.wrong("203.0.113.7", WINDOW)
    assert guesses.wait("203.0.113.7", WINDOW) == 0


def test_the_addresses_of_one_network_are_one() -> None:
    guesses = Guesses()
    for number in range(LIMIT):
        guesses.wrong(f"2001:db8:1:2::{number:x}", 0)
    assert guesses.wait("2001:db8:1:2:ffff::1", 1) > 0
    assert guesses.wait("2001:db8:1:3::1", 1) == 0


def test_the_memory_for_guessers_is_bounded() -> None:
    guesses = Guesses()
    for number in range(MOST_ADDRESSES + 10):
        guesses.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0)
    assert len(guesses._windows) == MOST_ADDRESSES
