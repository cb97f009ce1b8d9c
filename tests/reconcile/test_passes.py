"""Passes of reconciliation over a simulated Replicate: what is taken in, skipped, told and remembered."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.accept.arrivals import make_arrival
from app.accept.records import LARGE, Accepted
from app.core.context import Lineage, context_keys, followed, webhook_url
from app.core.errors import OutkeepError, Permanent, StorageFailure, Transient
from app.core.lifecycle import Move, State
from app.core.manifest import KeptFile, Manifest, Receipt, format_time
from app.core.names import (
    AWAITED,
    AWAITED_HERE,
    FIRST_START,
    FOLLOW_UPS_OPEN,
    IDENTITY_NAME,
    RECONCILE_TURN,
    Kind,
    persist_job_id,
    record_key,
    removed_key,
)
from app.core.policy import LATEST_ASK
from app.core.prediction import parse
from app.core.reconciling import GRACE, OVERLAP, SILENCE, SOUGHT_FOR, fingerprint
from app.maintain.lease import leased
from app.maintain.removal import Removal
from app.reconcile.memory import age
from app.replicate.client import MAX_ANSWER
from app.replicate.follow_ups import FollowUps, Intent
from app.replicate.watchlist import Watchlist
from app.simulator import Simulator
from tests.receive.web import SECRET_KEY
from tests.reconcile.reconciliation import HOOK, PREDICTION, PUBLIC_URL, TRAINING, Desk, create

FUTURE: dict[str, Any] = {"a key of the future": [1.5, {"x": None}]}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(reticent=True) as running:
        yield running


@pytest.fixture
def desk(valkey_url: str, redis: Redis, tmp_path: Path, simulator: Simulator) -> Desk:
    return Desk(valkey_url, redis, tmp_path, simulator)


def start(desk: Desk, identity: str) -> None:
    """Created here, and not ended yet."""
    desk.start(identity, created_at=desk.ago())
    create(desk, identity)


def receive(desk: Desk, prediction: dict[str, Any], **receipt: Any) -> Accepted:
    """What the receiver does with a delivery."""
    body = json.dumps(prediction).encode()
    given = Receipt(desk.now, "msg_1", **receipt)
    arrival = make_arrival(parse(body, PREDICTION), body, given, desk.now)
    [outcome] = desk.records.accept([arrival], desk.now)
    return outcome


def test_each_end_that_never_arrived_is_taken_in_once(desk: Desk) -> None:
    ends = ["succeeded", "failed", "canceled", "aborted", "invented"]
    for status in ends:
        desk.finish(status, status=status)
    trained = desk.finish(
        "trained", TRAINING, output={"version": "o/m:1", "weights": "https://example.com/w"}
    )

    assert desk.run() == {"new": 6}
    assert desk.run() == {"known": 6}

    assert sorted(desk.jobs()) == sorted(
        [*(persist_job_id(PREDICTION, status) for status in ends), persist_job_id(TRAINING, "trained")]
    )
    assert (desk.fetched(), desk.fetched(TRAINING)) == (5, 1)
    record = desk.record("trained", TRAINING)
    assert (record.state, record.receipt.source, record.receipt.webhook_id) == (
        State.RECEIVED,
        "reconcile",
        None,
    )
    assert not record.receipt.quiet
    assert json.loads(record.body or b"") == trained
    assert desk.tally.waiting()['outkeep_reconciled_total{found="new"}'] == 6


def test_a_whole_object_is_kept_where_lists_lack_much_of_it(desk: Desk) -> None:
    given = desk.finish("a", model="owner/name", **FUTURE)

    desk.run()

    assert json.loads(desk.record("a").body or b"") == given
    assert desk.record("a").model == "owner/name"


def test_what_a_webhook_brought_is_not_asked_for(desk: Desk) -> None:
    receive(desk, desk.finish("received"))
    receive(desk, desk.finish("failed-here"))
    desk.records.move(PREDICTION, "failed-here", Move.FAIL, desk.now, {"error": "x"})
    stored = parse(json.dumps(desk.finish("stored")).encode(), PREDICTION)
    desk.storage.commit(Manifest(stored, (), None, Receipt(desk.now, "msg_2"), desk.now))

    assert desk.run() == {"known": 3}
    assert desk.fetched() == 0
    assert desk.record("received").receipt.webhook_id == "msg_1"


def test_a_record_that_only_ran_gets_its_end_and_keeps_what_came_with_it(desk: Desk) -> None:
    context = followed({"order": "42"}, Lineage(PREDICTION, "first", "upscale", 1))
    running = desk.start("a")
    receive(desk, running, query={"customId": "7"}, context=context, parent="first")
    desk.finish("a")

    assert desk.run() == {"new": 1}

    receipt = desk.record("a").receipt
    assert (receipt.source, receipt.quiet) == ("reconcile", False)
    assert (receipt.query, receipt.context, receipt.parent) == ({"customId": "7"}, context, "first")
    assert desk.redis.zcard(AWAITED) == 0


@pytest.mark.parametrize("mode", ["all", "known"])
def test_what_a_killed_job_may_have_created_is_left_to_it_and_keeps_what_it_follows(
    desk: Desk, mode: str
) -> None:
    desk.settings = {"OUTKEEP_RECONCILE": mode}
    place = ("upscale", PREDICTION, "parent")
    follow_ups = FollowUps(desk.redis)
    given = desk.finish("child")
    intent = Intent(desk.ago(minutes=9), fingerprint(given["input"]), None, None)
    lease = follow_ups.lease(place)
    assert lease.acquire()
    assert follow_ups.intend(place, lease, intent)
    desk.finish("other", input={"prompt": "a boat"})

    assert desk.run() == {"expected": 1, "new" if mode == "all" else "foreign": 1}
    assert "persist-prediction-child" not in desk.jobs()

    follow_ups.remember(place, intent, "child")
    context = followed(None, Lineage(PREDICTION, "parent", "upscale", 1))
    started = {**given, "status": "starting", "output": None, "completed_at": None}
    receive(desk, started, context=context, parent="parent")
    assert desk.run()["new"] == 1
    receipt = desk.record("child").receipt
    assert (receipt.context, receipt.parent) == (context, "parent")


@pytest.mark.parametrize("cause", ["late", "forgotten", "long ago"])
def test_what_nobody_seeks_any_more_is_taken_in(desk: Desk, cause: str) -> None:
    place = ("upscale", PREDICTION, "parent")
    follow_ups = FollowUps(desk.redis)
    ended = desk.ago(seconds=SOUGHT_FOR + 1 if cause == "late" else 300)
    given = desk.finish("child", completed_at=ended)
    lease = follow_ups.lease(place)
    lease.acquire()
    at = desk.ago(hours=25) if cause == "long ago" else desk.ago(minutes=9)
    follow_ups.intend(place, lease, Intent(at, fingerprint(given["input"]), None, None))
    if cause == "forgotten":
        follow_ups.forget(place)

    assert desk.run() == {"new": 1}
    assert desk.redis.exists(FOLLOW_UPS_OPEN) == (cause == "late")


def test_a_late_webhook_changes_nothing_about_what_was_found(desk: Desk) -> None:
    given = desk.finish("a")
    desk.run()
    assert receive(desk, given) is Accepted.DUPLICATE
    assert desk.record("a").receipt.source == "reconcile"
    assert desk.jobs() == [persist_job_id(PREDICTION, "a")]


def test_what_ended_just_now_is_left_to_its_webhook_for_a_while(desk: Desk) -> None:
    desk.finish("a", created_at=desk.ago(hours=3), completed_at=desk.ago(seconds=GRACE / 2))
    assert desk.run() == {"expected": 1}
    assert (desk.fetched(), desk.jobs()) == (0, [])

    desk.now += timedelta(seconds=GRACE / 2 + 1)
    assert desk.run() == {"new": 1}
    desk.now += timedelta(seconds=OVERLAP)
    assert desk.run() == {}


def test_a_clock_that_is_ahead_hides_nothing_that_ends_meanwhile(desk: Desk) -> None:
    truly = datetime.now(UTC)
    desk.now = truly + timedelta(minutes=20)
    desk.memory.note_start(truly)
    assert desk.run() == {}

    desk.now += timedelta(minutes=1)
    soon = format_time(truly + timedelta(seconds=5))
    desk.finish("a", created_at=soon, completed_at=soon)
    assert desk.run() == {"new": 1}


def test_what_runs_for_long_is_asked_for_by_id_until_it_ends(desk: Desk) -> None:
    desk.start("a", TRAINING)
    desk.start("b", source="web")
    assert desk.run() == {"running": 2}
    assert desk.fetched(TRAINING) + desk.fetched() == 0

    for _ in range(3):
        desk.now += timedelta(seconds=SILENCE)
        assert desk.run()["running"] >= 2
    assert (desk.fetched(TRAINING), desk.fetched()) == (3, 3)

    desk.now += timedelta(hours=5)
    desk.finish("a", TRAINING, created_at=desk.ago(hours=6))
    desk.finish("b", source="web", created_at=desk.ago(hours=6))
    assert desk.run() == {"new": 2}
    assert (desk.record("a", TRAINING).receipt.quiet, desk.record("b").receipt.quiet) == (False, True)
    assert desk.redis.zcard(AWAITED) == 0


def test_a_silent_record_is_asked_for_though_no_list_shows_it(desk: Desk) -> None:
    """It was created long before the mark of the lists."""
    desk.run()
    old = desk.ago(days=3)
    receive(desk, desk.start("a", created_at=old))
    desk.finish("a", created_at=old)

    desk.now += timedelta(seconds=SILENCE - 1)
    assert desk.run() == {}
    desk.now += timedelta(seconds=1)
    assert desk.run() == {"new": 1}


def test_what_the_api_does_not_know_any_more_is_asked_for_once(desk: Desk) -> None:
    receive(desk, {"id": "gone", "status": "processing"})
    desk.now += timedelta(seconds=SILENCE)

    assert desk.run() == {"absent": 1}
    desk.now += timedelta(seconds=SILENCE)
    assert desk.run() == {}
    assert desk.fetched(identity="gone") == 1
    assert desk.record("gone").state is State.RUNNING


@pytest.mark.parametrize(("look", "awaited"), [(Desk.run, AWAITED), (Desk.ask, AWAITED_HERE)])
def test_what_is_here_is_neither_asked_for_nor_awaited_any_more(
    desk: Desk, look: Callable[[Desk], dict[str, int]], awaited: str
) -> None:
    old = desk.ago(days=3)
    stored = parse(json.dumps(desk.finish("stored", created_at=old)).encode(), PREDICTION)
    desk.storage.commit(Manifest(stored, (), None, Receipt(desk.now, None, "run"), desk.now))
    receive(desk, desk.finish("ended", created_at=old))
    desk.redis.set(removed_key(PREDICTION, "removed"), 1)
    desk.redis.zadd(awaited, {f"prediction:{name}": 0.0 for name in ("stored", "ended", "removed")})

    assert look(desk) == {}
    assert desk.fetched() == 0
    assert not desk.redis.exists(awaited)


def test_what_is_found_to_have_ended_just_now_is_left_to_its_webhook_too(desk: Desk) -> None:
    old = desk.ago(days=3)
    receive(desk, desk.start("a", created_at=old))
    desk.now += timedelta(seconds=SILENCE)
    desk.finish("a", created_at=old, completed_at=desk.ago(seconds=GRACE / 2))
    assert desk.run() == {"expected": 1}
    assert (desk.fetched(), desk.jobs()) == (1, [])

    desk.now += timedelta(seconds=GRACE / 2)
    assert desk.run() == {"new": 1}


def test_without_a_token_what_fell_silent_is_forgotten_with_its_record(desk: Desk) -> None:
    receive(desk, {"id": "old", "status": "processing"})
    desk.now += timedelta(days=2)
    receive(desk, {"id": "new", "status": "processing"})
    assert desk.redis.zrange(AWAITED, 0, -1) == [b"prediction:new"]


def test_the_end_of_what_ran_is_not_awaited_any_more(desk: Desk) -> None:
    running = {"id": "a", "status": "processing"}
    receive(desk, running)
    receive(desk, running | {"status": "succeeded", "output": "x"})
    assert desk.redis.zcard(AWAITED) == 0


class TestWhatWasCreatedHere:
    """Without a webhook: nothing but asking tells of its end."""

    def test_it_is_asked_for_soon_and_until_it_ends(self, desk: Desk) -> None:
        start(desk, "a")
        assert desk.ask() == {}
        desk.now += timedelta(seconds=2)
        assert desk.ask() == {"running": 1}
        assert desk.ask() == {}
        desk.now += timedelta(seconds=2)
        desk.finish("a", completed_at=desk.ago())

        assert desk.ask() == {"new": 1}

        receipt = desk.record("a").receipt
        assert (receipt.source, receipt.context, receipt.quiet) == ("reconcile", {"order": "42"}, False)
        assert desk.jobs() == [persist_job_id(PREDICTION, "a")]
        assert not desk.redis.exists(AWAITED_HERE)
        desk.now += timedelta(minutes=1)
        assert desk.ask() == {}
        assert desk.fetched() == 2

    def test_what_takes_long_is_asked_for_less_often(self, desk: Desk) -> None:
        start(desk, "a")
        asked = []
        for second in range(1200):
            desk.now += timedelta(seconds=1)
            if (Watchlist(desk.redis).next_here() or 0) <= desk.now.timestamp():
                assert desk.ask() == {"running": 1}
                asked.append(second)
        waits = [later - sooner for sooner, later in itertools.pairwise(asked)]
        assert (waits[0], waits[-1]) == (2, 30)
        assert waits == sorted(waits)

    def test_a_pass_leaves_it_to_those_who_ask(self, desk: Desk) -> None:
        start(desk, "a")
        assert desk.run() == {"running": 1}
        desk.now += timedelta(seconds=2)
        desk.finish("a", completed_at=desk.ago())
        assert desk.run() == {"expected": 1}
        assert desk.ask() == {"new": 1}
        assert desk.redis.zcard(AWAITED) == 0

    @pytest.mark.parametrize(
        "settings",
        [
            {"OUTKEEP_RECONCILE": "known"},
            {"OUTKEEP_RECONCILE": "off"},
            {"OUTKEEP_RECONCILE_NOTIFY": "false"},
        ],
    )
    def test_it_is_kept_and_told_whatever_else_is_wanted(self, desk: Desk, settings: dict[str, str]) -> None:
        desk.settings |= settings
        start(desk, "a")
        desk.redis.delete(record_key(PREDICTION, "a"))  # it has expired
        start(desk, "b")
        desk.now += timedelta(seconds=2)
        for identity in "ab":
            desk.finish(identity, completed_at=desk.ago())
        assert desk.ask() == {"new": 2}
        assert [desk.record(identity).receipt.quiet for identity in "ab"] == [False, False]

    def test_the_end_that_came_otherwise_is_the_end(self, desk: Desk) -> None:
        start(desk, "a")
        receive(desk, desk.finish("a"))
        Watchlist(desk.redis).put_off(PREDICTION, "a", 0)
        assert not desk.redis.exists(AWAITED_HERE)

    def test_what_the_api_does_not_know_yet_is_asked_for_again_for_a_while(self, desk: Desk) -> None:
        start(desk, "a")
        desk.redis.zadd(AWAITED_HERE, {"prediction:b": 0.0})
        desk.redis.copy(record_key(PREDICTION, "a"), record_key(PREDICTION, "b"))
        desk.redis.zrem(AWAITED_HERE, "prediction:a")
        assert desk.ask() == {"absent": 1}
        desk.now += timedelta(seconds=SILENCE)
        assert desk.ask() == {"absent": 1}
        assert not desk.redis.exists(AWAITED_HERE)

    def test_one_that_fails_holds_up_no_other_and_is_asked_for_again(self, desk: Desk) -> None:
        start(desk, "a")
        desk.now += timedelta(seconds=1)
        start(desk, "b")
        desk.now += timedelta(seconds=2)
        desk.simulator.refuse(1, status=500)
        assert desk.ask() == {"failed": 1, "running": 1}
        desk.now += timedelta(seconds=2)
        assert desk.ask() == {"running": 2}

    def test_while_the_api_is_away_nothing_is_forgotten(self, desk: Desk) -> None:
        start(desk, "a")
        desk.now += timedelta(seconds=2)
        desk.simulator.refuse(1, status=401)
        with pytest.raises(Permanent):
            desk.ask()
        assert desk.ask() == {"running": 1}


def test_handlers_are_not_told_of_what_is_not_theirs(desk: Desk) -> None:
    desk.redis.delete(FIRST_START)
    desk.memory.note_start(desk.now - timedelta(minutes=20))
    desk.finish("ours")
    desk.finish("before-us", completed_at=desk.ago(minutes=25))
    desk.finish("from-the-site", source="web")

    assert desk.run() == {"new": 3}
    quiet = {name: desk.record(name).receipt.quiet for name in ("ours", "before-us", "from-the-site")}
    assert quiet == {"ours": False, "before-us": True, "from-the-site": True}


def test_handlers_are_told_nothing_when_that_is_set(desk: Desk) -> None:
    desk.settings["OUTKEEP_RECONCILE_NOTIFY"] = "false"
    receive(desk, desk.start("a"))
    desk.finish("a")
    desk.run()
    assert desk.record("a").receipt.quiet


def test_what_was_gone_before_we_began_is_not_called_lost(desk: Desk) -> None:
    desk.redis.delete(FIRST_START)
    desk.memory.note_start(desk.now)
    desk.finish("gone", created_at=desk.ago(hours=2), completed_at=desk.ago(minutes=61), data_removed=True)
    desk.finish("there", created_at=desk.ago(hours=2), completed_at=desk.ago(minutes=59))

    assert desk.run() == {"bygone": 1, "new": 1}
    assert desk.records.get(PREDICTION, "gone") is None


def test_what_was_deleted_while_we_were_away_is_taken_in_as_late(desk: Desk) -> None:
    desk.run()
    desk.now += timedelta(hours=5)
    desk.finish(
        "a", created_at=desk.ago(hours=4), completed_at=desk.ago(hours=3), data_removed=True, output=None
    )
    desk.finish("b", created_at=desk.ago(hours=4), completed_at=desk.ago(hours=3))
    assert desk.run() == {"late": 2}
    assert desk.run() == {}


def test_an_emptied_redis_does_not_forget_when_we_began(desk: Desk) -> None:
    desk.run()
    desk.redis.flushall()
    desk.finish("a")
    desk.run()
    assert not desk.record("a").receipt.quiet


def test_what_was_not_stored_when_redis_was_emptied_is_found_again(desk: Desk) -> None:
    """It was received, or ran; what is stored already is left to `outkeep rebuild`."""
    desk.run()
    receive(desk, desk.finish("received"))
    receive(desk, desk.start("runs"))
    stored = parse(json.dumps(desk.finish("stored")).encode(), PREDICTION)
    desk.storage.commit(Manifest(stored, (), None, Receipt(desk.now, "msg_2"), desk.now))
    desk.redis.flushall()

    assert desk.run() == {"new": 1, "known": 1, "running": 1}
    assert desk.jobs() == [persist_job_id(PREDICTION, "received")]
    desk.finish("runs")
    assert desk.run() == {"new": 1, "known": 2}


class TestNamedWebhooks:
    """Objects of the API that name the webhook."""

    @pytest.fixture
    def simulator(self) -> Iterator[Simulator]:
        with Simulator() as running:
            yield running

    def test_query_and_context_are_read_from_our_url(self, desk: Desk) -> None:
        keys = context_keys([SECRET_KEY.encode()])
        context = followed({"order": "42"}, Lineage(PREDICTION, "first", "upscale", 1))
        desk.finish("a", webhook=webhook_url(PUBLIC_URL, PREDICTION, context, keys) + "&customId=7")
        desk.run()
        receipt = desk.record("a").receipt
        assert (receipt.query, receipt.context, receipt.parent) == ({"customId": "7"}, context, "first")

    def test_what_names_another_webhook_is_kept_and_not_told(self, desk: Desk) -> None:
        desk.finish("theirs", webhook="https://example.com/hook")
        desk.finish("ours", webhook=HOOK)
        assert desk.run() == {"new": 2}
        assert (desk.record("theirs").receipt.quiet, desk.record("ours").receipt.quiet) == (True, False)

    def test_of_the_known_only_what_names_us_is_fetched(self, desk: Desk) -> None:
        desk.settings["OUTKEEP_RECONCILE"] = "known"
        desk.finish("theirs", webhook="https://example.com/hook")
        desk.finish("ours", webhook=HOOK)
        assert desk.run() == {"foreign": 1, "new": 1}
        assert desk.fetched() == 1


def test_of_the_known_what_names_nobody_is_looked_at_once(desk: Desk) -> None:
    desk.settings["OUTKEEP_RECONCILE"] = "known"
    receive(desk, desk.start("ours"))
    desk.finish("ours")
    desk.finish("unknown")

    assert desk.run() == {"foreign": 1, "new": 1}
    assert desk.run() == {"known": 2}
    assert desk.fetched() == 2
    assert desk.records.get(PREDICTION, "unknown") is None


def test_many_pages_are_read_and_the_most_urgent_is_fetched_first(desk: Desk) -> None:
    for number in range(230):
        at = desk.ago(minutes=50, seconds=number)
        desk.finish(f"p{number:03}", created_at=at, completed_at=at)

    assert desk.run() == {"new": 230}
    assert desk.listed() == 3
    first = [job.rpartition("-")[2] for job in desk.jobs()[:8]]
    assert set(first) <= {f"p{number:03}" for number in range(215, 230)}

    desk.now += timedelta(minutes=5)
    desk.run()
    assert desk.listed() == 4
    assert desk.fetched() == 230


def test_a_page_with_outputs_of_any_size_ends_no_pass(desk: Desk) -> None:
    for number in range(4):
        receive(desk, desk.finish(f"known{number}"))
        desk.finish(f"known{number}", output="x" * (MAX_ANSWER // 4))
    given = desk.finish("a", output="y" * LARGE)

    assert desk.run() == {"known": 4, "new": 1}
    assert age(desk.redis, desk.now.timestamp()) == 0
    place = desk.record("a").body_at
    assert place is not None
    assert json.loads(desk.storage.get(place) or b"") == given


def test_what_is_too_large_to_be_held_is_named_once(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.finish("a", output="x" * MAX_ANSWER)
    assert desk.run() == {"unreadable": 1}
    assert desk.run() == {"known": 1}
    [said] = [record for record in caplog.records if record.name == "outkeep.reconcile"]
    assert "is larger than 64 MiB" in said.getMessage()


def test_a_pass_that_fails_is_taken_up_where_it_stood(desk: Desk) -> None:
    for number in range(40):
        desk.finish(f"p{number:02}", completed_at=desk.ago(minutes=20))

    async def cut_off() -> None:
        some = asyncio.Event()

        def tell(_: Kind, done: int, __: int) -> None:
            if done:
                some.set()

        passing = asyncio.create_task(desk.reconcile(tell=tell))
        await some.wait()
        passing.cancel()
        await asyncio.gather(passing, return_exceptions=True)

    asyncio.run(cut_off())
    taken = len(desk.jobs())
    assert 0 < taken < 40
    assert desk.memory.mark(PREDICTION) is None
    assert age(desk.redis, 0) is None

    left = desk.run()
    assert left == {"new": 40 - taken, "known": taken}
    assert desk.memory.mark(PREDICTION) == desk.now - timedelta(seconds=OVERLAP)
    assert age(desk.redis, desk.now.timestamp()) == 0


def test_an_answer_of_too_many_requests_is_waited_out(desk: Desk) -> None:
    desk.finish("a")
    desk.simulator.refuse(1, retry_after=1)
    assert desk.run() == {"new": 1}
    assert desk.listed() == 2


@pytest.mark.parametrize(
    ("status", "kind", "code"), [(500, Transient, "api_failed"), (401, Permanent, "api_refused")]
)
def test_a_list_that_fails_ends_the_pass_and_moves_no_mark(
    desk: Desk, status: int, kind: type[OutkeepError], code: str
) -> None:
    desk.finish("a")
    desk.simulator.refuse(1, status=status)
    with pytest.raises(kind) as raised:
        desk.run()
    assert raised.value.code == code
    assert desk.memory.mark(PREDICTION) is None
    assert desk.run() == {"new": 1}


def test_one_object_that_fails_holds_nobody_up_and_is_asked_for_again(desk: Desk) -> None:
    receive(desk, desk.start("a"))
    desk.finish("a", created_at=desk.ago(days=3))
    desk.now += timedelta(seconds=SILENCE)
    desk.finish("b")
    desk.simulator.refuse(1, status=500)

    assert desk.run() == {"failed": 1, "new": 1}
    desk.now += timedelta(seconds=SILENCE)
    assert desk.run()["new"] == 1
    assert desk.record("a").state is State.RECEIVED


def test_an_answer_that_is_no_prediction_is_passed_over(desk: Desk) -> None:
    desk.finish("deep", output=json.loads("[" * 150 + "]" * 150))
    desk.finish("ok")
    found = desk.run()
    assert (found["new"], found["unreadable"]) == (1, 1)


def test_what_was_removed_stays_so_when_redis_was_emptied(desk: Desk) -> None:
    desk.finish("a")
    desk.start("b", created_at=desk.ago())
    removal = Removal(desk.redis, desk.storage, ttl=60, clock=lambda: desk.now)
    for name in ("a", "b"):
        removal.remove(removal.find(PREDICTION, name))
    desk.redis.flushall()
    desk.finish("b")
    assert desk.run() == {"known": 2}
    assert desk.run() == {"known": 2}
    assert desk.jobs() == []
    assert desk.fetched() == 0


def test_a_storage_that_fails_keeps_nobody_from_fetching(desk: Desk) -> None:
    desk.run()
    start(desk, "here")
    desk.finish("here")
    desk.finish("elsewhere")
    folder = desk.storage.folder
    assert folder is not None
    (folder / "predictions").write_text("no folder")
    (folder / IDENTITY_NAME).unlink()
    (folder / IDENTITY_NAME).mkdir()
    desk.now += timedelta(seconds=LATEST_ASK)
    assert desk.ask() == {"new": 1}
    assert desk.run()["new"] == 1
    assert sorted(desk.jobs()) == [persist_job_id(PREDICTION, name) for name in ("elsewhere", "here")]


def test_however_many_large_ones_the_storage_does_not_take_the_others_are_taken_in(desk: Desk) -> None:
    desk.run()
    for name in "abcdefgh":
        desk.finish(name, output=f"https://replicate.delivery/x/{name}.png", logs="x" * (2 << 20))
    desk.finish("small", output="https://replicate.delivery/x/small.png", completed_at=desk.ago(minutes=4))
    desk.finish("t", TRAINING)
    folder = desk.storage.folder
    assert folder is not None
    (folder / "claims").write_text("no folder")
    with pytest.raises(StorageFailure):
        desk.run()

    assert sorted(desk.jobs()) == [persist_job_id(PREDICTION, "small"), persist_job_id(TRAINING, "t")]
    (folder / "claims").unlink()
    desk.run()  # they are looked for again
    assert {desk.record(name).state for name in "abcdefgh"} == {State.RECEIVED}


def test_a_removed_prediction_does_not_come_back(desk: Desk) -> None:
    desk.finish("a")
    desk.redis.set(removed_key(PREDICTION, "a"), 1)
    assert desk.run() == {"known": 1}
    assert desk.fetched() == 0


def test_since_looks_as_far_as_it_says_and_leaves_the_mark_alone(desk: Desk) -> None:
    old = desk.ago(hours=20)
    desk.finish("old", created_at=old, completed_at=old)
    assert desk.run() == {}
    left = [desk.memory.mark(PREDICTION), desk.memory.mark(TRAINING), age(desk.redis, 0)]

    desk.now += timedelta(minutes=1)
    assert desk.run(since=desk.now - timedelta(hours=21)) == {"late": 1}
    assert [desk.memory.mark(PREDICTION), desk.memory.mark(TRAINING), age(desk.redis, 0)] == left
    assert None not in left


def test_one_process_at_a_time_has_its_turn(desk: Desk) -> None:
    with leased(desk.redis, RECONCILE_TURN) as first, leased(desk.redis, RECONCILE_TURN) as second:
        assert (first, second) == (True, False)
    with leased(desk.redis, RECONCILE_TURN) as third:
        assert third


def test_lost_files_of_an_earlier_try_do_not_make_it_unknown(desk: Desk) -> None:
    prediction = parse(json.dumps(desk.finish("a")).encode(), PREDICTION)
    lost = KeptFile("/output", None, error="data_removed")
    desk.storage.commit(Manifest(prediction, (lost,), None, Receipt(desk.now, None, "reconcile"), desk.now))
    assert desk.run() == {"known": 1}


def test_kinds_with_the_same_id_are_told_apart(desk: Desk) -> None:
    desk.finish("a")
    desk.finish("a", TRAINING)
    assert desk.run() == {"new": 2}
    assert {kind: desk.record("a", kind).kind for kind in Kind} == {kind: kind for kind in Kind}
