"""The sweep on a real Valkey: every gap is made, and then closed."""

import re
import signal
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis import Redis
from rq import Worker
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from app.accept import queues
from app.clock import Clock
from app.core.findings import LATELY, REPAIRS
from app.core.lifecycle import Move, Repair, State
from app.core.names import (
    COUNTERS,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    RECORDS,
    REPAIRED,
    SWEPT,
    Kind,
    persist_job_id,
    record_key,
    record_member,
)
from app.health.checks import swept
from tests import forked
from tests.engine.worker_process import ROOT, wait_until
from tests.keep.desk import ID, Desk
from workers.repair.inconsistencies import Consistency
from workers.repair.sweep import Sweeper

PLACE = (Kind.PREDICTION, ID)
MADE = 'outkeep_repairs_total{repair="job_made"}'
JOB_ID = persist_job_id(*PLACE)


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    return Desk(redis, tmp_path)


def sweep(desk: Desk) -> Consistency:
    return Consistency(desk.redis, ttl=86400, clock=lambda: desk.now)


def job(redis: Redis) -> Job:
    return Job.fetch(JOB_ID, connection=redis, serializer=JSONSerializer)


def lose_job(redis: Redis) -> None:
    """As if Redis had lost all that RQ knows of it."""
    redis.delete(Job.key_for(JOB_ID))
    redis.lrem(queues.queue(PERSIST_QUEUE, redis).key, 0, JOB_ID)


def end_job(redis: Redis, status: JobStatus) -> None:
    redis.lrem(queues.queue(PERSIST_QUEUE, redis).key, 0, JOB_ID)
    redis.hset(Job.key_for(JOB_ID), "status", status.value)


def test_nothing_is_repaired_where_nothing_is_wrong(desk: Desk) -> None:
    desk.receive(["https://replicate.delivery/a/b/out.png"])
    desk.forward(3600)
    assert sweep(desk).run() == Counter()
    assert desk.waiting == [JOB_ID]


def test_a_received_event_without_a_job_gets_one_after_a_minute(desk: Desk) -> None:
    desk.receive("text")
    lose_job(desk.redis)
    desk.forward(59)
    assert sweep(desk).run() == Counter()
    desk.forward(2)
    assert sweep(desk).run() == {Repair.JOB_MADE: 1}
    assert sweep(desk).run() == Counter()
    assert desk.waiting == [JOB_ID]
    made = job(desk.redis)
    assert made.retries_left
    assert 3600 < (made.timeout or 0) < 3600 + 600
    assert desk.work() is None
    assert desk.is_committed


def test_a_stored_prediction_whose_handlers_have_no_job_gets_one(desk: Desk) -> None:
    desk.receive("text")
    desk.records.move(*PLACE, Move.STORE, desk.now)
    end_job(desk.redis, JobStatus.FINISHED)
    desk.forward(61)
    assert sweep(desk).run() == {Repair.JOB_MADE: 1}
    assert job(desk.redis).get_status() == JobStatus.QUEUED


def test_a_record_whose_job_gave_up_has_failed_and_no_job_is_made(desk: Desk) -> None:
    desk.receive("text")
    end_job(desk.redis, JobStatus.FAILED)
    desk.forward(61)
    assert sweep(desk).run() == {Repair.RECORD_FAILED: 1}
    assert desk.record().state is State.FAILED
    assert desk.record().error == "job_failed"
    assert sweep(desk).run() == Counter()
    assert desk.waiting == []


@pytest.mark.parametrize("status", ["queued", "started", "scheduled", "deferred"])
def test_a_job_that_stands_in_no_list_goes_back_to_its_queue(desk: Desk, status: str) -> None:
    queues.enqueue_notify(desk.redis, "gallery", *PLACE)
    [lost] = desk.told
    queue = queues.queue(NOTIFY_QUEUE, desk.redis)
    desk.redis.delete(queue.key)
    desk.redis.hset(Job.key_for(lost), "status", status)
    sweeping = sweep(desk)
    assert sweeping.run() == Counter(), "it may be on its way from one list to another"
    desk.forward(60)
    assert sweeping.run() == {Repair.JOB_REQUEUED: 1}
    assert desk.told == [lost]
    assert Job.fetch(lost, connection=desk.redis, serializer=JSONSerializer).get_status() == "queued"
    desk.forward(60)
    assert sweeping.run() == Counter()


@pytest.mark.parametrize("where", ["queue", "taken", "started", "scheduled", "deferred"])
def test_a_job_that_turns_up_between_look_and_repair_is_left_where_it_is(desk: Desk, where: str) -> None:
    queues.enqueue_notify(desk.redis, "gallery", *PLACE)
    [found] = desk.told
    queue = queues.queue(NOTIFY_QUEUE, desk.redis)
    desk.redis.delete(queue.key)
    sweeping = sweep(desk)
    sweeping.run()
    desk.forward(60)
    [lost] = sweeping.dry_run()
    lists = {"queue": queue.key, "taken": queue.intermediate_queue_key}
    sets = {
        "started": queue.started_job_registry.key,
        "scheduled": queue.scheduled_job_registry.key,
        "deferred": queue.deferred_job_registry.key,
    }
    if where in lists:
        desk.redis.rpush(lists[where], found)
    else:
        desk.redis.zadd(sets[where], {f"{found}:run" if where == "started" else found: 4e9})

    assert not sweeping.repair(lost)

    assert desk.told == ([found] if where == "queue" else [])
    desk.redis.delete(*lists.values(), *sets.values())
    assert sweeping.run() == Counter(), "it is missed for the first time again"


