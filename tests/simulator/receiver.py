"""A webhook receiver on a port that records what arrives and answers what it is told to."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from tests.serving import Answering, serving


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
    class Handler(Answering):
        recording: ClassVar[Receiver]

        def do_POST(self) -> None:
            body = self.body()
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = self.recording.take(Received(self.path, headers, body))
            more = {"location": "/elsewhere"} if status // 100 == 3 else {}
            self.answer(status, b"", **more)

    with serving(Handler) as url:
        Handler.recording = Receiver(url, answers)
        yield Handler.recording
