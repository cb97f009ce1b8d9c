"""Rebuilding what Redis has lost from storage alone: the service, and the command as people type it."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from app.accept import queues
from app.accept.records import Accepted, Arrival
from app.core import outcomes
from app.core.handlers import Call
from app.core.lifecycle import Move, State
from app.core.manifest import Receipt
from app.core.names import NOTIFY_QUEUE, RECORDS, Kind, notification_id, notify_job_id
from app.core.outcomes import Told
from app.core.prediction import parse
from app.maintain.rebuild import Rebuild, Rebuilt
from app.maintain.replay import Replay, failures
from app.maintain.user_jobs import end_of, tell
from tests import forked
from tests.bucket import S3
from tests.cli.test_cli import complaints, outkeep
from tests.kept import DAY, TTL, Deployment
from tests.receive.web import clean_environment, environment, wait_until

NOW = datetime(2026, 3, 16, 10, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture
def past(redis: Redis, tmp_path: Path) -> Deployment:
    return Deployment(redis, tmp_path, NOW, ("gallery", "mail"))


def rebuild(deployment: Deployment, *, everything: bool = False) -> list[Rebuilt]:
    service = Rebuild(
        deployment.redis,
        deployment.storage,
        deployment.handlers,
        ttl=TTL,
        everything=everything,
        clock=lambda: deployment.now,
    )
    return list(service.run())


def picture(deployment: Deployment) -> tuple[object, ...]:
    """All that Redis tells of predictions that ended: records, their order and life, dead letters."""
    records = list(deployment.records.newest())
    lives = [deployment.redis.expiretime(f"outkeep:record:{one.kind}:{one.id}") > 0 for one in records]
    letters = list(failures(deployment.redis, deployment.records))
    return records, lives, letters, deployment.redis.zrange(RECORDS, 0, -1, withscores=True)


def kill_letter(deployment: Deployment, prediction_id: str, told: Told) -> None:
    """A dead letter as RQ and storage have it."""
    deployment.tell(prediction_id, "gallery", told)
    place = ("gallery", Kind.PREDICTION, prediction_id)
    document = outcomes.document(notification_id(*place), told)
    job = queues.dead_letter(deployment.redis, *place, document)
    job.save()
    with deployment.redis.pipeline() as pipeline:
        queues.queue(NOTIFY_QUEUE, deployment.redis).failed_job_registry.add(job, ttl=DAY, pipeline=pipeline)
        pipeline.execute()


def test_records_order_and_dead_letters_are_what_they_were(past: Deployment) -> None:
    past.keep("first", ago=7200)
    past.keep("tuned", ago=3600, kind=Kind.TRAINING, model=None, status="failed", error="out of memory")
    past.keep("b-same-moment", ago=60)
    past.keep("a-same-moment", ago=60)
    past.keep("dead", ago=30)
    kill_letter(past, "dead", Told("dead", 10, NOW, "status_500"))
    past.keep("off", ago=20)
    kill_letter(past, "off", Told("off", 0, NOW, "handler_off"))
    past.keep("quiet", ago=10)
    past.tell("quiet", "gallery", Told("off", 0, NOW, None))
    before = picture(past)
    past.redis.flushall()

    lines = rebuild(past)

    assert picture(past) == before
    assert len(lines) == sum(line.record for line in lines) == 7
    assert sum(line.dead_letters for line in lines) == 2
    assert past.queued() == []


def test_only_handlers_without_an_outcome_are_told(past: Deployment) -> None:
    past.keep("told")
    past.keep("owed", told=False)
    past.tell("owed", "mail")
    past.storage.put_bytes("predictions/told/told-mail.json", b'{"outco')  # torn by a power cut
    past.redis.flushall()
    assert sum(line.jobs for line in rebuild(past)) == 2
    assert sorted(past.queued()) == ["notify-gallery-prediction-owed", "notify-mail-prediction-told"]


def test_a_handler_that_is_owed_is_told_however_old_the_prediction(past: Deployment) -> None:
    past.keep("old", ago=TTL + DAY, told=False)
    past.redis.flushall()
    [line] = rebuild(past)
    assert (line.record, line.expired, line.jobs) == (False, True, 2)
    assert list(past.records.newest()) == []
    assert len(past.queued()) == 2


def test_records_live_as_long_as_they_would_have(past: Deployment) -> None:
    past.keep("young", ago=DAY)
    past.keep("old", ago=TTL)
    past.redis.flushall()
    rebuild(past)
    assert [record.id for record in past.records.newest()] == ["young"]
    assert past.redis.ttl("outkeep:record:prediction:young") in range(TTL - DAY - 60, TTL - DAY + 1)
    rebuild(past, everything=True)
    assert [record.id for record in past.records.newest()] == ["young", "old"]
    assert past.redis.ttl("outkeep:record:prediction:old") in range(TTL - 60, TTL + 1)


def test_a_second_rebuild_does_nothing(past: Deployment) -> None:
    past.keep("owed", told=False)
    past.keep("dead")
    kill_letter(past, "dead", Told("dead", 10, NOW, "status_500"))
    past.redis.flushall()
    rebuild(past)
    before, queued = picture(past), past.queued()
    for line in rebuild(past):
        assert not line.record
        assert line.jobs == line.dead_letters == 0
    assert (picture(past), past.queued()) == (before, queued)


def test_live_records_and_jobs_are_left_alone(past: Deployment) -> None:
    past.keep("failed", told=False)
    past.redis.hset("outkeep:record:prediction:failed", mapping={"state": "failed", "error": "crashed"})
    for handler in ("gallery", "mail"):
        past.end(NOTIFY_QUEUE, f"notify-{handler}-prediction-failed")
    queues.enqueue_replay(past.redis, "gallery", Kind.PREDICTION, "failed")
    rebuild(past)
    record = past.records.get(Kind.PREDICTION, "failed")
    assert record is not None
    assert (record.state, record.error) == (State.FAILED, "crashed")
    assert past.queued() == ["notify-gallery-prediction-failed-r1", "notify-mail-prediction-failed"]


def test_a_dead_letter_that_is_being_replayed_is_not_listed_again(past: Deployment) -> None:
    past.keep("dead")
    past.tell("dead", "gallery", Told("dead", 10, NOW, "status_500"))
    queues.enqueue_replay(past.redis, "gallery", Kind.PREDICTION, "dead")
    rebuild(past)
    assert list(failures(past.redis, past.records)) == []


def test_progress_that_came_late_gives_way_to_what_is_stored(past: Deployment) -> None:
    past.keep("late")
    before = picture(past)
    past.redis.flushall()
    body = json.dumps({"id": "late", "status": "processing"}).encode()
    arrival = Arrival(parse(body, Kind.PREDICTION), body, Receipt(NOW, "msg_late"), None)
    assert past.records.accept([arrival], NOW) == [Accepted.PROGRESS]
    rebuild(past)
    assert picture(past) == before


def test_a_delivery_that_came_first_is_not_disturbed(past: Deployment) -> None:
    past.keep("again")
    past.redis.flushall()
    past.receive("again")
    rebuild(past)
    record = past.records.get(Kind.PREDICTION, "again")
    assert record is not None
    assert record.state is State.RECEIVED
    assert record.body is not None


def test_dead_letters_can_be_replayed_after_a_rebuild(past: Deployment) -> None:
    past.keep("dead")
    kill_letter(past, "dead", Told("dead", 10, NOW, "status_500"))
    past.redis.flushall()
    rebuild(past)
    [letter] = failures(past.redis, past.records)
    assert (letter.handler, letter.error, letter.attempts) == ("gallery", "status_500", 10)
    replay = Replay(past.redis, past.storage, past.records, past.handlers, None)
    assert [line.outcome for line in replay.failed()] == ["enqueued"]
    assert past.queued() == ["notify-gallery-prediction-dead-r1"]
    assert list(failures(past.redis, past.records)) == []


def test_a_dead_letter_that_rq_would_have_dropped_does_not_come_back(past: Deployment) -> None:
    past.keep("ancient", ago=400 * DAY)
    at = datetime(2025, 1, 1, tzinfo=UTC)
    past.tell("ancient", "gallery", Told("dead", 10, at, "status_500"))
    past.redis.flushall()
    rebuild(past)
    assert list(failures(past.redis, past.records)) == []


def test_what_cannot_be_read_is_named_and_the_others_are_done(past: Deployment) -> None:
    past.keep("good")
    past.keep("odd")
    past.storage.put_bytes("predictions/odd/prediction.json", b'{"outkeep": 99}')
    past.keep("torn")
    past.storage.put_bytes("predictions/torn/prediction.json", b'{"outkeep": 1, "ki')
    foreign, _ = past.receive("other")
    past.storage.put_bytes("predictions/foreign/prediction.json", foreign.to_json())
    past.storage.put_bytes("trainings/other/prediction.json", foreign.to_json())
    past.storage.put_bytes("predictions/early/output-0.png", b"\x89PNG")
    past.storage.put_bytes("predictions/a stray.txt", b"not ours")
    past.redis.flushall()
    lines = {line.id: line for line in rebuild(past)}
    assert sorted(lines) == ["early", "foreign", "good", "odd", "other", "torn"]
    assert "its id is not that of its folder" in str(lines["foreign"].fault)
    assert "its kind is not that of its folder" in str(lines["other"].fault)
    assert lines["good"].record
    assert "another version" in str(lines["odd"].fault)
    assert "torn" in str(lines["torn"].fault)
    assert not lines["early"].committed
    assert [record.id for record in past.records.newest()] == ["good"]
    assert past.queued() == []


def test_a_record_that_failed_once_shows_no_error_after_it_was_stored(past: Deployment) -> None:
    document, job = past.receive("once")
    past.records.move(Kind.PREDICTION, "once", Move.FAIL, NOW, {"error": "crashed"})
    past.storage.commit(document)
    past.records.dispatch(Kind.PREDICTION, "once", NOW, {"files": 1, "lost": 0}, [])
    past.end("persist", job.id)
    before = picture(past)
    past.redis.flushall()
    rebuild(past)
    for handler in past.handlers:
        past.end(NOTIFY_QUEUE, f"notify-{handler.name}-prediction-once")
    assert picture(past) == before


@pytest.fixture
def settings(past: Deployment, valkey_url: str) -> dict[str, str]:
    past.now = datetime.now(UTC)
    return environment(valkey_url, past.folder, OUTKEEP_HANDLERS=str(past.folder / "handlers.toml"))


def test_the_command_says_what_it_did(past: Deployment, settings: dict[str, str]) -> None:
    past.keep("young", told=False)
    past.keep("old", ago=TTL)
    past.keep("tuned", kind=Kind.TRAINING)
    past.storage.put_bytes("predictions/early/output-0.png", b"\x89PNG")
    before = outkeep("ls", "--json", settings=settings).stdout
    past.redis.flushall()
    done = outkeep("rebuild", settings=settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "read from storage: 2 predictions, 1 trainings",
        "records restored: 2 (1 are older than OUTKEEP_RECORD_TTL; --all takes them, too)",
        "notifications enqueued: 2",
        "dead letters listed again: 0",
        "without a manifest, so not finished: 1",
    ]
    kept = [line for line in before.splitlines() if '"old"' not in line]
    assert outkeep("ls", "--json", settings=settings).stdout.splitlines() == kept
    done = outkeep("rebuild", "--all", "--json", settings=settings)
    assert json.loads(done.stdout) == {
        "predictions": 2,
        "trainings": 1,
        "records": 1,
        "expired": 0,
        "notifications": 0,
        "dead_letters": 0,
        "uncommitted": 1,
        "unreadable": [],
    }
    assert outkeep("ls", "--json", settings=settings).stdout == before


def test_a_manifest_that_cannot_be_read_ends_the_command_with_1(
    past: Deployment, settings: dict[str, str]
) -> None:
    past.keep("good")
    past.storage.put_bytes("predictions/odd/prediction.json", b"{}")
    done = outkeep("rebuild", settings=settings)
    assert done.returncode == 1
    assert done.stdout.startswith("read from storage: 1 predictions, 0 trainings\n")
    name = "predictions/odd/prediction.json"
    fault, complaint = done.stderr.splitlines()
    assert fault.startswith(f"NOT read: {name}: the manifest in storage cannot be used")
    assert complaint == "outkeep: 1 could not be read; all others are done"
    done = outkeep("rebuild", "--json", settings=settings)
    assert [one["object"] for one in json.loads(done.stdout)["unreadable"]] == [name]


def test_without_storage_or_redis_the_command_says_so(past: Deployment, settings: dict[str, str]) -> None:
    done = outkeep("rebuild", settings=settings)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "read from storage: 0 predictions, 0 trainings",
    )
    away = {**settings, "REDIS_URL": "redis://127.0.0.1:1"}
    (complaint,) = complaints(outkeep("rebuild", settings=away), 1)
    assert complaint.startswith("Redis does not answer")


def test_a_rebuild_that_is_killed_leaves_the_rest_to_the_next(
    past: Deployment, settings: dict[str, str]
) -> None:
    for number in range(400):
        past.keep(f"p{number}", told=False)
    everything = {f"notify-{name}-prediction-p{one}" for name in ("gallery", "mail") for one in range(400)}
    before = outkeep("ls", "--json", "--limit", "1000", settings=settings).stdout
    past.redis.flushall()
    command = [sys.executable, "-m", "app.cli", "rebuild"]
    process = forked.Popen(command, env=clean_environment(settings), stdout=subprocess.DEVNULL)
    wait_until(lambda: past.redis.zcard(RECORDS) > 0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # Each prediction is restored whole or not at all. Redis may still do what it was asked for last.
    with past.redis.pipeline() as pipeline:
        pipeline.llen(queues.queue(NOTIFY_QUEUE, past.redis).key)
        pipeline.zcard(RECORDS)
        jobs, records = pipeline.execute()
    assert jobs == 2 * records
    assert outkeep("rebuild", settings=settings).returncode == 0
    assert outkeep("ls", "--json", "--limit", "1000", settings=settings).stdout == before
    queued = past.queued()
    assert (len(queued), set(queued)) == (800, everything)
    assert past.redis.exists(*(Job.key_for(job_id) for job_id in everything)) == 800


def test_a_job_of_the_users_that_failed_is_listed_and_replayed_as_before(past: Deployment) -> None:
    past.keep("failing")
    event = {"data": {"kind": "prediction", "id": "failing"}}
    notify_id = notify_job_id("gallery", Kind.PREDICTION, "failing")
    job = queues.handle_job(
        past.redis, Call("tasks.thumbnail"), event, handler="gallery", notify_id=notify_id
    )
    queues.enqueue(past.redis, job)
    queues.queue(job.origin, past.redis).remove(job.id)
    job.ended_at = NOW
    job._status = JobStatus.FAILED
    job.save()
    with past.redis.pipeline() as pipeline:
        job._handle_failure("Traceback\nValueError: no picture", pipeline)
        pipeline.execute()
    tell(past.redis, past.storage, job.id, end_of(past.redis, job.id))
    before = list(failures(past.redis, past.records))
    assert [(one.id, one.handler, one.error) for one in before] == [
        ("failing", "gallery", "ValueError: no picture")
    ]
    past.redis.flushall()
    rebuild(past)
    assert list(failures(past.redis, past.records)) == before
    replay = Replay(past.redis, past.storage, past.records, past.handlers, None)
    assert [(line.outcome, line.handler) for line in replay.failed()] == [("enqueued", "gallery")]
    assert past.queued() == [f"{notify_id}-r1"]


def test_the_same_in_a_bucket(redis: Redis, s3_here: S3, tmp_path: Path) -> None:
    past = Deployment(redis, tmp_path, NOW, ("gallery", "mail"), storage=s3_here.url)
    for number in range(30):
        past.keep(f"p{number}", ago=number, told=number != 7)
    past.keep("p", kind=Kind.TRAINING)
    for handler in past.handlers:
        past.end(NOTIFY_QUEUE, notify_job_id(handler.name, Kind.PREDICTION, "p7"))
    before = picture(past)
    past.redis.flushall()
    lines = rebuild(past)
    assert picture(past) == before
    assert (sum(line.record for line in lines), sum(line.jobs for line in lines)) == (31, 2)
