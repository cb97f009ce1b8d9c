"""The worker of the queue `handle`: it runs what the handlers file lists, whoever wrote to Redis."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Retry
from rq.job import Job, JobStatus

from app.accept import queues
from app.core.names import HANDLE_QUEUE, Kind, handle_job_id, notify_job_id
from app.core.policy import UNKNOWN_PATIENCE
from app.maintain.user_jobs import end_of
from tests import forked
from tests.e2e.recorder import Recorder, recorder
from tests.engine.worker_process import failure

LISTED = "tests.engine.test_handle.note"


def note(path: str, text: str) -> None:
    """A handler's function."""
    Path(path).write_text(text)


def betray(*_: Any) -> None:
    """What a planted callback would run; it is on no list."""
    Path("betrayed").touch()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def enqueue(redis: Redis, name: str, *args: Any, **options: Any) -> Job:
    return queues.queue(HANDLE_QUEUE, redis).enqueue(name, args=args, job_timeout=20, **options)


WORK = """
import sys
from redis import Redis
from app.core.handlers import MEMORY
from workers.engine import handle
handle.worker(Redis.from_url(sys.argv[1]), dict.fromkeys(sys.argv[2:], MEMORY)).work(burst=True)
"""


def work(url: str, *names: str) -> None:
    """In a process of its own, as in production: RQ's worker forks."""
    forked.run([sys.executable, "-c", WORK, url, *names], check=True, timeout=120)


def test_a_listed_function_runs(redis: Redis, valkey_url: str, here: Path) -> None:
    job = enqueue(redis, LISTED, str(here / "note"), "größer")
    work(valkey_url, LISTED)
    assert job.get_status() == JobStatus.FINISHED
    assert (here / "note").read_text() == "größer"


def test_what_a_module_of_the_users_misses_is_named(redis: Redis, valkey_url: str, here: Path) -> None:
    (here / "needy.py").write_text("import no_such_package\n\ndef run(event):\n    pass\n")
    job = enqueue(redis, "needy.run", {})
    work(valkey_url, "needy.run")
    assert "ModuleNotFoundError: No module named 'no_such_package'" in failure(job)


@pytest.mark.parametrize(
    "name", ["os.system", "posix.system", "tests.engine.test_handle.betray", "builtins.exec", ""]
)
def test_a_planted_function_does_not_run_and_is_a_dead_letter(
    redis: Redis, valkey_url: str, here: Path, name: str
) -> None:
    job = enqueue(redis, "os.getcwd", "touch betrayed")
    job.data = queues.queue(HANDLE_QUEUE, redis).serializer.dumps([name, None, ["touch betrayed"], {}])
    redis.hset(job.key, "data", job.data)
    redis.hset(job.key, "retries_left", 5)
    work(valkey_url, LISTED)
    assert not (here / "betrayed").exists()
    assert job.get_status() == JobStatus.FAILED
    assert queues.queue(HANDLE_QUEUE, redis).failed_job_registry.get_job_ids() == [job.id]


def test_a_job_of_a_handler_that_this_worker_does_not_know_is_left_to_one_that_does(
    redis: Redis, valkey_url: str, here: Path
) -> None:
    job_id = handle_job_id(notify_job_id("note", Kind.PREDICTION, "p1"))
    job = enqueue(redis, LISTED, str(here / "note"), "x", job_id=job_id)
    work(valkey_url, "some.other")
    assert job.get_status() == JobStatus.SCHEDULED
    queue = queues.queue(HANDLE_QUEUE, redis)
    queue.scheduled_job_registry.remove(job.id)
    job.refresh()  # type: ignore[no-untyped-call]
    queue.enqueue_job(job)
    work(valkey_url, LISTED)
    assert (job.get_status(), (here / "note").read_text()) == (JobStatus.FINISHED, "x")
    assert end_of(redis, job.id).attempts == 1


@pytest.mark.parametrize("minutes", [0.0, 1.0, 10.0, 20.0, 29.0])
def test_one_that_nobody_knows_yet_is_waited_for(redis: Redis, valkey_url: str, minutes: float) -> None:
    job_id = handle_job_id(notify_job_id("note", Kind.PREDICTION, "p1"))
    job = enqueue(redis, LISTED, "note", "x", job_id=job_id)
    job.meta["unknown_since"] = time.time() - 60 * minutes
    job.save_meta()  # type: ignore[no-untyped-call]
    work(valkey_url, "some.other")
    assert job.get_status() == JobStatus.SCHEDULED


