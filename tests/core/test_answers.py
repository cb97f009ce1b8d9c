from collections.abc import Sequence

import pytest

from app.core.answers import (
    Answer,
    Body,
    Unconfirmed,
    content_coding,
    declared_length,
    media_type,
    redirection,
    require_complete,
    require_no_error_page,
)
from app.core.errors import OutkeepError, Permanent, Transient

URL = "https://a.test/dir/file.png?x=%2F"


def judged(
    status: int = 200,
    *,
    lengths: Sequence[str] = (),
    transfer_encodings: Sequence[str] = (),
    content_encodings: Sequence[str] = (),
) -> int | None:
    answer = Answer("a.test", status, lengths, transfer_encodings, content_encodings)
    return declared_length(answer, max_bytes=1000, now=0.0)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("gzip", "gzip"),
        ("gzip, x-gzip", "gzip, gzip"),
        ("gzip, " * 8, ", ".join(["gzip"] * 8)),
        ("gzip, " * 9, None),
        ("gzip, " * 10_000, None),
        ("br," * 20_000 + "gzip", None),
        ("aws-chunked," * 5_000 + "gzip", "gzip"),
    ],
)
def test_what_is_kept_of_a_coding_for_each_file_is_short(words: str, kept: str | None) -> None:
    assert content_coding([words], b"\x1f\x8b\x08") == kept
    assert content_coding(words.split(","), b"\x1f\x8b\x08") == kept


def test_a_length_or_chunks_make_a_file() -> None:
    assert judged(lengths=["1000"]) == 1000
    assert judged(lengths=["0"]) == 0
    for encoding in ("identity", "gzip", "aws-chunked", "UTF-8", "", "br, gzip"):
        assert judged(lengths=["1000"], content_encodings=[encoding]) == 1000
    assert judged() is None
    assert judged(transfer_encodings=["Chunked"]) is None


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"lengths": ["1001"]}, "too_large"),
        ({"lengths": ["9" * 19]}, "too_large"),
        ({"lengths": ["9" * 20]}, "length_unclear"),
        ({"lengths": ["5", "5"]}, "length_unclear"),
        ({"lengths": ["5, 5"]}, "length_unclear"),
        ({"lengths": ["-5"]}, "length_unclear"),
        ({"lengths": ["+5"]}, "length_unclear"),
        ({"lengths": ["\u0665"]}, "length_unclear"),
        ({"lengths": ["5"], "transfer_encodings": ["chunked"]}, "length_unclear"),
        ({"transfer_encodings": ["gzip, chunked"]}, "length_unclear"),
        ({"transfer_encodings": ["chunked", "chunked"]}, "length_unclear"),
        ({"transfer_encodings": ["identity"]}, "length_unclear"),
    ],
)
def test_a_body_of_unclear_extent_is_not_taken(headers: dict[str, list[str]], code: str) -> None:
    with pytest.raises(OutkeepError) as caught:
        judged(200, **headers)
    assert caught.value.code == code
    assert isinstance(caught.value, Permanent) == (code == "too_large")


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (404, Permanent, "not_found"),
        (410, Permanent, "gone"),
        (401, Transient, "forbidden"),
        (403, Transient, "forbidden"),
        (429, Transient, "busy"),
        (500, Transient, "server_error"),
        (503, Transient, "server_error"),
        (599, Transient, "server_error"),
        (204, Transient, "status_unexpected"),
        (206, Transient, "status_unexpected"),
        (304, Transient, "status_unexpected"),
        (302, Transient, "status_unexpected"),
        (418, Transient, "status_unexpected"),
    ],
)
def test_only_200_is_a_success(status: int, kind: type[OutkeepError], code: str) -> None:
    with pytest.raises(kind) as caught:
        judged(status, lengths=["5"])
    assert caught.value.code == code


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_a_busy_host_asks_for_is_handed_on(status: int) -> None:
    with pytest.raises(Transient) as caught:
        declared_length(Answer("a.test", status, retry_after="7"), max_bytes=1, now=0.0)
    assert caught.value.retry_after == 7.0


