"""A dead or slow handler beside others: what it may take, watched by order and by what RQ shows."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis
from rq import Retry
from rq.job import Job, JobStatus

from app.accept import queues
from app.core import handlers
from app.core.manifest import Manifest, Receipt
from app.core.names import NOTIFY_JOB, NOTIFY_QUEUE, Kind, notify_job_id
from app.core.prediction import from_object
from app.core.shares import TIMEOUTS
from app.deployment import Deployment
from app.maintain.backlog import hasten
from app.maintain.handler_states import HandlerStates
from app.settings import load
from app.storage.store import Storage
from tests.e2e.recorder import Received, Recorder, recorder
from tests.engine.worker_process import wait_until
from tests.keep.desk import Desk, Quick
from tests.workers.test_jobs import process
from workers.services import Jobs, notify_jobs

PREDICTION = Kind.PREDICTION


class Floor:
    """Stored predictions, two handlers, `dead` and `alive`, and a worker for the queue `notify`."""

    def __init__(self, redis: Redis, folder: Path, dead: Recorder, alive: Recorder) -> None:
        self.redis = redis
        self.dead, self.alive = dead, alive
        self.environment = {"OUTKEEP_DATA": str(folder), "OUTKEEP_NOTIFY_PRIVATE": "true"}
        self.storage = Storage((folder / "outputs").as_uri())
        self.queue = queues.queue(NOTIFY_QUEUE, redis)

    def store(self, *ids: str) -> None:
        now = datetime.now(UTC)
        for one in ids:
            raw = {"id": one, "status": "succeeded"}
            manifest = Manifest(from_object(raw, PREDICTION), (), None, Receipt(now, "msg"), now)
            self.storage.create(f"predictions/{one}/prediction.json", manifest.to_json())

    def tell(self, handler: str, *ids: str) -> None:
        for one in ids:
            assert queues.enqueue_notify(self.redis, handler, PREDICTION, one)

    def jobs(self, *, patience: float, redis: Redis | None = None) -> AbstractAsyncContextManager[Jobs]:
        text = self.dead.handler("dead") + self.alive.handler("alive")
        deployment = Deployment(
            load(self.environment), "", (b"k" * 32,), handlers.parse(text, lambda secret: secret)
        )
        return notify_jobs(deployment, redis or self.redis, patience=patience)

    def work(self, *, patience: float = 60) -> None:
        """Take every job that waits, once."""
        Quick(NOTIFY_QUEUE, connection=self.redis, jobs=lambda: self.jobs(patience=patience)).work(burst=True)

    def job(self, handler: str, prediction_id: str) -> Job:
        job = self.queue.fetch_job(notify_job_id(handler, PREDICTION, prediction_id))
        assert job is not None
        return job


@pytest.fixture
def release() -> threading.Event:
    """Until it is set, the dead handler answers nothing."""
    return threading.Event()


@pytest.fixture
def floor(redis: Redis, tmp_path: Path, release: threading.Event) -> Iterator[Floor]:
    def hang(_: Received) -> int:
        release.wait(60)
        return 204

    with recorder(answer=hang) as dead, recorder() as alive:
        try:
            yield Floor(redis, tmp_path, dead, alive)
        finally:
            release.set()


def work_until_the_other_is_told(floor: Floor, release: threading.Event, count: int, *, put_back: int) -> int:
    """Work until `alive` was told of `count` and `put_back` jobs wait, then let `dead` answer.

    How many it had answered before.
    """
    ended_before: list[int] = []

    def watch() -> None:
        try:
            floor.alive.wait_for(lambda it: len(it.ids()) == count, "the other one is told", seconds=50)
            wait_until(lambda: len(floor.queue.scheduled_job_registry) == put_back)
            ended_before.append(len(floor.dead.received))
        finally:
            release.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    floor.work()
    watcher.join()
    (found,) = ended_before
    return found


def test_a_dead_handler_with_a_thousand_waiting_holds_up_no_other(
    floor: Floor, release: threading.Event
) -> None:
    """The other one's events wait behind the thousand, and arrive before the dead one has ended any."""
    floor.environment["OUTKEEP_SLOTS"] = "64"
    of_dead = [f"dead{number:04}" for number in range(1000)]
    of_alive = [f"alive{number}" for number in range(20)]
    floor.store(*of_dead[:64], *of_alive)
    floor.tell("dead", *of_dead)
    floor.tell("alive", *of_alive)
    ended_before = work_until_the_other_is_told(floor, release, len(of_alive), put_back=984)
    assert floor.alive.ids() == set(of_alive)
    assert ended_before == 0
    told = floor.dead.ids()
    assert len(told) == 16  # a quarter of 64 slots
    assert told < set(of_dead[:64])
    assert len(floor.queue.scheduled_job_registry) == 984
    for one in (*(set(of_dead[:64]) - told), of_dead[500], of_dead[-1]):
        assert floor.job("dead", one).meta == {"attempts": []}
    assert floor.queue.failed_job_registry.get_job_ids() == []


