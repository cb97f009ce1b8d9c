"""What the doctor finds of each gap that the sweep would mend, on a real Valkey and real files."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis import Redis
from rq.job import Job

from app.accept import queues
from app.accept.arrivals import make_arrival
from app.accept.records import Records
from app.accept.spool import ABANDONED
from app.core.findings import GAPS, Level
from app.core.lifecycle import CLAIM_AFTER, Move, Repair
from app.core.manifest import Receipt
from app.core.names import (
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    RECORDS,
    Kind,
    claim_name,
    held_name,
    persist_job_id,
)
from app.core.prediction import parse
from app.health.unmended import unmended
from app.settings import Settings, load
from tests.receive.web import prediction

ID = "ype2b3w02xrme0cqadzrms82nm"
JOB = persist_job_id(Kind.PREDICTION, ID)
LONG_AGO = 2 * 86400.0


@pytest.fixture
def deployment(tmp_path: Path) -> Settings:
    return load({"OUTKEEP_DATA": str(tmp_path), "OUTKEEP_RECORD_TTL": "1d"})


def receive(redis: Redis, *, ago: float) -> None:
    """An event that came so many seconds ago, with its job."""
    then = datetime.now(UTC) - timedelta(seconds=ago)
    body = prediction(ID)
    arrival = make_arrival(redis, parse(body, Kind.PREDICTION), body, Receipt(then, "msg_1"), then)
    Records(redis, ttl=86400).accept([arrival], then)


def lose_job(redis: Redis) -> None:
    """As if Redis had lost all that RQ knows of it."""
    redis.delete(Job.key_for(JOB))
    redis.lrem(queues.queue(PERSIST_QUEUE, redis).key, 0, JOB)


def snapshot(redis: Redis, folder: Path) -> object:
    """Everything in Redis and in a folder."""
    keys = {key: redis.dump(key) for key in redis.keys("*")}
    return keys, {path: path.stat().st_mtime for path in folder.rglob("*")}


def only(redis: Redis, deployment: Settings) -> str:
    """The one line about the gaps; it was found without changing anything."""
    before = snapshot(redis, deployment.data)
    [found] = unmended(redis, deployment)
    assert snapshot(redis, deployment.data) == before
    assert found.check == "gaps"
    assert (found.level is Level.OK) == (found.detail == "none: the sweep has nothing to mend")
    return found.detail


def old_file(path: Path, age: float = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


@contextmanager
def living(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder as the process that it belongs to does."""
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def test_nothing_is_found_where_nothing_is_wrong(redis: Redis, deployment: Settings) -> None:
    receive(redis, ago=3600)
    old_file(deployment.data / "outputs" / "predictions" / ID / "output-0.png")
    with living(deployment.temporary / "worker-lives"):
        assert only(redis, deployment) == "none: the sweep has nothing to mend"


def test_an_event_without_a_job_is_named(redis: Redis, deployment: Settings) -> None:
    receive(redis, ago=61)
    lose_job(redis)
    assert only(redis, deployment) == f"1 {GAPS[Repair.JOB_MADE]} ({ID}); the sweep mends that"


def test_an_event_whose_job_may_still_come_is_not(redis: Redis, deployment: Settings) -> None:
    receive(redis, ago=1)
    lose_job(redis)
    assert only(redis, deployment).startswith("none")


def test_a_job_that_rq_has_lost_is_named(redis: Redis, deployment: Settings) -> None:
    queues.enqueue_notify(redis, "gallery", Kind.PREDICTION, ID)
    redis.delete(queues.queue(NOTIFY_QUEUE, redis).key)
    expected = f"1 {GAPS[Repair.JOB_REQUEUED]} (notify-gallery-prediction-{ID}); the sweep mends that"
    assert only(redis, deployment) == expected


def test_an_event_whose_job_gave_up_is_named(redis: Redis, deployment: Settings) -> None:
    receive(redis, ago=61)
    redis.lrem(queues.queue(PERSIST_QUEUE, redis).key, 0, JOB)
    redis.hset(Job.key_for(JOB), "status", "failed")
    assert only(redis, deployment) == f"1 {GAPS[Repair.RECORD_FAILED]} ({ID}); the sweep mends that"


def test_what_is_missing_in_the_index_and_what_only_stands_there_is_named(
    redis: Redis, deployment: Settings
) -> None:
    receive(redis, ago=0)
    redis.delete(RECORDS)
    redis.zadd(RECORDS, {f"prediction:expired-{number}": 0.0 for number in range(4)})
    listed, unlisted = (one.detail for one in unmended(redis, deployment))
    assert listed == f"1 {GAPS[Repair.RECORD_LISTED]} ({ID}); the sweep mends that"
    assert unlisted == (
        f"4 {GAPS[Repair.RECORD_UNLISTED]} (expired-0, expired-1, expired-2, …); the sweep mends that"
    )