@pytest.mark.parametrize("list_name", ["key", "intermediate_queue_key"])
def test_a_job_that_was_on_its_way_was_never_lost(desk: Desk, list_name: str) -> None:
    queues.enqueue_notify(desk.redis, "gallery", *PLACE)
    queue = queues.queue(NOTIFY_QUEUE, desk.redis)
    sweeping = sweep(desk)
    desk.redis.lmove(queue.key, "elsewhere")
    assert sweeping.run() == Counter()
    desk.redis.lmove("elsewhere", getattr(queue, list_name))
    desk.forward(60)
    assert sweeping.run() == Counter()


def test_a_job_that_runs_is_not_lost(desk: Desk) -> None:
    queues.enqueue_notify(desk.redis, "gallery", *PLACE)
    queue = queues.queue(NOTIFY_QUEUE, desk.redis)
    [running] = desk.told
    desk.redis.delete(queue.key)
    desk.redis.hset(Job.key_for(running), "status", "started")
    desk.redis.zadd(queue.started_job_registry.key, {f"{running}:1f": 1})
    for _ in range(3):
        assert sweep(desk).run() == Counter()
        desk.forward(60)


def test_jobs_of_other_programs_are_left_alone(desk: Desk) -> None:
    desk.redis.hset("rq:job:theirs", mapping={"status": "queued", "origin": "default"})
    for _ in range(3):
        assert sweep(desk).run() == Counter()
        desk.forward(60)
    assert desk.redis.keys("rq:queue:*") == []


def test_a_job_whose_record_has_expired_is_left_to_end_itself(desk: Desk) -> None:
    desk.receive("text")
    desk.redis.delete(record_key(*PLACE), RECORDS)
    desk.forward(3600)
    assert sweep(desk).run() == Counter()
    assert desk.waiting == [JOB_ID]


def test_the_index_follows_the_records(desk: Desk) -> None:
    desk.receive("text")
    desk.redis.zrem(RECORDS, record_member(*PLACE))
    assert sweep(desk).run() == {Repair.RECORD_LISTED: 1}
    assert [record.id for record in desk.records.newest()] == [ID]
    desk.redis.delete(record_key(*PLACE))
    desk.forward(86401)
    assert sweep(desk).run() == {Repair.RECORD_UNLISTED: 1}
    assert desk.redis.zcard(RECORDS) == 0


def test_a_record_that_is_kept_alive_stays_in_the_index(desk: Desk) -> None:
    desk.receive("text")
    desk.forward(86401)
    assert sweep(desk).run() == Counter()
    assert desk.redis.zcard(RECORDS) == 1


def test_the_registration_of_a_dead_worker_goes_also_where_no_other_runs(desk: Desk) -> None:
    for name in ("dead", "alive"):
        Worker(["handle"], connection=desk.redis, name=name).register_birth()  # type: ignore[no-untyped-call]
    desk.redis.delete("rq:worker:dead")
    assert sweep(desk).run() == {Repair.WORKER_DROPPED: 1}
    assert desk.redis.smembers("rq:workers") == {b"rq:worker:alive"}


def test_records_and_jobs_that_nobody_of_ours_wrote_stop_nothing(desk: Desk) -> None:
    desk.receive("text")
    lose_job(desk.redis)
    for key, fields in {
        "outkeep:record:prediction:odd": {"state": "upset", "updated_at": "x", "received_at": "y"},
        "outkeep:record:prediction:half": {"state": "received"},
        "outkeep:record:prediction:../x": {"state": "received"},
        "outkeep:record:planet:mars": {"state": "received"},
        "rq:job:odd": {"status": b"\xff", "origin": b"\xff"},
        b"rq:job:\xff": {"status": "queued", "origin": "persist"},
    }.items():
        desk.redis.hset(key, mapping=fields)  # type: ignore[arg-type]
    desk.redis.mset({"rq:job:text": "no hash", "outkeep:record:prediction:text": "no hash"})
    desk.forward(61)
    assert sweep(desk).run()[Repair.JOB_MADE] == 1
    assert desk.waiting == [JOB_ID]


def test_more_than_one_turn_can_hold_is_seen_in_turns(desk: Desk) -> None:
    desk.receive("text")
    lose_job(desk.redis)
    desk.redis.mset({f"theirs:{number}": 1 for number in range(120_000)})
    desk.forward(61)
    sweeping = sweep(desk)
    assert sum((sweeping.run() for _ in range(4)), Counter()) == {Repair.JOB_MADE: 1}


