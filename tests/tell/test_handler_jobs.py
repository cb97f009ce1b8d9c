"""Handlers that are jobs: handed on by the notify job, run by the worker of `handle` or by the user's own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from app.accept import queues
from app.accept.records import Records
from app.core import handlers, prediction
from app.core.manifest import KeptFile, Manifest, Receipt
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, Kind, handle_job_id, notify_job_id
from app.deployment import Deployment
from app.maintain.replay import Failure, Outcome, Replay, failures
from app.maintain.user_jobs import tell_ends
from app.settings import load
from app.storage.store import Storage
from tests import forked
from tests.engine.worker_process import ROOT, failure, has, status, wait_until
from tests.keep.desk import Quick
from workers.services import Jobs, notify_jobs

ID = "zxnmcx7c2p3wp0fkexvxs6zf6p"
PATIENCE = 90.0
TASKS = """
import json, os, time
from pathlib import Path

HERE = Path(__file__).parent

def keep(event):
    (HERE / "event.json").write_text(json.dumps(event))
    return {"done": True}

def other(event):
    (HERE / "other").touch()

def raises(event):
    raise ValueError("no such colour")

def betrays(event):
    raise ValueError("refused for " + os.environ["OUTKEEP_SECRET_KEY"])

def hangs(event):
    while True:
        time.sleep(0.05)

def stubborn(event):
    while True:
        try:
            time.sleep(60)
        except Exception:
            pass

def exits(event):
    os._exit(7)

def leaves(event):
    raise SystemExit("enough")

def eats(event):
    eaten = []
    while True:
        eaten.append(bytearray(16 << 20))

def imports(event):
    import no_such_module_anywhere
