"""Outputs of a large event are fetched while no storage takes the event itself: their hour does not wait."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from app.accept.arrivals import outlined
from app.accept.records import Accepted
from app.core.lifecycle import State
from app.core.names import Kind, persist_job_id, record_key
from app.core.policy import HOUR
from app.maintain.removal import Removal
from app.simulator import Simulator
from app.storage.store import Storage
from tests.bucket import FaultyProxy
from tests.keep.desk import ID, PNG, Desk
from tests.raw_host import ok, raw_host

PLACE = (Kind.PREDICTION, ID)
KEY = record_key(*PLACE)
LOGS = "x" * (2 << 20)
INLINE = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as running:
        yield running


@pytest.fixture
def desk(redis: Redis, tmp_path: Path, simulator: Simulator) -> Desk:
    """Stores in a folder."""
    desk = Desk(redis, tmp_path)
    desk.trust(simulator.url)
    return desk


@pytest.fixture
def away(desk: Desk, proxy: FaultyProxy) -> Desk:
    """Stores in a bucket, behind a proxy."""
    desk.storage = Storage(proxy.s3.url)
    return desk


def test_they_are_held_and_kept_when_the_storage_is_mended_long_after_the_hour(
    away: Desk, simulator: Simulator, proxy: FaultyProxy
) -> None:
    urls = [simulator.add_file("a.png", PNG), simulator.add_file("b.txt", b"text")]
    output = [urls[0], INLINE, urls[1]]
    proxy.refuse(403, "ExpiredToken")
    assert away.outline(output, logs=LOGS) is Accepted.PROGRESS
    event, received_at = away.arrival(output, logs=LOGS), away.now
    waited = wait = away.work() or 0.0
    assert [simulator.downloads(url) for url in urls] == [1, 1]
    for url in urls:
        simulator.remove_file(url)  # as Replicate does when the hour is over
    while waited < HOUR + 600:
        away.forward(wait)
        wait = away.work() or 0.0
        waited += wait
    assert away.record().state is State.RUNNING

    proxy.mend()
    away.now = received_at
    received = away.receive(output, logs=LOGS)
    assert received == event.prediction.raw
    away.forward(waited)
    assert away.work() is None
    manifest = away.storage.read_manifest(*PLACE)
    assert manifest is not None
    assert manifest.prediction.raw == received
    assert [file.error for file in manifest.files] == [None, None, None]
    assert away.storage.get(f"predictions/{ID}/output-0.png") == PNG
    assert away.storage.get(f"predictions/{ID}/output-2.txt") == b"text"
    assert list(away.temporary.iterdir()) == []
    assert away.record().state is State.DISPATCHED


def test_nothing_is_committed_or_told_before_the_whole_has_come_and_nothing_fetched_twice(
    desk: Desk, simulator: Simulator
) -> None:
    url = simulator.add_file("a.png", PNG)
    desk.outline([url, INLINE], logs=LOGS)
    assert desk.work() is not None
    assert desk.work() is not None
    assert set(desk.files()) == {f"predictions/{ID}/output-0.png"}
    assert desk.told == []
    assert simulator.downloads(url) == 1

    simulator.remove_file(url)
    received = desk.receive([url, INLINE], logs=LOGS)
    assert desk.record().outline is None
    assert desk.waiting == [persist_job_id(*PLACE)]
    assert desk.work() is None
    assert desk.manifest()["prediction"] == received
    assert desk.file("output-0.png") == PNG


def test_a_run_in_which_the_whole_comes_is_followed_by_the_next_at_once(desk: Desk) -> None:
    async def scenario() -> float | None:
        async def come(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.to_thread(desk.receive, url, logs=LOGS)
            writer.write(ok(PNG))
            await writer.drain()

        async with raw_host(come) as host:
            url = f"http://127.0.0.1:{host.port}/a.png"
            desk.trust(f"http://127.0.0.1:{host.port}")
            desk.outline(url, logs=LOGS)
            return await desk.run()

    assert asyncio.run(scenario()) == 0.0
    assert desk.work() is None
    assert desk.file("output-0.png") == PNG


def test_what_is_lost_is_not_asked_for_again(desk: Desk) -> None:
    async def scenario() -> int:
        async with raw_host(ok(b"", status="404 Not Found")) as host:
            url = f"http://127.0.0.1:{host.port}/a.png"
            desk.trust(f"http://127.0.0.1:{host.port}")
            desk.outline(url, logs=LOGS)
            for _ in range(3):
                desk.forward(await desk.run() or 0.0)
            asked = host.connections
            assert desk.record().kept["0"]["error"] == "not_found"
            desk.forward(await desk.run() or 0.0)
            desk.receive(url, logs=LOGS)
            assert await desk.run() is None
            return host.connections - asked

    assert asyncio.run(scenario()) == 0
    assert [file["error"] for file in desk.manifest()["files"]] == ["not_found"]


def test_it_does_not_come_after_the_event_and_progress_not_after_it(desk: Desk, simulator: Simulator) -> None:
    url = simulator.add_file("a.png", PNG)
    assert desk.outline(url, logs=LOGS) is Accepted.PROGRESS
    assert desk.outline(url, logs=LOGS) is Accepted.DUPLICATE
    late = replace(desk.arrival([url] * 99, status="processing", completed_at=None, logs=LOGS * 2), job=None)
    [outcome] = desk.records.accept([late], desk.now)
    assert outcome is Accepted.STALE
    desk.receive(url, logs=LOGS)
    assert desk.outline(url, logs=LOGS) is Accepted.STALE
    assert desk.record().outline is None
    assert desk.waiting == [persist_job_id(*PLACE)]


def test_its_own_event_is_told_although_it_was_found_quietly(desk: Desk, simulator: Simulator) -> None:
    url = simulator.add_file("a.png", PNG)
    found = outlined(desk.arrival(url, logs=LOGS))
    assert found is not None
    desk.records.accept([replace(found, receipt=replace(found.receipt, quiet=True))], desk.now)
    assert desk.record().receipt.quiet
    desk.receive(url, logs=LOGS)
    assert not desk.record().receipt.quiet


def test_a_job_that_is_gone_is_made_anew(desk: Desk, simulator: Simulator) -> None:
    url = simulator.add_file("a.png", PNG)
    desk.outline(url, logs=LOGS)
    desk.redis.delete(f"rq:job:{persist_job_id(*PLACE)}", "rq:queue:persist")
    desk.outline(url, logs=LOGS)
    assert desk.waiting == [persist_job_id(*PLACE)]


def test_a_record_with_an_outline_alone_expires(desk: Desk, simulator: Simulator) -> None:
    url = simulator.add_file("a.png", PNG)
    desk.outline(url, logs=LOGS)
    assert 0 < desk.redis.ttl(KEY) <= 86400
    desk.redis.expire(KEY, 10)
    desk.outline(url, logs=LOGS)  # as the drainer does while the event waits
    assert desk.redis.ttl(KEY) > 10
    desk.receive(url, logs=LOGS)
    assert desk.redis.ttl(KEY) == -1


def test_nothing_stays_of_what_was_removed_while_it_was_fetched(desk: Desk) -> None:
    removal = Removal(desk.redis, desk.storage, ttl=86400, clock=lambda: desk.now)

    async def scenario() -> float | None:
        async def remove(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.to_thread(lambda: removal.remove(removal.find(*PLACE)))
            writer.write(ok(PNG))
            await writer.drain()

        async with raw_host(remove) as host:
            url = f"http://127.0.0.1:{host.port}/a.png"
            desk.trust(f"http://127.0.0.1:{host.port}")
            desk.outline(url, logs=LOGS)
            return await desk.run()

    assert asyncio.run(scenario()) is None
    assert [name for name in desk.files() if name.startswith("predictions/")] == []