def without_jobs(redis: Redis, count: int) -> list[str]:
    """Events that have lost their jobs; the ids of the jobs."""
    time = "2026-03-01T12:00:00.000Z"
    for number in range(count):
        key = record_key(Kind.PREDICTION, f"p{number}")
        redis.hset(key, mapping={"state": "received", "updated_at": time, "received_at": time})
    return sorted(persist_job_id(Kind.PREDICTION, f"p{number}") for number in range(count))


def test_sweeps_at_the_same_time_make_one_job_for_each_event(desk: Desk) -> None:
    wanted = without_jobs(desk.redis, 300)
    desk.forward(61)
    found: list[Counter[Repair]] = []
    threads = [threading.Thread(target=lambda: found.append(sweep(desk).run())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found, Counter())[Repair.JOB_MADE] == len(wanted)
    assert sorted(desk.waiting) == wanted


def test_what_is_repaired_is_logged_with_its_name(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.receive("text")
    lose_job(desk.redis)
    desk.forward(61)
    sweep(desk).run()
    [line] = [record for record in caplog.records if record.name == "outkeep.sweep"]
    assert line.getMessage() == "repaired: job_made"
    assert (line.__dict__["repair"], line.__dict__["id"]) == ("job_made", ID)


def test_one_process_at_a_time_sweeps_and_counts_what_it_repairs(desk: Desk) -> None:
    runs: list[str] = []

    def part(name: str) -> Counter[Repair]:
        runs.append(name)
        return Counter({Repair.JOB_MADE: 2})

    first = Sweeper(desk.redis, clock=Clock(), shared=lambda: part("first"))
    second = Sweeper(desk.redis, clock=Clock(), shared=lambda: part("second"))
    first.repair_together()
    second.repair_together()
    assert runs == ["first"]
    assert desk.redis.hget(COUNTERS, MADE) == b"2"
    assert desk.redis.exists(SWEPT)
    assert 0 < desk.redis.pttl("outkeep:sweep-turn") <= 54_000


def test_what_was_repaired_within_the_hour_is_told_by_the_doctor_and_nothing_older(desk: Desk) -> None:
    def told(ago: float) -> list[str]:
        last, *repairs = swept(desk.redis, datetime.now(UTC) + timedelta(seconds=ago))
        assert last.check == "sweep"
        return [f"{one.level} {one.check}: {one.detail}" for one in repairs]

    made = Counter({Repair.JOB_MADE: 2, Repair.FILE_REMOVED: 0})
    Sweeper(desk.redis, clock=Clock(), shared=lambda: made).repair_together()
    desk.redis.hset(REPAIRED, mapping={"upset": "1 1", "worker_dropped": "x"})  # nobody of ours wrote that
    assert [re.sub("[0-9]+ s", "N s", line) for line in told(60)] == [
        f"warn repairs: 2 {REPAIRS[Repair.JOB_MADE]}; repaired N s ago (the log names them: `job_made`)"
    ]
    assert told(LATELY + 1) == ["ok repairs: none within the last hour"]
    assert REPAIRS.keys() == set(Repair)


def test_a_part_that_fails_keeps_neither_the_other_nor_itself_from_the_next_time(desk: Desk) -> None:
    failed, swept = threading.Event(), threading.Event()

    def local() -> Counter[Repair]:
        failed.set()
        raise OSError("the disk")

    def shared() -> Counter[Repair]:
        if failed.is_set() and not swept.is_set():
            swept.set()
            raise ValueError("only once")
        return Counter({Repair.JOB_MADE: 1})

    with Sweeper(desk.redis, clock=Clock(), shared=shared, local=local, every=0.02):
        wait_until(lambda: desk.redis.hget(COUNTERS, MADE))
    assert swept.is_set()


SWEEP_ONCE = """
import sys
from datetime import UTC, datetime
from redis import Redis
from workers.repair.inconsistencies import Consistency
redis = Redis.from_url(sys.argv[1])
Consistency(redis, ttl=86400, clock=lambda: datetime.now(UTC)).run()
redis.set("done", 1)
"""


def test_sweeps_that_are_killed_leave_one_job_for_each_event(redis: Redis, valkey_url: str) -> None:
    queue = queues.queue(PERSIST_QUEUE, redis)
    killed = rounds = 0
    while killed < 3 or not redis.exists("done"):
        # One that had come to its end before it was killed does not count: there is more to do for the next.
        if redis.delete("done") or not rounds:
            rounds += 1
            wanted = without_jobs(redis, 600 * rounds)
        made = queue.count
        with forked.Popen([sys.executable, "-c", SWEEP_ONCE, valkey_url], cwd=ROOT) as process:
            wait_until(lambda: queue.count > made or redis.exists("done"), seconds=60)  # noqa: B023
            if killed < 3:
                process.kill()
        killed += process.returncode == -signal.SIGKILL and not redis.exists("done")
    assert sorted(queue.job_ids) == wanted
    assert redis.zcard(RECORDS) == len(wanted)
