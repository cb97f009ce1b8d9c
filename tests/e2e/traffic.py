"""Steady traffic of finished predictions: drawn from a seed, sent and retried as Replicate does."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from app.core.names import Kind
from app.simulator import Simulator
from tests.e2e.file_host import FileHost
from tests.e2e.running import Up, until

RETRY_DELAYS = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""As Replicate's sender waits, but sooner; the last attempt comes 25 s after the first."""

RATE = 25.0
"""Deliveries a second."""

NEW, AGAIN, TWICE = "new", "sent again", "twice at once"

TEXT = b"no file but text"
"""What is sent in the place of files now and then, in pieces."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Traffic:
    """Predictions and trainings of mixed shapes on their way to `up`: `count` of them, or no end with None.

    With `repeats`, 20 % of the deliveries are earlier ones sent again, and 10 % go out twice at once.
    `sources` is what was sent, with the URLs of its files; `deliveries` counts the ways of sending.
    """

    def __init__(
        self,
        count: int | None,
        *,
        seed: int,
        host: FileHost,
        simulator: Simulator,
        up: Up,
        repeats: bool = False,
        rate: float = RATE,
    ) -> None:
        self._count = count
        self._random = random.Random(seed)
        self._host = host
        self._simulator = simulator
        self._up = up
        self._weights = [70, 20, 10] if repeats else [100, 0, 0]
        self._rate = rate
        self.sources: dict[tuple[Kind, str], list[str]] = {}
        self.deliveries: Counter[str] = Counter()
        self._sent: list[tuple[Kind, dict[str, Any], str]] = []
        self._due: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._send)

    @contextmanager
    def flowing(self) -> Iterator["Traffic"]:
        """Send during the block, and until all has been sent, if there is an end."""
        self._thread.start()
        try:
            yield self
        except BaseException:
            self._stopping.set()
            raise
        finally:
            if self._count is None:
                self._stopping.set()
            self._thread.join()

    def ids(self) -> set[str]:
        """What was sent so far."""
        return {identity for _, identity in list(self.sources)}

    def acknowledged(self) -> set[str]:
        """The ids that were answered with 2xx so far."""
        return {
            identity for identity in self.ids() if any(_is_good(one.status) for one in self._tried(identity))
        }

    def wait_until_acknowledged(self, count: int) -> None:
        until(lambda: len(self.acknowledged()) >= count, f"{count} predictions are acknowledged")

    def wait_until_settled(self) -> None:
        """Until each delivery was answered with 2xx or given up by the sender."""
        for identity, due in self._due.items():
            until(
                lambda: sum(one.settled for one in self._tried(identity)) >= due,  # noqa: B023 - asked at once
                f"the sender has done with {identity}",
            )

    def _tried(self, identity: str) -> list[Any]:
        return self._simulator.attempts(identity)

    def _send(self) -> None:
        while self._count is None or len(self.sources) < self._count:
            self._step()
            if self._stopping.wait(1 / self._rate):
                return

    def _step(self) -> None:
        (way,) = self._random.choices([NEW, AGAIN, TWICE], self._weights)
        if way == AGAIN and self._sent:
            self._deliver(*self._random.choice(self._sent))
        else:
            kind, ended = self._draw()
            webhook_id = self._deliver(kind, ended)
            if way == TWICE:
                self._deliver(kind, ended, webhook_id)
            self._sent.append((kind, ended, webhook_id))
        self.deliveries[way] += 1

    def _deliver(self, kind: Kind, ended: dict[str, Any], webhook_id: str | None = None) -> str:
        hook = self._up.hook if kind is Kind.PREDICTION else f"{self._up.hook}/trainings"
        self._due[ended["id"]] += 1
        sent = self._simulator.finish(kind, ended, hook, webhook_id=webhook_id)
        assert sent is not None
        return sent

    def _draw(self) -> tuple[Kind, dict[str, Any]]:
        kind = self._random.choices([Kind.PREDICTION, Kind.TRAINING], [9, 1])[0]
        identity = "".join(self._random.choices(_ALPHABET, k=26))
        files = self._random.choices([0, 1, 2, 5], [1, 6, 2, 1])[0]
        sources = self.sources[kind, identity] = [self._file(number) for number in range(files)]
        return kind, finished(identity, sources)

    def _file(self, number: int) -> str:
        content = b"\x00outkeep" + self._random.randbytes(self._random.randint(1, 60_000))
        return self._host.add(f"out-{number}.bin", content)


def finished(identity: str, sources: list[str]) -> dict[str, Any]:
    """A prediction that has just succeeded, with `sources` as its output, or text without any."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {
        "completed_at": now,
        "created_at": now,
        "error": None,
        "id": identity,
        "input": {"prompt": "traffic"},
        "logs": "",
        "metrics": {"predict_time": 0.1},
        "model": "outkeep/traffic",
        "output": sources or [TEXT[:3].decode(), TEXT[3:8].decode(), TEXT[8:].decode()],
        "started_at": now,
        "status": "succeeded",
        "version": "hidden",
    }


def _is_good(status: int | None) -> bool:
    return status is not None and 200 <= status < 300
