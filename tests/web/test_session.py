"""Who gets in, and how: the token in a form, a link that is good once, a session; and who does not."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from redis import Redis

from app.receive.rate_limit import GUESSES
from app.web.rendering import ASSETS
from app.web.session import LIFE, next_page
from app.web.signing import LINK_LIFE, Signer, sign_in_url
from tests.receive.web import SECRET_KEY, Answer, Web, in_thread, prediction

TOKEN = "the-token-of-the-admin"
OTHER_KEY = "f" * 32
HTMX = "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
OURS = {"sec-fetch-site": "same-origin"}
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with in_thread(valkey_url, tmp_path_factory.mktemp("session"), OUTKEEP_ADMIN_TOKEN=TOKEN) as running:
        yield running


def post_token(web: Web, token: str = TOKEN, more: str = "", **headers: str) -> Answer:
    body = f"token={token}{more}".encode()
    return web.ask("POST", "/sign-in", body, {**FORM, **OURS, **headers})


def follow(web: Web, *, key: str = SECRET_KEY, now: float | None = None) -> Answer:
    url = sign_in_url("", [key.encode()], now=now or time.time())
    return web.ask("GET", url)


def cookie_of(answer: Answer) -> str:
    return answer.headers.get("set-cookie", "").partition(";")[0]


def visit(web: Web, cookie: str, path: str = "/", **headers: str) -> int:
    return web.ask("GET", path, headers={"cookie": cookie, **headers}).status


def test_the_token_in_the_form_begins_a_session_that_scripts_and_other_sites_cannot_use(web: Web) -> None:
    answer = post_token(web, more="&next=%2Fpredictions%3Fq%3Dcat")

    assert answer.status == 200
    assert b'content="0;url=/predictions?q=cat"' in answer.body
    name, *attributes = answer.headers["set-cookie"].lower().split("; ")
    assert name.startswith(f"outkeep-{web.port}=")
    assert set(attributes) == {"httponly", "samesite=strict", "path=/", f"max-age={LIFE}"}
    assert visit(web, cookie_of(answer)) == 200


def test_over_https_the_cookie_is_bound_to_the_host(web: Web) -> None:
    answer = post_token(web, **{"x-forwarded-proto": "https"})

    assert answer.headers["set-cookie"].startswith("__Host-outkeep=")
    assert answer.headers["set-cookie"].endswith("; Secure")


def test_a_link_signs_in_once(web: Web, redis: Redis) -> None:
    url = sign_in_url("", [SECRET_KEY.encode()], now=time.time())

    assert web.ask("HEAD", url).headers.get("set-cookie") is None
    first, second = (web.ask("GET", url) for _ in range(2))

    assert (first.status, second.status) == (200, 403)
    assert visit(web, cookie_of(first)) == 200
    assert "set-cookie" not in second.headers
    assert b"used already" in second.body


@pytest.mark.parametrize(
    ("key", "now"),
    [(OTHER_KEY, None), (SECRET_KEY, 1.0), (SECRET_KEY, time.time() - LINK_LIFE - 1)],
    ids=["of another key", "ancient", "just over"],
)
def test_a_link_that_is_not_ours_or_over_does_not(web: Web, key: str, now: float | None) -> None:
    answer = follow(web, key=key, now=now)

    assert (answer.status, "set-cookie" in answer.headers) == (403, False)


def test_a_session_ends_with_its_time_its_token_and_its_key(web: Web) -> None:
    def forged(token: str = TOKEN, key: str = SECRET_KEY, *, left: float = 60) -> int:
        purpose = b"outkeep sessions v1" + hashlib.sha256(token.encode()).digest()
        sealed = Signer([key.encode()], purpose).seal({"until": time.time() + left})
        return visit(web, f"outkeep-{web.port}={sealed}")

    assert forged() == 200
    assert [forged(left=-1), forged("old"), forged(key=OTHER_KEY)] == [303, 303, 303]
    link = Signer([SECRET_KEY.encode()], b"outkeep sign-in links v1").seal({"until": time.time() + 60})
    assert visit(web, f"outkeep-{web.port}={link}") == 303
    assert visit(web, f"outkeep-{web.port}=nonsense.\xff") == 303


def test_a_session_outlives_the_rotation_of_keys(valkey_url: str, web: Web, tmp_path: Path) -> None:
    _, _, value = cookie_of(post_token(web)).partition("=")
    rotated = {"OUTKEEP_ADMIN_TOKEN": TOKEN, "OUTKEEP_SECRET_KEY": f"{OTHER_KEY} {SECRET_KEY}"}

    with in_thread(valkey_url, tmp_path, **rotated) as later:
        assert visit(later, f"outkeep-{later.port}={value}") == 200


def test_without_a_session_a_page_leads_to_the_form_and_a_link_elsewhere_is_followed_again(web: Web) -> None:
    answer = web.ask("GET", "/?q=a%20b")
    assert (answer.status, answer.headers["location"]) == (303, "/sign-in?next=%2F%3Fq%3Da%2520b")

    again = web.ask("GET", "/?q=a", headers={"sec-fetch-site": "cross-site"})
    assert (again.status, b'content="0;url=/?q=a"' in again.body) == (200, True)


@pytest.mark.parametrize(
    "where", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:1", "/a b", "/%\n", ""]
)
def test_nobody_is_led_to_another_host(where: str) -> None:
    assert next_page(where) == "/"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        (OURS, True),
        ({"origin": "http://127.0.0.1:{port}"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:{port}"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({}, False),
    ],
)
def test_only_our_own_pages_may_change_something(web: Web, headers: dict[str, str], *, allowed: bool) -> None:
    given = {name: value.format(port=web.port) for name, value in headers.items()}
    session = {"cookie": cookie_of(post_token(web))}

    began = web.ask("POST", "/sign-in", f"token={TOKEN}".encode(), {**FORM, **given})
    ended = web.ask("POST", "/sign-out", b"", {**given, **session})

    assert (began.status, ended.status) == ((200, 303) if allowed else (403, 403))


def test_the_token_works_as_a_bearer_token_for_pages_too(web: Web) -> None:
    assert visit(web, "", authorization=f"Bearer {TOKEN}") == 200
    assert visit(web, "", authorization="Bearer wrong") == 401


def test_guessing_in_the_form_is_limited_also_for_who_then_knows_it(valkey_url: str, tmp_path: Path) -> None:
    with in_thread(valkey_url, tmp_path, OUTKEEP_ADMIN_TOKEN=TOKEN) as web:
        wrong = [post_token(web, "wrong").status for _ in range(GUESSES + 1)]
        right = post_token(web).status
        elsewhere = post_token(web, **{"x-forwarded-for": "203.0.113.9"}).status

    assert wrong == [*[403] * GUESSES, 429]
    assert (right, elsewhere) == (429, 200)


def test_without_a_token_there_are_no_pages(valkey_url: str, tmp_path: Path) -> None:
    with in_thread(valkey_url, tmp_path) as web:
        assert {web.ask("GET", path).status for path in ("/", "/sign-in", "/assets/outkeep.css")} == {404}


def test_what_pages_load_is_ours_and_as_it_was_published() -> None:
    assert hashlib.sha256((ASSETS / "htmx.min.js").read_bytes()).hexdigest() == HTMX
    assert "Zero-Clause BSD" in (ASSETS / "htmx.LICENSE").read_text()


def test_open_pages_are_told_of_changes_and_no_stream_holds_up_the_end(
    valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        with in_thread(valkey_url, tmp_path, OUTKEEP_ADMIN_TOKEN=TOKEN) as web:
            cookie = cookie_of(post_token(web))

            def listens(path: str) -> HTTPResponse:
                connection = stack.enter_context(closing(HTTPConnection("127.0.0.1", web.port, timeout=60)))
                connection.request("GET", path, headers={"cookie": cookie})
                answer = connection.getresponse()
                assert [answer.readline() for _ in range(2)] == [b"retry: 3000\n", b"\n"]
                return answer

            every, one, other = map(listens, ("/changes", "/changes?of=prediction:pulse", "/changes?of=x"))
            assert web.outcome(prediction("pulse")) == "accepted"
            assert [answer.readline() for answer in (every, one)] == [b"data: changed\n"] * 2
        assert other.read() == b""
