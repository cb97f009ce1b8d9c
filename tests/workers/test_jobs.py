"""Our jobs as RQ sees them, and the worker processes, `python -m workers`, on a real Valkey."""

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from rq.job import Job, JobStatus
from rq.worker.base import BaseWorker

from app.core import names
from app.core.lifecycle import State
from app.core.names import NOTIFY_QUEUE, PERSIST_JOB, PERSIST_QUEUE, Kind, notify_job_id, persist_job_id
from app.deployment import Deployment
from app.receive.listening import free_port
from app.settings import load
from app.simulator import Simulator
from tests import forked
from tests.e2e.recorder import Recorder, recorder
from tests.engine.worker_process import PATIENCE, failure, wait_until
from tests.keep.desk import ID, PNG, Desk, Quick
from tests.own_valkey import own_valkey
from workers.services import persist_jobs

JOB = persist_job_id(Kind.PREDICTION, ID)


@pytest.fixture
def downstream() -> Iterator[Recorder]:
    with recorder() as running:
        yield running


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    desk = Desk(redis, tmp_path)
    desk.now = datetime.now(UTC)  # the clock of real workers does not obey
    return desk


def job(desk: Desk, name: str = PERSIST_QUEUE, job_id: str = JOB) -> Job | None:
    found: Job | None = desk.queue(name).fetch_job(job_id)
    return found


def present(desk: Desk, name: str = PERSIST_QUEUE, job_id: str = JOB) -> Job:
    found = job(desk, name, job_id)
    assert found is not None
    return found


def work(desk: Desk, **settings: str) -> None:
    """Work the queue `persist` off with what a worker process works with."""
    environment = {"OUTKEEP_DATA": str(desk.outputs.parent), "OUTKEEP_DISK_FLOOR": "0", **settings}
    deployment = Deployment(load(environment), "", (b"k" * 32,), ())
    Quick(PERSIST_QUEUE, connection=desk.redis, jobs=lambda: persist_jobs(deployment, desk.redis)).work(
        burst=True
    )


@pytest.mark.parametrize("name", [value for name, value in vars(names).items() if name.endswith("_JOB")])
def test_each_job_name_resolves(name: str) -> None:
    module, _, function = name.rpartition(".")
    assert callable(getattr(import_module(module), function))


def test_a_job_that_must_wait_stands_in_the_scheduled_registry_with_what_it_learned(desk: Desk) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    desk.receive([f"{nobody}/a.png"])
    work(desk, OUTKEEP_OUTPUT_HOSTS=nobody)
    waiting = present(desk)
    assert waiting.get_status() == JobStatus.SCHEDULED
    assert desk.queue(PERSIST_QUEUE).scheduled_job_registry.get_job_ids() == [JOB]
    assert waiting.number_of_retries == 1
    assert waiting.retries_left == 20  # those are for crashes
    assert list(waiting.meta["tries"]) == ["0"]
    assert desk.record().state is State.RECEIVED


def test_an_event_that_cannot_be_used_is_given_up_at_once_and_visibly(desk: Desk) -> None:
    desk.receive(None)
    desk.redis.hset(f"outkeep:record:prediction:{ID}", "body", "[]")
    work(desk)
    assert present(desk).get_status() == JobStatus.FAILED
    assert desk.queue(PERSIST_QUEUE).failed_job_registry.get_job_ids() == [JOB]
    assert "not an object" in failure(present(desk))
    assert (desk.record().state, desk.record().error) == (State.FAILED, "not_an_object")


