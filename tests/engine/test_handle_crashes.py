"""Kills of the worker that runs users' code: of its work-horse, of both, of the parent alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from rq import Retry, Worker
from rq.command import send_shutdown_command, send_stop_job_command
from rq.job import Job, JobStatus

from app.accept import queues
from app.core.names import HANDLE_QUEUE, Kind, handle_job_id, notify_job_id
from tests import forked
from tests.engine.worker_process import FAST, ROOT, failure, has, require_cleaned, status, wait_until
from tests.own_valkey import own_valkey
from tests.wrong_clock import WrongClock


@contextmanager
def worker(
    url: str, folder: Path, *, storage: str = "", host: WrongClock | None = None, **pace: Any
) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker process; killed at the end, with its work-horse, if it still lives."""
    environment = os.environ | (host.environment if host else {})
    command = [sys.executable, "-m", "tests.engine.handle_process", url, json.dumps(pace), storage]
    with (folder / "log").open("ab") as log:
        process = forked.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield process
    except BaseException:
        print((folder / "log").read_text())
        raise
    finally:
        process.kill()
        process.wait()


def enqueue(redis: Redis, name: str, *args: Any, job_id: str | None = None, **kwargs: Any) -> Job:
    """A job that is tried again at once: no scheduler runs here."""
    return queues.queue(HANDLE_QUEUE, redis).enqueue(
        f"tests.engine.handle_process.{name}",
        args=args,
        kwargs=kwargs,
        job_id=job_id,
        job_timeout=180,
        retry=Retry(max=3),
    )


def horses(folder: Path) -> list[int]:
    """The work-horses that ran, living or dead."""
    return [int(path.name[4:]) for path in folder.glob("run-*")]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def finish(folder: Path, job: Job) -> None:
    (folder / "go").touch()
    wait_until(has(job, JobStatus.FINISHED))


def assert_clean(redis: Redis) -> None:
    queue = queues.queue(HANDLE_QUEUE, redis)
    assert (queue.count, redis.llen(queue.intermediate_queue_key)) == (0, 0)
    assert redis.zcard(queue.started_job_registry.key) == 0


