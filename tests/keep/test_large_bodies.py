"""Predictions whose event waits in the storage: kept from there, and nothing of it is left."""

import asyncio
import base64
import os
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.core.errors import Permanent
from app.core.lifecycle import CLAIM_AFTER, Move, Repair, State
from app.core.manifest import format_time
from app.core.names import CLAIMS, Kind, claim_name, record_key
from app.maintain.replay import Replay
from app.storage.store import Storage
from tests.bucket import Asked, FaultyProxy, Refusal
from tests.keep.desk import ID, PNG, Desk
from workers.repair.files import LIST_EVERY, OrphanedBodies

TTL = 86400
KEY = record_key(Kind.PREDICTION, ID)


@pytest.fixture
def away(redis: Redis, tmp_path: Path, proxy: FaultyProxy) -> Desk:
    """A desk that stores in a bucket, behind a proxy."""
    desk = Desk(redis, tmp_path)
    desk.storage = Storage(proxy.s3.url)
    return desk


def receive(desk: Desk) -> dict[str, Any]:
    """A large event with its output inside."""
    image = PNG + os.urandom(2 << 20)
    received = desk.receive(f"data:image/png;base64,{base64.b64encode(image).decode()}", logs="é\n" * 1000)
    assert desk.redis.hget(KEY, "body") is None
    assert len(claims(desk)) == 1
    return received


def removal(asked: Asked) -> Refusal | None:
    """Removing is refused, whichever way it is asked for."""
    return Refusal(403, "AccessDenied") if asked.method == "DELETE" or "delete" in asked.path else None


def claims(desk: Desk) -> list[str]:
    return list(desk.storage.names(CLAIMS))


def orphans(desk: Desk, *, later: float = 0.0, held_for: float = TTL) -> OrphanedBodies:
    return OrphanedBodies(desk.storage, desk.records, held_for=held_for, now=lambda: time.time() + later)


def test_the_manifest_holds_the_object_exactly_and_the_body_is_gone(desk: Desk) -> None:
    received = receive(desk)

    assert desk.work() is None
    assert desk.manifest()["prediction"] == received
    assert claims(desk) == []
    assert desk.record().state is State.DISPATCHED
    assert desk.record().body_at is None
    assert 0 < desk.redis.ttl(KEY) <= TTL
    assert desk.work() is None


def test_the_same_in_a_bucket(away: Desk) -> None:
    received = receive(away)

    assert away.work() is None
    manifest = away.storage.read_manifest(Kind.PREDICTION, ID)
    assert manifest is not None
    assert manifest.prediction.raw == received
    assert claims(away) == []


def test_runs_at_once_on_a_bucket_end_in_the_same_objects(away: Desk) -> None:
    received = receive(away)

    async def scenario() -> list[float | None]:
        return list(await asyncio.gather(*(away.run() for _ in range(4))))

    assert asyncio.run(scenario()) == [None] * 4
    manifest = away.storage.read_manifest(Kind.PREDICTION, ID)
    assert manifest is not None
    assert manifest.prediction.raw == received
    assert sorted(away.storage.names("")) == [
        f"predictions/{ID}/output-0.png",
        f"predictions/{ID}/prediction.json",
    ]


def test_a_storage_that_does_not_give_the_body_is_asked_again(away: Desk, proxy: FaultyProxy) -> None:
    receive(away)
    proxy.rule = lambda asked: Refusal(403, "ExpiredToken") if f"/{CLAIMS}/" in asked.path else None
    assert away.work() is not None
    assert away.record().state is State.RECEIVED
    proxy.mend()

    assert away.work() is None
    assert away.record().state is State.DISPATCHED


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(503, "SlowDown"),
        Refusal(500, "InternalError"),
        Refusal(403, "AccessDenied"),
        Refusal(404, "NoSuchBucket"),
        Refusal(400, "InvalidRequest"),
    ],
    ids=str,
)
def test_a_body_whose_manifest_the_storage_refuses_is_kept(
    away: Desk, proxy: FaultyProxy, refusal: Refusal
) -> None:
    received = receive(away)
    manifest_of = f"{ID}/prediction.json"
    proxy.rule = lambda asked: refusal if asked.method == "PUT" and manifest_of in asked.path else None
    assert away.work() is not None
    assert len(claims(away)) == 1
    assert away.record().body_at in claims(away)

    proxy.mend()
    assert away.work() is None
    manifest = away.storage.read_manifest(Kind.PREDICTION, ID)
    assert manifest is not None
    assert manifest.prediction.raw == received
    assert claims(away) == []


