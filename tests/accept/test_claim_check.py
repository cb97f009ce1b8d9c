"""Large bodies wait in the storage, and never in Redis."""

import asyncio
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis import Redis

from app.accept.arrivals import make_arrival
from app.accept.claim_check import FRESH, ClaimCheck, claimed
from app.accept.queues import queue
from app.accept.records import LARGE, Accepted, Arrival, Records
from app.accept.spool import Spool, Spooled
from app.core.errors import Permanent, Transient
from app.core.manifest import Receipt, Source
from app.core.names import CLAIMS, PERSIST_QUEUE, Kind, record_key
from app.core.prediction import parse
from app.maintain.removal import Removal
from app.storage.store import Storage
from tests import forked
from tests.bucket import S3, Asked, FaultyProxy
from tests.own_valkey import OwnValkey
from tests.receive.web import BOUND, Web, in_process, in_thread, prediction, wait_until
from tests.redis_proxy import rewriting

MARK = "a sentence that stands in no other body"
ID = "large"


def large(identity: str = ID, size: int = 2 << 20, **keys: str) -> bytes:
    """A terminal prediction of more than `size` bytes."""
    logs = f"{MARK} {identity} ".ljust(size, "x")
    return prediction(identity, logs=logs, **keys)


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return Storage((tmp_path / "outputs").as_uri())
    s3: S3 = request.getfixturevalue("s3_here")
    return Storage(s3.url)


@pytest.fixture
def claims(storage: Storage, redis: Redis) -> Iterator[ClaimCheck]:
    check = ClaimCheck(storage, Records(redis, ttl=60), patience=30)
    yield check
    check.close()


def arrival(redis: Redis, body: bytes) -> Arrival:
    now = datetime.now(UTC)
    return make_arrival(parse(body, Kind.PREDICTION), body, Receipt(now, "msg_1"), now)


def test_a_large_body_goes_to_the_storage_and_comes_back_exactly(
    redis: Redis, storage: Storage, claims: ClaimCheck
) -> None:
    body = large()
    checked = claims.check_in(arrival(redis, body))

    assert checked.body == b""
    assert checked.body_at == f"claims/prediction-large-{hashlib.sha256(body).hexdigest()}.json"
    assert claimed(storage, checked.body_at) == body


def test_small_bodies_and_progress_stay_as_they_are(
    redis: Redis, storage: Storage, claims: ClaimCheck
) -> None:
    edge = prediction(ID, logs="x" * (LARGE - len(prediction(ID, logs=""))))
    assert len(edge) == LARGE
    for body in (prediction(ID), edge, large(status="processing")):
        one = arrival(redis, body)
        assert claims.check_in(one) is one

    assert list(storage.names("")) == []


def test_the_same_body_again_is_not_sent_again_unless_the_sweep_could_want_it(
    redis: Redis, storage: Storage
) -> None:
    one = arrival(redis, large())
    ClaimCheck(storage, Records(redis, ttl=60), patience=30).check_in(one)
    ((_, first),) = storage.listed(CLAIMS)
    ClaimCheck(storage, Records(redis, ttl=60), patience=30).check_in(one)
    ((_, second),) = storage.listed(CLAIMS)
    later = datetime.now(UTC) + timedelta(seconds=FRESH + 1)
    # The times of a store may be whole seconds.
    wait_until(lambda: datetime.now(UTC) > first + timedelta(seconds=1.1))
    ClaimCheck(storage, Records(redis, ttl=60), patience=30, clock=lambda: later).check_in(one)
    ((_, third),) = storage.listed(CLAIMS)

    assert first == second < third


def test_half_a_body_is_sent_anew(redis: Redis, storage: Storage, claims: ClaimCheck) -> None:
    body = large()
    name = claims.check_in(arrival(redis, body)).body_at
    assert name is not None
    storage.put_bytes(name, body[:-1])

    claims.check_in(arrival(redis, body))

    assert claimed(storage, name) == body


WITHOUT_FSYNC = """
import sys
from redis import Redis
from app.accept.claim_check import ClaimCheck
from app.core.errors import StorageFailure
from app.accept.records import Records
from app.storage.store import Storage
from tests.accept.test_claim_check import arrival, large
from tests.kernel import forbid_fsync

redis = Redis.from_url(sys.argv[2])
claims = ClaimCheck(Storage(sys.argv[1]), Records(redis, ttl=60), patience=30)
forbid_fsync()
try:
    print(claims.check_in(arrival(redis, large())).body_at)
except StorageFailure as error:
    print(error.code)
"""


