"""Following a prediction from outside: a real Valkey, a real folder, and APIs that answer badly."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.accept import queues
from app.accept.claim_check import ClaimCheck
from app.accept.records import Accepted, Records
from app.core.errors import Permanent, Unusable
from app.core.lifecycle import Move, State
from app.core.manifest import Receipt, build
from app.core.names import AWAITED, PERSIST_QUEUE, Kind, persist_job_id
from app.core.policy import SOONEST_ASK, poll_delay
from app.core.prediction import Prediction, from_object
from app.replicate.client import connected
from app.replicate.following import ASKED_BY_OTHERS, Follower
from app.replicate.watchlist import Watchlist
from app.storage.store import Storage
from tests.raw_host import ok, raw_host

ID = "zxnmcx7c2p3wp0fkexvxs6zf6p"
PREDICTION = Kind.PREDICTION


@pytest.fixture
def follower(redis: Redis, tmp_path: Path) -> Follower:
    storage = Storage((tmp_path / "outputs").as_uri())
    records = Records(redis, ttl=86400)
    return Follower(
        redis=redis,
        records=records,
        storage=storage,
        claims=ClaimCheck(storage, records, patience=10),
        clock=lambda: datetime.now(UTC),
        context={"order": "42"},
        awaits_webhook=False,
        warn=warnings.append,
    )


warnings: list[str] = []


def running(**keys: Any) -> dict[str, Any]:
    return {"id": ID, "status": "starting", "input": {}, **keys}


def ended(**keys: Any) -> dict[str, Any]:
    return running(status="succeeded", output="a word", completed_at="2026-03-01T12:00:00Z", **keys)


def jobs(redis: Redis) -> list[str]:
    return list(queues.queue(PERSIST_QUEUE, redis).job_ids)


def test_what_was_created_is_known_and_what_has_ended_gets_one_job(follower: Follower, redis: Redis) -> None:
    assert follower.hand_in(running()) is Accepted.PROGRESS
    record = follower.records.get(PREDICTION, ID)
    assert record is not None
    assert (record.state, record.receipt.source, record.receipt.context) == (
        State.RUNNING,
        "run",
        {"order": "42"},
    )
    assert jobs(redis) == []
    assert [follower.hand_in(ended()) for _ in range(2)] == [Accepted.ACCEPTED, Accepted.DUPLICATE]
    assert follower.hand_in(running()) is Accepted.STALE
    assert jobs(redis) == [persist_job_id(PREDICTION, ID)]


def test_a_large_object_waits_in_the_storage(follower: Follower) -> None:
    assert follower.hand_in(ended(logs="x" * (2 << 20))) is Accepted.ACCEPTED
    record = follower.records.get(PREDICTION, ID)
    assert record is not None
    assert not record.body
    assert list(follower.storage.names(""))


def test_what_is_no_unicode_is_named(follower: Follower) -> None:
    with pytest.raises(Unusable) as raised:
        follower.hand_in(ended(logs="\ud83d"))
    assert raised.value.code == "not_utf8"


def follow(follower: Follower, *answers: bytes) -> tuple[Prediction, list[str]]:
    """Follow to the end at an API with these answers; how it ended, and the statuses seen."""
    seen: list[str] = []

    async def scenario() -> Prediction:
        async with raw_host(*answers) as host, connected(f"http://127.0.0.1:{host.port}", "t") as api:
            return await follower.until_end(api, ID, lambda shown: seen.append(shown.status))

    return asyncio.run(scenario()), seen


def answer(found: dict[str, Any]) -> bytes:
    return ok(json.dumps(found).encode(), "Connection: close")


def test_it_is_followed_through_troubles_of_the_api(follower: Follower) -> None:
    warnings.clear()
    broken = ok(b"<html>", "Connection: close", status="502 Bad Gateway")
    busy = ok(b"{}", "Retry-After: 1", "Connection: close", status="429 Too Many Requests")
    found, seen = follow(follower, answer(running()), busy, broken, answer(ended()))
    assert found.status == "succeeded"
    assert seen == ["starting", "succeeded"]
    assert len(warnings) == 2
    assert all(warning.startswith("asked again later: ") for warning in warnings)


def test_workers_ask_for_it_only_if_we_do_not_any_more(follower: Follower, redis: Redis) -> None:
    here, now = Watchlist(redis), datetime.now(UTC)
    frozen = replace(follower, clock=lambda: now)
    frozen.hand_in(running())
    assert here.next_here() == now.timestamp() + SOONEST_ASK
    follow(frozen, answer(ended()))
    assert here.next_here() == now.timestamp() + ASKED_BY_OTHERS
    here.put_off(Kind.PREDICTION, running()["id"], now.timestamp())
    assert here.next_here() == now.timestamp() + ASKED_BY_OTHERS, "never sooner"
    frozen.hand_in(ended())
    assert here.next_here() is None


def test_workers_do_not_ask_for_what_a_webhook_tells_of(follower: Follower, redis: Redis) -> None:
    replace(follower, awaits_webhook=True).hand_in(running())
    assert Watchlist(redis).next_here() is None
    assert redis.zcard(AWAITED) == 1


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found"])
def test_what_time_cannot_heal_ends_the_following(follower: Follower, status: str) -> None:
    with pytest.raises(Permanent):
        follow(follower, ok(b"{}", status=status))


def wait_for(follower: Follower, meanwhile: Callable[[], None] = lambda: None) -> Any:
    """Wait until it is kept; `meanwhile` runs once it was handed in."""

    async def scenario() -> Any:
        waiting = asyncio.ensure_future(follower.until_kept(from_object(ended(), PREDICTION)))
        while not waiting.done():
            record = follower.records.get(PREDICTION, ID)
            if record is not None and record.state is State.RECEIVED:
                meanwhile()
            await asyncio.wait([waiting], timeout=0.01)
        return waiting.result()

    return asyncio.run(scenario())


def test_nothing_is_over_before_the_manifest_is_there(follower: Follower) -> None:
    now = datetime.now(UTC)
    manifest = build(from_object(ended(), PREDICTION), [], None, Receipt(now, None, "run"), now)

    def keep() -> None:
        follower.storage.commit(manifest)
        follower.records.dispatch(PREDICTION, ID, now, {"files": 0, "lost": 0}, [])

    follower.hand_in(running())
    assert wait_for(follower, keep).prediction.id == ID


def test_what_is_stored_already_is_found_without_a_record(follower: Follower, redis: Redis) -> None:
    now = datetime.now(UTC)
    follower.storage.commit(build(from_object(ended(), PREDICTION), [], None, Receipt(now, None), now))
    assert wait_for(follower).prediction.id == ID
    assert jobs(redis) == []


def test_what_was_given_up_is_said(follower: Follower) -> None:
    def give_up() -> None:
        follower.records.move(PREDICTION, ID, Move.FAIL, datetime.now(UTC), {"error": "crashed"})

    with pytest.raises(Permanent, match="was not kept") as raised:
        wait_for(follower, give_up)
    assert raised.value.code == "crashed"


@pytest.mark.parametrize(
    ("age", "failures", "asked", "wait"),
    [
        (0, 0, None, 0.5),
        (60, 0, None, 1.0),
        (3600, 0, None, 5.0),
        (0, 1, None, 1.0),
        (0, 100, None, 30.0),
        (0, 1, 7.0, 7.0),
        (0, 1, 1e9, 86400.0),
    ],
)
def test_what_takes_long_is_asked_for_less_often(
    age: float, failures: int, asked: float | None, wait: float
) -> None:
    assert poll_delay(age=age, failures=failures, asked=asked) == wait