def test_a_body_that_cannot_be_removed_holds_up_nothing_and_is_swept_later(
    away: Desk, proxy: FaultyProxy
) -> None:
    receive(away)
    proxy.rule = removal
    assert away.work() is None
    assert len(claims(away)) == 1
    proxy.mend()

    assert orphans(away).run() == {Repair.CLAIM_REMOVED: 0}
    assert orphans(away, later=CLAIM_AFTER + 1).run() == {Repair.CLAIM_REMOVED: 1}
    assert claims(away) == []


def test_a_body_that_is_gone_fails_with_its_reason(desk: Desk) -> None:
    receive(desk)
    desk.storage.remove(claims(desk))
    with pytest.raises(Permanent) as caught:
        desk.work()

    assert caught.value.code == "claim_missing"


def test_what_was_given_up_keeps_its_body_and_can_be_replayed(desk: Desk, redis: Redis) -> None:
    received = receive(desk)
    desk.records.move(Kind.PREDICTION, ID, Move.FAIL, desk.now, {"error": "job_failed"})
    assert redis.ttl(KEY) == -1
    assert orphans(desk, later=100 * TTL).run() == {Repair.CLAIM_REMOVED: 0}

    replayed = list(Replay(redis, desk.storage, desk.records, [], None).one(ID))
    assert [one.job for one in replayed] == [f"persist-prediction-{ID}"]
    assert desk.work() is None
    assert desk.manifest()["prediction"] == received


def test_a_body_without_a_record_stays_as_long_as_its_delivery_may_come_again(desk: Desk) -> None:
    orphan = claim_name(Kind.PREDICTION, "orphan", "0" * 64)
    desk.storage.put_bytes(orphan, b"{}")
    desk.storage.put_bytes(f"{CLAIMS}/not-ours.txt", b"")

    assert orphans(desk, later=CLAIM_AFTER + 1).run() == {Repair.CLAIM_REMOVED: 0}
    assert orphans(desk, later=TTL + 1).run() == {Repair.CLAIM_REMOVED: 1}
    assert claims(desk) == [f"{CLAIMS}/not-ours.txt"]


def test_an_outline_that_0_1_has_left_gives_way_to_the_event(desk: Desk) -> None:
    """Its job has nothing to work on any more; the event itself waits in the spool, and brings a new one."""
    fields = {"state": "running", "rank": "9", "status": "succeeded", "outline": "{}", "source": "webhook"}
    times = dict.fromkeys(("received_at", "updated_at"), format_time(desk.now))
    left = fields | times | {"query": "{}"}
    desk.redis.hset(KEY, items=[part for pair in left.items() for part in pair])
    with pytest.raises(Permanent, match="neither a manifest nor a record with a body"):
        desk.work()
    received = receive(desk)
    assert desk.work() is None
    assert desk.manifest()["prediction"] == received
    assert not desk.redis.hexists(KEY, "outline")


def test_the_storage_is_looked_at_once_in_a_while(desk: Desk) -> None:
    now = [time.time() + 2 * TTL]
    sweep = OrphanedBodies(desk.storage, desk.records, held_for=TTL, now=lambda: now[0])
    sweep.run()
    desk.storage.put_bytes(claim_name(Kind.PREDICTION, "orphan", "0" * 64), b"{}")

    assert sweep.run() == {}
    now[0] += LIST_EVERY
    assert sweep.run() == {Repair.CLAIM_REMOVED: 1}
