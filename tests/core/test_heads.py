import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.heads import MAX_HEAD, MAX_HEADER, for_file, for_status, is_informational

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head",
    [
        OK + b"\r\n",
        b"HTTP/1.0 200\r\n\r\n",
        OK + b"Content-Length: 5\r\nX:\r\n\r\n",
        OK + b"content-length:5\r\n\r\n",
        OK + b"Transfer-Encoding: Chunked\r\nX: \xff \t~\r\n\r\n",
        OK.replace(b"\r", b"") + b"Content-Length: 5\n\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0 \r\nConnection: keep-alive\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"",
    ],
)
def test_a_head_in_order_and_one_without_a_status_stay_as_they_are(head: bytes) -> None:
    assert for_file(head) == head
    assert for_status(head) == head


CLOSE = b"HTTP/1.1 200 \r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("head", "written"),
    [
        (
            b"Content-Length: 5\r\ncontent-LENGTH: 5\r\n",
            b"Content-Length: 5\r\nOutkeep-Odd: the same length more than once\r\n",
        ),
        (b"Content-Length: 5,5\r\n", b"Content-Length: 5\r\nOutkeep-Odd: the same length more than once\r\n"),
        (
            b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n",
            b"Content-Length: 5\r\nOutkeep-Odd: a transfer coding that means nothing\r\n",
        ),
        *(
            (
                b"Transfer-Encoding: %s\r\nContent-Length: 5\r\n" % word,
                b"Content-Length: 5\r\nOutkeep-Odd: a transfer coding that means nothing\r\n",
            )
            for word in (b"binary", b"8bit", b"7bit", b"None", b"")
        ),
        (
            b"Transfer-Encoding: identity, chunked\r\n",
            b"Transfer-Encoding: chunked\r\nOutkeep-Odd: a transfer coding that means nothing\r\n",
        ),
        (
            b"X Y: 1\r\nContent-Type: image/png\r\n",
            b"content-type: image/png\r\nOutkeep-Odd: a header without a proper name\r\n",
        ),
        (
            b"Content-Length : 5\r\nServer: a\r\n",
            b"Content-Length: 5\r\nOutkeep-Odd: a blank after the name of a header\r\n",
        ),
        (
            b"Location: /a\r\n\tb\r\n c\r\nContent-Length: 0\r\nX\x00: 1\r\n",
            b"location: /a b c\r\nContent-Length: 0\r\n%s\r\n"
            % b"Outkeep-Odd: a header over several lines; a header without a proper name",
        ),
        (
            b"X: \x1b[31m\r\nRetry-After: 5\x00\r\n",
            b"retry-after: 5\r\nOutkeep-Odd: a control character in a header\r\n",
        ),
        (b"Outkeep-Odd: no\r\nOutkeep-Unclear: no\r\n", b""),
        (b"Sec-WebSocket-Key1: a\r\nContent-Length: 5\r\n", b"Content-Length: 5\r\n"),
        (b"X: 1\r\n" * 200 + b"Content-Length: 5\r\n", b"Content-Length: 5\r\n"),
        (b"X: " + b"a" * MAX_HEADER + b"\r\nContent-Length: 5\r\n", b"Content-Length: 5\r\n"),
    ],
)
def test_an_odd_head_is_written_anew_with_what_is_clear(head: bytes, written: bytes) -> None:
    assert for_file(OK + head + b"\r\n") == CLOSE + written + b"\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: 5\r\nContent-Length : 6\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: " + b"9" * 20 + b"\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding\t: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Content-Length: 5\r\nContent Length: 6\r\n",
        b"Content-Length: 5\r\n(Transfer-Encoding): chunked\r\n",
        b"Content-Length: 5\r\nX: a\rTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n\0Content-Length: 6\r\n",
        b"Content-Length: 5\r\nX: " + b"a" * (MAX_HEADER + 1) + b"\r\n",
        b"Content-Length: 5\r\n" + b"X: 1\r\n" * (MAX_HEAD // 6),
    ],
)
def test_where_the_end_of_a_body_is_not_clear_none_is_declared(head: bytes) -> None:
    written = for_file(OK + head + b"\r\n")
    assert b"\r\nOutkeep-Unclear: " in written
    assert b"ontent-" not in written
    assert b"ransfer-" not in written
    told = for_status(OK + head + b"\r\n")
    assert told.startswith(CLOSE + b"Content-Length: 0\r\nOutkeep-Odd: ")


@pytest.mark.parametrize(
    ("head", "written"),
    [
        (
            b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\nX Y: 1\r\n\r\n",
            b"HTTP/1.1 503 \r\nConnection: close\r\nRetry-After: 5\r\n",
        ),
        (b"HTTP/1.1  204\r\nX: 1\r\nX", b"HTTP/1.1 204 \r\nConnection: close\r\nContent-Length: 0\r\n"),
        (
            b"HTTP/2 200\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 \r\nConnection: close\r\nContent-Length: 0\r\n",
        ),
        (
            b"HTTP/1.0 200 OK\r\ngarbage\r\n\r\n",
            b"HTTP/1.0 200 \r\nConnection: close\r\nContent-Length: 0\r\n",
        ),
    ],
)
def test_of_a_handlers_answer_only_the_status_and_the_wait_are_left(head: bytes, written: bytes) -> None:
    assert for_status(head).startswith(written)


def test_a_head_that_was_cut_says_so() -> None:
    assert b"Outkeep-Unclear: cut off\r\n" in for_file(OK + b"Content-Length: 5\r\nX", "cut off")
    assert b"Outkeep-Odd: cut off\r\n" in for_status(OK + b"Content-Length: 5\r\nX", "cut off")


@pytest.mark.parametrize(
    ("head", "expected"),
    [(b"HTTP/1.1 100 Continue", True), (b"HTTP/1.1 103 E", True), (b"HTTP/1.1 101 S", False), (OK, False)],
)
def test_an_interim_answer_is_no_answer(head: bytes, *, expected: bool) -> None:
    assert is_informational(head) == expected


PIECES = st.sampled_from(
    [
        b"Content-Length",
        b"Transfer-Encoding",
        b":",
        b" ",
        b"\t",
        b"\r",
        b"\n",
        b"\r\n",
        b"5",
        b",",
        b"chunked",
        b"X",
        b"\0",
    ]
)


@given(st.lists(PIECES | st.binary(max_size=3), max_size=40).map(b"".join))
def test_whatever_comes_is_written_as_one_head_without_another_inside(lines: bytes) -> None:
    head = OK + lines + b"\r\n\r\n"
    for written in (for_file(head), for_status(head)):
        if written != head:
            assert written.endswith(b"\r\n\r\n")
            assert b"\r\n\r\n" not in written[:-4]
            assert b"\r" not in written.replace(b"\r\n", b"")
            assert b"\0" not in written


@pytest.mark.parametrize(
    "lines",
    [
        b"\r\n ",
        b"X Y: 1\r\n",
        b"Location: a\r\n",
        b"Content-Length: 5\r\n",
        b"X: \0\r\n",
        b" ",
        b":\r\n",
        b"a",
    ],
)
def test_the_work_of_a_hostile_head_grows_with_its_size_alone(lines: bytes) -> None:
    head = OK + lines * (MAX_HEAD // len(lines)) + b"\r\n\r\n"
    began = time.process_time()
    for_file(head), for_status(head)
    assert time.process_time() - began < 2