def test_what_our_rules_end_is_logged_without_a_trace(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.receive(None)
    desk.redis.hset(f"outkeep:record:prediction:{ID}", "body", "[]")
    desk.queue(PERSIST_QUEUE).enqueue(PERSIST_JOB, args=["cat", ID], job_id="planted")
    work(desk)
    assert "given up until it is replayed" in caplog.text
    assert "job planted is refused" in caplog.text
    assert "Traceback" not in caplog.text


def test_what_crashes_a_job_is_logged_with_its_trace(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.queue(PERSIST_QUEUE).enqueue(PERSIST_JOB, args=["prediction"], job_id="planted")
    work(desk)
    assert "Traceback" in caplog.text


def test_a_job_that_always_crashes_ends_with_the_failed_ones_and_its_record_too(desk: Desk) -> None:
    desk.receive(["https://files.example.com/a.png"])
    broken = present(desk)
    broken.meta = {"tries": "no object"}
    broken.retries_left = 1
    broken.save()
    work(desk)
    assert present(desk).get_status() == JobStatus.SCHEDULED
    assert desk.record().state is State.RECEIVED
    queue = desk.queue(PERSIST_QUEUE)
    queue.scheduled_job_registry.remove(JOB)
    queue.enqueue_job(present(desk))
    work(desk)
    assert present(desk).get_status() == JobStatus.FAILED
    assert (desk.record().state, desk.record().error) == (State.FAILED, "crashed")


def test_a_failed_job_that_is_requeued_is_kept(desk: Desk) -> None:
    desk.receive("a text")
    body = desk.record().body
    assert body is not None
    desk.redis.hset(f"outkeep:record:prediction:{ID}", "body", "[]")
    work(desk)
    desk.redis.hset(f"outkeep:record:prediction:{ID}", "body", body)
    present(desk).requeue()
    work(desk)
    assert desk.record().state is State.DISPATCHED
    assert desk.file("output.txt") == b"a text"


def test_a_job_without_a_record_is_a_dead_letter_and_a_repeat_of_its_event_is_kept(desk: Desk) -> None:
    desk.receive("a text")
    desk.redis.delete(f"outkeep:record:prediction:{ID}")
    work(desk)
    assert len(desk.queue(PERSIST_QUEUE).failed_job_registry) == 1
    assert desk.files() == {}
    desk.receive("a text")
    work(desk)
    assert desk.file("output.txt") == b"a text"


@pytest.mark.parametrize(
    "arguments", [["cat", ID], ["prediction", "../../x"], ["prediction", 5], ["prediction"]]
)
def test_planted_arguments_are_refused(desk: Desk, arguments: list[Any]) -> None:
    desk.queue(PERSIST_QUEUE).enqueue(PERSIST_JOB, args=arguments, job_id="planted")
    work(desk)
    assert desk.queue(PERSIST_QUEUE).failed_job_registry.get_job_ids() == ["planted"]
    assert desk.files() == {}


class Process:
    """A worker process on `desk`; its output is in `log`."""

    def __init__(self, desk: Desk, *arguments: str, **settings: str) -> None:
        folder = desk.outputs.parent
        self._log = folder / f"{'-'.join(arguments)}.log"
        kept = ("PATH", "HOME", "VIRTUAL_ENV")
        environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "OUTKEEP_DATA": str(folder),
            "OUTKEEP_DISK_FLOOR": "0",
            "OUTKEEP_NOTIFY_PRIVATE": "true",
            "OUTKEEP_SECRET_KEY": "k" * 32,
            "LOG_FORMAT": "json",
            **settings,
        }
        with self._log.open("ab") as log:
            self.process = forked.Popen(
                [sys.executable, "-m", "workers", *arguments],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        """Wait for an end that comes by itself."""
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end()


@contextmanager
def process(desk: Desk, *arguments: str, **settings: str) -> Iterator[Process]:
    running = Process(desk, *arguments, **settings)
    try:
        yield running
    except BaseException:
        print(running.log)
        raise
    finally:
        running.process.kill()
        running.process.wait()


def workers_of(redis: Redis) -> dict[str, list[str]]:
    """Queue → states of its workers, as `rq info` reads them."""
    found: dict[str, list[str]] = {}
    for worker in BaseWorker.all(connection=redis):
        for name in worker.queue_names():
            found.setdefault(name, []).append(str(worker.get_state()))
    return found


def test_worker_processes_keep_a_prediction_and_tell_its_handler_and_rq_info_is_true(
    desk: Desk, valkey_url: str, simulator: Simulator, downstream: Recorder
) -> None:
    (desk.outputs.parent / "outkeep.toml").write_text(downstream.handler())
    settings = {"REDIS_URL": valkey_url, "OUTKEEP_OUTPUT_HOSTS": simulator.url}
    with process(desk, "persist", **settings) as persist, process(desk, "notify", **settings) as notify:
        wait_until(lambda: workers_of(desk.redis) == {"persist": ["idle"], "notify": ["idle"]})
        desk.receive([simulator.add_file("a.png", PNG)])
        downstream.wait_for(lambda it: bool(it.of(ID)), "the handler is told")
        downstream.verify(downstream.of(ID)[0])
        told = notify_job_id("recorder", Kind.PREDICTION, ID)
        wait_until(lambda: present(desk, NOTIFY_QUEUE, told).get_status() == JobStatus.FINISHED)
        info = forked.run(
            [Path(sys.executable).parent / "rq", "info", "--url", valkey_url, "--raw"],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        ).stdout
        assert "queue persist 0" in info
        assert "queue notify 0" in info
        pids = [int(worker.pid or 0) for worker in BaseWorker.all(connection=desk.redis)]
        assert sorted(pids) == sorted(running.process.pid for running in (persist, notify))
        assert (persist.stop(), notify.stop()) == (0, 0)
    assert workers_of(desk.redis) == {}
    assert present(desk).get_status() == JobStatus.FINISHED
    assert desk.file("output-0.png") == PNG
    lines = [json.loads(line) for line in (persist.log + notify.log).splitlines()]
    # The watchdog notices it when the machine stands still, too.
    assert {line["level"] for line in lines if line["event"] not in {"loop_blocked", "loop_freed"}} == {
        "info"
    }


def test_a_worker_process_starts_its_delayed_retries_itself(
    desk: Desk, valkey_url: str, simulator: Simulator
) -> None:
    desk.receive([simulator.add_file("a.png", PNG)])
    obstacle = desk.outputs / "predictions" / ID / "output-0.png"
    (obstacle / "x").mkdir(parents=True)
    with process(desk, "persist", REDIS_URL=valkey_url, OUTKEEP_OUTPUT_HOSTS=simulator.url):
        wait_until(lambda: present(desk).get_status() == JobStatus.SCHEDULED)
        (obstacle / "x").rmdir()
        obstacle.rmdir()
        wait_until(lambda: present(desk).get_status() == JobStatus.FINISHED)
    assert desk.file("output-0.png") == PNG


def test_mistakes_in_the_configuration_are_all_named_and_end_with_2(desk: Desk, valkey_url: str) -> None:
    (desk.outputs.parent / "outkeep.toml").write_text(
        '[[handler]]\nname = "a b"\nurl = "ftp://x"\nsecret = "s3cret"\n'
    )
    settings = {
        "OUTKEEP_SLOTZ": "5",
        "OUTKEEP_MAX_FILE": "huge",
        "OUTKEEP_STORAGE": "file:///dev/null/outputs",
        "REDIS_URL": valkey_url,
    }
    with process(desk, "persist", **settings) as running:
        assert running.end() == 2
    lines = running.log.splitlines()
    assert all(line.startswith("outkeep: ") for line in lines)
    for word in ("OUTKEEP_SLOTZ", "OUTKEEP_MAX_FILE", "OUTKEEP_STORAGE", "'name'", "'url'", "'secret'"):
        assert any(word in line for line in lines), word
    assert "s3cret" not in running.log


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "REDIS_URL"),
        ({"REDIS_URL": "redis://localhost", "OUTKEEP_SECRET_KEY": ""}, "OUTKEEP_SECRET_KEY"),
        ({"REDIS_URL": "http://localhost"}, "REDIS_URL"),
        ({"REDIS_URL": "redis://localhost:port"}, "REDIS_URL"),
        ({"REDIS_URL": "redis://localhost/0?no_such_option=1"}, "REDIS_URL"),
    ],
)
def test_a_worker_without_a_usable_redis_ends_with_2_and_one_line(
    desk: Desk, settings: dict[str, str], word: str
) -> None:
    with process(desk, "notify", **settings) as running:
        assert running.end() == 2
    [line] = running.log.splitlines()
    assert line.startswith(f"outkeep: {word}: ")


