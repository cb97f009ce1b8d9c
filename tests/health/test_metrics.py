"""`/metrics`: what a collector reads of it."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.accept import queues
from app.accept.spool import Spool, Spooled
from app.core import vocabulary as words
from app.core.fleet import Process
from app.core.manifest import Receipt
from app.core.names import COUNTERS, RECORDS, Kind
from app.health.metrics import Metrics
from app.health.presence import Presence
from app.receive.listening import free_port
from app.telemetry.tally import Tally

NO_SPOOL = Spool(Path("/nonexistent"), disk_floor=0)
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def read(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name with labels, as Prometheus' own parser understands the text."""
    return {
        sample.name
        + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def here(redis: Redis) -> Presence:
    return Presence(redis, Process("receiver", "a", 1, "1", ("k",), {"gallery": "1"}, "s"))


def metrics_of(redis: Redis, tally: Tally | None = None, *, now: datetime | None = None) -> Metrics:
    return Metrics(redis, tally or Tally(), lambda: now or datetime.now(UTC), NO_SPOOL, here(redis))


def away() -> Redis:
    return Redis(port=free_port(), retry=Retry(NoBackoff(), 0))


def test_every_process_tells_the_sum_of_all(redis: Redis) -> None:
    one, other = Tally(), Tally()
    one.add(words.RECEIVED, "accepted")
    one.flush(redis)
    other.add(words.RECEIVED, "accepted")
    told = read(metrics_of(redis, other))
    assert told["outkeep_deliveries_total outcome=accepted"] == 2
    assert told == read(metrics_of(redis))
    assert told["outkeep_redis_up"] == 1


def test_what_is_known_to_be_counted_begins_at_0(redis: Redis) -> None:
    told = read(metrics_of(redis))
    outcomes = ("accepted", "duplicate", "progress", "stale", "spooled", "quarantined")
    assert all(told[f"outkeep_deliveries_total outcome={outcome}"] == 0 for outcome in outcomes)
    assert told["outkeep_predictions_stored_total kind=training"] == 0
    assert told["outkeep_files_stored_total"] == 0
    assert told["outkeep_files_lost_total code=not_found"] == 0


@pytest.mark.parametrize(
    "series",
    [
        "outkeep_notifications_total handler=gallery outcome=dead",
        "outkeep_notifications_total handler=gallery outcome=delivered",
        "outkeep_notifications_total handler=gallery outcome=retried",
        "outkeep_notifications_total handler=gallery outcome=off",
        "outkeep_notifications_total handler=gallery outcome=handed_on",
        "outkeep_repairs_total repair=job_made",
        "outkeep_repairs_total repair=claim_removed",
        "outkeep_reconciled_total found=new",
        "outkeep_reconciled_total found=failed",
        "outkeep_removed_total cause=asked kind=prediction",
        "outkeep_removed_total cause=retention kind=training",
        "outkeep_removed_total cause=retention kind=quarantine",
    ],
)
def test_what_an_alert_waits_for_begins_at_0_too(redis: Redis, series: str) -> None:
    """The first dead letter is no increase of a series that was not there before it."""
    for metrics in (metrics_of(redis), metrics_of(away())):
        assert read(metrics)[series] == 0


def test_the_seconds_left_of_the_hour_are_a_histogram(redis: Redis) -> None:
    tally = Tally()
    for left in (0, 59, 3595, 3595):
        tally.observe(words.HOUR_LEFT, left)
    told = read(metrics_of(redis, tally))
    assert told["outkeep_hour_left_seconds_bucket le=0"] == 1
    assert told["outkeep_hour_left_seconds_bucket le=60"] == 2
    assert told["outkeep_hour_left_seconds_bucket le=3590"] == 2
    assert told["outkeep_hour_left_seconds_bucket le=+Inf"] == 4
    assert told["outkeep_hour_left_seconds_count"] == 4
    assert told["outkeep_hour_left_seconds_sum"] == 59 + 2 * 3595


def test_waits_are_histograms_to_the_millisecond_and_the_build_is_named(redis: Redis) -> None:
    tally = Tally()
    for waited in (0.004, 0.25, 7200):
        tally.observe(words.COMPLETED_TO_STORED, waited)
    told = read(metrics_of(redis, tally))
    assert [
        told[f"outkeep_completed_to_stored_seconds_bucket le={le}"] for le in ("0.01", "0.25", "+Inf")
    ] == [1, 2, 3]
    assert told["outkeep_completed_to_stored_seconds_sum"] == 7200.254
    assert (
        told["outkeep_webhook_delay_seconds_count"] == told["outkeep_stored_to_notified_seconds_count"] == 0
    )
    assert [value for name, value in told.items() if name.startswith("outkeep_build_info ")] == [1]


def test_depth_and_age_of_the_oldest_are_told_for_each_queue(redis: Redis) -> None:
    queues.enqueue_notify(redis, "gallery", Kind.PREDICTION, "abc")
    first = queues.queue("notify", redis).fetch_job("notify-gallery-prediction-abc")
    assert first is not None
    assert first.enqueued_at is not None
    queues.enqueue_notify(redis, "gallery", Kind.PREDICTION, "def")
    redis.zadd("rq:failed:notify", {"x": 1})
    redis.sadd("rq:workers:persist", "rq:worker:a", "rq:worker:b")
    redis.zadd(RECORDS, {"prediction:abc": 1})
    asked = first.enqueued_at + timedelta(seconds=90)
    told = read(metrics_of(redis, now=asked))
    assert told["outkeep_queue_jobs queue=notify state=waiting"] == 2
    assert told["outkeep_queue_jobs queue=notify state=failed"] == 1
    assert told["outkeep_queue_jobs queue=persist state=waiting"] == 0
    assert told["outkeep_queue_oldest_seconds queue=notify"] == 90
    assert told["outkeep_queue_oldest_seconds queue=persist"] == 0
    assert told["outkeep_workers queue=persist"] == 2
    assert told["outkeep_records"] == 1


def test_queues_of_the_users_own_are_told_too(redis: Redis) -> None:
    queues.queue("thumbs", redis).enqueue("tasks.keep", {})
    redis.sadd("rq:workers:thumbs", "rq:worker:a")
    told = read(Metrics(redis, Tally(), lambda: LATER, NO_SPOOL, here(redis), ("handle", "thumbs")))
    assert told["outkeep_queue_jobs queue=thumbs state=waiting"] == 1
    assert told["outkeep_queue_jobs queue=thumbs state=failed"] == 0
    assert told["outkeep_queue_oldest_seconds queue=thumbs"] > 1e9
    assert told["outkeep_workers queue=thumbs"] == 1
    assert told["outkeep_workers queue=handle"] == 0


def test_without_redis_the_process_tells_what_it_knows_and_no_count_goes_back(redis: Redis) -> None:
    tally = Tally()
    tally.add(words.RECEIVED, "accepted")
    metrics = metrics_of(redis, tally)
    assert read(metrics)["outkeep_deliveries_total outcome=accepted"] == 1
    metrics.redis = away()
    tally.add(words.RECEIVED, "accepted")
    tally.add(words.REFUSED, "bad_signature")
    for _ in range(2):
        told = read(metrics)
        assert told["outkeep_redis_up"] == 0
        assert told["outkeep_deliveries_total outcome=accepted"] == 2
        assert told["outkeep_refusals_total reason=bad_signature"] == 1
    metrics.redis = redis
    assert read(metrics)["outkeep_deliveries_total outcome=accepted"] == 2


def test_the_spool_is_told_while_redis_is_away(tmp_path: Path) -> None:
    received = datetime.now(UTC)
    spool = Spool(tmp_path / "spool", disk_floor=0)
    for number in range(3):
        receipt = Receipt(
            received_at=received + timedelta(seconds=number), webhook_id=f"msg_{number}", query={}
        )
        asyncio.run(spool.keep("abc", Spooled(Kind.PREDICTION, b"{}", receipt)))
    spool.close()
    gone = away()
    told = read(Metrics(gone, Tally(), lambda: received + timedelta(seconds=61.5), spool, here(gone)))
    assert told["outkeep_spool_deliveries"] == 3
    assert told["outkeep_spool_oldest_seconds"] == pytest.approx(61.5, abs=0.01)


def test_a_spool_that_cannot_be_read_is_not_told_as_empty(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spool = Spool(tmp_path / "file", disk_floor=0)
    assert "outkeep_spool_deliveries" not in read(Metrics(redis, Tally(), lambda: LATER, spool, here(redis)))


def test_processes_that_differ_are_counted_by_what_in(redis: Redis) -> None:
    told = read(metrics_of(redis))
    assert {what: told[f"outkeep_processes_differing what={what}"] for what in ("keys", "handlers")} == {
        "keys": 0,
        "handlers": 0,
    }
    Presence(redis, Process("persist", "b", 1, "2", ("k", "l"), {}, "other")).say()
    told = read(metrics_of(redis))
    assert {
        name.partition("=")[2]: value for name, value in told.items() if name.startswith("outkeep_processes")
    } == {"keys": 0, "handlers": 1, "storage": 1, "version": 1}


def test_a_redis_that_others_wrote_to_does_not_break_the_text(redis: Redis) -> None:
    junk = {
        "": 1,
        "outkeep_deliveries_total": 1,
        'outkeep_deliveries_total{outcome="a"': 1,
        'outkeep_deliveries_total{outcome="a\nb 1"}': 5,
        'outkeep_deliveries_total{other="a"}': 1,
        "unheard_of_total": 1,
        b"\xff": 1,
        'outkeep_refusals_total{reason="x"}': "many",
    }
    redis.hset(COUNTERS, mapping=junk)  # type: ignore[arg-type]
    redis.rpush("rq:queue:persist", "no-such-job", b"\xff")
    redis.rpush("rq:queue:notify", "odd")
    redis.hset("rq:job:odd", "enqueued_at", "yesterday")
    told = read(metrics_of(redis))
    assert told["outkeep_refusals_total reason=x"] == 0
    assert told["outkeep_queue_oldest_seconds queue=persist"] == 0
    assert told["outkeep_queue_oldest_seconds queue=notify"] == 0
    assert not any("unheard" in name for name in told)


@pytest.mark.parametrize("kind", ["string", "list"])
def test_counts_of_the_wrong_type_are_no_crash(redis: Redis, kind: str) -> None:
    redis.set(COUNTERS, 1) if kind == "string" else redis.rpush(COUNTERS, 1)
    tally = Tally()
    tally.add(words.RECEIVED, "accepted")
    told = read(metrics_of(redis, tally))
    assert told["outkeep_redis_up"] == 0
    assert told["outkeep_deliveries_total outcome=accepted"] == 1
