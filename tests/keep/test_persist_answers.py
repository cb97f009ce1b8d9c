"""What file hosts answer, however oddly: what is kept, after how many questions, and what is said of it."""

import asyncio
import gzip
import hashlib

import pytest

from tests.keep.desk import ID, PNG, Desk
from tests.raw_host import Script, chunked, ok, raw_host, then_reset

UNTIL_CLOSED = b"HTTP/1.0 200 OK\r\nContent-Type: image/png\r\n\r\n"
BROKEN = ok(b"", status="500 Oops")
MISSING = ok(b"", status="404 Not Found")
GONE = ok(b"", status="410 Gone")
FORBIDDEN = ok(b"", status="403 Forbidden")
EMPTY = ok(b"")
WHOLE = UNTIL_CLOSED + PNG
CUT = WHOLE[:-100]


def asked(
    desk: Desk, *answers: bytes | Script, name: str = "a.png", late: float = 0.0, runs: int = 100
) -> tuple[int, float]:
    """Keep one output of a host that gives these answers; how often it was asked, and the seconds it took."""

    async def scenario() -> tuple[int, float]:
        async with raw_host(*answers) as host:
            desk.trust(f"http://127.0.0.1:{host.port}")
            desk.receive([f"http://127.0.0.1:{host.port}/{name}"])
            desk.forward(late)
            began = desk.now
            for _ in range(runs):
                wait = await desk.run()
                if wait is None:
                    break
                desk.forward(wait)
            return host.connections, (desk.now - began).total_seconds()

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answers", "times"),
    [
        ([WHOLE], 2),
        ([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PNG], 2),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n" + PNG], 2),
        ([b"HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n" + PNG], 2),
        ([CUT, WHOLE], 3),
        ([CUT, WHOLE, CUT, WHOLE], 5),
        ([WHOLE, BROKEN, WHOLE], 4),
        ([WHOLE, FORBIDDEN, WHOLE], 4),
        ([WHOLE, ok(PNG)], 2),
        ([CUT, ok(PNG)], 2),
    ],
)
def test_a_body_without_a_length_is_kept_when_it_comes_twice_in_a_row(
    desk: Desk, answers: list[bytes | Script], times: int
) -> None:
    assert asked(desk, *answers)[0] == times
    [file] = desk.manifest()["files"]
    assert (file["error"], file["size"]) == (None, len(PNG))
    assert file["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert desk.file("output-0.png") == PNG
    assert list(desk.temporary.iterdir()) == []


def test_a_body_that_never_comes_twice_alike_is_lost_with_the_hour(desk: Desk) -> None:
    times, seconds = asked(desk, *(WHOLE[:-count] for count in range(1, 200)))
    assert times > 20
    assert 3500 < seconds < 4200
    assert desk.manifest()["files"][0]["error"] == "body_incomplete"


@pytest.mark.parametrize("answer", [WHOLE, EMPTY])
def test_a_second_look_is_owed_after_the_hour_too(desk: Desk, answer: bytes) -> None:
    assert asked(desk, answer, late=4000.0)[0] == 2
    assert desk.manifest()["files"][0]["error"] is None


def test_a_body_that_differs_after_the_hour_is_asked_for_twice_and_no_more(desk: Desk) -> None:
    assert asked(desk, CUT, WHOLE, CUT, late=4000.0)[0] == 2
    assert desk.manifest()["files"][0]["error"] == "body_incomplete"


@pytest.mark.parametrize(
    ("answers", "times", "name"),
    [
        ([EMPTY], 2, "a.srt"),
        ([ok(b"", "Connection: close")], 2, "a.txt"),
        ([chunked()], 2, "a.csv"),
        ([EMPTY, BROKEN, EMPTY], 4, "a.srt"),
        ([EMPTY, chunked()], 2, "a.vtt"),
        ([b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"], 2, "a.md"),
    ],
)
def test_a_length_of_zero_seen_twice_is_an_empty_file(
    desk: Desk, answers: list[bytes], times: int, name: str
) -> None:
    assert asked(desk, *answers, name=name)[0] == times
    [file] = desk.manifest()["files"]
    assert (file["error"], file["size"]) == (None, 0)
    assert file["name"] == f"output-0.{name.partition('.')[2]}"
    assert desk.file(file["name"]) == b""


def test_an_empty_answer_before_the_file_is_not_the_file(desk: Desk) -> None:
    assert asked(desk, EMPTY, ok(PNG))[0] == 2
    assert desk.file("output-0.png") == PNG


def test_nothing_without_a_length_is_no_file_however_often(desk: Desk) -> None:
    asked(desk, UNTIL_CLOSED)
    assert desk.manifest()["files"][0]["error"] == "body_empty"


@pytest.mark.parametrize(
    ("answers", "late", "times", "error"),
    [
        ([MISSING, ok(PNG)], 0.0, 2, None),
        ([MISSING, MISSING, ok(PNG)], 0.0, 3, None),
        ([MISSING, MISSING, MISSING, ok(PNG)], 0.0, 3, "not_found"),
        ([MISSING, BROKEN, MISSING, ok(PNG)], 5.0, 4, None),
        ([MISSING, FORBIDDEN, MISSING, ok(PNG)], 0.0, 4, None),
        ([BROKEN, MISSING, MISSING, MISSING], 0.0, 4, "not_found"),
        ([MISSING, ok(PNG)], 45.0, 2, None),
        ([MISSING, ok(PNG)], 90.0, 1, "not_found"),
        ([MISSING, ok(PNG)], 4000.0, 1, "not_found"),
        ([GONE, ok(PNG)], 0.0, 1, "gone"),
    ],
)
def test_a_404_in_the_first_seconds_is_asked_for_three_times(
    desk: Desk, answers: list[bytes], late: float, times: int, error: str | None
) -> None:
    assert asked(desk, *answers, late=late)[0] == times
    assert desk.manifest()["files"][0]["error"] == error


def test_a_404_that_stays_is_lost_within_about_ten_seconds(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    times, seconds = asked(desk, MISSING)
    assert times == 3
    assert 5 <= seconds <= 10
    levels = [record.levelname for record in caplog.records if record.message.startswith("an output is")]
    assert levels == ["WARNING", "WARNING", "ERROR"]


ZIPPED = gzip.compress(b"a,b\n1,2\n", mtime=0)


@pytest.mark.parametrize(
    ("encoding", "body", "name", "stored", "kept"),
    [
        ("aws-chunked", PNG, "a.png", "output-0.png", None),
        ("UTF-8", PNG, "a.png", "output-0.png", None),
        ("binary", PNG, "a.png", "output-0.png", None),
        ("none", b"words", "a.txt", "output-0.txt", None),
        ("identity", PNG, "a.png", "output-0.png", None),
        ("gzip", PNG, "a.png", "output-0.png", None),
        ("gzip", ZIPPED, "weights.tar.gz", "output-0.gz", "gzip"),
        ("aws-chunked, gzip", ZIPPED, "a.csv", "output-0.csv", "gzip"),
        ("X-GZIP", ZIPPED, "a.csv", "output-0.csv", "gzip"),
        ("br", b"\x0b\x02\x80words\x03", "a.txt", "output-0.txt", "br"),
    ],
)
def test_an_encoding_is_kept_with_its_bytes_and_said_in_the_manifest_alone(
    desk: Desk, encoding: str, body: bytes, name: str, *, stored: str, kept: str | None
) -> None:
    assert asked(desk, ok(body, f"Content-Encoding: {encoding}"), name=name)[0] == 1
    [file] = desk.manifest()["files"]
    assert (file["name"], file["error"], file["size"]) == (stored, None, len(body))
    assert file.get("encoding") == kept
    assert ("encoding" in file) == (kept is not None)
    assert file["sha256"] == hashlib.sha256(body).hexdigest()
    assert desk.files()[f"predictions/{ID}/{stored}"] == body


def test_what_a_host_declared_is_known_to_a_download_that_waited_for_the_storage(desk: Desk) -> None:
    obstacle = desk.outputs / "predictions" / ID
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    assert asked(desk, ok(ZIPPED, "Content-Encoding: gzip"), name="a.csv", runs=1)[0] == 1
    obstacle.unlink()
    assert desk.work() is None
    [file] = desk.manifest()["files"]
    assert (file["name"], file["encoding"]) == ("output-0.csv", "gzip")
    assert desk.file("output-0.csv") == ZIPPED


START = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(PNG)
MANY = b"".join(b"X-%d: 1\r\n" % number for number in range(129))
ODD = [
    (START + b"X: " + b"a" * 9_000 + b"\r\n" + LENGTH + b"\r\n" + PNG, None),
    (START + b"X: " + b"a" * 60_000 + b"\r\n" + LENGTH + b"\r\n" + PNG, None),
    (START + MANY + LENGTH + b"\r\n" + PNG, None),
    (START + MANY * 40 + LENGTH + b"\r\n" + PNG, None),
    (START + LENGTH + LENGTH + b"\r\n" + PNG, "the same length more than once"),
    (
        START + b"Content-Length: %d, %d\r\n\r\n" % (len(PNG), len(PNG)) + PNG,
        "the same length more than once",
    ),
    (
        START + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + PNG,
        "a transfer coding that means nothing",
    ),
    (START + b"X Y: 1\r\n" + LENGTH + b"\r\n" + PNG, "a header without a proper name"),
    (START + b"Server : a\r\n" + LENGTH + b"\r\n" + PNG, "a blank after the name of a header"),
    (START + LENGTH.replace(b":", b" :") + b"\r\n" + PNG, "a blank after the name of a header"),
    (START + b"garbage\r\n" + LENGTH + b"\r\n" + PNG, "a header without a proper name"),
    (START + b": a\r\n" + LENGTH + b"\r\n" + PNG, "a header without a proper name"),
    (START + b"X: \0\r\n" + LENGTH + b"\r\n" + PNG, "a control character in a header"),
    (START + "X-\u00dc: 1\r\n".encode() + LENGTH + b"\r\n" + PNG, "a header without a proper name"),
    (START + b" folded\r\n" + LENGTH + b"\r\n" + PNG, "a header over several lines"),
    (b"\r\nHTTP/1.1  200\r\n" + LENGTH + b"\r\n" + PNG, None),
    (
        b"HTTP/1.1 103 Early\r\nX Y: 1\r\n\r\n" + START + b"X Y: 1\r\n" + LENGTH + b"\r\n" + PNG,
        "a header without",
    ),
    (
        START + b"X Y: 1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(PNG) + PNG + b"\r\n0\r\n\r\n",
        "a header",
    ),
]


@pytest.mark.parametrize(("answer", "said"), ODD)
def test_an_answer_with_an_odd_head_and_a_clear_extent_is_kept_at_once(
    desk: Desk, answer: bytes, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert asked(desk, answer, GONE)[0] == 1
    [file] = desk.manifest()["files"]
    assert (file["error"], file["sha256"]) == (None, hashlib.sha256(PNG).hexdigest())
    assert said is None or said in "".join(str(getattr(record, "odd", "")) for record in caplog.records)


def dripped(answer: bytes) -> Script:
    """A byte at a time, each in a segment of its own as far as the network lets it."""

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        for byte in head + b"\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(body)
        await writer.drain()

    return script


def test_a_head_may_come_in_pieces(desk: Desk) -> None:
    assert asked(desk, dripped(ODD[7][0]), GONE)[0] == 1
    assert desk.file("output-0.png") == PNG


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: 5\r\nContent-Length : 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: \r\n",
        LENGTH + b"Transfer-Encoding: chunked\r\n",
        LENGTH + b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        LENGTH + b"Content Length: 5\r\n",
        LENGTH + b"Transfer\tEncoding: chunked\r\n",
        LENGTH + b"X: a\rTransfer-Encoding: chunked\r\n",
        LENGTH + b"X: " + b"a" * 70_000 + b"\r\n",
        LENGTH + (b"X: " + b"a" * 40_000 + b"\r\n") * 4,
    ],
)
def test_an_answer_of_unclear_extent_is_never_kept_and_the_log_says_why(
    desk: Desk, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    asked(desk, START + head + b"\r\n" + PNG, runs=3)
    assert not desk.is_committed
    assert not (desk.outputs / "predictions").exists()
    assert all(word in caplog.text for word in ("tried again", "length") if len(head) < 60_000)


@pytest.mark.parametrize("head", [b"Content-Length: 5\r\nContent-Length: 6\r\n", b"X Y: 1\r\n", MANY])
def test_the_status_and_the_redirect_of_an_odd_answer_count(desk: Desk, head: bytes) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /b.png\r\n" + head + b"\r\n"
    assert asked(desk, b"HTTP/1.1 503 Busy\r\n" + head + b"\r\n", moved, ok(PNG))[0] == 3
    assert desk.file("output-0.png") == PNG


def test_a_body_without_a_length_that_a_broken_connection_cut_does_not_count(desk: Desk) -> None:
    assert asked(desk, then_reset(CUT), then_reset(CUT), then_reset(CUT), WHOLE)[0] == 5
    assert desk.file("output-0.png") == PNG


WORDS = b"1\n00:00:00,000 --> 00:00:01,000\nhello\n"
MOVED = ok(b"", "Location: /other/file.csv", status="302 Found")


@pytest.mark.parametrize(
    ("answers", "name", "stored"),
    [
        ([ok(WORDS, "Content-Type: application/x-subrip")], "out", "srt"),
        ([ok(WORDS, "Content-Type: text/plain; charset=utf-8")], "out", "txt"),
        ([ok(WORDS, "Content-Type: text/csv")], "out?name=x.png", "csv"),
        (
            [ok(WORDS, "Content-Type: text/plain", 'Content-Disposition: attachment; filename="a.obj"')],
            "out",
            "obj",
        ),
        ([ok(WORDS, "Content-Type: text/plain")], "out.srt", "srt"),
        ([ok(WORDS, "Content-Type: application/octet-stream")], "out", "bin"),
        ([ok(PNG, "Content-Type: text/plain")], "out", "png"),
        ([ok(b"<!DOCTYPE html><p>", "Content-Type: text/html")], "plot", "html"),
        ([ok(b"<!DOCTYPE html><p>", "Content-Type: application/xhtml+xml")], "page.xhtml", "html"),
        ([ok(b"<h1>Title</h1>", "Content-Type: text/html")], "README.md", "md"),
        ([MOVED, ok(WORDS)], "out", "csv"),
        ([b"HTTP/1.1 200 OK\r\nX Y: 1\r\nContent-Type: text/csv\r\n\r\n" + WORDS], "out", "csv"),
    ],
)
def test_a_file_is_named_by_what_its_host_declares(
    desk: Desk, answers: list[bytes], name: str, stored: str
) -> None:
    asked(desk, *answers, name=name)
    [file] = desk.manifest()["files"]
    assert (file["error"], file["name"]) == (None, f"output-0.{stored}")


@pytest.mark.parametrize("name", ["a.png", "a.mp3", "a.mp4", "a.tar", "a.safetensors"])
def test_a_page_in_the_place_of_a_picture_is_lost_though_it_is_elsewhere(desk: Desk, name: str) -> None:
    moved = ok(b"", "Location: /sorry", status="302 Found")
    page = ok(b"<!DOCTYPE html><title>Sorry</title>", "Content-Type: text/html")
    asked(desk, *[moved, page] * 100, name=name)
    assert desk.manifest()["files"][0]["error"] == "html_instead"
