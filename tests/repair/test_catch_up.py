"""Handlers that were added while processes that do not know them still stored."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

from app.core import fleet, handlers
from app.core.fleet import Process
from app.core.names import (
    CAUGHT_UP,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    PROCESSES,
    Kind,
    notify_job_id,
    process_key,
)
from app.health.presence import Presence
from app.storage.identity import Identity
from tests.kept import TTL, Deployment, handlers_text
from workers.engine.async_worker import AsyncWorker
from workers.repair.recovery import CatchUp


@pytest.fixture
def past(redis: Redis, tmp_path: Path) -> Deployment:
    """What processes store that know the handler `gallery` only; `late` is added in the file of others."""
    past = Deployment(redis, tmp_path, datetime.now(UTC))
    Identity(redis, past.storage).settle(["gallery"], [], past.now - timedelta(days=1))
    Identity(redis, past.storage).settle(["gallery", "late"], [], past.now - timedelta(seconds=600))
    return past


def process(host: str, *names: str, role: str = PERSIST_QUEUE) -> Process:
    return Process(role, host, 1, "1", ("k",), dict.fromkeys(names, "1"), "s")


def catch_up(past: Deployment, *names: str) -> None:
    known = handlers.parse(handlers_text(*names), lambda secret: secret)
    own = Process(PERSIST_QUEUE, "new", 1, "1", ("k",), fleet.fingerprints(known), "s")
    Presence(past.redis, own).say()
    CatchUp(past.redis, past.storage, own, known, ttl=TTL, clock=lambda: past.now).run()
    for key in past.redis.scan_iter("outkeep:catch-up-turn:*"):
        past.redis.delete(key)  # a minute later


def told(past: Deployment) -> set[str]:
    return {job_id for job_id in past.queued(NOTIFY_QUEUE) if "late" in job_id}


def job(prediction_id: str) -> str:
    return notify_job_id("late", Kind.PREDICTION, prediction_id)


@pytest.mark.parametrize("ends", [False, True], ids=["it runs", "it has ended"])
def test_a_handler_that_was_added_gets_what_older_processes_stored_and_nothing_from_before(
    past: Deployment, *, ends: bool
) -> None:
    past.keep("before", ago=700)
    past.keep("meanwhile", ago=60)
    Presence(past.redis, process("old", "gallery")).say(ends=ends)
    catch_up(past, "gallery", "late")
    assert told(past) == {job("meanwhile")}

    past.keep("still", ago=1)
    catch_up(past, "gallery", "late")
    assert told(past) == {job("meanwhile"), job("still")}
    assert len(past.queued(NOTIFY_QUEUE)) == 2  # nobody is told twice


@pytest.mark.parametrize(
    ("host", "names", "role"),
    [
        ("same", ("gallery", "late"), PERSIST_QUEUE),
        ("more", ("gallery", "late", "later"), PERSIST_QUEUE),
        ("receiver", ("gallery",), "receiver"),
        ("notify", (), NOTIFY_QUEUE),
        ("handle", (), "handle"),
    ],
)
def test_nothing_is_read_again_where_all_who_store_know_the_handler(
    past: Deployment, host: str, names: tuple[str, ...], role: str
) -> None:
    past.keep("stored", ago=60)
    Presence(past.redis, process(host, *names, role=role)).say()
    catch_up(past, "gallery", "late")
    assert told(past) == set()
    assert past.redis.hgetall(CAUGHT_UP) == {}


def test_a_worker_of_an_older_version_is_taken_for_one_that_does_not_know_it(past: Deployment) -> None:
    AsyncWorker(
        PERSIST_QUEUE, connection=past.redis, name="old", jobs=lambda: nullcontext({})
    ).register_birth()
    past.keep("meanwhile", ago=60)
    catch_up(past, "gallery", "late")
    assert told(past) == {job("meanwhile")}


def test_processes_that_are_long_gone_are_forgotten(past: Deployment) -> None:
    gone, quiet = process("gone"), process("quiet", "gallery")
    for one in (gone, quiet):
        Presence(past.redis, one).say()
    past.redis.delete(process_key(gone.name))  # as a quarter of an hour later
    catch_up(past, "gallery", "late")
    left = {name.decode() for name in cast(set[bytes], past.redis.smembers(PROCESSES))}
    assert left == {quiet.name, f"{PERSIST_QUEUE}:new:1"}


def test_an_older_file_that_comes_back_is_caught_up_with_too(past: Deployment) -> None:
    catch_up(past, "gallery", "late")
    Presence(past.redis, process("rolled-back", "gallery")).say()
    past.keep("meanwhile", ago=60)
    catch_up(past, "gallery", "late")
    assert told(past) == {job("meanwhile")}


def test_what_nobody_was_to_be_told_of_stays_so(past: Deployment) -> None:
    past.keep("quiet", ago=60)
    past.redis.hset("outkeep:record:prediction:quiet", "quiet", "1")
    Presence(past.redis, process("old", "gallery")).say()
    catch_up(past, "gallery", "late")
    assert told(past) == set()


def test_where_all_know_the_handler_again_the_next_one_that_does_not_is_looked_back_for_afresh(
    past: Deployment,
) -> None:
    Presence(past.redis, process("old", "gallery")).say()
    catch_up(past, "gallery", "late")
    assert set(past.redis.hgetall(CAUGHT_UP)) == {b"late"}
    Presence(past.redis, process("old", "gallery", "late")).say()
    catch_up(past, "gallery", "late")
    assert past.redis.hgetall(CAUGHT_UP) == {}


def test_of_processes_with_the_same_file_one_looks_at_a_time(past: Deployment) -> None:
    past.keep("meanwhile", ago=60)
    Presence(past.redis, process("old", "gallery")).say()
    known = handlers.parse(handlers_text("gallery", "late"), lambda secret: secret)
    marks = fleet.fingerprints(known)
    looked = []
    for host in ("first", "second", "third"):
        own = Process(PERSIST_QUEUE, host, 1, "1", ("k",), marks, "s")
        Presence(past.redis, own).say()
        past.now += timedelta(seconds=1)
        CatchUp(past.redis, past.storage, own, known, ttl=TTL, clock=lambda: past.now).run()
        looked.append(past.redis.hget(CAUGHT_UP, "late"))
    assert looked[0] is not None
    assert looked == looked[:1] * 3
    assert told(past) == {job("meanwhile")}
