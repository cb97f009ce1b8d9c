"""What Cog's token told of, and Replicate tells of after all: its outputs and its words take the place."""

from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from app.accept import queues
from app.accept.records import Accepted
from app.core.errors import Transient
from app.core.handlers import parse as parse_handlers
from app.core.lifecycle import State
from app.core.names import NOTIFY_QUEUE, Kind
from app.core.outcomes import Told
from app.maintain.backlog import Traces, forget
from tests.keep.desk import ID, Desk
from tests.kept import handlers_text


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    desk = Desk(redis, tmp_path)
    desk.handlers = parse_handlers(handlers_text("gallery"), lambda secret: secret)
    return desk


def accept(desk: Desk, output: str, *, cog: bool) -> Accepted:
    arrival = desk.arrival(output)
    if cog:
        receipt = replace(arrival.receipt, source="cog", webhook_id=None, context=None)
        arrival = replace(arrival, receipt=receipt)
    [outcome] = desk.records.accept([arrival], desk.now)
    return outcome


def test_it_is_stored_in_the_place_of_the_former_and_told_anew(desk: Desk) -> None:
    assert accept(desk, "of cog", cog=True) is Accepted.ACCEPTED
    assert desk.work() is None
    assert (desk.record().state, desk.file("output.txt")) == (State.DISPATCHED, b"of cog")
    told = Told("delivered", 1, desk.now, None)
    desk.storage.note_outcome("gallery", Kind.PREDICTION, ID, told)
    for trace in Traces(desk.redis).of(Kind.PREDICTION, ID):
        if trace.queue == NOTIFY_QUEUE:
            assert forget(desk.redis, trace)

    assert accept(desk, "of replicate", cog=False) is Accepted.ACCEPTED
    assert desk.work() is None

    assert (desk.manifest()["source"], desk.manifest()["output"]) == ("webhook", "of replicate")
    assert desk.file("output.txt") == b"of replicate"
    assert desk.record().state is State.DISPATCHED
    assert desk.told == [f"notify-gallery-prediction-{ID}"]
    assert f"predictions/{ID}/told-gallery.json" not in desk.files()


def test_while_a_handler_is_being_told_of_the_former_it_waits(desk: Desk, redis: Redis) -> None:
    accept(desk, "of cog", cog=True)
    desk.work()
    job = queues.notify_job(redis, "gallery", Kind.PREDICTION, ID)
    redis.hset(job.key, "status", "started")

    accept(desk, "of replicate", cog=False)
    wait = desk.work()
    assert wait is not None
    assert desk.manifest()["source"] == "cog"

    redis.hset(job.key, "status", "finished")
    assert desk.work() is None
    assert desk.manifest()["source"] == "webhook"
    assert redis.hget(job.key, "status") == b"queued"


def test_a_run_that_began_with_the_former_does_not_close_it(desk: Desk) -> None:
    accept(desk, "of cog", cog=True)
    former = desk.record()
    assert desk.work() is None
    committed = desk.storage.read_manifest(Kind.PREDICTION, ID)
    assert committed is not None
    accept(desk, "of replicate", cog=False)

    # As that run would go on, had it been slower.
    with pytest.raises(Transient, match="meanwhile"):
        desk.records.dispatch(Kind.PREDICTION, ID, desk.now, {}, [], source=former.receipt.source)

    assert (desk.record().state, desk.record().status) == (State.RECEIVED, "succeeded")
    assert desk.record().body is not None
    assert not committed.replaces(replace(committed, receipt=desk.record().receipt))


def test_what_a_token_says_after_the_record_has_expired_replaces_nothing(desk: Desk, redis: Redis) -> None:
    accept(desk, "of replicate", cog=False)
    desk.work()
    redis.flushall()

    assert accept(desk, "of cog", cog=True) is Accepted.ACCEPTED
    assert desk.work() is None

    assert (desk.manifest()["source"], desk.file("output.txt")) == ("webhook", b"of replicate")
