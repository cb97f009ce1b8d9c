"""Outputs are fetched while a bucket refuses us, since their hour does not wait until it is mended."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from app.core.lifecycle import State
from app.core.policy import HOUR
from app.simulator import Simulator
from app.storage.store import REST, Silence, Storage
from tests.bucket import Asked, FaultyProxy, Refusal, Rule
from tests.keep.desk import ID, PNG, Desk
from tests.receive.web import wait_until

REFUSALS: dict[str, Rule] = {
    "whatever is asked": lambda _: Refusal(403, "ExpiredToken"),
    "writing": lambda asked: Refusal(403, "ExpiredToken") if asked.method == "PUT" else None,
    "files": lambda asked: Refusal(404, "NoSuchBucket") if "output-" in asked.path else None,
    "manifests": lambda asked: Refusal(403, "AccessDenied") if ".json" in asked.path else None,
}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as running:
        yield running


@pytest.mark.parametrize("refused", REFUSALS)
def test_what_a_bucket_refuses_for_longer_than_the_hour_is_kept(
    redis: Redis, tmp_path: Path, simulator: Simulator, proxy: FaultyProxy, refused: str
) -> None:
    desk = Desk(redis, tmp_path)
    desk.storage = Storage(proxy.s3.url)
    desk.trust(simulator.url)
    urls = [simulator.add_file("a.png", PNG), simulator.add_file("b.txt", b"text")]
    desk.receive(urls)
    proxy.rule = REFUSALS[refused]
    waited = wait = desk.work()
    assert [simulator.downloads(url) for url in urls] == [1, 1]
    for url in urls:
        simulator.remove_file(url)  # as Replicate does when the hour is over
    while wait is not None and waited is not None and waited < HOUR + 600:
        desk.forward(wait)
        wait = desk.work()
        waited += wait or 0.0
    assert wait is not None
    assert desk.record().state is State.RECEIVED

    proxy.mend()
    assert desk.work() is None
    assert desk.storage.get(f"predictions/{ID}/output-0.png") == PNG
    assert desk.storage.get(f"predictions/{ID}/output-1.txt") == b"text"
    assert list(desk.temporary.iterdir()) == []


def test_a_run_that_is_cancelled_while_the_bucket_hangs_keeps_its_download(
    redis: Redis, tmp_path: Path, simulator: Simulator, proxy: FaultyProxy
) -> None:
    desk = Desk(redis, tmp_path)
    desk.storage = Storage(proxy.s3.url)
    desk.trust(simulator.url)
    url = simulator.add_file("a.png", PNG)
    desk.receive(url)
    hanging, released = threading.Event(), threading.Event()

    def hang(asked: Asked) -> Refusal | None:
        if asked.method != "PUT":
            return None
        hanging.set()
        released.wait(60)
        return Refusal(403, "AccessDenied")

    async def cancelled() -> None:
        run = asyncio.create_task(desk.run())
        await asyncio.to_thread(hanging.wait, 60)
        run.cancel()
        await asyncio.wait([run])
        assert run.cancelled()
        assert [path.read_bytes() for path in desk.temporary.iterdir()] == [PNG]
        released.set()

    proxy.rule = hang
    asyncio.run(cancelled())
    simulator.remove_file(url)  # what is gone at Replicate is here
    proxy.mend()
    assert desk.work() is None
    assert desk.storage.get(f"predictions/{ID}/output-0.png") == PNG
    assert list(desk.temporary.iterdir()) == []


def test_nobody_waits_for_a_bucket_that_is_silent_and_outputs_are_fetched_meanwhile(
    redis: Redis,
    tmp_path: Path,
    simulator: Simulator,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "1s")  # and it is asked three times
    released = threading.Event()

    def hang(_: Asked) -> None:
        released.wait(60)

    desk = Desk(redis, tmp_path)
    rested = 0.0
    desk.storage = Storage(proxy.s3.url, Silence(now=lambda: time.monotonic() + rested))
    desk.trust(simulator.url)
    urls = [simulator.add_file("a.png", PNG), simulator.add_file("b.txt", b"text")]
    desk.receive(urls)
    proxy.rule = hang
    first = desk.work()
    assert first is not None
    assert [simulator.downloads(url) for url in urls] == [1, 1]
    asked = len(proxy.asked)
    desk.forward(first)
    rested += REST
    assert desk.work() is not None
    assert len(proxy.asked) <= asked + 3  # one question, for all
    for url in urls:
        simulator.remove_file(url)

    released.set()
    proxy.mend()

    def is_kept() -> bool:
        nonlocal rested
        desk.forward(600)
        rested += REST
        return desk.work() is None

    wait_until(is_kept)
    assert desk.storage.get(f"predictions/{ID}/output-0.png") == PNG
    assert desk.storage.get(f"predictions/{ID}/output-1.txt") == b"text"