"""

FAILING = {
    "raises": ((), "ValueError: no such colour"),
    "leaves": ((), "SystemExit: enough"),
    "imports": ((), "No module named 'no_such_module_anywhere'"),
    "absent": ((), "AttributeError: module 'tasks' has no function 'absent'"),
    "hangs": (("timeout = 1",), "Task exceeded maximum timeout value (1 seconds)"),
    "eats": (('memory = "256MiB"',), "MemoryError"),
    "exits": ((), "Work-horse terminated unexpectedly; waitpid returned 1792"),
}
"""Functions that fail → what their handlers say beside, and why they fail."""

MENDED = "".join(f"def {name}(event):\n    pass\n" for name in FAILING)


class Workshop:
    """A stored prediction, handlers that are jobs of the module `tasks`, and the workers."""

    def __init__(self, redis: Redis, url: str, folder: Path) -> None:
        self.redis = redis
        self.url = url
        self.folder = folder
        self.outputs = folder / "outputs"
        self.storage = Storage(self.outputs.as_uri())
        self.handlers = ""
        self._log = folder / "handle.log"
        (folder / "tasks.py").write_text(TASKS)
        self.environment = {
            "LOG_FORMAT": "json",
            "OUTKEEP_DATA": str(folder),
            "OUTKEEP_HANDLERS": str(folder / "outkeep.toml"),
            "OUTKEEP_PUBLIC_URL": "https://keep.example.com",
            "OUTKEEP_SECRET_KEY": "k" * 32,
            "REDIS_URL": url,
        }

    def store(self) -> None:
        kept = KeptFile("/output", "https://x/y.png", "output-0.png", "image/png", 3, "00")
        raw = {"id": ID, "status": "succeeded", "input": {"prompt": "größer"}, "output": "u"}
        read = prediction.from_object(raw, Kind.PREDICTION)
        now = datetime.now(UTC)
        receipt = Receipt(now, "msg_1", context={"user": 7})
        self.storage.commit(Manifest(read, (kept,), "output-0.png", receipt, now))

    def add(self, name: str, function: str, *lines: str) -> None:
        self.handlers += "\n".join(
            ["[[handler]]", f'name = "{name}"', f'job = "tasks.{function}"', *lines, "", ""]
        )

    @property
    def known(self) -> tuple[handlers.Handler, ...]:
        return handlers.parse(self.handlers, lambda text: text)

    def hand_on(self, *names: str) -> None:
        """Enqueue the notify jobs of handlers, and work them off."""
        for name in names:
            assert queues.enqueue_notify(self.redis, name, Kind.PREDICTION, ID)
        self.work_notify()

    def work_notify(self) -> None:
        deployment = Deployment(load(self.environment), "", (b"k" * 32,), self.known)

        def jobs() -> AbstractAsyncContextManager[Jobs]:
            return notify_jobs(deployment, self.redis)

        Quick(NOTIFY_QUEUE, connection=self.redis, jobs=jobs).work(burst=True)

    def job(self, handler: str, queue: str = HANDLE_QUEUE, replay: str = "") -> Job:
        job_id = handle_job_id(notify_job_id(handler, Kind.PREDICTION, ID) + replay)
        job = queues.queue(queue, self.redis).fetch_job(job_id)
        assert job is not None, job_id
        return job

    def last_chance(self, job: Job) -> Job:
        """As if it had failed as often as it may."""
        self.redis.hset(job.key, "retries_left", 0)
        return job

    @contextmanager
    def working(self, queue: str = HANDLE_QUEUE) -> Iterator["subprocess.Popen[bytes]"]:
        """The worker of a queue, as `outkeep work` starts it, with `--path` for `handle`."""
        (self.folder / "outkeep.toml").write_text(self.handlers)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OUTKEEP_")}
        log = self._log
        command = [sys.executable, "-P", "-m", "workers", queue, "--path", str(self.folder)]
        with log.open("ab") as output:
            process = forked.Popen(
                command, cwd=ROOT, env=inherited | self.environment, stdout=output, stderr=output
            )
        try:
            yield process
        except BaseException:
            print(log.read_text())
            raise
        finally:
            process.kill()
            process.wait()

    def work_as_the_user_does(self, queue: str) -> None:
        """Stock RQ, which knows nothing of us."""
        rq = Path(sys.executable).parent / "rq"
        command = [str(rq), "worker", "--burst", "-S", "json", "-u", self.url, "-P", str(self.folder), queue]
        forked.run(command, check=True, timeout=PATIENCE, capture_output=True)

    @property
    def log(self) -> str:
        """What the worker of `handle` has written."""
        return self._log.read_text()

    def said(self, event: str) -> list[tuple[str, str, str, str]]:
        """The lines of the log of this name: level, handler, sentence and reason."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        found = [line for line in lines if line["event"] == event]
        for line in found:
            job = handle_job_id(notify_job_id(line["handler"], Kind.PREDICTION, ID))
            assert (line["kind"], line["id"], line["job"]) == ("prediction", ID, job)
        return [(line["level"], line["handler"], line["message"], line["reason"]) for line in found]

    def outkeep(self, *arguments: str, check: bool = True) -> str:
        """What a command prints."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OUTKEEP_")}
        done = forked.run(
            [sys.executable, "-m", "app.cli", *arguments],
            cwd=ROOT,
            env=inherited | self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=check,
        )
        return done.stdout

    def told(self, handler: str) -> dict[str, Any] | None:
        path = self.outputs / "predictions" / ID / f"told-{handler}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def sweep(self) -> None:
        tell_ends(self.redis, self.storage)

    def failures(self) -> list[Failure]:
        return list(failures(self.redis, Records(self.redis, ttl=60)))

    def replay(self) -> Replay:
        return Replay(self.redis, self.storage, Records(self.redis, ttl=60), self.known, None)


@pytest.fixture
def workshop(redis: Redis, valkey_url: str, tmp_path: Path) -> Workshop:
    workshop = Workshop(redis, valkey_url, tmp_path)
    workshop.store()
    return workshop


def until_told(workshop: Workshop, handler: str, outcome: str) -> dict[str, Any]:
    def is_told() -> bool:
        told = workshop.told(handler)
        return told is not None and told["outcome"] == outcome

    wait_until(is_told, seconds=PATIENCE)
    told = workshop.told(handler)
    assert told is not None
    return told


def test_a_job_gets_the_event_and_how_it_ended_is_told_at_once(workshop: Workshop) -> None:
    workshop.add("thumbnail", "keep")
    workshop.hand_on("thumbnail")
    assert workshop.told("thumbnail") is None, "it has not run yet"
    with workshop.working():
        told = until_told(workshop, "thumbnail", "delivered")
    lines = [json.loads(line) for line in workshop.log.splitlines() if line.startswith("{")]
    assert [line["queue"] for line in lines if line["event"] == "worker_started"] == ["handle"]
    assert (told["attempts"], told["child"]) == (1, None)
    event = json.loads((workshop.folder / "event.json").read_text())
    assert event["type"] == "prediction.succeeded"
    assert event["data"]["input"] == {"prompt": "größer"}
    assert event["data"]["context"] == {"user": 7}
    [file] = event["data"]["files"]
    assert file["url"].startswith(f"https://keep.example.com/files/predictions/{ID}/output-0.png?expires=")


def test_a_job_is_enqueued_with_every_bound_set_and_shows_no_argument(workshop: Workshop) -> None:
    workshop.add("thumbnail", "keep", 'timeout = "7m"')
    workshop.hand_on("thumbnail")
    job = workshop.job("thumbnail")
    assert (job.func_name, job.timeout) == ("tasks.keep", 420)
    assert job.retries_left == 4
    assert job.retry_intervals == [5, 60, 300, 1800]
    assert job.result_ttl is not None
    assert job.result_ttl >= 86400
    assert job.failure_ttl is not None
    assert job.failure_ttl >= 86400
    assert job.description == f"thumbnail about prediction {ID}"


def test_an_event_is_handed_on_once_however_often_the_notify_job_runs(workshop: Workshop) -> None:
    workshop.add("thumbnail", "keep")
    workshop.hand_on("thumbnail")
    first = workshop.job("thumbnail").enqueued_at
    notify = queues.queue(NOTIFY_QUEUE, workshop.redis).fetch_job(
        notify_job_id("thumbnail", Kind.PREDICTION, ID)
    )
    assert notify is not None
    queues.queue(NOTIFY_QUEUE, workshop.redis).enqueue_job(notify)
    workshop.work_notify()
    assert queues.queue(HANDLE_QUEUE, workshop.redis).count == 1
    assert workshop.job("thumbnail").enqueued_at == first


def test_code_that_fails_in_any_way_spoils_its_own_delivery_and_no_other_says_why_and_is_replayed(
    workshop: Workshop,
) -> None:
    for name, (lines, _) in FAILING.items():
        workshop.add(name, name, *lines)
    workshop.add("good", "keep")
    workshop.hand_on(*FAILING, "good")
    jobs = {name: workshop.last_chance(workshop.job(name)) for name in FAILING}
    with workshop.working():
        until_told(workshop, "good", "delivered")
        for job in jobs.values():
            wait_until(has(job, JobStatus.FAILED), seconds=PATIENCE)
        workshop.sweep()  # of a work-horse that was killed nothing else tells
        listed = workshop.outkeep("ls", "--failed")
        for name, (_, reason) in FAILING.items():
            told = workshop.told(name)
            assert told is not None
            assert (told["outcome"], told["attempts"]) == ("dead", 5)
            assert reason in told["error"]
            assert reason in failure(jobs[name])
            assert name in listed
            assert reason[:40] in listed
        assert {failed.handler for failed in workshop.failures()} == set(FAILING)
        (workshop.folder / "tasks.py").write_text(MENDED)
        workshop.outkeep("replay", "--failed")
        workshop.work_notify()
        for name in FAILING:
            until_told(workshop, name, "delivered")


def test_what_fails_is_logged_by_name_with_its_reason_and_without_its_arguments(workshop: Workshop) -> None:
    for name, function in {"bad": "raises", "worst": "raises", "gone": "exits", "lost": "exits"}.items():
        workshop.add(name, function)
    workshop.hand_on("bad", "worst", "gone", "lost")
    workshop.last_chance(workshop.job("worst"))
    workshop.last_chance(workshop.job("lost"))
    with workshop.working():
        until_told(workshop, "worst", "dead")
        wait_until(has(workshop.job("bad"), JobStatus.SCHEDULED), seconds=PATIENCE)
        wait_until(has(workshop.job("gone"), JobStatus.SCHEDULED), seconds=PATIENCE)
        wait_until(has(workshop.job("lost"), JobStatus.FAILED), seconds=PATIENCE)
    raised, left = "ValueError: no such colour", "its process left with 7"
    again, no_more = (
        "a job of a handler failed, again in 5 s: ",
        "a job of a handler failed for the last time: ",
    )
    assert sorted(workshop.said("handler_job_run_failed")) == [
        ("warning", "bad", again + raised, raised),
        ("warning", "gone", again + left, left),
        ("warning", "lost", no_more + left, left),
        ("warning", "worst", no_more + raised, raised),
    ]
    for_good = f"a job of a handler has failed for good, and waits for a replay: {raised}"
    assert workshop.said("handler_job_failed") == [("error", "worst", for_good, raised)]
    assert '"exception": "Traceback' in workshop.log
    for unwanted in ("größer", r"gr\u00f6\u00dfer", "exception raised while executing"):
        assert unwanted not in workshop.log


def test_no_secret_that_a_function_raises_is_kept_or_logged(workshop: Workshop) -> None:
    secret = workshop.environment["OUTKEEP_SECRET_KEY"]
    workshop.add("bad", "betrays")
    workshop.hand_on("bad")
    workshop.last_chance(workshop.job("bad"))
    with workshop.working():
        until_told(workshop, "bad", "dead")
    told = workshop.told("bad")
    assert told is not None
    assert told["error"] == "ValueError: refused for [hidden]"
    assert secret not in workshop.log


def test_a_job_that_fails_is_tried_again_before_it_is_given_up(workshop: Workshop) -> None:
    workshop.add("bad", "raises")
    workshop.hand_on("bad")
    job = workshop.job("bad")
    with workshop.working():
        wait_until(has(job, JobStatus.SCHEDULED), seconds=PATIENCE)
    workshop.sweep()
    assert workshop.told("bad") is None
    assert workshop.failures() == []


def test_what_waits_on_a_queue_that_no_handler_names_any_more_is_run_told_and_shown(
    workshop: Workshop,
) -> None:
    workshop.add("thumbnail", "raises", 'queue = "thumbs"')
    workshop.hand_on("thumbnail")
    workshop.work_as_the_user_does("thumbs")
    job = workshop.job("thumbnail", "thumbs")
    assert status(job) is JobStatus.SCHEDULED
    workshop.handlers = ""
    workshop.add("thumbnail", "keep", 'queue = "pictures"')

    with workshop.working(NOTIFY_QUEUE):
        wait_until(has(job, JobStatus.QUEUED), seconds=PATIENCE)
        shown = workshop.outkeep("doctor", check=False)
    (workshop.folder / "tasks.py").write_text(MENDED)
    workshop.work_as_the_user_does("thumbs")
    workshop.sweep()

    assert "queue thumbs: 1 waiting" in shown
    assert "workers of thumbs: none runs; start `rq worker -S json thumbs`" in shown
    told = workshop.told("thumbnail")
    assert told is not None
    assert told["outcome"] == "delivered"
    assert "thumbs" not in workshop.outkeep("doctor", check=False)


def test_the_users_own_worker_runs_what_is_on_its_queue_and_the_sweep_tells_how_it_ended(
    workshop: Workshop,
) -> None:
    workshop.add("thumbnail", "keep", 'queue = "thumbs"')
    workshop.add("bad", "raises", 'queue = "thumbs"')
    workshop.hand_on("thumbnail", "bad")
    workshop.last_chance(workshop.job("bad", "thumbs"))
    workshop.work_as_the_user_does("thumbs")
    assert (workshop.folder / "event.json").exists()
    assert workshop.told("thumbnail") is None
    workshop.sweep()
    good, bad = workshop.told("thumbnail"), workshop.told("bad")
    assert good is not None
    assert bad is not None
    assert (good["outcome"], bad["outcome"]) == ("delivered", "dead")
    assert bad["error"] == "ValueError: no such colour"
    [failed] = workshop.failures()
    assert (failed.handler, failed.error, failed.attempts) == ("bad", "ValueError: no such colour", 5)


def test_an_end_is_told_once_and_never_over_a_later_one(workshop: Workshop) -> None:
    workshop.add("thumbnail", "keep", 'queue = "thumbs"')
    workshop.hand_on("thumbnail")
    workshop.work_as_the_user_does("thumbs")
    workshop.sweep()
    path = workshop.outputs / "predictions" / ID / "told-thumbnail.json"
    path.unlink()
    workshop.sweep()
    assert not path.exists(), "the job is marked"
    workshop.redis.hdel(workshop.job("thumbnail", "thumbs").key, "outkeep_told")
    later = {"webhook_id": "msg", "outcome": "dead", "attempts": 1, "at": "2999-01-01T00:00:00.000Z"}
    path.write_text(json.dumps(later))
    workshop.sweep()
    assert json.loads(path.read_text()) == later


def test_a_failed_job_is_replayed_by_a_job_of_its_own(workshop: Workshop) -> None:
    workshop.add("flaky", "raises", 'queue = "thumbs"')
    workshop.hand_on("flaky")
    workshop.last_chance(workshop.job("flaky", "thumbs"))
    workshop.work_as_the_user_does("thumbs")
    workshop.sweep()
    (workshop.folder / "tasks.py").write_text("def raises(event):\n    return 'well'\n")
    [replayed] = workshop.replay().failed()
    assert (replayed.outcome, replayed.handler) == (Outcome.ENQUEUED, "flaky")
    assert workshop.failures() == []
    workshop.work_notify()
    workshop.work_as_the_user_does("thumbs")
    workshop.sweep()
    assert status(workshop.job("flaky", "thumbs", "-r1")) == JobStatus.FINISHED
    told = workshop.told("flaky")
    assert told is not None
    assert told["outcome"] == "delivered"


def test_a_replay_hastens_a_job_that_waits_and_doubles_none(workshop: Workshop) -> None:
    workshop.add("flaky", "raises", 'queue = "thumbs"')
    workshop.hand_on("flaky")
    [waiting] = workshop.replay().one(ID)
    assert waiting.outcome is Outcome.WAITING
    workshop.work_as_the_user_does("thumbs")
    job = workshop.job("flaky", "thumbs")
    assert status(job) == JobStatus.SCHEDULED
    [hastened] = workshop.replay().one(ID)
    assert (hastened.outcome, hastened.job) == (Outcome.HASTENED, job.id)
    assert queues.queue("thumbs", workshop.redis).job_ids == [job.id]


def test_what_is_listed_for_another_queue_does_not_run_on_handle(workshop: Workshop) -> None:
    workshop.add("thumbnail", "keep")
    workshop.add("theirs", "other", 'queue = "thumbs"')
    planted = queues.queue(HANDLE_QUEUE, workshop.redis).enqueue("tasks.other", {})
    with workshop.working():
        wait_until(has(planted, JobStatus.FAILED), seconds=PATIENCE)
    assert "'tasks.other' is not a job of the handlers file" in failure(planted)
    assert not (workshop.folder / "other").exists()


def test_a_killed_work_horse_costs_one_run(workshop: Workshop) -> None:
    workshop.add("slow", "hangs")
    workshop.hand_on("slow")
    job = workshop.job("slow")
    with workshop.working() as worker:
        wait_until(has(job, JobStatus.STARTED), seconds=PATIENCE)
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        wait_until(lambda: children.read_text().split(), seconds=PATIENCE)
        os.kill(int(children.read_text().split()[0]), 9)
        wait_until(has(job, JobStatus.SCHEDULED), seconds=PATIENCE)
        assert worker.poll() is None
    job.refresh()  # type: ignore[no-untyped-call]
    assert job.retries_left == 3