def test_a_dead_worker_is_named(redis: Redis, deployment: Settings) -> None:
    redis.sadd("rq:workers:persist", "rq:worker:dead")
    assert only(redis, deployment) == f"1 {GAPS[Repair.WORKER_DROPPED]} (dead); the sweep mends that"


@pytest.mark.parametrize(
    ("place", "age"),
    [
        ("tmp/worker-dead", LONG_AGO),
        ("tmp/fetch-x.part", LONG_AGO),
        (f"tmp/{held_name(Kind.PREDICTION, 'gone', 0, 'ab')}", LONG_AGO),
        (f"outputs/predictions/{ID}/output-0.png#1", LONG_AGO),
        ("outputs/quarantine/2026-03-16/" + "a" * 64 + ".json#2", LONG_AGO),
        ("spool/tmpx.part", ABANDONED + 60),
    ],
)
def test_a_file_that_a_killed_process_left_is_named(
    redis: Redis, deployment: Settings, place: str, age: float
) -> None:
    path = deployment.data / place
    if path.name == "worker-dead":
        path.mkdir(parents=True)
    else:
        old_file(path, age)
    assert only(redis, deployment) == f"1 {GAPS[Repair.FILE_REMOVED]} ({path}); the sweep mends that"


def test_a_download_that_waits_for_the_storage_is_left_alone(redis: Redis, deployment: Settings) -> None:
    receive(redis, ago=3600)
    old_file(deployment.temporary / held_name(Kind.PREDICTION, ID, 0, "ab"))
    assert only(redis, deployment).startswith("none")


def test_a_download_of_what_another_host_has_stored_is_named(redis: Redis, deployment: Settings) -> None:
    receive(redis, ago=60)
    old_file(deployment.temporary / held_name(Kind.PREDICTION, ID, 0, "ab"), 1)
    assert only(redis, deployment).startswith("none")
    records = Records(redis, ttl=86400)
    now = datetime.now(UTC)
    records.move(Kind.PREDICTION, ID, Move.STORE, now, {"files": 1, "lost": 0})
    records.move(Kind.PREDICTION, ID, Move.DISPATCH, now)
    assert GAPS[Repair.FILE_REMOVED] in only(redis, deployment)


def test_a_download_is_left_alone_where_another_host_has_lost_something(
    redis: Redis, deployment: Settings
) -> None:
    receive(redis, ago=60)
    old_file(deployment.temporary / held_name(Kind.PREDICTION, ID, 0, "ab"), 1)
    records = Records(redis, ttl=86400)
    now = datetime.now(UTC)
    records.move(Kind.PREDICTION, ID, Move.STORE, now, {"files": 0, "lost": 1})
    records.move(Kind.PREDICTION, ID, Move.DISPATCH, now)
    assert GAPS[Repair.FILE_REMOVED] not in only(redis, deployment)


def test_a_removal_that_was_cut_off_is_named(redis: Redis, deployment: Settings) -> None:
    now = datetime.now(UTC).timestamp()
    redis.zadd("outkeep:removals", {f"prediction:{ID}": now - 120, "prediction:just-begun": now})
    assert only(redis, deployment).startswith(f"1 {GAPS[Repair.REMOVAL_ENDED]} (prediction:{ID})")


def test_a_large_body_that_waits_for_nobody_is_named(redis: Redis, deployment: Settings) -> None:
    old_file(deployment.data / "outputs" / claim_name(Kind.PREDICTION, ID, "0" * 64), CLAIM_AFTER / 2)
    assert only(redis, deployment).startswith("none"), "a record may still lead to it"
    name = claim_name(Kind.PREDICTION, "gone", "0" * 64)
    old_file(deployment.data / "outputs" / name)
    assert only(redis, deployment) == f"1 {GAPS[Repair.CLAIM_REMOVED]} ({name}); the sweep mends that"


def test_what_may_not_be_looked_at_is_said(redis: Redis, valkey_url: str, deployment: Settings) -> None:
    redis.acl_setuser("narrow", enabled=True, nopass=True, keys=["*"], categories=["+@all"],
                      commands=["-scan"])  # fmt: skip
    narrow = Redis.from_url(valkey_url, username="narrow", password="")
    try:
        [found] = unmended(narrow, deployment)
    finally:
        narrow.close()
        redis.acl_deluser("narrow")
    assert found.level is Level.WARN
    assert found.detail.startswith("cannot be looked for (NoPermissionError)")


def test_each_repair_has_words() -> None:
    assert GAPS.keys() == set(Repair)
