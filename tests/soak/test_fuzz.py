"""Hostile requests drawn at random: headers, signature lists, bodies, and what is no HTTP at all."""

import os
import random
import socket
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.app.own_valkey import own_valkey
from tests.app.web import WEBHOOK, Web, in_process, prediction, signed

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("FUZZ", "600"))
SEED = int(os.environ.get("SEED", "1"))
ROOM = 32 << 20
"""Bytes by which the receiver may grow after the first tenth of the time."""

HOSTILE = [
    b"", b" ", b"\x00", b"\xff\xfe", b"v1", b"v1,", b"v1,a,b", b"v1a,xyz", b"-1", b"1e9", b"nan", b"A" * 9000,
    b"v1," * 5000, "é١".encode(), b"gzip", b"chunked", b"identity, chunked", b"99999999999999999999",
    b"../../etc", b"%00", b"\t", b"{}", b"a\x0bb",
]  # fmt: skip
BODIES = [
    b"[" * 200_000, b"{" * 50_000, b'{"id": "x", "status": "succeeded", "n": ' + b"9" * 5000 + b"}", b"null",
    b"\xef\xbb\xbf{}", b'{"id": "\\ud800", "status": "x"}', b'{"id": "../x", "status": "succeeded"}', b"NaN",
    b'{"id": "y", "status": "succeeded", "output": [[["https://replicate.delivery/%zz"]]]}',
]  # fmt: skip

Headers = list[tuple[bytes, bytes]]


class Fuzzer:
    """Draws one request after the other from a seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def request(self) -> bytes:
        """A genuine delivery, changed in one to four ways."""
        if self._draw.random() < 0.05:
            return self._draw.randbytes(self._draw.randint(1, 2000)) + b"\r\n\r\n"
        body = self._body()
        headers = [(name.encode(), value.encode()) for name, value in signed(body).items()]
        headers += [(b"host", b"x"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        for _ in range(self._draw.randint(0, 4)):
            self._change(headers)
        if self._draw.random() < 0.3:
            body = self._damaged(body)
        path = self._draw.choice([WEBHOOK, WEBHOOK, f"{WEBHOOK}/trainings", f"{WEBHOOK}?a=%zz&a=%00"])
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return b"POST " + path.encode() + b" HTTP/1.1\r\n" + lines + b"\r\n" + body

    def _body(self) -> bytes:
        if self._draw.random() < 0.5:
            return prediction(f"fuzz-{self._draw.randrange(1000)}", logs="x" * self._draw.randrange(2000))
        return self._damaged(self._draw.choice([*BODIES, prediction()]))

    def _damaged(self, body: bytes) -> bytes:
        at = self._draw.randrange(len(body) + 1)
        middle = self._draw.choice([b"", self._draw.randbytes(3), self._draw.choice(HOSTILE)])
        return body[:at] + middle + body[at + self._draw.randrange(3) :]

    def _change(self, headers: Headers) -> None:
        at = self._draw.randrange(len(headers))
        name, value = headers[at]
        way = self._draw.randrange(5)
        if way == 0:
            headers[at] = (name, self._draw.choice(HOSTILE))
        elif way == 1:
            headers[at] = (name, self._damaged(value))
        elif way == 2:
            headers.append((name, self._draw.choice([value, *HOSTILE])))
        elif way == 3 and len(headers) > 1:
            del headers[at]
        else:
            other = self._draw.choice(
                [b"content-encoding", b"transfer-encoding", b"expect", b"x" * 300, b"\xff"]
            )
            headers.append((other, self._draw.choice(HOSTILE)))


def answer_to(web: Web, request: bytes) -> bytes:
    """The status that comes back, and nothing for a connection that is closed without a word."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(4096)[9:12]
        except TimeoutError:  # neither an answer nor an end
            raise
        except OSError:
            return b""


def test_hostile_requests_are_never_a_fault_of_ours(tmp_path: Path) -> None:
    """No 5xx, no traceback, flat memory, and good deliveries pass all the time."""
    fuzzer, answers = Fuzzer(SEED), Counter[bytes]()
    with own_valkey() as valkey:
        valkey.start()
        with in_process(valkey.url, tmp_path, OUTKEEP_DISK_FLOOR="0") as (web, process):
            receiver = psutil.Process(process.pid)
            start, settled = time.monotonic(), 0
            while (spent := time.monotonic() - start) < SECONDS:
                request = fuzzer.request()
                answers[status := answer_to(web, request)] += 1
                assert not status.startswith(b"5"), request[:2000]
                if spent < SECONDS / 10:
                    settled = max(settled, receiver.memory_info().rss)
                if answers.total() % 100 == 0:
                    assert web.outcome(prediction(f"good-{answers.total()}")) == "accepted"
            grown = receiver.memory_info().rss - settled
    counts = ", ".join(f"{count} {status.decode() or 'closed'}" for status, count in answers.most_common())
    print(f"\n{SECONDS:g} s of fuzzing, seed {SEED}: {counts}; grown by {grown >> 10} KiB")
    assert "Traceback" not in (tmp_path / "serve.log").read_text()
    assert grown < ROOM
    assert answers[b"202"]
    assert answers[b"401"] + answers[b"429"]
