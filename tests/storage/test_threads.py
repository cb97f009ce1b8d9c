"""Threads for what may hang, and a storage of which some objects do: real calls that block."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import pytest

from app.core.errors import StorageFailure
from app.storage.store import THREADS, Storage
from app.storage.threads import Threads
from tests import forked


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_no_more_threads_run_than_there_may_be_and_all_work_is_done(release: threading.Event) -> None:
    seen: set[int] = set()

    def work() -> int:
        seen.add(threading.get_ident())
        release.wait(60)
        return threading.get_ident()

    async def scenario() -> None:
        threads = Threads("some", 5)
        waiting = [threads.run(work) for _ in range(100)]
        while len(seen) < 5:  # noqa: ASYNC110 - the event is in other threads
            await asyncio.sleep(0.01)
        release.set()
        assert set(await asyncio.gather(*waiting)) == seen
        assert len(seen) == 5
        assert await threads.run(threading.get_ident) in seen  # an idle one serves again

    asyncio.run(scenario())


def test_a_few_threads_do_all_while_they_are_quick_and_more_come_while_they_are_not(
    release: threading.Event,
) -> None:
    async def scenario() -> None:
        threads = Threads("some", 4, few=1)
        assert len({await threads.run(threading.get_ident) for _ in range(20)}) == 1
        waiting = [threads.run(lambda: release.wait(60)) for _ in range(3)]
        assert await threads.run(lambda: 7) == 7, "while three hang"
        release.set()
        assert all(await asyncio.gather(*waiting))

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("x"), KeyError("y"), SystemExit(3)])
def test_what_fails_fails_where_it_is_awaited(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def scenario() -> None:
        threads = Threads("some", 1)
        with pytest.raises(type(error)):
            await threads.run(fail)
        assert await threads.run(lambda: 7) == 7

    asyncio.run(scenario())


def test_work_knows_whose_it_is() -> None:
    name: ContextVar[str] = ContextVar("name")

    async def scenario() -> str:
        name.set("job")
        return await Threads("some", 1).run(name.get)

    assert asyncio.run(scenario()) == "job"


def test_who_is_cancelled_waits_no_more_and_the_end_of_a_process_waits_for_none() -> None:
    program = """
import asyncio, threading
from app.storage.threads import Threads


async def main():
    task = Threads("some", 2).run(threading.Event().wait)
    task.cancel()
    await asyncio.wait([task])
    print(task.cancelled())

asyncio.run(main())
"""
    ended = forked.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "True\n"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path.as_uri())


async def ask(storage: Storage, name: str, seconds: float = 30) -> bytes | str | None:
    """What stands there, or the code of the failure."""
    try:
        return await storage.run(lambda: storage.get(name), about=name, seconds=seconds)
    except StorageFailure as error:
        return error.code


def test_an_object_that_hangs_holds_up_no_other_and_is_not_asked_for_again(
    storage: Storage, tmp_path: Path
) -> None:
    """A named pipe: opening it waits for somebody who writes, as a share does for a server that has gone."""
    stuck = [f"predictions/{number}/prediction.json" for number in range(THREADS - 1)]
    for name in stuck:
        (tmp_path / name).parent.mkdir(parents=True)
        os.mkfifo(tmp_path / name)
    good = "predictions/good/prediction.json"
    storage.put_bytes(good, b"{}")

    async def scenario() -> None:
        silent = ["storage_silent"] * len(stuck)
        assert await asyncio.gather(*(ask(storage, name, 0.2) for name in stuck)) == silent
        assert [await ask(storage, good) for _ in range(20)] == [b"{}"] * 20
        threads = threading.active_count()
        assert [await ask(storage, name, 600) for name in stuck] == silent
        assert threading.active_count() <= threads
        (tmp_path / stuck[0]).open("wb").close()  # what hung ends
        (tmp_path / stuck[0]).unlink()
        storage.put_bytes(stuck[0], b"1")
        while (found := await ask(storage, stuck[0])) == "storage_silent":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert found == b"1"

    async def bounded() -> None:
        try:
            async with asyncio.timeout(60):
                await scenario()
        finally:
            for name in stuck:  # so that what hangs ends, also when this fails
                pipe = os.open(tmp_path / name, os.O_RDWR)
                (tmp_path / name).unlink()
                os.close(pipe)

    asyncio.run(bounded())


def test_while_all_threads_hang_nobody_waits(storage: Storage, release: threading.Event) -> None:
    async def scenario() -> None:
        waiting = [
            storage.run(lambda: release.wait(60), about=str(number), seconds=0.2)
            for number in range(2 * THREADS)
        ]
        await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(StorageFailure):
            await storage.run(lambda: None, about="another", seconds=600)
        release.set()
        while True:
            try:
                await storage.run(lambda: None, about="another")
                break
            except StorageFailure:
                await asyncio.sleep(0.01)

    asyncio.run(scenario())
