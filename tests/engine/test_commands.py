"""What RQ's own functions tell our workers, in peace and after whatever the wire to Redis went through."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq.command import (
    send_command,
    send_kill_horse_command,
    send_shutdown_command,
    send_stop_execution_command,
    send_stop_job_command,
)
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from tests.engine import test_handle_crashes as handling
from tests.engine.worker_process import (
    FAST,
    assert_clean,
    enqueue,
    has,
    open_gate,
    running,
    runs,
    wait_until,
)
from tests.redis_proxy import Partition
from workers.engine.patient_worker import AGAIN, QUIET, SILENCE, Commands


def name_of(redis: Redis, process: "subprocess.Popen[bytes]") -> str:
    """How RQ calls the worker of a process; waits until it listens."""

    def found() -> list[str]:
        keys = cast(set[bytes], redis.smembers("rq:workers"))
        names = [key.decode().removeprefix("rq:worker:") for key in keys]
        return [
            name
            for name in names
            if redis.hget(f"rq:worker:{name}", "pid") == str(process.pid).encode()
            and dict(redis.pubsub_numsub(f"rq:pubsub:{name}"))[f"rq:pubsub:{name}".encode()]
        ]

    wait_until(found)
    return found()[0]


def stop_job(redis: Redis, job: Job) -> None:
    send_stop_job_command(redis, job.id, serializer=JSONSerializer)


def stop_execution(redis: Redis, job: Job) -> None:
    [execution] = job.get_executions()
    send_stop_execution_command(redis, job.id, execution.id)


@pytest.mark.parametrize("stop", [stop_job, stop_execution])
def test_a_job_that_is_stopped_ends_and_the_others_go_on(
    redis: Redis, valkey_url: str, tmp_path: Path, stop: Callable[[Redis, Job], None]
) -> None:
    with running(valkey_url, tmp_path, pace=FAST) as worker:
        jobs = [enqueue(redis, "hold") for _ in range(5)]
        wait_until(lambda: all(runs(redis, job) for job in jobs))
        name_of(redis, worker.process)
        for job in jobs[:3]:
            stop(redis, job)
        for job in jobs[:3]:
            wait_until(has(job, JobStatus.STOPPED))
        for job in jobs[3:]:
            open_gate(redis, job)
            wait_until(has(job, JobStatus.FINISHED))
        assert [runs(redis, job) for job in jobs] == [1] * 5
        assert_clean(redis)
        assert worker.log.count("was stopped on request") == 3
        assert "Traceback" not in worker.log


def test_a_worker_that_is_told_to_shut_down_ends_its_jobs_first(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with running(valkey_url, tmp_path, pace=FAST) as worker:
        job = enqueue(redis, "hold")
        wait_until(lambda: runs(redis, job))
        name = name_of(redis, worker.process)
        send_kill_horse_command(redis, name)  # there is none
        send_shutdown_command(redis, name)
        waiting = enqueue(redis, "double", 2)
        wait_until(lambda: "drain" in worker.log or redis.hget(f"rq:worker:{name}", "state"))
        open_gate(redis, job)
        assert worker.wait() == 0
        assert has(job, JobStatus.FINISHED)()
        assert has(waiting, JobStatus.QUEUED)() or has(waiting, JobStatus.FINISHED)()


def garbage(redis: Redis, name: str, _: "Partition") -> None:
    for text in ("", "{", "[]", "null", "7", "{}", '{"command": 7}', '{"command": "stop-job"}', "\xff"):
        redis.publish(f"rq:pubsub:{name}", text)
    redis.publish(f"rq:pubsub:{name}", b"\xff\xfe")
    send_command(redis, name, "stop-job", job_id="of another worker")
    send_command(redis, name, "stop-execution", execution_id="of another worker")
    send_command(redis, name, "unknown")


def killed(redis: Redis, _: str, __: "Partition") -> None:
    redis.client_kill_filter(_type="pubsub")


def partition(redis: Redis, _: str, wire: Partition) -> None:
    wire.cut()
    wait_until(lambda: redis.pubsub_channels("rq:pubsub:*") == [])
    wire.heal()


FAULTS = [garbage, killed, partition]


@contextmanager
def wired(url: str) -> Iterator[Partition]:
    wire = Partition(url.removeprefix("unix://"))
    try:
        yield wire
    finally:
        wire.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_commands_are_heard_after_a_fault_of_the_wire(
    redis: Redis, valkey_url: str, tmp_path: Path, fault: Callable[[Redis, str, Partition], None]
) -> None:
    with wired(valkey_url) as wire, running(wire.url, tmp_path, pace=FAST) as worker:
        name = name_of(redis, worker.process)
        fault(redis, name, wire)
        job = enqueue(redis, "await_file", str(tmp_path / "never"))
        wait_until(lambda: runs(redis, job))
        assert name_of(redis, worker.process) == name
        stop_job(redis, job)
        wait_until(has(job, JobStatus.STOPPED))
        assert runs(redis, job) == 1
        assert "process_crashed" not in worker.log
        assert "Exception in thread" not in worker.log
        send_shutdown_command(redis, name)
        assert worker.wait() == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_the_forking_worker_hears_them_too(
    redis: Redis, valkey_url: str, tmp_path: Path, fault: Callable[[Redis, str, Partition], None]
) -> None:
    with wired(valkey_url) as wire, handling.worker(wire.url, tmp_path, **FAST) as process:
        name = name_of(redis, process)
        fault(redis, name, wire)
        job = handling.enqueue(redis, "hold", str(tmp_path))
        wait_until(lambda: len(handling.horses(tmp_path)) == 1)
        assert name_of(redis, process) == name
        stop_job(redis, job)
        wait_until(has(job, JobStatus.STOPPED))
        assert not handling.lives(handling.horses(tmp_path)[0])
        handling.assert_clean(redis)
        send_shutdown_command(redis, name)
        assert process.wait(60) == 0
    assert len(handling.horses(tmp_path)) == 1


def test_a_quiet_connection_is_asked_whether_it_lives_and_kept(redis: Redis) -> None:
    heard: list[dict[str, Any]] = []
    commands = Commands(redis, "quiet", heard.append)

    def connections() -> set[str]:
        return {one["id"] for one in redis.client_list(_type="pubsub")}

    commands.obey()
    known, began = connections(), time.monotonic()
    assert len(known) == 1
    while time.monotonic() - began < SILENCE + QUIET:
        commands.obey(timeout=1)
    assert connections() == known
    redis.publish("quiet", "go")
    commands.obey(timeout=10)
    assert [one["data"] for one in heard] == [b"go"]
    commands.close()


def test_a_redis_that_hangs_up_is_not_called_again_and_again() -> None:
    calls: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    calls.append(listener.accept()[0])
                    calls[-1].close()

        answering = threading.Thread(target=hang_up, daemon=True)
        answering.start()
        client = Redis(port=listener.getsockname()[1], retry=Retry(NoBackoff(), 0))
        commands, began = Commands(client, "x", print), time.monotonic()
        for _ in range(20):
            commands.obey(timeout=0.1)
        assert 1 <= len(calls) <= 2 + (time.monotonic() - began) / AGAIN
        listener.shutdown(socket.SHUT_RDWR)
        answering.join()
