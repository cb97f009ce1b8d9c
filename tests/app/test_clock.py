"""One clock: what a process takes for the time, whatever the clock of its host says."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rq
from redis import Redis
from redis.exceptions import RedisError

from app.clock import PATIENCE, Clock, clocks_off
from app.valkey.client import connect
from tests import forked
from tests.own_valkey import own_valkey
from tests.receive.web import wait_until
from tests.redis_proxy import rewriting
from tests.wrong_clock import WrongClock

OFF = [30.0, -30.0, 600.0, -600.0, 7200.0, -7200.0]

ASKING = """
import json, sys, time
from datetime import UTC, datetime
from redis import Redis
from rq import utils
from rq.job import Job
from rq.serializers import JSONSerializer
from app.clock import Clock, lend_to_rq

clock, redis = Clock(), Redis.from_url(sys.argv[1])
lend_to_rq(clock)
before = utils.now().timestamp() - time.time()
clock.ask(redis)
for line in sys.stdin:
    job = Job.create("a.b", connection=redis, serializer=JSONSerializer)
    moments = [
        clock.time(), clock().timestamp(), utils.now().timestamp(), utils.current_timestamp(),
        job.created_at.timestamp(), utils.str_to_date(utils.utcformat(utils.now())).timestamp(),
    ]
    truth = redis.time()
    print(json.dumps({
        "wrong": max(abs(moment - truth[0] - truth[1] / 1e6) for moment in moments),
        "skew": clock.skew, "host": time.time(), "far": clock.is_far_off, "before": before,
    }), flush=True)
"""


def asked(process: "subprocess.Popen[str]") -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


@pytest.mark.parametrize("seconds", OFF)
def test_a_process_and_rq_in_it_go_by_the_time_of_redis(
    redis: Redis, valkey_url: str, tmp_path: Path, seconds: float
) -> None:
    host = WrongClock(tmp_path, seconds)
    process = forked.Popen(
        [sys.executable, "-c", ASKING, valkey_url],
        env=os.environ | host.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        first = asked(process)
        assert first["wrong"] < 2
        assert abs(first["skew"] - seconds) < 2
        assert abs(first["host"] - time.time() - seconds) < 5  # the shim does what it is for
        assert first["far"] == (abs(seconds) >= 60)
        assert abs(first["before"]) < 2  # before Redis has told, the time of the host is all there is

        for step in (-seconds, 0.0, 2 * seconds):  # while it runs, and before Redis is asked again
            host.step_to(step)
            told = asked(process)
            assert told["wrong"] < 2
            assert abs(told["skew"] - step) < 2
    assert process.returncode == 0


def test_all_times_of_rq_come_from_the_one_function_that_is_told() -> None:
    # Titles of processes; the scheduler's own loop and cron, which we do not run; what a command prints.
    known = {
        ("cli/helpers.py", "datetime.datetime.now()"), ("cron_job_registry.py", "time.time()"),
        ("cron_scheduler_registry.py", "time.time()"), ("cron.py", "time.time()"),
        ("scheduler.py", "datetime.now()"), ("utils.py", "datetime.datetime.now("),
        ("worker/base.py", "time.time()"), ("worker/worker_classes.py", "time.time()"),
    }  # fmt: skip
    folder, asks = Path(rq.__file__).parent, r"time\.time\(\)|(?:datetime\.)?datetime\.(?:utc)?now\(\)?"
    found = {
        (str(path.relative_to(folder)), call)
        for path in folder.rglob("*.py")
        for call in re.findall(asks, path.read_text())
    }
    assert found == known


def test_the_time_goes_on_while_redis_is_away(tmp_path: Path) -> None:
    with own_valkey() as server:
        server.start()
        clock = Clock()
        with connect(server.url) as client, clock.following(client):
            first = clock.time()
            server.kill()
            with pytest.raises(RedisError):
                clock.ask(client)
            assert 0 <= clock.time() - first < 60
            assert abs(clock.skew) < 2


def test_a_host_whose_clock_is_off_is_listed_until_it_is_right_again(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    assert clocks_off(redis) == {}
    redis.hset("outkeep:clocks", "planted", "not a number")
    redis.hset("outkeep:clocks", "gone:1", "7200.0 1000000000")
    redis.hset("outkeep:clocks", "here:1", f"-7200.0 {time.time():.0f}")
    redis.hset("outkeep:clocks", "here:2", f"30.0 {time.time():.0f}")
    assert clocks_off(redis) == {"here": -7200.0}
    assert set(redis.hkeys("outkeep:clocks")) == {b"here:1", b"here:2"}


@pytest.mark.parametrize(
    ("ago", "shown"), [(0, True), (20, True), (40, False), (90, False), (3600, False), (-5, True)]
)
def test_who_has_said_nothing_for_half_a_minute_is_no_longer_listed(
    redis: Redis, ago: int, *, shown: bool
) -> None:
    redis.hset("outkeep:clocks", "here:1", f"30.0 {redis.time()[0] - ago}")
    assert clocks_off(redis) == ({"here": 30.0} if shown else {})


def test_an_answer_that_took_long_moves_no_clock_that_knows_the_time(valkey_url: str) -> None:
    """It may have been meant for any moment since it was asked for."""
    holds: list[float] = []

    def ask(question: bytes) -> bytes:
        time.sleep(sum(holds))
        return question

    clock = Clock()
    with rewriting(valkey_url.removeprefix("unix://"), bytes, ask) as url, connect(url, timeout=30) as client:
        clock.ask(client)
        before = clock.time() - time.monotonic()
        holds.append(2 * PATIENCE)
        clock.ask(client)
        assert abs(clock.time() - time.monotonic() - before) < 0.1
        assert clock.is_steady(60)


@pytest.mark.parametrize("seconds", [-7200.0, -30.0, 5.0, 7200.0])
def test_a_step_of_the_host_of_redis_is_noticed(tmp_path: Path, seconds: float) -> None:
    host = WrongClock(tmp_path, 0.0)
    with own_valkey(host) as server:
        server.start()
        clock = Clock()
        for _ in range(2):
            clock.ask(server.redis)
        assert clock.is_steady(3600)
        host.step_to(seconds)

        def noticed() -> bool:
            clock.ask(server.redis)
            return not clock.is_steady(3600)

        wait_until(noticed)  # Valkey looks at its clock several times a second
        assert clock.is_steady(0)
        assert abs(clock.skew + seconds) < 2
