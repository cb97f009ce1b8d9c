from collections.abc import Sequence

import pytest

from app.core.answers import (
    Answer,
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


def test_a_length_or_chunks_make_a_file() -> None:
    assert judged(lengths=["1000"]) == 1000
    assert judged(lengths=["1000"], content_encodings=["identity"]) == 1000
    assert judged(transfer_encodings=["Chunked"]) is None


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "body_incomplete"),
        ({"lengths": ["0"]}, "body_empty"),
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
        ({"lengths": ["5"], "content_encodings": ["gzip"]}, "content_encoded"),
        ({"lengths": ["5"], "content_encodings": ["identity", "br"]}, "content_encoded"),
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


def test_a_body_is_complete_when_all_announced_bytes_came() -> None:
    require_complete("a.test", declared=5, received=5)
    require_complete("a.test", declared=None, received=5)
    for declared, received, code in (
        (5, 4, "body_incomplete"),
        (5, 6, "body_incomplete"),
        (None, 0, "body_empty"),
    ):
        with pytest.raises(Transient) as caught:
            require_complete("a.test", declared=declared, received=received)
        assert caught.value.code == code


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
    for url in (URL, "https://a.test/html", "https://a.test/x?y=.html"):
        with pytest.raises(Transient) as caught:
            require_no_error_page(url, host="a.test", content_type="text/html", head=head)
        assert caught.value.code == "html_instead"


@pytest.mark.parametrize("head", PAGES)
def test_a_page_that_was_asked_for_or_declared_as_data_is_a_file(head: bytes) -> None:
    require_no_error_page("https://a.test/x.HTML?y", host="a.test", content_type="text/html", head=head)
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
