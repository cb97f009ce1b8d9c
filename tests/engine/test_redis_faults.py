"""Each worker process through each fault of Redis: it stays, says so once, and goes on by itself."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job, JobStatus

from app.accept import queues
from app.core.names import HANDLE_QUEUE
from tests import forked
from tests.engine import test_handle_crashes as handling
from tests.engine.worker_process import FAST, ROOT, has, wait_until
from tests.own_valkey import OwnValkey
from tests.receive.web import clean_environment, environment
from tests.redis_proxy import Partition

Fault = Callable[[OwnValkey], contextlib.AbstractContextManager[None]]
QUEUES = ("persist", "notify", "handle")


@contextmanager
def configured(valkey: OwnValkey, name: str, wrong: str, right: str) -> Iterator[None]:
    valkey.redis.config_set(name, wrong)
    yield
    valkey.redis.config_set(name, right)


def full(valkey: OwnValkey) -> contextlib.AbstractContextManager[None]:
    return configured(valkey, "maxmemory", "1", "0")


@contextmanager
def read_only(valkey: OwnValkey) -> Iterator[None]:
    valkey.redis.replicaof("127.0.0.1", "1")
    yield
    valkey.redis.replicaof("NO", "ONE")


@contextmanager
def locked(valkey: OwnValkey) -> Iterator[None]:
    """NOAUTH, in old connections and new ones."""
    valkey.redis.acl_setuser("default", enabled=True, reset_passwords=True, passwords=["+secret"])
    with Redis.from_url(valkey.url, username="default", password="secret") as operator:
        operator.client_kill_filter(_type="normal", skipme=True)
        yield
        operator.acl_setuser("default", enabled=True, reset_passwords=True, nopass=True)


@contextmanager
def forbidden(valkey: OwnValkey) -> Iterator[None]:
    """NOPERM for what a worker says of itself."""
    valkey.redis.acl_setuser("default", enabled=True, nopass=True, commands=["-hset", "-expire"])
    yield
    valkey.redis.acl_setuser("default", enabled=True, nopass=True, categories=["+@all"])


@contextmanager
def killed(valkey: OwnValkey) -> Iterator[None]:
    valkey.kill()
    yield
    valkey.start()


@contextmanager
def stopped(valkey: OwnValkey) -> Iterator[None]:
    valkey.signal(signal.SIGSTOP)
    yield
    valkey.signal(signal.SIGCONT)


@contextmanager
def unsaved(valkey: OwnValkey) -> Iterator[None]:
    """MISCONF: a snapshot has failed, and nothing is written until one succeeds."""
    blocked = valkey.folder / "dump.rdb"
    blocked.mkdir()
    valkey.redis.config_set("save", "3600 1")
    valkey.redis.bgsave()
    wait_until(lambda: valkey.redis.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    blocked.rmdir()
    valkey.redis.config_set("save", "")


@contextmanager
def loading(valkey: OwnValkey) -> Iterator[None]:
    """LOADING: it is back, and reads its data for long."""
    with valkey.redis.pipeline(transaction=False) as pipeline:
        for number in range(60_000):
            pipeline.set(f"filling:{number}", "x")
        pipeline.execute()
    valkey.kill()
    valkey.launch("--key-load-delay", "500")  # microseconds
    wait_until(valkey.is_loading)
    yield
    valkey.redis.config_set("key-load-delay", 0)
    wait_until(valkey.answers)


FAULTS: list[Fault] = [full, read_only, locked, forbidden, killed, stopped, unsaved, loading]


class Workers:
    """One process for each queue; what they log is in `log`."""

    def __init__(self, url: str, folder: Path) -> None:
        self._log = folder / "log"
        handlers = folder / "handlers.toml"
        handlers.write_text('[[handler]]\nname = "held"\njob = "tests.engine.handle_process.hold"\n')
        settings = environment(url, folder, OUTKEEP_HANDLERS=str(handlers), LOG_FORMAT="json")
        self.processes = [self._begin(queue, settings) for queue in QUEUES]

    def _begin(self, queue: str, settings: dict[str, str]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "workers", queue]
        with self._log.open("ab") as log:
            return forked.Popen(command, cwd=ROOT, env=clean_environment(settings), stdout=log, stderr=log)

    def living(self) -> int:
        return sum(process.poll() is None for process in self.processes)

    def said(self, words: str) -> int:
        return self._log.read_text().count(words)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        print(self._log.read_text()[-8000:])


@pytest.fixture
def workers(valkey: OwnValkey, tmp_path: Path) -> Iterator[Workers]:
    running = Workers(valkey.url, tmp_path)
    try:
        yield running
    finally:
        running.end()


def hold(redis: Redis, folder: Path) -> Job:
    folder.mkdir()
    name = "tests.engine.handle_process.hold"
    return queues.queue(HANDLE_QUEUE, redis).enqueue(name, args=[str(folder)], job_timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_workers_wait_for_redis_and_a_job_that_runs_meanwhile_runs_once(
    valkey: OwnValkey, workers: Workers, tmp_path: Path, fault: Fault
) -> None:
    require_one_run(valkey.redis, workers, tmp_path, fault(valkey))


@pytest.mark.slow
def test_workers_wait_for_the_end_of_a_partition_too(valkey: OwnValkey, tmp_path: Path) -> None:
    """No connection is closed and none is answered; what comes back is new ones."""
    wire = Partition(valkey.url.removeprefix("unix://"))
    running = Workers(wire.url, tmp_path)
    try:
        require_one_run(valkey.redis, running, tmp_path, cut(wire))
    finally:
        running.end()
        wire.close()


@contextmanager
def cut(wire: Partition) -> Iterator[None]:
    wire.cut()
    yield
    wire.heal()


def require_one_run(
    redis: Redis, workers: Workers, tmp_path: Path, fault: contextlib.AbstractContextManager[None]
) -> None:
    """All workers stay through the fault, and a job that runs meanwhile runs once."""
    wait_until(lambda: redis.scard("rq:workers") == len(QUEUES))
    job, folder = hold(redis, tmp_path / "held"), tmp_path / "held"
    wait_until(lambda: list(folder.glob("run-*")))

    lost = workers.said('"event": "redis_lost"')
    with fault:
        # All three say so, the one with a running job at its next heartbeat.
        wait_until(lambda: workers.said('"event": "redis_lost"') - lost >= len(QUEUES))
        assert workers.living() == len(QUEUES)
    wait_until(lambda: workers.said('"event": "redis_found"') >= len(QUEUES))
    (folder / "go").touch()
    wait_until(has(job, JobStatus.FINISHED))
    assert len(list(folder.glob("run-*"))) == 1

    again = hold(redis, tmp_path / "again")
    (tmp_path / "again" / "go").touch()
    wait_until(has(again, JobStatus.FINISHED))
    assert workers.living() == len(QUEUES)
    assert workers.said("Traceback") == 0
    assert workers.said('"event": "process_crashed"') == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", [full, read_only, locked, killed, unsaved, loading])
def test_workers_that_start_without_redis_wait_for_it(
    valkey: OwnValkey, tmp_path: Path, fault: Fault
) -> None:
    with fault(valkey):
        running = Workers(valkey.url, tmp_path)
        wait_until(
            lambda: (
                running.said('"event": "redis_awaited"') + running.said('"event": "redis_lost"')
                >= len(QUEUES)
            )
        )
        assert running.living() == len(QUEUES)
    try:
        wait_until(lambda: known(valkey.redis) == len(QUEUES))
        assert running.living() == len(QUEUES)
        assert running.said("Traceback") == 0
    finally:
        running.end()


def known(redis: Redis) -> int:
    with contextlib.suppress(RedisError):
        return int(redis.scard("rq:workers"))
    return 0


NOT_SAVED = ("was not begun, or its end not saved", "failed to persist failure of job")
"""What we say of a run whose end Redis does not take, and what RQ says."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", [full, read_only, locked, killed, unsaved])
def test_a_function_that_ends_while_redis_does_not_serve_ends_no_worker_and_runs_again(
    valkey: OwnValkey, tmp_path: Path, fault: Fault
) -> None:
    log = tmp_path / "log"
    with handling.worker(valkey.url, tmp_path, **FAST) as process:
        job = handling.enqueue(valkey.redis, "hold", str(tmp_path))
        wait_until(lambda: handling.horses(tmp_path))
        with fault(valkey):
            (tmp_path / "go").touch()
            wait_until(lambda: any(words in log.read_text() for words in NOT_SAVED))
        wait_until(has(job, JobStatus.FINISHED))
        assert process.poll() is None
        handling.assert_clean(valkey.redis)
    assert "process_crashed" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_forking_worker_that_waits_for_jobs_waits_for_redis_too(
    valkey: OwnValkey, tmp_path: Path, fault: Fault
) -> None:
    log = tmp_path / "log"
    with handling.worker(valkey.url, tmp_path, **FAST) as process:
        wait_until(lambda: known(valkey.redis) == 1)
        with fault(valkey):
            wait_until(lambda: '"event": "redis_lost"' in log.read_text())
        wait_until(lambda: '"event": "redis_found"' in log.read_text() or process.poll() is not None)
        assert process.poll() is None
        job = handling.enqueue(valkey.redis, "hold", str(tmp_path))
        (tmp_path / "go").touch()
        wait_until(has(job, JobStatus.FINISHED))
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "busy"),
    [(full, True), (full, False), (read_only, True), (read_only, False), (locked, True), (locked, False),
     (killed, True)],
)  # fmt: skip
def test_the_forking_worker_ends_in_good_order_while_redis_does_not_serve(
    valkey: OwnValkey, tmp_path: Path, fault: Fault, *, busy: bool
) -> None:
    log = tmp_path / "log"
    with handling.worker(valkey.url, tmp_path, **FAST) as process:
        wait_until(lambda: known(valkey.redis) == 1)
        if busy:
            handling.enqueue(valkey.redis, "hold", str(tmp_path))
            wait_until(lambda: handling.horses(tmp_path))
        with fault(valkey):
            wait_until(lambda: '"event": "redis_lost"' in log.read_text())
            process.terminate()
            (tmp_path / "go").touch()
            assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()
