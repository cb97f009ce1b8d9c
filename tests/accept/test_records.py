"""Records and the jobs that are written with them."""

import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from redis import Redis
from rq import Queue, Retry
from rq.exceptions import DuplicateJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from app.accept import changes, queues
from app.accept.changes import Notified, note_attempt
from app.accept.records import PAGE, Accepted, Arrival, Records
from app.core.lifecycle import Move, State
from app.core.manifest import Receipt, format_time
from app.core.names import (
    CHANGES,
    NOTIFY_JOB,
    NOTIFY_QUEUE,
    PERSIST_JOB,
    PERSIST_QUEUE,
    Kind,
    persist_job_id,
    record_key,
)
from app.core.prediction import parse
from tests.receive.web import prediction

NOW = datetime(2026, 3, 16, 12, 0, 0, 123000, tzinfo=UTC)
TTL = 7200
TIMES = frozenset({b"created_at", b"enqueued_at"})


@pytest.fixture
def records(redis: Redis) -> Records:
    return Records(redis, ttl=TTL)


def arrival(redis: Redis, body: bytes, receipt: Receipt | None = None) -> Arrival:
    parsed = parse(body, Kind.PREDICTION)
    job = None
    if parsed.is_terminal:
        job = queues.new_persist_job(parsed.kind, parsed.id, timeout=4200, at=datetime.now(UTC))
    return Arrival(parsed, body, receipt or Receipt(NOW, "msg_1"), job)


def everything(redis: Redis) -> dict[bytes, object]:
    """Every key with its value and, where RQ sets one, its time to live; times are left out."""
    found: dict[bytes, object] = {}
    for key in cast(Iterator[bytes], redis.scan_iter("rq:*")):
        if redis.type(key) == b"hash":
            fields = cast(dict[bytes, bytes], redis.hgetall(key))
            known = {name: value for name, value in fields.items() if name not in TIMES}
            found[key] = {**known, b"data": zlib.decompress(fields[b"data"])}
            assert fields.keys() >= TIMES
        elif redis.type(key) == b"list":
            found[key] = redis.lrange(key, 0, -1)
        else:
            found[key] = redis.smembers(key)
        assert redis.ttl(key) == -1
    return found


