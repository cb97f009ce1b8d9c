"""Stored files over HTTP."""

import base64
import gzip
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.core.links import file_path, link_keys, sign_path
from app.core.manifest import KeptFile, Manifest, Receipt, build
from app.core.names import Kind
from app.core.outputs import OutputFile
from app.core.prediction import parse
from app.receive.listening import free_port
from app.storage.store import Storage
from tests.receive.web import SECRET_KEY, Answer, Web, in_thread

CODED = {
    "output-0.csv": ("gzip", gzip.compress(b"a,b", mtime=0)),
    "output-1.csv": (None, b"a,b"),
    "output-2.gz": ("gzip", gzip.compress(b"tar", mtime=0)),
    "output-3.json": ("br", b"\x0b\x02\x80words\x03"),
    "output-4.txt": ("br, gzip", gzip.compress(b"words", mtime=0)),
}
OLD_KEY = "an-older-key-of-more-than-thirty-two-bytes"
TOKEN = "correct horse battery stäple"
CONTENT = bytes(range(256)) * 1000
KEYS = link_keys([SECRET_KEY.encode()])
PATH = file_path(Kind.PREDICTION, "abc", "output-0.png")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Files need no Redis: there is none."""
    folder = tmp_path_factory.mktemp("files")
    keys = f"{SECRET_KEY} {OLD_KEY}"
    settings = {"OUTKEEP_SECRET_KEY": keys, "OUTKEEP_ADMIN_TOKEN": TOKEN}
    storage = Storage((folder / "outputs").as_uri())
    storage.put_bytes("predictions/abc/output-0.png", CONTENT)
    storage.put_bytes("predictions/abc/empty.bin", b"")
    storage.put_bytes("trainings/abc/output-0.tar", b"weights")
    for name, (_, content) in CODED.items():
        storage.put_bytes(f"predictions/coded/{name}", content)
    storage.commit(coded_manifest())
    storage.put_bytes("predictions/torn/output-0.csv", b"x")
    storage.put_bytes("predictions/torn/prediction.json", b'{"files": [{"encoding": "gz')
    with in_thread(f"redis://127.0.0.1:{free_port()}", folder, **settings) as running:
        yield running


def coded_manifest() -> Manifest:
    """That of a prediction whose files came with codings, or without."""
    prediction = parse(
        b'{"id": "coded", "status": "succeeded", "output": {"encoding": "gzip"}}', Kind.PREDICTION
    )
    now = datetime.now(UTC)
    files = [
        (
            OutputFile(f"/output/{name}", ""),
            KeptFile(f"/output/{name}", None, name, "text/csv", 1, "", encoding=coding),
        )
        for name, (coding, _) in CODED.items()
    ]
    return build(prediction, files, None, Receipt(now, None), now)


def link(path: str = PATH, *, key: str = SECRET_KEY, seconds: int = 60) -> str:
    return sign_path(path, int(time.time()) + seconds, link_keys([key.encode()]))


def get(web: Web, headers: dict[str, str] | None = None, path: str | None = None) -> Answer:
    return web.ask("GET", path or link(), headers=headers)


def test_a_signed_link_gives_the_whole_file(web: Web) -> None:
    answer = get(web)

    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("name", CODED)
def test_a_file_is_served_with_the_coding_that_it_came_with(web: Web, name: str) -> None:
    coding, content = CODED[name]
    path = link(file_path(Kind.PREDICTION, "coded", name))
    whole, part = get(web, path=path), get(web, {"Range": "bytes=1-2"}, path)

    assert (whole.status, whole.body) == (200, content)
    assert (part.status, part.body) == (206, content[1:3])
    for answer in (whole, part, web.ask("HEAD", path)):
        assert answer.headers.get("content-encoding") == coding


def test_a_file_is_served_though_its_manifest_is_torn(web: Web) -> None:
    answer = get(web, path=link(file_path(Kind.PREDICTION, "torn", "output-0.csv")))
    assert (answer.status, answer.body, answer.headers.get("content-encoding")) == (200, b"x", None)


def test_a_manifest_is_read_again_only_when_it_is_another_one(web: Web) -> None:
    """One of the same length takes its place, of the same time and then of its own."""
    name, coding = next((name, coding) for name, (coding, _) in CODED.items() if coding)
    path = web.folder / "outputs" / "predictions" / "coded" / "prediction.json"
    data, stat = path.read_bytes(), path.stat()

    def told() -> str | None:
        return get(web, path=link(file_path(Kind.PREDICTION, "coded", name))).headers.get("content-encoding")

    assert told() == coding
    other = "x" * len(coding)
    try:
        path.write_bytes(data.replace(f'"encoding": "{coding}"'.encode(), f'"encoding": "{other}"'.encode()))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert told() == coding
        os.utime(path)
        assert told() == other
    finally:
        path.write_bytes(data)
    assert told() == coding


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("output.txt", "text/plain; charset=utf-8"),
        ("prediction.json", "application/json; charset=utf-8"),
        ("output-0.txt", "text/plain"),
    ],
)
def test_the_charset_is_said_where_it_is_known(web: Web, name: str, content_type: str) -> None:
    Storage((web.folder / "outputs").as_uri()).put_bytes(f"predictions/abc/{name}", "é".encode())
    assert (
        get(web, path=link(file_path(Kind.PREDICTION, "abc", name))).headers["content-type"] == content_type
    )


def test_a_file_of_a_training_is_another_place(web: Web) -> None:
    assert get(web, path=link(file_path(Kind.TRAINING, "abc", "output-0.tar"))).body == b"weights"
    assert get(web, path=link(file_path(Kind.PREDICTION, "abc", "output-0.tar"))).status == 404


def test_an_empty_file_is_given(web: Web) -> None:
    answer = get(web, path=link(file_path(Kind.PREDICTION, "abc", "empty.bin")))
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


def test_a_link_made_with_the_previous_key_still_works(web: Web) -> None:
    assert get(web, path=link(key=OLD_KEY.replace(" ", "-"))).status == 200


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (PATH, "link_refused"),
        (f"{PATH}?expires=9999999999", "link_refused"),
        (f"{PATH}?signature=abc", "link_refused"),
        (f"{PATH}?expires=9999999999&signature=", "link_refused"),
        (f"{PATH}?expires=9999999999&signature=%FF%00%C3%A9", "link_refused"),
        (f"{PATH}?expires=%D9%A1&signature=abc", "link_refused"),
        (link(key="x" * 32), "link_refused"),
        (link(seconds=-1), "link_expired"),
        (link(file_path(Kind.PREDICTION, "abc", "other.png")).replace("other", "output-0"), "link_refused"),
        (
            link(file_path(Kind.TRAINING, "abc", "output-0.png")).replace("trainings", "predictions"),
            "link_refused",
        ),
        (link().replace("expires=", "expires=1"), "link_refused"),
        (link()[:-1] + ("A" if link()[-1] != "A" else "B"), "link_refused"),
    ],
)
def test_a_link_that_is_not_ours_whole_is_refused(web: Web, path: str, code: str) -> None:
    answer = get(web, path=path)

    assert (answer.status, answer.json()["error"]) == (403, code)
    assert answer.json()["message"]


@pytest.mark.parametrize(("length", "status"), [(0, 200), (8000, 200), (9000, 403), (60_000, 403)])
def test_what_others_add_to_a_link_has_its_limit(web: Web, length: int, status: int) -> None:
    assert get(web, path=link() + "&a" * (length // 2)).status == status


def test_the_admin_token_needs_no_link(web: Web) -> None:
    assert (
        get(
            web, {"authorization": "Bearer correct horse battery stäple".encode().decode("latin-1")}, PATH
        ).status
        == 200
    )


@pytest.mark.parametrize("token", ["", "correct", f"{TOKEN}x".encode().decode("latin-1"), "\xff\xfe"])
def test_a_wrong_token_is_refused(web: Web, token: str) -> None:
    answer = get(web, {"authorization": f"Bearer {token}"}, PATH)
    assert (answer.status, answer.json()["error"]) == (401, "token_refused")


def test_another_scheme_of_authorization_is_no_token(web: Web) -> None:
    basic = base64.b64encode(b"admin:x").decode()
    assert get(web, {"authorization": f"Basic {basic}"}, PATH).status == 403
    assert get(web, {"authorization": f"Basic {basic}"}).status == 200


def test_without_a_token_set_no_token_opens_anything(tmp_path: Path) -> None:
    Storage((tmp_path / "outputs").as_uri()).put_bytes("predictions/abc/output-0.png", CONTENT)
    with in_thread(f"redis://127.0.0.1:{free_port()}", tmp_path) as web:
        for token in ("", "None", "null", TOKEN.encode().decode("latin-1")):
            assert get(web, {"authorization": f"Bearer {token}"}, PATH).status == 403


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=255990-", 255990, 256000),
        ("bytes=-5", 255995, 256000),
        ("bytes=0-99999999", 0, 256000),
        ("bytes=-99999999", 0, 256000),
    ],
)
def test_a_range_is_given_alone(web: Web, asked: str, start: int, end: int) -> None:
    answer = get(web, {"range": asked})

    assert (answer.status, answer.body) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=256000-", "bytes=999999-1000000", "bytes=-0"])
def test_a_range_outside_is_said_to_be(web: Web, asked: str) -> None:
    answer = get(web, {"range": asked})

    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert answer.body == b""


@pytest.mark.parametrize(
    "asked", ["bytes=1-2,5-6", "lines=1-2", "bytes", "bytes=5-1", "bytes=a-b", "bytes=-"]
)
def test_a_range_we_do_not_know_is_ignored(web: Web, asked: str) -> None:
    assert get(web, {"range": asked}).status == 200


def test_a_range_is_given_only_of_the_version_that_is_meant(web: Web) -> None:
    etag = get(web).headers["etag"]

    assert get(web, {"range": "bytes=0-9", "if-range": etag}).status == 206
    assert get(web, {"range": "bytes=0-9", "if-range": '"another"'}).body == CONTENT


def test_what_the_client_has_already_is_not_sent_again(web: Web) -> None:
    etag = get(web).headers["etag"]

    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = get(web, {"if-none-match": known})
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == etag
    assert get(web, {"if-none-match": f'"{etag[1:5]}"'}).status == 200


def test_head_tells_all_but_the_body(web: Web) -> None:
    whole, head = get(web), web.ask("HEAD", link())

    assert (head.status, head.body) == (200, b"")
    assert {name: value for name, value in head.headers.items() if name != "date"} == {
        name: value for name, value in whole.headers.items() if name != "date"
    }


EXPOSED = {"content-range", "etag", "content-length", "accept-ranges", "content-disposition"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://app.example"}, 200),
        ({"origin": "https://app.example", "range": "bytes=0-9"}, 206),
        ({"origin": "null"}, 200),
        ({"origin": "https://app.example", "range": f"bytes={len(CONTENT)}-"}, 416),
        ({"origin": "https://app.example", "if-none-match": "*"}, 304),
        ({}, 200),
    ],
)
def test_scripts_of_any_page_may_use_a_signed_link(web: Web, headers: dict[str, str], status: int) -> None:
    answer = get(web, headers)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "*")
    assert {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")} == EXPOSED
    assert "access-control-allow-credentials" not in answer.headers


def test_a_browser_may_ask_before_it_sends_a_range(web: Web) -> None:
    asks = {"origin": "https://app.example", "access-control-request-method": "GET"}
    asks["access-control-request-headers"] = "range"
    answer = web.ask("OPTIONS", link(), headers=asks)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "range" in answer.headers["access-control-allow-headers"].split(", ")
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD"
    refused = web.ask("OPTIONS", link(seconds=-60), headers=asks)
    assert refused.status == 403
    assert "access-control-allow-methods" not in refused.headers


def test_scripts_of_other_pages_get_nothing_by_the_admin_token(web: Web) -> None:
    shown = {"authorization": f"Bearer {TOKEN}".encode().decode("latin-1"), "origin": "https://app.example"}
    for method, path in (("GET", PATH), ("GET", link()), ("OPTIONS", PATH)):
        answer = web.ask(method, path, headers=shown)
        assert "access-control-allow-origin" not in answer.headers


def test_the_link_signs_the_file_and_not_the_method(web: Web) -> None:
    answer = web.ask("POST", link())
    assert (answer.status, set(answer.headers["allow"].split(", "))) == (405, {"GET", "HEAD", "OPTIONS"})


@pytest.mark.parametrize(
    ("extension", "media_type", "disposition"),
    [
        ("png", "image/png", None),
        ("mp4", "video/mp4", None),
        ("html", "text/html", "attachment"),
        ("svg", "image/svg+xml", "attachment"),
        ("pdf", "application/pdf", "attachment"),
        ("zip", "application/zip", "attachment"),
        ("xml", "application/xml", "attachment"),
        ("js", "application/octet-stream", "attachment"),
        ("bin", "application/octet-stream", "attachment"),
        ("unheardof", "application/octet-stream", "attachment"),
    ],
)
def test_no_file_can_run_in_our_origin(
    web: Web, extension: str, media_type: str, disposition: str | None
) -> None:
    name = f"output-0.{extension}"
    storage = Storage((web.folder / "outputs").as_uri())
    storage.put_bytes(f"predictions/xyz/{name}", b"<script>alert(1)</script>")

    headers = get(web, path=link(file_path(Kind.PREDICTION, "xyz", name))).headers

    assert headers["content-security-policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == media_type
    wanted = f'{disposition}; filename="{name}"' if disposition else None
    assert headers.get("content-disposition") == wanted


@pytest.mark.parametrize(
    "place",
    [
        "predictions/abc/nothing.png",
        "predictions/abc/.hidden",
        "predictions/abc/..",
        "predictions/abc/%2e%2e",
        "predictions/%2e%2e/output-0.png",
        "predictions/abc/output-0.png%00",
        "predictions/abc/a%0ab",
        "predictions/abc/..%2f..%2fsecret.key",
        "predictions/abc/" + "a" * 129,
        "predictions/abc/sub/output-0.png",
        "predictions/abc/output%230",
        "predictions/abc/",
        "predictions/abc",
        "quarantine/abc/output-0.png",
        "Predictions/abc/output-0.png",
        "predictions//output-0.png",
    ],
)
def test_an_odd_or_unknown_name_is_not_found_even_for_the_admin(web: Web, place: str) -> None:
    answer = get(web, {"authorization": "Bearer " + TOKEN.encode().decode("latin-1")}, f"/files/{place}")

    assert (answer.status, answer.json()["error"]) == (404, "not_found")
    assert "location" not in answer.headers


def test_storage_that_fails_is_our_trouble_and_asked_for_again(web: Web) -> None:
    folder = web.folder / "outputs" / "predictions"
    (folder / "loop").symlink_to("loop")

    answer = get(web, path=link(file_path(Kind.PREDICTION, "loop", "output-0.png")))

    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"


def test_a_large_file_passes_in_pieces(web: Web) -> None:
    content = b"0123456789abcdef" * (1 << 20)
    Storage((web.folder / "outputs").as_uri()).put_bytes("predictions/abc/large.bin", content)

    assert get(web, path=link(file_path(Kind.PREDICTION, "abc", "large.bin"))).body == content