@pytest.mark.parametrize(
    ("location", "following"),
    [
        ("/b/%28c%29", "https://a.test/b/%28c%29"),
        ("c?y=%7E", "https://a.test/dir/c?y=%7E"),
        ("//b.test/c", "https://b.test/c"),
        ("https://b.test/é", "https://b.test/é"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("/my file.png", "https://a.test/my%20file.png"),
        ("  /b\t ", "https://a.test/b"),
        ("/a  b\tc.png?x=1 2", "https://a.test/a%20%20b%09c.png?x=1%202"),
        ("https://b.test/out put/%28c%29 d", "https://b.test/out%20put/%28c%29%20d"),
        ("/caf\udce9 1.png", "https://a.test/caf%E9%201.png"),
    ],
)
def test_a_redirect_is_resolved_and_its_encoding_kept(location: str, following: str) -> None:
    for status in (301, 302, 303, 307, 308):
        assert redirection(Answer("a.test", status, location=location), URL) == following


def test_a_location_without_a_redirect_status_means_nothing() -> None:
    assert redirection(Answer("a.test", 200, location="/b"), URL) is None
    assert redirection(Answer("a.test", 302), URL) is None
    assert redirection(Answer("a.test", 302, location="  "), URL) is None


@pytest.mark.parametrize("location", ["http://a.test/x", "HTTP://a.test/x", "http://[::1/x"])
def test_a_redirect_never_leads_down_to_http_or_nowhere(location: str) -> None:
    with pytest.raises(Permanent) as caught:
        redirection(Answer("a.test", 302, location=location), URL)
    assert caught.value.code == "redirect_refused"


A, B, EMPTY = (5, "a" * 64), (5, "b" * 64), (0, "e" * 64)
LENGTH, CHUNKS, NEITHER = (
    Answer("a.test", 200, ["5"]),
    Answer("a.test", 200, (), ["chunked"]),
    Answer("a.test", 200),
)
ZERO = Answer("a.test", 200, ["0"])


@pytest.mark.parametrize(
    ("answer", "declared", "body", "before", "code"),
    [
        (LENGTH, 5, A, None, None),
        (LENGTH, 5, A, B, None),
        (LENGTH, 6, A, A, "body_incomplete"),
        (LENGTH, 4, A, A, "body_incomplete"),
        (CHUNKS, None, A, None, None),
        (CHUNKS, None, EMPTY, None, "body_empty"),
        (CHUNKS, None, EMPTY, EMPTY, None),
        (ZERO, 0, EMPTY, None, "body_empty"),
        (ZERO, 0, EMPTY, A, "body_empty"),
        (ZERO, 0, EMPTY, EMPTY, None),
        (ZERO, 0, A, A, "body_incomplete"),
        (NEITHER, None, A, None, "body_incomplete"),
        (NEITHER, None, A, B, "body_incomplete"),
        (NEITHER, None, A, (6, A[1]), "body_incomplete"),
        (NEITHER, None, A, A, None),
        (NEITHER, None, EMPTY, EMPTY, "body_empty"),
    ],
)
def test_what_nothing_shows_to_be_whole_must_come_twice(
    answer: Answer, declared: int | None, body: Body, before: Body | None, code: str | None
) -> None:
    if code is None:
        require_complete(answer, body[0], lambda: body[1], declared=declared, before=before)
        return
    with pytest.raises(Transient, match=r"a\.test") as caught:
        require_complete(answer, body[0], lambda: body[1], declared=declared, before=before)
    assert caught.value.code == code
    assert not isinstance(caught.value, Unconfirmed) or caught.value.body == body


PNG, GZIP, ZSTD = b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd\x04"


@pytest.mark.parametrize(
    ("values", "head", "expected"),
    [
        ([], GZIP, None),
        (["identity"], PNG, None),
        (["aws-chunked"], PNG, None),
        (["UTF-8"], PNG, None),
        (["binary", "none"], PNG, None),
        (["null, base64, 7bit, \udce9"], PNG, None),
        (["gzip"], GZIP, "gzip"),
        (["GZip "], GZIP, "gzip"),
        (["x-gzip"], GZIP, "gzip"),
        (["aws-chunked,gzip"], GZIP, "gzip"),
        (["zstd"], ZSTD, "zstd"),
        (["br"], b"\x0b\x02\x80words\x03", "br"),
        (["deflate"], b"\x78\x9c\x4b", "deflate"),
        (["br", "gzip"], GZIP, "br, gzip"),
        (["gzip"], PNG, None),
        (["gzip"], b"words", None),
        (["gzip"], b"", None),
        (["br"], PNG, None),
        (["deflate"], b'{"a": 1}', None),
    ],
)
def test_only_a_coding_that_the_bytes_have_is_one(
    values: list[str], head: bytes, expected: str | None
) -> None:
    assert content_coding(values, head) == expected


PAGES = [
    b"<!DOCTYPE html><html>",
    b"\xef\xbb\xbf \r\n<html lang=en>",
    b"<!-- one --><!-- two -->\n<HTML>",
    b"<?xml version='1.0'?><!DOCTYPE html PUBLIC",
    b"<head><title>502",
    b"<h1>Not found</h1>",
]


@pytest.mark.parametrize("head", PAGES)
def test_a_page_in_place_of_a_file_is_noticed(head: bytes) -> None:
    for name in (
        "a.png",
        "a.svg",
        "a.MP3",
        "a.mp4?x=.html",
        "a.tar.gz",
        "a.zip",
        "a.safetensors",
        "a.glb",
        "a.bin",
    ):
        for content_type in ("text/html", "application/xhtml+xml"):
            for urls in ([f"https://a.test/{name}"], [f"https://a.test/{name}", "https://a.test/error"]):
                with pytest.raises(Transient) as caught:
                    require_no_error_page(*urls, host="a.test", content_type=content_type, head=head)
                assert caught.value.code == "html_instead"


@pytest.mark.parametrize("head", PAGES)
def test_a_page_that_was_asked_for_or_declared_as_data_is_a_file(head: bytes) -> None:
    for name in (
        "x.HTML?y",
        "x.htm",
        "x.xhtml",
        "plot",
        "README.md",
        "x.php",
        "x?y=.png",
        "a.png/",
        "words.txt",
        "",
    ):
        url = f"https://a.test/{name}"
        require_no_error_page(url, url, host="a.test", content_type="text/html", head=head)
    require_no_error_page(URL, host="a.test", content_type="image/png", head=head)
    require_no_error_page(URL, host="a.test", content_type=None, head=head)


@pytest.mark.parametrize("head", [b"\x89PNG\r\n\x1a\n", b"<svg xmlns=''>", b"<htmlish>", b"text <html>", b""])
def test_a_file_with_the_wrong_type_is_still_a_file(head: bytes) -> None:
    require_no_error_page(URL, host="a.test", content_type="text/html", head=head)


def test_hostile_heads_are_judged_without_going_over_them_again_and_again() -> None:
    for head in (
        b"<!---->" * 60_000 + b"x",
        b"<!--" * 100_000,
        b" " * 400_000,
        b"<?xml" * 80_000,
        b"<!-- -->" * 50_000 + b"<",
    ):
        require_no_error_page(URL, host="a.test", content_type="text/html", head=head)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("image/PNG; q=1", "image/png"),
        ("image/svg+xml", "image/svg+xml"),
        (None, None),
        ("", None),
        ("png", None),
        ("a/b/c", None),
        ("a b/c", None),
        ("a/" + "b" * 65, None),
        ("im\udce9/x", None),
    ],
)
def test_only_a_media_type_is_taken_for_one(header: str | None, expected: str | None) -> None:
    assert media_type(header) == expected
