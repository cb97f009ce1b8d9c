"""Files of a bucket over HTTP: our link leads on to the store, or to a CDN before it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from app.core.links import file_path, link_keys, sign_path
from app.core.names import Kind
from app.receive.listening import free_port
from app.storage.store import Storage
from tests.bucket import S3, faulty_proxy
from tests.receive.web import SECRET_KEY, Answer, Web, in_thread

TOKEN = "correct horse battery staple"
NAME = "predictions/abc/output-0.png"
CONTENT = bytes(range(256)) * 1000
PATH = file_path(Kind.PREDICTION, "abc", "output-0.png")
CDN = "https://cdn.example.com/a%20b"


@contextmanager
def serving(s3: S3, folder: Path, **settings: str) -> Iterator[Web]:
    Storage(s3.url).put_bytes(NAME, CONTENT)
    settings = {"OUTKEEP_STORAGE": s3.url, "OUTKEEP_ADMIN_TOKEN": TOKEN, **settings}
    with in_thread(f"redis://127.0.0.1:{free_port()}", folder, **settings) as web:
        yield web


@pytest.fixture
def web(s3_here: S3, tmp_path: Path) -> Iterator[Web]:
    with serving(s3_here, tmp_path) as running:
        yield running


def link(path: str = PATH) -> str:
    return sign_path(path, int(time.time()) + 60, link_keys([SECRET_KEY.encode()]))


def get(web: Web, headers: dict[str, str] | None = None, *, path: str | None = None) -> Answer:
    return web.ask("GET", path or link(), headers=headers)


def test_our_link_leads_to_one_of_the_store_that_is_soon_over(web: Web, s3: S3) -> None:
    answer = get(web)

    assert (answer.status, answer.body) == (307, b"")
    place = urlsplit(answer.headers["location"])
    assert f"{place.scheme}://{place.netloc}" == s3.endpoint
    assert "X-Amz-Expires=300&" in place.query
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_plain_client_follows_it_with_its_range(web: Web) -> None:
    request = Request(f"http://127.0.0.1:{web.port}{link()}", headers={"Range": "bytes=10-19"})
    with urlopen(request, timeout=30) as answer:
        assert (answer.status, answer.read()) == (206, CONTENT[10:20])
        assert answer.headers["content-type"] == "image/png"
    with urlopen(f"http://127.0.0.1:{web.port}{link()}", timeout=30) as answer:
        assert answer.read() == CONTENT


def test_a_head_request_and_a_known_etag_are_answered_by_us(web: Web) -> None:
    head = web.ask("HEAD", link())
    assert (head.status, head.headers["content-length"]) == (200, str(len(CONTENT)))
    known = get(web, {"if-none-match": head.headers["etag"]})

    assert known.status == 304


def test_a_file_that_is_not_there_is_told_from_a_bucket_that_is_gone(web: Web, s3: S3) -> None:
    absent = link(file_path(Kind.PREDICTION, "abc", "output-9.png"))
    assert get(web, path=absent).status == 404
    s3.ask("POST", "/moto-api/reset")
    answer = get(web)
    assert (answer.status, answer.json()["error"]) == (503, "bucket_missing")


def test_the_admin_token_is_not_led_to_another_host(web: Web) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "range": "bytes=5-9"}
    answer = get(web, headers, path=PATH)

    assert (answer.status, answer.body) == (206, CONTENT[5:10])
    assert "location" not in answer.headers


def test_a_script_of_another_page_is_served_here(web: Web) -> None:
    answer = web.ask("GET", link(), headers={"origin": "https://app.example", "range": "bytes=0-3"})
    assert (answer.status, answer.body) == (206, CONTENT[:4])
    assert answer.headers["access-control-allow-origin"] == "*"


def test_nobody_is_led_anywhere_without_permission(web: Web) -> None:
    assert get(web, path=PATH).status == 403
    assert get(web, path=link().replace("signature=", "signature=x")).status == 403
    assert get(web, path=link(file_path(Kind.PREDICTION, "abc", "other.png"))).status == 404


def test_who_came_by_https_is_not_led_down_to_http(s3_here: S3, tmp_path: Path) -> None:
    with serving(s3_here, tmp_path, OUTKEEP_PUBLIC_URL="https://outkeep.example.com") as web:
        answer = get(web)

    assert (answer.status, answer.body) == (200, CONTENT)


def test_where_nothing_can_be_signed_we_serve_ourselves(
    s3_here: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Storage(s3_here.url).put_bytes(NAME, CONTENT)
    s3_here.ask("PUT", "/keep?policy", _PUBLIC)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    settings = {"OUTKEEP_STORAGE": s3_here.url}
    with in_thread(f"redis://127.0.0.1:{free_port()}", tmp_path, **settings) as web:
        answer = get(web)

    assert (answer.status, answer.body) == (200, CONTENT)


_PUBLIC = b"""{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::keep/*"}]}"""


def test_with_a_cdn_our_link_leads_there(s3_here: S3, tmp_path: Path) -> None:
    with serving(s3_here, tmp_path, OUTKEEP_STORAGE_PUBLIC_URL=f"{CDN}/") as web:
        answer = get(web)

    assert (answer.status, answer.headers["location"]) == (307, f"{CDN}/{NAME}")


def test_a_store_that_fails_is_told_as_503(
    s3_here: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(s3_here) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.s3.endpoint)
        with serving(s3_here, tmp_path) as web:
            proxy.refuse(403, "AccessDenied")
            refused = get(web)
            proxy.mend()
            mended = get(web)

    assert (refused.status, refused.json()["error"]) == (503, "storage_denied")
    assert mended.status == 307