def test_a_body_that_is_there_counts_only_after_its_fsync(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    """Who has put it there may have been killed before that."""
    storage = Storage((tmp_path / "outputs").as_uri())
    ClaimCheck(storage, Records(redis, ttl=60), patience=30).check_in(arrival(redis, large()))

    done = forked.run(
        [sys.executable, "-c", WITHOUT_FSYNC, storage.url, valkey_url],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout == "storage_unavailable\n"


def test_a_body_that_is_not_what_was_put_there_counts_as_gone(
    redis: Redis, storage: Storage, claims: ClaimCheck
) -> None:
    name = claims.check_in(arrival(redis, large())).body_at
    assert name is not None
    storage.put_bytes(name, b"{}")

    assert claimed(storage, name) is None
    assert claimed(storage, "claims/prediction-other-0.json") is None


def test_records_refuse_a_large_body_that_is_not_checked_in(redis: Redis, claims: ClaimCheck) -> None:
    one = arrival(redis, large())
    with pytest.raises(Permanent):
        Records(redis, ttl=60).accept([one], datetime.now(UTC))
    assert redis.keys() == []

    records = Records(redis, ttl=60)
    checked = claims.check_in(one)
    assert records.accept([checked], datetime.now(UTC)) == [Accepted.ACCEPTED]
    record = records.get(Kind.PREDICTION, ID)
    assert record is not None
    assert record.body is None
    assert record.body_at == checked.body_at
    assert redis.ttl(record_key(Kind.PREDICTION, ID)) == -1


def claims_in(web: Web) -> list[str]:
    return sorted(Storage((web.folder / "outputs").as_uri()).names(CLAIMS))


def spooled(folder: Path) -> list[Path]:
    return list((folder / "spool").glob("*.delivery"))


def test_the_bytes_of_a_large_delivery_never_stand_in_redis(valkey: OwnValkey, tmp_path: Path) -> None:
    body = large()
    with in_thread(valkey.url, tmp_path) as web:
        assert web.outcome(body) == "accepted"
        assert web.outcome(body) == "duplicate"
        (claim,) = claims_in(web)
        assert web.outcome(prediction("small", logs=MARK)) == "accepted"

    assert claimed(Storage((tmp_path / "outputs").as_uri()), claim) == body
    # Its log holds whatever was ever written.
    written = b"".join(
        path.read_bytes() for path in Path(valkey.url.removeprefix("unix://")).parent.rglob("*.aof")
    )
    assert f"{MARK} {ID}".encode() not in written
    assert written.count(MARK.encode()) == 1


def break_storage(folder: Path) -> Callable[[], None]:
    """Let nothing be written below `claims`; how to mend it."""
    place = folder / "outputs" / CLAIMS
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    place.touch()
    return place.unlink


def test_while_the_storage_fails_large_ones_wait_in_the_spool_and_small_ones_pass(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    mend = break_storage(tmp_path)
    with in_thread(valkey.url, tmp_path) as web:
        assert web.outcome(large("one")) == "spooled"
        assert web.outcome(large("two")) == "spooled"
        assert web.outcome(prediction("small")) == "accepted"
        assert len(spooled(tmp_path)) == 2
        mend()
        wait_until(lambda: not spooled(tmp_path))
        names = claims_in(web)

    assert [name.split("-")[1] for name in names] == ["one", "two"]
    assert sorted(queue(PERSIST_QUEUE, valkey.redis).job_ids) == [
        "persist-prediction-one",
        "persist-prediction-small",
        "persist-prediction-two",
    ]


URL = "https://replicate.delivery/x/out-0.png"


def test_without_a_spool_a_large_delivery_is_refused_while_the_storage_fails(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    mend = break_storage(tmp_path)
    with in_thread(valkey.url, tmp_path, OUTKEEP_SPOOL="off") as web:
        refused = web.deliver(large())
        mend()
        assert web.outcome(large()) == "accepted"

    assert (refused.status, refused.json()["error"]) == (503, "storage_unavailable")
    assert "retry-after" in refused.headers


def test_a_storage_that_hangs_holds_up_no_other_delivery(
    valkey: OwnValkey, tmp_path: Path, proxy: FaultyProxy
) -> None:
    released, waiting = threading.Event(), threading.Event()

    def hang(_: Asked) -> None:
        waiting.set()
        released.wait(60)

    outcomes: list[str] = []
    with in_thread(valkey.url, tmp_path, OUTKEEP_STORAGE=proxy.s3.url) as web:
        proxy.rule = hang
        senders = [
            threading.Thread(target=lambda name=name: outcomes.append(web.outcome(large(name))))
            for name in ("one", "two")
        ]
        for sender in senders:
            sender.start()
        assert waiting.wait(30)
        for number in range(20):
            answer = web.deliver(prediction(f"small-{number}"), timeout=BOUND)
            assert answer.json()["outcome"] == "accepted"
        for sender in senders:
            sender.join()
        assert outcomes == ["spooled", "spooled"]
        released.set()
        proxy.mend()
        wait_until(lambda: not spooled(tmp_path))

    assert len(queue(PERSIST_QUEUE, valkey.redis).job_ids) == 22
    assert len(list(Storage(proxy.s3.url).names(CLAIMS))) == 2


def test_a_receiver_killed_between_claim_and_record_has_promised_nothing_and_recovers(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    body = large()
    claim = tmp_path / "outputs" / CLAIMS
    over = threading.Event()

    def hold(question: bytes) -> bytes:
        if b"EVALSHA" in question:
            over.wait(60)
            return b""
        return question

    with (
        rewriting(valkey.url.removeprefix("unix://"), bytes, hold) as url,
        in_process(url, tmp_path, OUTKEEP_SPOOL="off") as (web, process),
    ):
        answers: list[int] = []

        def send() -> None:
            try:
                answers.append(web.deliver(body, timeout=30).status)
            except OSError:
                answers.append(0)

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: any(claim.glob("*.json")))
        process.kill()
        sender.join()
        over.set()
        assert answers[0] != 202
    assert valkey.redis.keys("outkeep:record:*") == []

    with in_process(valkey.url, tmp_path) as (web, _):
        assert web.outcome(body) == "accepted"
        assert web.outcome(body) == "duplicate"
        (name,) = claims_in(web)
    record = Records(valkey.redis, ttl=60).get(Kind.PREDICTION, ID)
    assert record is not None
    assert record.body_at == name
    assert json.loads(claimed(Storage((tmp_path / "outputs").as_uri()), name) or b"")["id"] == ID


def test_the_storage_that_fails_is_told_to_who_checks_in(
    redis: Redis, s3_here: S3, proxy: FaultyProxy
) -> None:
    check = ClaimCheck(Storage(s3_here.url), Records(redis, ttl=60), patience=30)
    proxy.refuse(403, "AccessDenied")
    with pytest.raises(Transient) as caught:
        check.check_in(arrival(redis, large()))

    assert caught.value.code == "storage_denied"


def put_aside(web: Web) -> list[str]:
    """Every large body in the storage, whoever has brought it and when."""
    return [path.name for path in (web.folder / "outputs" / CLAIMS).glob("*")]


@pytest.mark.parametrize("before", ["removed", "dispatched", "stored", "another body waits", "cog ended it"])
def test_a_repeat_of_a_large_event_leaves_nothing_in_the_storage(
    valkey: OwnValkey, tmp_path: Path, before: str
) -> None:
    records, storage = Records(valkey.redis, ttl=7200), Storage((tmp_path / "outputs").as_uri())
    place, now = (Kind.PREDICTION, ID), datetime.now(UTC)
    with in_thread(valkey.url, tmp_path, OUTKEEP_COG_TOKEN="a-token-of-cog-workers") as web:
        assert web.outcome(prediction(ID)) == "accepted"
        if before == "removed":
            removal = Removal(valkey.redis, storage, ttl=60, clock=lambda: now)
            removal.remove(removal.find(*place))
        elif before != "another body waits":
            records.dispatch(*place, now, {}, [])
        if before == "stored":
            valkey.redis.hset(record_key(*place), "state", "stored")

        if before == "cog ended it":
            headers = {"authorization": "Bearer a-token-of-cog-workers"}
            answer = web.ask("POST", "/webhooks/cog", large(), headers)
            assert answer.json()["outcome"] == "quarantined"
        else:
            assert [web.outcome(large(error=f"{n}")) for n in range(3)] == ["duplicate"] * 3
        assert put_aside(web) == []


def test_of_large_repeats_at_once_one_body_stays_and_its_record_leads_there(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    bodies = [large(), large(), large(error="y"), large(error="z")] * 2
    with in_thread(valkey.url, tmp_path) as web:
        with ThreadPoolExecutor(len(bodies)) as pool:
            outcomes = list(pool.map(web.outcome, bodies))
        assert outcomes.count("accepted") == 1
        record = Records(valkey.redis, ttl=60).get(Kind.PREDICTION, ID)
        assert record is not None
        spooled_or_repeats = set(outcomes) - {"accepted"}
        assert spooled_or_repeats <= {"duplicate", "spooled"}
        wait_until(lambda: not spooled(tmp_path))
        wait_until(lambda: put_aside(web) == [str(record.body_at).removeprefix(f"{CLAIMS}/")])


def test_what_waits_in_the_spool_is_not_brought_back_by_it_after_a_removal(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    spool, now = Spool(tmp_path / "spool", disk_floor=0), datetime.now(UTC)
    removal = Removal(valkey.redis, Storage((tmp_path / "outputs").as_uri()), ttl=60, clock=lambda: now)
    removal.remove(removal.find(Kind.PREDICTION, ID))
    asyncio.run(spool.keep(ID, Spooled(Kind.PREDICTION, large(), Receipt(now, "msg_1"))))
    with in_thread(valkey.url, tmp_path) as web:
        wait_until(lambda: not spooled(tmp_path))
        assert put_aside(web) == []
    spool.close()


def test_a_body_whose_claim_has_gone_is_brought_by_its_repeat(
    redis: Redis, storage: Storage, claims: ClaimCheck
) -> None:
    records, one, now = Records(redis, ttl=60), arrival(redis, large()), datetime.now(UTC)
    checked = claims.check_in(one)
    records.accept([checked], now)
    assert checked.body_at is not None
    storage.remove([checked.body_at])

    again = claims.check_in(one)
    [outcome] = records.accept([again], now)
    claims.settle(one, again, outcome)

    assert outcome is Accepted.DUPLICATE
    assert claimed(storage, checked.body_at) == one.body


@pytest.mark.parametrize(
    ("first", "move", "then", "brought"),
    [
        ("webhook", "removed", "webhook", False),
        ("webhook", "dispatched", "webhook", False),
        ("webhook", "dispatched", "cog", False),
        ("webhook", "waits", "webhook", False),
        ("webhook", "waits", "cog", False),
        ("cog", "dispatched", "cog", False),
        ("cog", "dispatched", "webhook", True),  # what Replicate says is news
        ("cog", "removed", "webhook", False),
        ("run", "runs", "webhook", True),
        ("webhook", "unknown", "webhook", True),
    ],
)
def test_redis_is_asked_before_a_body_is_brought(
    redis: Redis, tmp_path: Path, first: Source, move: str, then: Source, *, brought: bool
) -> None:
    storage, records = Storage((tmp_path / "outputs").as_uri()), Records(redis, ttl=60)
    now, place = datetime.now(UTC), (Kind.PREDICTION, ID)
    if move != "unknown":
        body = prediction(ID, status="starting" if move == "runs" else "succeeded")
        told = make_arrival(parse(body, place[0]), body, Receipt(now, "msg_0", first), now)
        records.accept([told], now)
    if move == "dispatched":
        records.dispatch(*place, now, {}, [], source=first)
    elif move == "removed":
        removal = Removal(redis, storage, ttl=60, clock=lambda: now)
        removal.remove(removal.find(*place))

    claims = ClaimCheck(storage, records, patience=30)
    body = large()
    checked = claims.check_in(make_arrival(parse(body, place[0]), body, Receipt(now, "msg_1", then), now))
    claims.close()
    assert (checked.is_repeat, checked.body_at is not None) == (not brought, brought)
    assert len(list(storage.names(CLAIMS))) == brought


def test_what_was_taken_for_a_repeat_and_is_none_any_more_is_not_accepted_without_its_body(
    redis: Redis, claims: ClaimCheck
) -> None:
    records, one, now = Records(redis, ttl=60), arrival(redis, large()), datetime.now(UTC)
    records.accept([arrival(redis, prediction(ID))], now)
    checked = claims.check_in(one)
    redis.flushall()

    [outcome] = records.accept([checked], now)

    assert outcome is Accepted.WANTED
    assert records.get(Kind.PREDICTION, ID) is None
    with pytest.raises(Transient, match="no repeat"):
        claims.begin_settling(one, checked, outcome).result(30)


def test_a_claim_that_was_removed_while_it_was_accepted_is_brought_again(
    redis: Redis, storage: Storage, claims: ClaimCheck
) -> None:
    records, one, now = Records(redis, ttl=60), arrival(redis, large()), datetime.now(UTC)
    checked = claims.check_in(one)
    [outcome] = records.accept([checked], now)
    assert checked.body_at is not None
    storage.remove([checked.body_at])  # as a repeat of the same bytes would, at the same time

    claims.settle(one, checked, outcome)

    assert claimed(storage, checked.body_at) == one.body


def test_below_the_disk_floor_no_large_body_is_brought_to_a_local_storage(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    with in_thread(valkey.url, tmp_path, OUTKEEP_DISK_FLOOR="1000TiB") as web:
        answer = web.deliver(large())
        assert (answer.status, answer.json()["error"]) == (503, "spool_full")
        assert put_aside(web) == []
        assert web.outcome(prediction("small")) == "accepted"
