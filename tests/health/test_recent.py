"""What many ask for at once is made once."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from app.health.checks import Recent

T = TypeVar("T")
FOR_EVER = 3600.0


class Work:
    """Counts its runs; each waits until it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.go = threading.Event()

    def __call__(self) -> int:
        self.runs += 1
        assert self.go.wait(30)
        return self.runs


async def recent(work: Callable[[], T], *, kept: float, asked: int, begun: Callable[[], None]) -> list[T]:
    """What `asked` who ask together get; `begun` is called while they wait."""
    made = Recent(work, kept=kept)
    waiting = [asyncio.create_task(made.get()) for _ in range(asked)]
    await asyncio.sleep(0)
    begun()
    found = [await one for one in waiting]
    found.append(await made.get())
    return found


def test_who_asks_together_gets_the_result_of_one_run() -> None:
    work = Work()

    assert asyncio.run(recent(work, kept=FOR_EVER, asked=50, begun=work.go.set)) == [1] * 51


def test_a_result_that_is_not_kept_is_made_again() -> None:
    work = Work()

    assert asyncio.run(recent(work, kept=0, asked=3, begun=work.go.set)) == [1, 1, 1, 2]


def test_who_does_not_wait_any_more_leaves_the_others_their_result() -> None:
    work = Work()

    async def ask() -> int:
        made = Recent(work, kept=FOR_EVER)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.get(), 0.01)
        waiting = asyncio.create_task(made.get())
        work.go.set()
        return await waiting

    assert asyncio.run(ask()) == 1


def test_what_the_work_raised_is_raised() -> None:
    def broken() -> None:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        asyncio.run(Recent(broken, kept=0).get())
