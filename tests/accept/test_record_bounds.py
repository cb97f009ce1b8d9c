"""What senders control has a bound in Redis; the event itself stays whole."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis

from app.accept import queues
from app.accept.records import (
    COG_PART,
    MAX_MODEL,
    MAX_QUERY,
    MOST_RUNNING,
    Accepted,
    Arrival,
    Records,
)
from app.core.context import context_keys, seal, shortened
from app.core.findings import Level
from app.core.findings import memory as judged
from app.core.manifest import Receipt
from app.core.names import (
    AWAITED,
    AWAITED_HERE,
    RECORDS,
    RUNNING,
    RUNNING_OF_COG,
    Kind,
    record_key,
)
from app.core.prediction import parse
from app.health.checks import memory
from app.maintain.removal import Removal
from app.storage.store import Storage
from tests.own_valkey import OwnValkey, own_valkey
from tests.receive.web import SECRET_KEY, WEBHOOK, Web, in_thread, prediction, signed

ID = "ype2b3w02xrme0cqadzrms82nm"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
LONG = "x" * (8 << 20)
BOUND = 64 << 10
"""Bytes that all that one delivery leaves in Redis may take, but for the body of an end."""


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("bounds")
    with in_thread(valkey_url, folder, OUTKEEP_COG_TOKEN="a-token-of-cog-workers") as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(redis: Redis) -> None:
    """Every test begins on an empty database."""


def held(redis: Redis) -> int:
    """Bytes of all that stands in Redis."""
    return sum(int(redis.memory_usage(key, samples=0) or 0) for key in redis.scan_iter())


HUGE: list[dict[str, Any]] = [
    {"model": LONG},
    {"version": LONG},
    {"error": LONG},
    {"logs": LONG},
    {"output": [LONG]},
    {"input": {LONG: LONG}},
    {"webhook": f"https://x/webhooks/replicate?a={LONG}"},
    {"urls": {"get": LONG}},
    {"created_at": LONG, "completed_at": LONG},
    {"model": "ü" * (4 << 20)},
    {LONG: LONG},
]


@pytest.mark.parametrize("changes", HUGE, ids=lambda changes: next(iter(changes))[:9])
@pytest.mark.parametrize("status", ["processing", "starting", "succeeded"])
def test_no_field_of_an_event_stands_in_redis_at_any_length(
    web: Web, redis: Redis, status: str, changes: dict[str, Any]
) -> None:
    body = prediction(ID, **{"status": status, "output": None, **changes})
    assert web.outcome(body) == ("accepted" if status == "succeeded" else "progress")

    assert held(redis) < BOUND
    record = Records(redis, ttl=60).get(Kind.PREDICTION, ID)
    assert record is not None
    assert len(record.model or "") <= MAX_MODEL
    if status == "succeeded":  # all of it is kept, if not here
        assert (web.folder / "outputs" / str(record.body_at)).read_bytes() == body


@pytest.mark.parametrize("status", ["processing", "succeeded"])
def test_the_same_holds_for_cog(web: Web, redis: Redis, status: str) -> None:
    body = prediction(ID, status=status, model=LONG, logs=LONG)
    headers = {"authorization": "Bearer a-token-of-cog-workers"}
    assert web.ask("POST", "/webhooks/cog", body, headers).status == 202
    assert held(redis) < BOUND


@pytest.mark.parametrize("status", ["processing", "succeeded"])
@pytest.mark.parametrize(
    ("query", "is_kept"),
    [
        ("order=17", True),
        ("&".join(f"p{number}={'v' * 20}" for number in range(300)), True),
        ("text=" + "%C3%A9" * 1000, True),
        ("big=" + "v" * 40_000, False),
        ("big=" + "%00" * 12_000, False),
        ("k" * 40_000 + "=1", False),
        ("a&" * 20_000, False),
        ("&".join(f"k{number}=v" for number in range(6_000)), False),
    ],
)
def test_parameters_of_the_url_are_kept_up_to_a_length(
    web: Web, redis: Redis, status: str, query: str, *, is_kept: bool
) -> None:
    assert web.deliver(prediction(ID, status=status), f"{WEBHOOK}?first=1&{query}").status == 202

    record = Records(redis, ttl=60).get(Kind.PREDICTION, ID)
    assert record is not None
    kept = record.receipt.query
    assert kept["first"] == "1"
    assert len(json.dumps(kept)) <= MAX_QUERY
    names = {pair.partition("=")[0] for pair in query.split("&")} - {""}
    assert (names <= kept.keys()) is is_kept
    assert held(redis) < BOUND


def test_the_longest_context_and_the_longest_ids_fit(web: Web, redis: Redis) -> None:
    context = {"order": "x" * 1000}
    token = seal(context, context_keys([SECRET_KEY.encode()]))
    body = prediction("i" * 64, status="processing" * 1)
    headers = signed(body, webhook_id="w" * 64)
    answer = web.deliver(body, f"{WEBHOOK}?outkeep_context={token}", headers)
    assert answer.json()["outcome"] == "progress"
    record = Records(redis, ttl=60).get(Kind.PREDICTION, "i" * 64)
    assert record is not None
    assert record.receipt.context == context


def test_a_thousand_large_progress_events_leave_redis_small(web: Web, redis: Redis) -> None:
    for number in range(40):
        assert web.outcome(prediction(f"p{number}", status="processing", model="x" * (1 << 20))) == "progress"
    assert held(redis) < 40 * 4096


def running(identity: str, receipt: Receipt, status: str = "processing") -> Arrival:
    return Arrival(parse(prediction(identity, status=status), Kind.PREDICTION), b"", receipt, None)


SENT = Receipt(NOW, None, query={"order": "17"})
OF_COG = Receipt(NOW, None, source="cog")


def kept(redis: Redis) -> set[str]:
    """The ids of all records."""
    return {key.decode().rpartition(":")[2] for key in redis.scan_iter("outkeep:record:*")}


@pytest.mark.parametrize("receipt", [SENT, OF_COG, replace(SENT, context={"a": "b"})])
@pytest.mark.parametrize("at_once", [1, 7, 100])
@pytest.mark.parametrize("most", [4, 40])
def test_only_so_many_predictions_that_merely_run_are_remembered_those_heard_of_last(
    redis: Redis, receipt: Receipt, at_once: int, most: int
) -> None:
    records = Records(redis, ttl=60, most_running=most)
    sent = [running(f"p{number}", receipt) for number in range(100)]
    for first in range(0, 100, at_once):
        now = NOW + timedelta(seconds=first)
        assert set(records.accept(sent[first : first + at_once], now)) == {Accepted.PROGRESS}
        # One that is heard of again and again stays.
        again = prediction("p0", status="processing", output=["x"] * (first + 1))
        later = now + timedelta(milliseconds=1)
        records.accept([Arrival(parse(again, Kind.PREDICTION), b"", receipt, None)], later)

    share = most // COG_PART if receipt is OF_COG else most
    assert len(kept(redis)) == share
    assert share == 1 or "p0" in kept(redis)
    if at_once == 1 and share > 1:
        assert kept(redis) == {"p0", *(f"p{number}" for number in range(101 - share, 100))}
    for index in (RECORDS, AWAITED, RUNNING, RUNNING_OF_COG):
        assert redis.zcard(index) <= share


def test_what_ended_or_was_begun_here_or_waits_in_a_spool_does_not_go_for_what_runs(
    redis: Redis,
) -> None:
    records = Records(redis, ttl=60, most_running=8)

    def end(identity: str) -> Arrival:
        body = prediction(identity)
        job = queues.persist_job(redis, Kind.PREDICTION, identity, timeout=60)
        return Arrival(parse(body, Kind.PREDICTION), body, SENT, job)

    own = Receipt(NOW, None, source="run", context={"order": 1})
    firm = [
        end("ended"),
        replace(running("begun", own, "starting"), is_asked_for=True),
        running("noted", SENT, "starting"),  # a webhook was faster than we
        replace(running("noted", own), is_asked_for=True),
        running("late", SENT),
        end("late"),
        running("both", OF_COG),  # and Replicate tells of it, too
        running("both", SENT),
        running("begun", SENT),
    ]
    records.accept(firm, NOW)
    before = {
        name: redis.hgetall(record_key(Kind.PREDICTION, name)) for name in ("ended", "late", "begun", "noted")
    }
    for number in range(100):
        records.accept([running(f"p{number}", OF_COG)], NOW + timedelta(seconds=number))
    assert "both" in kept(redis), "what only a token vouches for displaces nothing that is signed"
    for number in range(100, 200):
        records.accept([running(f"p{number}", SENT)], NOW + timedelta(seconds=number))

    assert {name: redis.hgetall(record_key(Kind.PREDICTION, name)) for name in before} == before
    assert all(before.values())
    assert len(kept(redis)) == len(before) + 8 + 8 // COG_PART
    assert redis.zcard(AWAITED_HERE) == 2
    outcomes = records.accept([running("p0", SENT), end("p0"), end("p0")], NOW)
    assert outcomes == ["progress", "accepted", "duplicate"]


def test_a_removal_leaves_no_trace_among_what_runs(redis: Redis, tmp_path: Path) -> None:
    records = Records(redis, ttl=60)
    records.accept([running("p1", SENT), running("p2", OF_COG)], NOW)
    removal = Removal(redis, Storage((tmp_path / "outputs").as_uri()), ttl=60, clock=lambda: NOW)
    for number in (1, 2):
        removal.remove(removal.search(Kind.PREDICTION, f"p{number}"))
    assert redis.exists(RUNNING, RUNNING_OF_COG) == 0


def test_a_flood_of_progress_takes_no_more_than_some_megabytes(redis: Redis) -> None:
    """By a holder of Cog's token, with parameters as long as they may be."""
    records = Records(redis, ttl=86400)
    receipt = replace(OF_COG, query={"a": "x" * 100})
    for first in range(0, MOST_RUNNING // COG_PART + 2000, 1000):
        records.accept([running(f"p{first + number}", receipt) for number in range(1000)], NOW)
    assert redis.zcard(RUNNING_OF_COG) == MOST_RUNNING // COG_PART == len(kept(redis))
    assert held(redis) < 8 << 20


@pytest.mark.parametrize(
    ("query", "limit", "kept"),
    [
        ({}, 2, {}),
        ({"a": "1"}, 100, {"a": "1"}),
        ({"a": "1" * 100, "b": "2"}, 50, {"b": "2"}),
        ({"a": ["1", "2"]}, 100, {"a": ["1", "2"]}),
        ({"a": ["1" * 50, "2"], "b": "2"}, 50, {"b": "2"}),
        ({"a": "1", "b": "2", "c": "3"}, 24, {"a": "1", "b": "2"}),
    ],
)
def test_parameters_that_do_not_fit_are_left_out_whole(
    query: dict[str, str | list[str]], limit: int, kept: dict[str, str | list[str]]
) -> None:
    assert shortened(query, limit) == kept
    assert len(json.dumps(kept)) <= limit


@pytest.mark.parametrize(
    ("used", "own", "host", "level"),
    [
        (10, 100, 1000, None),
        (74, 100, 1000, None),
        (75, 100, 1000, Level.WARN),
        (94, 100, 1000, Level.WARN),
        (95, 100, 1000, Level.FAIL),
        (120, 100, 1000, Level.FAIL),
        (700, 0, 1000, None),
        (800, 0, 1000, Level.WARN),
        (990, 0, 1000, Level.FAIL),
        (990, 0, 0, None),
    ],
)
def test_the_memory_of_redis_is_judged_by_what_it_may_use(
    used: int, own: int, host: int, level: Level | None
) -> None:
    found = judged({"used_memory": used << 20, "maxmemory": own << 20, "total_system_memory": host << 20})
    assert [one.level for one in found] == ([] if level is None else [level])
    assert all(f"{used} of {own or host} MiB" in one.detail for one in found)


@pytest.fixture
def small() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        server.start()
        yield server


def test_readiness_warns_of_a_redis_that_fills_up_and_takes_deliveries_on(
    small: OwnValkey, tmp_path: Path
) -> None:
    small.redis.set("weight", "x" * (64 << 20))  # beside which connections and scripts weigh little
    used = cast(dict[str, int], small.redis.info("memory"))["used_memory"]
    with in_thread(small.url, tmp_path) as web:
        small.redis.config_set("maxmemory", used * 100)
        assert b"redis memory" not in web.ask("GET", "/readyz").body
        small.redis.config_set("maxmemory", int(used * 1.2))
        assert [one.level for one in memory(small.redis)] == [Level.WARN]
    with in_thread(small.url, tmp_path) as web:
        ready = web.ask("GET", "/readyz")
        assert (ready.status, b"warn redis memory: Redis uses" in ready.body) == (200, True)