def test_one_that_was_known_meanwhile_is_waited_for_afresh(redis: Redis, valkey_url: str, here: Path) -> None:
    job_id = handle_job_id(notify_job_id("note", Kind.PREDICTION, "p1"))
    job = enqueue(redis, LISTED, str(here / "missing/note"), "x", job_id=job_id, retry=Retry(3, 60))
    job.meta["unknown_since"] = time.time() - UNKNOWN_PATIENCE.total_seconds()
    job.save_meta()  # type: ignore[no-untyped-call]
    queue = queues.queue(HANDLE_QUEUE, redis)
    for listed in (LISTED, "some.other"):  # it fails; then an older worker has its turn
        work(valkey_url, listed)
        assert job.get_status() == JobStatus.SCHEDULED
        queue.scheduled_job_registry.remove(job.id)
        job.refresh()  # type: ignore[no-untyped-call]
        queue.enqueue_job(job)


@pytest.mark.parametrize("since", [-UNKNOWN_PATIENCE.total_seconds(), 3600.0, "soon", [], True])
def test_one_that_nobody_knows_is_a_dead_letter_after_half_an_hour_whatever_was_planted(
    redis: Redis, valkey_url: str, here: Path, since: object
) -> None:
    job_id = handle_job_id(notify_job_id("note", Kind.PREDICTION, "p1"))
    job = enqueue(redis, "os.system", "touch betrayed", job_id=job_id)
    job.meta["unknown_since"] = time.time() + since if isinstance(since, float) else since
    job.save_meta()  # type: ignore[no-untyped-call]
    work(valkey_url, LISTED)
    assert job.get_status() == JobStatus.FAILED
    assert not (here / "betrayed").exists()


def test_the_refusal_names_the_function(redis: Redis, valkey_url: str) -> None:
    job = enqueue(redis, "os.system", "touch betrayed")
    work(valkey_url, LISTED)
    assert "'os.system' is not a job of the handlers file" in failure(job)


@pytest.fixture
def elsewhere() -> Iterator[Recorder]:
    with recorder() as running:
        yield running


def test_callbacks_and_webhooks_of_a_planted_job_are_not_run(
    redis: Redis, valkey_url: str, here: Path, elsewhere: Recorder
) -> None:
    good = enqueue(
        redis, LISTED, str(here / "note"), "x", on_success=Callback(betray), on_failure=Callback(betray)
    )
    bad = enqueue(redis, "os.system", "true", on_failure=Callback(betray))
    for job in (good, bad):
        redis.hset(job.key, "webhooks", f'[{{"url": "{elsewhere.url}", "events": ["finished", "failed"]}}]')
    work(valkey_url, LISTED)
    assert (here / "note").exists()
    assert (good.get_status(), bad.get_status()) == (JobStatus.FINISHED, JobStatus.FAILED)
    assert not (here / "betrayed").exists()
    assert elsewhere.received == []


def test_a_pickle_is_not_opened(redis: Redis, valkey_url: str, here: Path) -> None:
    job = enqueue(redis, LISTED, str(here / "note"), "x")
    redis.hset(job.key, "data", b"cposix\nsystem\n(S'touch betrayed'\ntR.")
    work(valkey_url, LISTED)
    assert not (here / "betrayed").exists()
    assert not (here / "note").exists()
    assert job.get_status() == JobStatus.FAILED


@pytest.mark.parametrize("field", ["created_at", "timeout"])
def test_a_job_that_cannot_even_be_read_is_a_dead_letter_and_the_next_one_runs(
    redis: Redis, valkey_url: str, here: Path, field: str
) -> None:
    bad, good = enqueue(redis, LISTED, "x", "x"), enqueue(redis, LISTED, str(here / "note"), "x")
    redis.hset(bad.key, field, b"\xff")
    work(valkey_url, LISTED)
    assert good.get_status() == JobStatus.FINISHED
    assert queues.queue(HANDLE_QUEUE, redis).failed_job_registry.get_job_ids() == [bad.id]
