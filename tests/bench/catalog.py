#!/usr/bin/env python
"""How long lists and searches take over 100,000 predictions, and whether the catalog keeps up with the line.

The rows are made by our own code from entries as manifests give them. The line is played by its Lua alone:
each prediction is received, stored, dispatched and told, as fast as Valkey takes it, with real manifests.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from app.core.lifecycle import State
from app.core.names import Kind
from app.valkey.client import connect
from app.web import models
from app.web.catalog import Catalog, Filters
from app.web.entries import Entry
from app.web.feed import Feed
from tests.kept import TTL, Deployment
from tests.own_valkey import own_valkey
from tests.web.api import follow

COUNT = int(os.environ.get("COUNT", "100000"))
LINE = int(os.environ.get("LINE", "2000"))
ROUNDS = 7
NOW = datetime(2026, 3, 16, tzinfo=UTC)
WORDS = [
    f"{stem}{end}" for stem in ("light", "moun", "river", "glass", "wind") for end in ("house", "tain", "")
]


def entry(number: int, chance: random.Random) -> Entry:
    """One in a thousand lost, one in a hundred failed, one in two hundred untold."""
    outcome: models.Outcome = "dead" if number % 200 == 0 else "delivered"
    at = NOW - timedelta(seconds=number)
    rare = f" rare{number // 10}"
    return Entry(
        kind=Kind.TRAINING if number % 500 == 0 else Kind.PREDICTION,
        id=f"p{number:025d}",
        state=State.DISPATCHED,
        status="failed" if number % 100 == 0 else "succeeded",
        source="webhook",
        received_at=at,
        updated_at=at,
        model=f"owner/model-{min(number % 50, chance.randrange(50))}",
        completed_at=at,
        stored_at=at + timedelta(seconds=chance.random() * 5),
        files=1,
        bytes=256_000,
        lost=int(number % 1000 == 0),
        prompt=" ".join(chance.choices(WORDS, k=20)) + rare,
        inputs=" ".join(chance.choices(WORDS, k=20)) + rare,
        output="a text that was made " * 5,
        predict_seconds=2.5,
        told=[models.Told(handler="gallery", outcome=outcome, attempts=1, at=at)],
    )


QUESTIONS: dict[str, Filters] = {
    "newest": Filters(kind=Kind.PREDICTION),
    "trainings": Filters(kind=Kind.TRAINING),
    "one status": Filters(kind=Kind.PREDICTION, status="failed"),
    "one model": Filters(kind=Kind.PREDICTION, model="owner/model-49"),
    "models by a pattern": Filters(kind=Kind.PREDICTION, model="owner/model-4*"),
    "lost": Filters(kind=Kind.PREDICTION, lost=True),
    "untold by a handler": Filters(kind=Kind.PREDICTION, untold=True, handler="gallery"),
    "a day": Filters(kind=Kind.PREDICTION, since=NOW - timedelta(days=1), until=NOW - timedelta(hours=12)),
    "a rare word": Filters(kind=Kind.PREDICTION, q="rare777"),
    "a common word": Filters(kind=Kind.PREDICTION, q="lighthouse"),
    "a phrase": Filters(kind=Kind.PREDICTION, q='"lighthouse mountain"'),
    "a common word that failed": Filters(kind=Kind.PREDICTION, q="lighthouse", status="failed"),
    "a common word that was lost": Filters(kind=Kind.PREDICTION, q="lighthouse", lost=True),
    "two words of one model": Filters(kind=Kind.PREDICTION, q="river glass", model="owner/model-7"),
    "nothing": Filters(kind=Kind.PREDICTION, q="lighthouse nowhere"),
}


def measured(ask: Callable[[], object]) -> str:
    spent = []
    for _ in range(ROUNDS):
        began, cpu = time.perf_counter(), time.thread_time()
        ask()
        spent.append(((time.perf_counter() - began) * 1000, (time.thread_time() - cpu) * 1000))
    walls, cpus = zip(*spent, strict=True)
    return (
        f"{statistics.median(walls):8.1f} {max(walls):8.1f} {statistics.median(cpus):8.1f} {max(cpus):8.1f}"
    )


def lists(folder: Path) -> None:
    catalog, chance = Catalog(folder / "catalog.db"), random.Random(1)
    connection = catalog.open()
    began, cpu = time.perf_counter(), time.process_time()
    for first in range(0, COUNT, 200):
        connection.execute("BEGIN")
        for number in range(first, min(first + 200, COUNT)):
            catalog.put(connection, entry(number, chance), 1)
        connection.execute("COMMIT")
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"{COUNT} rows: {COUNT / spent:.0f} a second, {cpu / COUNT * 1000:.2f} ms of CPU each;", end=" ")
    print(f"{catalog.path.stat().st_size >> 20} MiB")
    print(f"{'':32}{'median':>8} {'max':>8} ms; of CPU: median, max")
    for name, filters in QUESTIONS.items():
        print(f"{name:32}{measured(lambda filters=filters: catalog.page(filters, 50, None))}")  # type: ignore[misc]
    print(f"{'sums of a day by model':32}{measured(lambda: catalog.sums(NOW - timedelta(days=1), 'model'))}")
    print(f"{'sums of all by day':32}{measured(lambda: catalog.sums(NOW - timedelta(days=3650), 'day'))}")
    began = time.perf_counter()
    catalog.drop(connection, [(Kind.PREDICTION, f"p{number:025d}") for number in (1, 2, 3)])
    catalog.forget(connection)
    print(f"removing three without a trace: {(time.perf_counter() - began) * 1000:.0f} ms")
    connection.close()


def line(folder: Path) -> None:
    with own_valkey() as valkey:
        valkey.start()
        deployment = Deployment(valkey.redis, folder, datetime.now(UTC))
        catalog = Catalog(folder / "catalog.db")
        feed = Feed(
            catalog, connect(valkey.url, timeout=5.0), deployment.storage, deployment.handlers, ttl=TTL,
            clock=lambda: datetime.now(UTC),
        )  # fmt: skip
        began = time.perf_counter()
        for number in range(LINE):
            deployment.keep(f"p{number:025d}")
        alone = time.perf_counter() - began
        feed.start()
        began = time.perf_counter()
        for number in range(LINE, 2 * LINE):
            deployment.keep(f"p{number:025d}")
        with_it = time.perf_counter() - began
        follow(catalog, valkey.redis)
        behind = time.perf_counter() - began - with_it
        print(f"a line of {LINE / alone:.0f} a second; with the catalog in the same process", end=" ")
        print(f"{LINE / with_it:.0f}; the catalog was {behind:.2f} s behind at its end")
        began, whole = time.perf_counter(), time.process_time()
        before = 2 * LINE
        valkey.redis.delete("outkeep:changes")
        feed.stop()
        for path in folder.glob("catalog.db*"):
            path.unlink()
        feed = Feed(
            catalog, connect(valkey.url, timeout=5.0), deployment.storage, deployment.handlers, ttl=TTL,
            clock=lambda: datetime.now(UTC),
        )  # fmt: skip
        feed.start()
        follow(catalog, valkey.redis)
        whole = time.process_time() - whole
        print(f"built anew from the storage: {before / (time.perf_counter() - began):.0f} a second, ", end="")
        print(f"{whole / before * 1000:.2f} ms of CPU each")
        feed.stop()


def main() -> None:
    for part in (lists, line):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))


if __name__ == "__main__":
    main()
