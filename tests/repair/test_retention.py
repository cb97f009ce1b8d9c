"""Removing what is too old, at a time of the test's choosing; and by the worker itself."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis import Redis

from app.accept import queues
from app.accept.quarantine import Aside, Quarantine
from app.core.errors import Removed, Unusable
from app.core.lifecycle import Move
from app.core.names import COUNTERS, NOTIFY_QUEUE, REMOVALS, RETENTION_TURN, Kind, record_member
from app.maintain.removal import Removal
from app.settings import load
from app.telemetry.logs import event_name
from tests import forked
from tests.engine.worker_process import wait_until
from tests.kept import DAY, TTL, Deployment
from tests.receive.web import clean_environment, environment
from tests.wrong_clock import WrongClock
from workers.repair.retention import Retention

AGE = 30 * DAY
NOW = datetime.now(UTC)


@pytest.fixture
def past(redis: Redis, tmp_path: Path) -> Deployment:
    return Deployment(redis, tmp_path, NOW)


def keep(past: Deployment, prediction_id: str, *, ago: float, told: bool = True) -> None:
    """Keep a prediction; storage dates its files as it would have then."""
    past.keep(prediction_id, ago=ago, told=told)
    date(past.folder / "outputs/predictions" / prediction_id, ago)


def date(folder: Path, ago: float) -> None:
    at = NOW.timestamp() - ago - 1  # what the disk keeps of a time is not exact
    for path in folder.iterdir():
        os.utime(path, (at, at))


def retention(past: Deployment, *, piece: float = 60) -> Retention:
    def clock() -> datetime:
        return past.now

    removal = Removal(past.redis, past.storage, ttl=TTL, clock=clock)
    return Retention(past.redis, past.storage, removal, age=AGE, clock=clock, piece=piece)


def walk(past: Deployment) -> Counter[str]:
    """One whole walk."""
    past.redis.delete(RETENTION_TURN)
    return retention(past).run()


def ids(past: Deployment) -> set[str]:
    return {name.split("/")[1] for name in past.storage.names("predictions")}


def test_only_what_is_old_enough_is_removed_with_all_that_is_known_of_it(
    past: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "outkeep.retention")
    keep(past, "old", ago=AGE)
    keep(past, "young", ago=AGE - 60)
    removed = walk(past)
    one, summary = [vars(record) for record in caplog.records]
    assert (event_name(caplog.records[0]), one["kind"], one["id"]) == (
        "prediction_retired",
        "prediction",
        "old",
    )
    assert (event_name(caplog.records[1]), summary["prediction"]) == ("retention_removed", 1)
    assert (removed[Kind.PREDICTION], removed["objects"]) == (1, 3)
    assert removed["bytes"] > 4
    assert ids(past) == {"young"}
    assert past.records.get(Kind.PREDICTION, "old") is None
    assert past.redis.hgetall("outkeep:counters") == {
        b'outkeep_removed_total{kind="prediction",cause="retention"}': b"1"
    }
    past.now += timedelta(seconds=60)
    assert walk(past)[Kind.PREDICTION] == 1
    assert past.stored() == []


def test_a_prediction_whose_notification_waits_is_kept_until_that_has_ended(past: Deployment) -> None:
    keep(past, "owed", ago=AGE, told=False)
    assert walk(past) == Counter()
    assert ids(past) == {"owed"}
    (job_id,) = past.queued()
    queue = queues.queue(NOTIFY_QUEUE, past.redis)
    queue.remove(job_id)
    past.redis.zadd(queue.failed_job_registry.key, {job_id: 2_000_000_000})  # a dead letter goes with it
    assert walk(past)[Kind.PREDICTION] == 1
    assert queue.failed_job_registry.get_job_ids(cleanup=False) == []


def test_what_is_not_finished_is_kept(past: Deployment) -> None:
    _, job = past.receive("received", ago=AGE)
    past.storage.put_bytes("predictions/received/output-0.png", b"\x89PNG")
    _, _ = past.receive("failed", ago=AGE)
    past.records.move(Kind.PREDICTION, "failed", Move.FAIL, past.now, {"error": "crashed"})
    past.end("persist", "persist-prediction-failed")
    past.storage.put_bytes("predictions/failed/output-0.png", b"\x89PNG")
    for name in ("received", "failed"):
        date(past.folder / "outputs/predictions" / name, AGE)
    assert walk(past) == Counter()
    assert ids(past) == {"received", "failed"}
    assert job.is_queued


def test_files_that_nothing_will_ever_finish_go_too(past: Deployment) -> None:
    past.storage.put_bytes("predictions/orphan/output-0.png", b"\x89PNG")
    past.storage.put_bytes("predictions/fresh/output-0.png", b"\x89PNG")
    date(past.folder / "outputs/predictions/orphan", AGE)
    assert walk(past)[Kind.PREDICTION] == 1
    assert ids(past) == {"fresh"}


def test_a_removal_that_was_cut_off_is_ended(past: Deployment) -> None:
    keep(past, "half", ago=AGE)
    past.storage.put_bytes("predictions/half/prediction.json", b'{"outkeep": 1, "removed_at": "2026"}')
    with pytest.raises(Removed):
        past.storage.read_manifest(Kind.PREDICTION, "half")
    assert walk(past)[Kind.PREDICTION] == 1
    assert past.stored() == []


@pytest.mark.parametrize("copied", [False, True])
def test_what_cannot_be_read_is_kept_and_named(
    past: Deployment, caplog: pytest.LogCaptureFixture, *, copied: bool
) -> None:
    """Another version has written it; or it is the manifest of another prediction."""
    keep(past, "odd", ago=AGE)
    other, _ = past.receive("other", ago=AGE)
    written = other.to_json() if copied else b'{"outkeep": 2}'
    past.storage.put_bytes("predictions/odd/prediction.json", written)
    date(past.folder / "outputs/predictions/odd", AGE)
    assert walk(past) == Counter()
    assert ids(past) == {"odd"}
    assert "it is not removed, although it is old: the manifest in storage" in caplog.text


@pytest.mark.parametrize("off", [-56 * 365 * DAY, -31 * DAY, -7200, 0, 7200, 365 * DAY])
def test_quarantine_of_that_age_goes_too_whatever_the_clock_of_its_host_said(
    past: Deployment, off: float
) -> None:
    """The disk dates a file by the clock of its host, which is `off` by so many seconds."""
    shelf = Quarantine(past.storage, disk_floor=0, clock=lambda: past.now)
    for body, ago in ((b"old", AGE + 60), (b"new", AGE - 60), (b"\xff" * 70_000, AGE + 60)):
        at = past.now - timedelta(seconds=ago)
        shelf.put(
            Aside(Kind.PREDICTION, body, Unusable("not_json", "no"), at, "webhook", {}, {"webhook-id": "m"})
        )
    for path in past.folder.rglob("quarantine/*/*"):
        os.utime(path, (max(NOW.timestamp() - AGE + off, 0),) * 2)
    assert walk(past) == Counter({"quarantine": 2})
    [left] = past.stored()
    document = past.storage.get(left)
    assert document is not None
    assert json.loads(document)["body"] == "new"


def test_quarantine_that_says_nothing_of_its_age_goes_by_its_date_and_its_file(past: Deployment) -> None:
    day = (NOW - timedelta(seconds=AGE)).date().isoformat()
    for name in (f"{day}/old", f"{day}/new", "2025-01-01/ancient", f"{NOW.date()}/young", "odd"):
        past.storage.put_bytes(f"quarantine/{name}.json", b"{}")
        ago = AGE - 60 if name.endswith("new") else AGE + 1
        os.utime(past.folder / f"outputs/quarantine/{name}.json", (NOW.timestamp() - ago,) * 2)
    assert walk(past) == Counter({"quarantine": 3})
    assert past.stored() == [f"quarantine/{day}/new.json", f"quarantine/{NOW.date()}/young.json"]


def test_a_walk_is_made_of_pieces_and_goes_on_where_the_last_one_ended(past: Deployment) -> None:
    for number in range(5):
        keep(past, f"old-{number}", ago=AGE)
    service = retention(past, piece=0)
    for left in (4, 3, 2, 1, 0):
        assert service.run()[Kind.PREDICTION] == 1
        assert len(ids(past)) == left


def test_one_process_walks_at_a_time_and_then_none_for_an_hour(past: Deployment) -> None:
    for number in range(2):
        keep(past, f"old-{number}", ago=AGE)
    first, second = retention(past, piece=0), retention(past)
    assert first.run()[Kind.PREDICTION] == 1
    assert second.run() == Counter()
    assert first.run()[Kind.PREDICTION] == 1
    assert first.run() == second.run() == Counter()  # it has come to the end
    keep(past, "later", ago=AGE)
    assert first.run() == second.run() == Counter()
    assert 0 < past.redis.ttl(RETENTION_TURN) <= 3600
    past.redis.delete(RETENTION_TURN)
    assert second.run()[Kind.PREDICTION] == 1


def test_a_process_whose_lease_has_passed_to_another_does_not_walk_on(past: Deployment) -> None:
    for number in range(3):
        keep(past, f"old-{number}", ago=AGE)
    late, other = retention(past, piece=0), retention(past, piece=0)
    assert late.run()[Kind.PREDICTION] == 1
    past.redis.delete(RETENTION_TURN)  # as it expires
    assert other.run()[Kind.PREDICTION] == 1
    assert late.run() == Counter()
    assert other.run()[Kind.PREDICTION] == 1


def test_a_process_that_died_while_it_walked_is_replaced(past: Deployment) -> None:
    for number in range(2):
        keep(past, f"old-{number}", ago=AGE)
    assert retention(past, piece=0).run()[Kind.PREDICTION] == 1
    assert 0 < past.redis.ttl(RETENTION_TURN) <= 300
    past.redis.delete(RETENTION_TURN)  # as it expires
    assert retention(past).run()[Kind.PREDICTION] == 1


def test_a_worker_removes_what_is_too_old_by_itself_and_says_so(past: Deployment, valkey_url: str) -> None:
    keep(past, "old", ago=AGE)
    keep(past, "young", ago=60)
    settings = environment(valkey_url, past.folder, OUTKEEP_RETENTION="30d")
    assert load(settings).retention == AGE
    log = past.folder / "worker.log"
    with log.open("wb") as out:
        process = forked.Popen(
            [sys.executable, "-m", "app.cli", "work", "persist"],
            env=clean_environment(settings),
            stdout=out,
            stderr=out,
        )
    try:
        wait_until(lambda: b"retention_removed" in log.read_bytes(), seconds=60)
        assert ids(past) == {"young"}
        assert '"prediction": 1' in log.read_text()
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("seconds", [600.0, -600.0, 7200.0])
def test_a_worker_whose_clock_is_far_off_removes_nothing_for_its_age(
    past: Deployment, valkey_url: str, seconds: float
) -> None:
    """It ends removals that others have begun, and that shows when it has looked."""
    keep(past, "old", ago=AGE)
    keep(past, "begun", ago=60)
    past.redis.zadd(REMOVALS, {record_member(Kind.PREDICTION, "begun"): NOW.timestamp() - 3600})
    host = WrongClock(past.folder, seconds)
    settings = environment(valkey_url, past.folder, OUTKEEP_RETENTION="30d")
    process = forked.Popen(
        [sys.executable, "-m", "app.cli", "work", "persist"],
        env=clean_environment(settings) | host.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: past.redis.hget(COUNTERS, 'outkeep_repairs_total{repair="removal_ended"}'), seconds=60
        )
        assert ids(past) == {"old"}
        assert not past.redis.exists(RETENTION_TURN)
    finally:
        process.kill()
        process.wait()
