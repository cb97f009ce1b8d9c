"""A webhook receiver on a port that records what arrives and answers what it is told to."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers the given statuses in turn, then 200; `url` has no path."""

    def __init__(self, url: str, answers: Sequence[int]) -> None:
        self.url = url
        self.received: list[Received] = []
        self._answers = list(answers)
        self._changed = threading.Condition()

    def take(self, one: Received) -> int:
        with self._changed:
            self.received.append(one)
            self._changed.notify_all()
            return self._answers.pop(0) if self._answers else 200

    def wait(self, count: int, timeout: float = 60.0) -> list[Received]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.received) >= count, timeout)
            return list(self.received)


@contextmanager
def receiver(*answers: int) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        recording: ClassVar[Receiver]

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = self.recording.take(Received(self.path, headers, body))
            self.send_response(status)
            if status // 100 == 3:
                self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.recording = Receiver(f"http://127.0.0.1:{server.server_port}", answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Handler.recording
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