def test_an_unknown_queue_is_misuse(desk: Desk) -> None:
    with process(desk, "elsewhere") as running:
        assert running.end() == 2
    assert "persist" in running.log


@contextmanager
def valkey(port: int) -> Iterator[Redis]:
    with own_valkey() as server:
        server.start("--port", str(port))
        yield server.redis


def test_a_worker_waits_for_redis_and_says_so(desk: Desk) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    with process(desk, "persist", REDIS_URL=url) as running:
        wait_until(lambda: "waiting for Redis" in running.log)
        with valkey(port) as redis:
            wait_until(lambda: workers_of(redis) == {"persist": ["idle"]})
            assert running.stop() == 0
    assert running.log.count("waiting for Redis") == 1
    assert "Redis answers" in running.log


@pytest.mark.parametrize(("queue", "raised"), [("persist", True), ("notify", True), ("handle", False)])
def test_a_worker_may_open_more_files_than_usual_and_functions_of_others_no_more(
    desk: Desk, queue: str, *, raised: bool
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    usual = min(256, hard - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual, hard))  # which processes inherit
    try:
        with process(desk, queue, REDIS_URL=f"redis://127.0.0.1:{free_port()}") as running:
            wait_until(lambda: "waiting for Redis" in running.log)
            may = psutil.Process(running.process.pid).rlimit(psutil.RLIMIT_NOFILE)
            assert running.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert may == (hard if raised else usual, hard)


def test_a_worker_that_still_waits_for_redis_can_be_stopped(desk: Desk) -> None:
    with process(desk, "persist", REDIS_URL=f"redis://127.0.0.1:{free_port()}") as running:
        wait_until(lambda: "waiting for Redis" in running.log)
        assert running.stop() == 0
    assert "Traceback" not in running.log


@pytest.mark.parametrize("credentials", [":wr0ng@", "nobody:wr0ng@", ""])
def test_a_wrong_password_is_said_without_showing_it(desk: Desk, credentials: str) -> None:
    port = free_port()
    with valkey(port) as redis:
        redis.config_set("requirepass", "r1ght")
        with process(desk, "persist", REDIS_URL=f"redis://{credentials}127.0.0.1:{port}") as running:
            wait_until(lambda: "password" in running.log)
            assert running.stop() == 0
    assert "wr0ng" not in running.log
    assert "Traceback" not in running.log