def test_a_job_that_was_put_back_is_told_later_with_all_its_attempts_left(
    floor: Floor, release: threading.Event
) -> None:
    floor.environment["OUTKEEP_SLOTS"] = "4"
    floor.store("a", "b", "c")
    floor.tell("dead", "a", "b", "c")
    floor.tell("alive", "a")
    work_until_the_other_is_told(floor, release, 1, put_back=2)
    assert floor.dead.ids() == {"a"}
    for one in ("b", "c"):
        assert floor.job("dead", one).get_status() == JobStatus.SCHEDULED
        hasten(floor.redis, floor.job("dead", one).id)
        floor.work()
    assert floor.dead.ids() == {"a", "b", "c"}
    for one in ("b", "c"):
        assert [attempt["status"] for attempt in floor.job("dead", one).meta["attempts"]] == [204]


async def attempts_in_a_row(floor: Floor, ids: list[str]) -> list[int]:
    """How many attempts are made for each prediction, when the jobs run one by one in one process."""
    jobs = [floor.job("dead", one) for one in ids]
    async with floor.jobs(patience=0.2) as known:
        for job in jobs:
            assert isinstance(await known[NOTIFY_JOB](job, *job.args), Retry)
    return [len(job.meta["attempts"]) for job in jobs]


def test_more_at_once_than_a_quick_handler_has_places_wait_a_moment_and_are_not_put_back(
    floor: Floor, release: threading.Event
) -> None:
    release.set()
    floor.environment["OUTKEEP_SLOTS"] = "16"
    ids = [f"id{number}" for number in range(8)]
    floor.store(*ids)
    floor.tell("dead", *ids)
    floor.work()
    assert floor.dead.ids() == set(ids)
    assert len(floor.queue.scheduled_job_registry) == 0


def test_a_handler_that_timed_out_five_times_in_a_row_is_left_alone_until_it_is_probed(floor: Floor) -> None:
    ids = [f"id{number}" for number in range(TIMEOUTS + 3)]
    floor.store(*ids)
    floor.tell("dead", *ids)
    assert asyncio.run(attempts_in_a_row(floor, ids)) == [1] * TIMEOUTS + [0] * 3
    state = HandlerStates(floor.redis).get("dead")
    assert (state.word, state.timeouts) == ("slow", TIMEOUTS)


async def run_without_redis(floor: Floor, prediction_id: str) -> Retry:
    away = Redis.from_url("redis://127.0.0.1:1")
    job = floor.job("alive", prediction_id)
    async with floor.jobs(patience=5, redis=away) as known:
        said = await known[NOTIFY_JOB](job, *job.args)
    assert isinstance(said, Retry)
    assert job.meta == {"attempts": [], "faults": 1}
    return said


def test_nothing_is_sent_while_redis_cannot_say_whether_a_handler_is_off(floor: Floor) -> None:
    floor.store("a")
    floor.tell("alive", "a")
    said = asyncio.run(run_without_redis(floor, "a"))
    assert 1 <= said.intervals[0] <= 4
    assert floor.alive.received == []
    floor.work()
    assert floor.alive.ids() == {"a"}


def test_a_worker_process_brings_back_what_it_put_back(
    floor: Floor, release: threading.Event, tmp_path: Path, valkey_url: str
) -> None:
    ids = ["a", "b", "c"]
    (tmp_path / "outkeep.toml").write_text(floor.dead.handler("dead"))
    floor.store(*ids)
    floor.tell("dead", *ids)
    with process(Desk(floor.redis, tmp_path), "notify", REDIS_URL=valkey_url, OUTKEEP_SLOTS="4") as running:
        wait_until(lambda: len(floor.queue.scheduled_job_registry) == 2)
        assert floor.dead.ids() == set()
        release.set()
        floor.dead.wait_for(lambda it: it.ids() == set(ids), "all are told")
        wait_until(lambda: floor.job("dead", "c").get_status() == JobStatus.FINISHED)
        assert running.stop() == 0
    assert {len(floor.job("dead", one).meta["attempts"]) for one in ids} == {1}