def test_a_killed_work_horse_is_replaced_by_its_parent(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    job = enqueue(redis, "hold", str(tmp_path))
    with worker(valkey_url, tmp_path, **FAST) as process:
        wait_until(lambda: len(horses(tmp_path)) == 1)
        os.kill(horses(tmp_path)[0], signal.SIGKILL)
        wait_until(lambda: len(horses(tmp_path)) == 2)
        assert process.poll() is None
        finish(tmp_path, job)
    assert_clean(redis)


def test_a_work_horse_and_what_it_started_end_with_a_killed_parent(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    enqueue(redis, "hold", str(tmp_path), child=True)
    with worker(valkey_url, tmp_path) as process:
        wait_until(lambda: horses(tmp_path))
        [horse] = horses(tmp_path)
        program = int((tmp_path / f"run-{horse}").read_text())
        assert lives(horse)
        assert lives(program)
        process.kill()
        process.wait()
        wait_until(lambda: not lives(horse) and not lives(program))


@pytest.mark.parametrize("with_its_horse", [True, False])
def test_the_job_of_a_killed_parent_runs_again_elsewhere(
    redis: Redis, valkey_url: str, tmp_path: Path, *, with_its_horse: bool
) -> None:
    job = enqueue(redis, "hold", str(tmp_path))
    with worker(valkey_url, tmp_path, **FAST) as doomed, worker(valkey_url, tmp_path, **FAST) as other:
        wait_until(lambda: horses(tmp_path))
        [first] = horses(tmp_path)
        owner = psutil.Process(first).ppid()
        victim, heir = (doomed, other) if owner == doomed.pid else (other, doomed)
        if with_its_horse:
            os.kill(victim.pid, signal.SIGSTOP)  # else it would see the death of the other and report it
            os.kill(first, signal.SIGKILL)
        victim.kill()
        wait_until(lambda: len(horses(tmp_path)) == 2)
        [second] = set(horses(tmp_path)) - {first}
        assert not lives(first), "two runs would overlap"
        assert psutil.Process(second).ppid() == heir.pid
        finish(tmp_path, job)
        wait_until(lambda: redis.scard("rq:workers") == 1)
    assert_clean(redis)


@pytest.mark.slow
def test_a_killed_parent_is_made_good_within_90_seconds(
    redis: Redis, valkey_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the pace of production."""
    job = enqueue(redis, "hold", str(tmp_path))
    with worker(valkey_url, tmp_path) as doomed:
        wait_until(lambda: horses(tmp_path))
        with worker(valkey_url, tmp_path):
            doomed.kill()
            took = wait_until(lambda: len(horses(tmp_path)) == 2, seconds=90)
            with capsys.disabled():
                print(f"\nafter a kill of the parent: its job is back in {took:.1f} s")
            finish(tmp_path, job)


def test_a_job_that_crashes_every_time_is_a_dead_letter_and_others_go_on(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    bad, good = enqueue(redis, "leave", str(tmp_path)), enqueue(redis, "hold", str(tmp_path))
    (tmp_path / "go").touch()
    with worker(valkey_url, tmp_path, **FAST):
        wait_until(lambda: status(bad) == JobStatus.FAILED and status(good) == JobStatus.FINISHED)
    assert "Work-horse terminated unexpectedly" in failure(bad)
    assert len(horses(tmp_path)) == 4 + 1
    assert queues.queue(HANDLE_QUEUE, redis).failed_job_registry.get_job_ids() == [bad.id]


def test_a_job_that_ends_its_process_as_if_all_were_well_is_a_dead_letter(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    bad = enqueue(redis, "leave_well", str(tmp_path))
    redis.hset(bad.key, "retries_left", 0)
    with worker(valkey_url, tmp_path, **FAST):
        wait_until(has(bad, JobStatus.FAILED))
    assert "AbandonedJobError" in failure(bad)
    assert_clean(redis)


def test_sigterm_lets_the_job_finish(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    job = enqueue(redis, "hold", str(tmp_path))
    with worker(valkey_url, tmp_path) as process:
        wait_until(lambda: horses(tmp_path))
        process.send_signal(signal.SIGTERM)
        finish(tmp_path, job)
        assert process.wait(60) == 0
    assert redis.scard("rq:workers") == 0


def test_a_second_sigterm_leaves_the_job_to_another(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    job = enqueue(redis, "hold", str(tmp_path))
    with worker(valkey_url, tmp_path, **FAST) as process:
        wait_until(lambda: horses(tmp_path))

        def ends() -> bool:
            process.send_signal(signal.SIGTERM)  # within the first second taken for an echo
            return process.poll() is not None

        wait_until(ends)
    [first] = horses(tmp_path)
    wait_until(lambda: not lives(first))
    with worker(valkey_url, tmp_path, **FAST):
        wait_until(lambda: len(horses(tmp_path)) == 2)
        finish(tmp_path, job)
    assert_clean(redis)


def test_a_run_that_goes_on_after_its_function_is_an_error_with_its_stack_and_ends(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    place = ("note", Kind.PREDICTION, "p1")
    first = enqueue(redis, "end", str(tmp_path), job_id=handle_job_id(notify_job_id(*place)))
    with worker(valkey_url, tmp_path, storage="hangs", **FAST):
        wait_until(lambda: len(horses(tmp_path)) == 1)
        second = enqueue(redis, "end", str(tmp_path))
        wait_until(has(second, JobStatus.FINISHED))
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    [overrun] = [line for line in lines if line["event"] == "handler_job_overrun"]
    assert (overrun["level"], overrun["id"]) == ("error", "p1")
    assert "hang_for_ever" in overrun["stack"]
    assert first.get_status() == JobStatus.FINISHED
    assert_clean(redis)


def test_a_worker_registers_again_after_redis_was_emptied_idle_and_while_a_job_runs(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    def is_registered() -> bool:
        return [one.pid for one in Worker.all(queue=queues.queue(HANDLE_QUEUE, redis))] == [process.pid]

    with worker(valkey_url, tmp_path, **FAST) as process:
        wait_until(is_registered)
        redis.flushall()
        wait_until(is_registered)
        enqueue(redis, "hold", str(tmp_path))
        wait_until(lambda: horses(tmp_path))
        redis.flushall()
        wait_until(is_registered)
        (tmp_path / "go").touch()


def test_rqs_own_commands_stop_a_job_and_end_the_worker(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    job = enqueue(redis, "hold", str(tmp_path))
    with worker(valkey_url, tmp_path, **FAST) as process:
        wait_until(lambda: horses(tmp_path))
        send_stop_job_command(redis, job.id)
        wait_until(has(job, JobStatus.STOPPED))
        [registered] = Worker.all(connection=redis)
        send_shutdown_command(redis, registered.name)
        assert process.wait(60) == 0


@pytest.mark.parametrize("seconds", [600.0, -600.0, 7200.0])
def test_while_its_clock_is_far_off_it_takes_no_job_and_ends_the_one_it_has(
    redis: Redis, valkey_url: str, tmp_path: Path, seconds: float
) -> None:
    host = WrongClock(tmp_path, 0.0)
    first, second = tmp_path / "first", tmp_path / "second"
    with worker(valkey_url, tmp_path, host=host, **FAST) as process:
        first.mkdir()
        second.mkdir()
        running = enqueue(redis, "hold", str(first))
        wait_until(lambda: horses(first))
        host.step_to(seconds)
        waiting = enqueue(redis, "hold", str(second))
        wait_until(lambda: "take no jobs" in (tmp_path / "log").read_text())
        finish(first, running)
        require_cleaned(redis, queue="handle")  # it goes round, and takes none
        assert (status(waiting), horses(second)) == (JobStatus.QUEUED, [])
        host.step_to(0)
        wait_until(lambda: horses(second))
        finish(second, waiting)
        assert (len(horses(first)), len(horses(second))) == (1, 1)
        assert process.poll() is None


@pytest.mark.parametrize("seconds", [7200.0, 600.0, -7200.0])
def test_a_job_that_runs_when_the_host_of_redis_steps_runs_on(tmp_path: Path, seconds: float) -> None:
    """It is taken neither for silent nor for one that is stuck."""
    host = WrongClock(tmp_path, 0.0)
    with own_valkey(host) as valkey:
        valkey.start()
        with worker(valkey.url, tmp_path, host=host, **FAST):
            job = enqueue(valkey.redis, "hold", str(tmp_path))
            wait_until(lambda: horses(tmp_path))
            host.step_to(seconds)
            [key] = valkey.redis.smembers("rq:workers")
            for _ in range(4):
                valkey.redis.hdel(key, "last_heartbeat")
                wait_until(lambda: valkey.redis.hexists(key, "last_heartbeat"))
            (tmp_path / "other").mkdir()
            with worker(valkey.url, tmp_path / "other", host=host, **FAST):
                require_cleaned(valkey.redis, queue="handle")
                finish(tmp_path, job)
            assert len(horses(tmp_path)) == 1
            assert_clean(valkey.redis)


@pytest.mark.parametrize("stop", ["closed", "killed"])
def test_a_worker_without_threads_ends_when_its_parent_does(tmp_path: Path, stop: str) -> None:
    code = (
        "import os, pathlib, threading, time, signal, sys; from app.up import lifeline\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "lifeline.watch_without_thread()\n"
        "print(len(os.listdir('/proc/self/task')), flush=True)\n"
        "time.sleep(600)"
    )
    reader, writer = os.pipe()
    with forked.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=reader, stdout=subprocess.PIPE) as child:
        os.close(reader)
        assert child.stdout is not None
        holder = subprocess.Popen(["sleep", "600"], pass_fds=[writer])
        os.close(writer)
        assert child.stdout.readline() == b"1\n"
        (holder.kill if stop == "killed" else holder.terminate)()
        holder.wait()
        assert child.wait(60) == 7


def states(redis: Redis) -> set[bytes | str | None]:
    """Of all workers; one that is idle has come as far as to listen to signals."""
    return {redis.hget(key, "state") for key in redis.smembers("rq:workers")}


def test_a_signal_in_the_middle_of_a_line_of_the_log_ends_a_worker(tmp_path: Path) -> None:
    """The log swallows whatever is raised while it writes, and RQ ends an idle worker by raising."""
    code = (
        "import io, os, signal, sys\n"
        "from tests.engine import handle_process\n"
        "class Signals(io.TextIOWrapper):\n"
        "    def write(self, text):\n"
        "        if 'redis_lost' in text:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return super().write(text)\n"
        "sys.stdout = Signals(sys.stdout.buffer)\n"
        "sys.stderr = Signals(sys.stderr.buffer)\n"
        "handle_process.main(*sys.argv[1:])\n"
    )
    with own_valkey() as valkey:
        valkey.start()
        process = subprocess.Popen([sys.executable, "-c", code, valkey.url, json.dumps(FAST)], cwd=ROOT)
        try:
            wait_until(lambda: states(valkey.redis) == {b"idle"})
            valkey.kill()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
