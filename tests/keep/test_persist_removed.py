"""A prediction that is removed while its outputs are being kept: its job brings nothing back."""

import asyncio
from datetime import timedelta

from app.core.names import REMOVALS, Kind, manifest_name, removed_name
from app.maintain.removal import PATIENCE, Removal
from tests.keep.desk import ID, PNG, Desk
from tests.keep.test_persist import committed, handlers
from tests.raw_host import ok, raw_host
from workers.repair.files import LocalFiles

PLACE = (Kind.PREDICTION, ID)
GOOD = ok(PNG)


def removal(desk: Desk) -> Removal:
    return Removal(desk.redis, desk.storage, ttl=86400, clock=lambda: desk.now)


def remove(desk: Desk) -> None:
    service = removal(desk)
    service.remove(service.find(*PLACE))


def tidy(desk: Desk) -> None:
    """What the sweep does on the host that has downloads which wait."""
    LocalFiles(desk.temporary, desk.outputs, desk.records, held_for=1e9).run()


def assert_gone(desk: Desk) -> None:
    assert set(desk.files()) <= {removed_name(*PLACE)}
    assert desk.records.get(*PLACE) is None
    assert desk.told == []
    assert list(desk.temporary.iterdir()) == []


def test_removed_while_a_file_is_on_its_way(desk: Desk) -> None:
    async def scenario() -> None:
        going, asked = asyncio.Event(), asyncio.Event()

        async def stall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            writer.write(GOOD[:-100])
            await going.wait()
            writer.write(GOOD[-100:])
            await writer.drain()

        async with raw_host(GOOD) as quick, raw_host(stall) as slow:
            hosts = [f"http://127.0.0.1:{host.port}" for host in (quick, slow)]
            desk.trust(*hosts)
            desk.receive([f"{host}/out-0.png" for host in hosts])
            run = asyncio.create_task(desk.run())
            await asked.wait()
            await asyncio.to_thread(remove, desk)
            going.set()
            await run

    asyncio.run(scenario())  # it may have to be tried again, having lost its folder while it stored
    assert desk.work() is None
    tidy(desk)
    assert_gone(desk)


def test_removed_between_the_manifest_and_the_handlers(desk: Desk) -> None:
    desk.handlers = handlers("one")
    desk.receive("text")
    asyncio.run(committed(desk))
    # It was looked through before the manifest came, so that this was not found.
    assert removal(desk)._mark(*PLACE, only=None)
    assert desk.work() is None
    assert_gone(desk)


def test_a_job_that_starts_after_the_removal_ends_in_peace(desk: Desk) -> None:
    desk.receive("text")
    remove(desk)
    assert desk.work() is None
    assert_gone(desk)


def test_a_job_that_meets_half_of_a_removal_ends_it(desk: Desk) -> None:
    desk.receive("text")
    desk.work()
    service = removal(desk)
    assert service._mark(*PLACE, only=None)
    desk.storage.put_bytes(manifest_name(*PLACE), b'{"outkeep": 1, "removed_at": "2026"}')
    assert desk.work() is None
    assert_gone(desk)
    assert desk.redis.zcard(REMOVALS) == 1
    desk.now += timedelta(seconds=PATIENCE)
    service.resume()
    assert desk.redis.zcard(REMOVALS) == 0