def test_the_job_is_what_a_unique_enqueue_of_rq_itself_would_write(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc"))], NOW)
    ours = everything(redis)
    redis.flushall()

    job_id = persist_job_id(Kind.PREDICTION, "abc")
    Queue(PERSIST_QUEUE, connection=redis, serializer=JSONSerializer).enqueue(
        PERSIST_JOB,
        args=("prediction", "abc"),
        job_id=job_id,
        job_timeout=4200,
        retry=Retry(max=20, interval=5),
        result_ttl=queues.RESULT_TTL,
        failure_ttl=queues.FAILURE_TTL,
        description="keep prediction abc",
        unique=True,
    )

    assert ours == everything(redis)


def test_a_stock_queue_and_job_of_rq_read_what_we_wrote(redis: Redis, records: Records) -> None:
    before = datetime.now(UTC)
    records.accept([arrival(redis, prediction("abc"))], NOW)

    (job,) = Queue(PERSIST_QUEUE, connection=redis, serializer=JSONSerializer).jobs
    assert job.id == "persist-prediction-abc"
    assert (job.func_name, job.args, job.kwargs) == (PERSIST_JOB, ["prediction", "abc"], {})
    assert job.get_status() == "queued"
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (4200, 3600, 365 * 86400)
    assert job.description == "keep prediction abc"
    assert job.retries_left == 20
    assert job.enqueued_at is not None
    assert before - timedelta(seconds=1) <= job.enqueued_at <= datetime.now(UTC)
    assert [queue.name for queue in Queue.all(connection=redis)] == [PERSIST_QUEUE]


def test_rq_takes_our_job_for_the_same_job(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc"))], NOW)

    with pytest.raises(DuplicateJobError):
        queues.queue(PERSIST_QUEUE, redis).enqueue(
            PERSIST_JOB, args=("prediction", "abc"), job_id="persist-prediction-abc", unique=True
        )


def test_a_notification_is_enqueued_once_with_every_bound(redis: Redis) -> None:
    assert queues.enqueue_notify(redis, "gallery", Kind.PREDICTION, "abc")
    assert not queues.enqueue_notify(redis, "gallery", Kind.PREDICTION, "abc")

    (job,) = queues.queue(NOTIFY_QUEUE, redis).jobs
    assert (job.id, job.func_name) == ("notify-gallery-prediction-abc", NOTIFY_JOB)
    assert job.args == ["gallery", "prediction", "abc"]
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (60, 3600, 365 * 86400)
    assert job.retries_left == 20
    assert job.description == "tell gallery about prediction abc"


def test_a_job_carries_ids_and_never_the_body(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc", output="a secret output"))], NOW)

    raw = cast(dict[bytes, bytes], redis.hgetall("rq:job:persist-prediction-abc"))
    assert b"a secret output" not in b"".join(raw.values())
    assert (
        b"a secret output"
        not in Job.fetch("persist-prediction-abc", connection=redis, serializer=JSONSerializer).data
    )


def test_one_batch_tells_each_delivery_its_own_outcome(redis: Redis, records: Records) -> None:
    bodies = [
        prediction("a", status="starting", output=None),
        prediction("a"),
        prediction("a"),
        prediction("a", status="processing"),
        prediction("b"),
    ]

    outcomes = records.accept([arrival(redis, body) for body in bodies], NOW)

    assert outcomes == ["progress", "accepted", "duplicate", "stale", "accepted"]
    assert redis.lrange("rq:queue:persist", 0, -1) == [b"persist-prediction-a", b"persist-prediction-b"]


def test_a_record_holds_all_that_arrived(redis: Redis, records: Records) -> None:
    receipt = Receipt(NOW, "msg_1", query={"customId": "é"}, context={"order": 7}, parent="mother")
    body = prediction("abc", model="a/b", extra="ü")
    records.accept([arrival(redis, body, receipt)], NOW)

    record = records.get(Kind.PREDICTION, "abc")

    assert record is not None
    assert (record.state, record.status, record.model) == (State.RECEIVED, "succeeded", "a/b")
    assert record.body == body
    assert record.receipt == receipt
    assert (record.received_at, record.updated_at) == (NOW, NOW)


def test_progress_holds_no_body_and_no_job(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc", status="processing"))], NOW)

    record = records.get(Kind.PREDICTION, "abc")
    assert record is not None
    assert (record.state, record.body) == (State.RUNNING, None)
    assert redis.keys("rq:*") == []


def test_an_end_of_which_the_record_is_stored_is_not_queued_again(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc"))], NOW)
    assert records.move(Kind.PREDICTION, "abc", Move.STORE, NOW)
    redis.delete("rq:job:persist-prediction-abc", "rq:queue:persist")

    assert records.accept([arrival(redis, prediction("abc"))], NOW) == [Accepted.DUPLICATE]
    assert redis.keys("rq:job:*") == []


def test_a_repeat_mends_a_vanished_job_as_new(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc"))], NOW)
    whole = everything(redis)
    redis.delete("rq:job:persist-prediction-abc", "rq:queue:persist")

    records.accept([arrival(redis, prediction("abc"))], NOW)

    assert everything(redis) == whole


def test_a_job_that_failed_does_not_keep_an_event_from_getting_one(redis: Redis, records: Records) -> None:
    """Failed jobs are listed for a year, records live for a week."""
    first = arrival(redis, prediction("abc"))
    records.accept([first], NOW)
    whole = everything(redis)
    redis.delete(record_key(Kind.PREDICTION, "abc"), "rq:queue:persist")
    redis.hset("rq:job:persist-prediction-abc", "status", "failed")
    redis.zadd("rq:failed:persist", {"persist-prediction-abc": 4e9})

    assert records.accept([arrival(redis, prediction("abc"))], NOW) == [Accepted.ACCEPTED]

    assert everything(redis) == whole


def test_an_illegal_move_changes_nothing(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc"))], NOW)
    before = redis.hgetall(record_key(Kind.PREDICTION, "abc"))

    assert not records.move(Kind.PREDICTION, "abc", Move.DISPATCH, NOW, {"error": "no"})
    assert not records.move(Kind.PREDICTION, "nobody", Move.STORE, NOW)
    assert redis.hgetall(record_key(Kind.PREDICTION, "abc")) == before


def test_what_is_stored_needs_no_body(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc"))], NOW)
    assert records.move(
        Kind.PREDICTION, "abc", Move.STORE, NOW + timedelta(seconds=1), {"files": 2, "lost": 1}
    )

    record = records.get(Kind.PREDICTION, "abc")
    assert record is not None
    assert (record.state, record.body, record.files, record.lost) == (State.STORED, None, 2, 1)
    assert record.updated_at == NOW + timedelta(seconds=1)


def test_dispatching_stores_and_enqueues_what_a_unique_enqueue_of_rq_itself_would(
    redis: Redis, records: Records
) -> None:
    places = [(redis, name, Kind.PREDICTION, "abc") for name in ("one", "two")]
    for place in places:
        assert queues.enqueue_notify(*place)
    theirs = everything(redis)
    redis.flushall()
    records.accept([arrival(redis, prediction("abc"))], NOW)
    persist = everything(redis)

    for _ in range(2):  # the second time both jobs are known
        jobs = [queues.notify_job(*place) for place in places]
        records.dispatch(Kind.PREDICTION, "abc", NOW, {"files": 2, "lost": 1}, jobs)

    record = records.get(Kind.PREDICTION, "abc")
    assert record is not None
    assert (record.state, record.body, record.files, record.lost) == (State.DISPATCHED, None, 2, 1)
    queues_of_both = {b"rq:queues": {b"rq:queue:persist", b"rq:queue:notify"}}
    assert everything(redis) == persist | theirs | queues_of_both


def test_a_dead_letter_is_not_enqueued_again_by_dispatching(redis: Redis, records: Records) -> None:
    job = queues.notify_job(redis, "gallery", Kind.PREDICTION, "abc")
    redis.hset(job.key, "status", "failed")

    records.dispatch(Kind.PREDICTION, "abc", NOW, {}, [job])

    assert redis.hgetall(job.key) == {b"status": b"failed"}
    assert queues.queue(NOTIFY_QUEUE, redis).job_ids == []
    assert records.get(Kind.PREDICTION, "abc") is None


def test_each_move_of_a_record_is_a_change_in_the_stream(redis: Redis, records: Records) -> None:
    before = changes.newest(redis)
    records.accept([arrival(redis, prediction("abc", status="processing"))], NOW)
    records.accept([arrival(redis, prediction("abc"))], NOW)
    records.accept([arrival(redis, prediction("abc"))], NOW)
    records.dispatch(Kind.PREDICTION, "abc", NOW, {}, [])
    notified = Notified("gallery", "delivered", 1, format_time(NOW), None)
    note_attempt(redis, Kind.PREDICTION, "abc", notified)
    redis.xadd(CHANGES, {"of": "x:y", "what": "odd"})

    found = changes.after(redis, before, count=10)
    assert [change.what for change in found] == ["running", "received", "stored", "dispatched", "told"]
    assert {change.id for change in found} == {"abc"}
    assert found[-1].notified == notified
    assert changes.is_whole(redis, found[0].position)
    redis.xtrim(CHANGES, maxlen=1, approximate=False)
    assert not changes.is_whole(redis, found[0].position)


def test_the_newest_records_come_first_over_many_pages(redis: Redis, records: Records) -> None:
    count = 2 * PAGE + 1
    for number in range(count):
        when = NOW + timedelta(seconds=number)
        records.accept([arrival(redis, prediction(f"p{number}", status="processing"))], when)

    assert [record.id for record in records.newest()] == [f"p{number}" for number in reversed(range(count))]


def test_what_holds_the_only_copy_of_an_event_does_not_expire(redis: Redis, records: Records) -> None:
    key = record_key(Kind.PREDICTION, "abc")
    records.accept([arrival(redis, prediction("abc", status="processing"))], NOW)
    assert redis.ttl(key) > 0
    records.accept([arrival(redis, prediction("abc"))], NOW)
    assert redis.ttl(key) == -1
    records.keep(Kind.PREDICTION, "abc", {"0": {"name": "output-0.png"}})
    assert redis.ttl(key) == -1
    assert records.move(Kind.PREDICTION, "abc", Move.FAIL, NOW)
    assert redis.ttl(key) == -1
    assert records.move(Kind.PREDICTION, "abc", Move.STORE, NOW)
    assert 0 < redis.ttl(key) <= TTL


def test_any_number_of_files_can_be_remembered(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc"))], NOW)
    records.keep(Kind.PREDICTION, "abc", {str(number): {} for number in range(20_000)})
    record = records.get(Kind.PREDICTION, "abc")
    assert record is not None
    assert len(record.kept) == 20_000


def test_of_a_record_that_is_gone_no_file_is_remembered(records: Records) -> None:
    records.keep(Kind.PREDICTION, "abc", {"0": {}})
    assert records.get(Kind.PREDICTION, "abc") is None


def test_a_script_that_redis_has_forgotten_is_loaded_again(redis: Redis, records: Records) -> None:
    redis.script_flush()
    assert records.accept([arrival(redis, prediction("abc"))], NOW) == [Accepted.ACCEPTED]


def test_context_and_query_are_plain_json_in_redis(redis: Redis, records: Records) -> None:
    records.accept([arrival(redis, prediction("abc"), Receipt(NOW, "m", query={"a": "1"}))], NOW)

    raw = cast(dict[bytes, bytes], redis.hgetall(record_key(Kind.PREDICTION, "abc")))
    assert json.loads(raw[b"query"]) == {"a": "1"}
    assert b"context" not in raw, "what a record knows of it already must stay"
