"""Whose word counts about a prediction: a signature binds no path and no query, a token no prediction."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.accept.records import Record, Records
from app.core.context import context_keys, seal
from app.core.names import AWAITED, Kind
from tests.receive.web import SECRET_KEY, WEBHOOK, Web, in_thread, prediction, signed, wait_until

TOKEN = "a-token-of-cog-workers"
TRAININGS = f"{WEBHOOK}/trainings"
ID = "ype2b3w02xrme0cqadzrms82nm"


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with in_thread(valkey_url, tmp_path_factory.mktemp("words"), OUTKEEP_COG_TOKEN=TOKEN) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(redis: Redis) -> None:
    """Every test begins on an empty database."""


def record(redis: Redis, kind: Kind = Kind.PREDICTION) -> Record | None:
    return Records(redis, ttl=60).get(kind, ID)


def send(web: Web, who: str, status: str, **keys: Any) -> str:
    body = prediction(ID, status=status, output=None, **keys)
    if who == "replicate":
        return web.outcome(body)
    answer = web.ask("POST", "/webhooks/cog", body, {"authorization": f"Bearer {TOKEN}"})
    assert answer.status == 202, answer
    return str(answer.json()["outcome"])


@pytest.mark.parametrize(
    ("words", "outcomes", "stands"),
    [
        ("cog failed, replicate succeeded", "accepted accepted", "webhook received succeeded"),
        ("replicate processing, cog failed", "progress quarantined", "webhook running processing"),
        (
            "replicate processing, cog failed, replicate succeeded",
            "progress quarantined accepted",
            "webhook received succeeded",
        ),
        ("replicate succeeded, cog failed", "accepted quarantined", "webhook received succeeded"),
        ("replicate processing, cog processing", "progress stale", "webhook running processing"),
        ("cog processing, replicate starting", "progress progress", "webhook running starting"),
        (
            "cog processing, replicate starting, cog canceled",
            "progress progress quarantined",
            "webhook running starting",
        ),
        ("cog failed, replicate processing", "accepted stale", "cog received failed"),
        (
            "cog failed, replicate processing, replicate succeeded, cog failed",
            "accepted stale accepted quarantined",
            "webhook received succeeded",
        ),
        ("cog failed, cog succeeded", "accepted duplicate", "cog received failed"),
        ("cog processing, cog succeeded", "progress accepted", "cog received succeeded"),
        ("replicate succeeded, replicate failed", "accepted duplicate", "webhook received succeeded"),
    ],
)
def test_what_is_signed_beats_a_token_and_a_token_ends_nothing_of_replicate(
    web: Web, redis: Redis, words: str, outcomes: str, stands: str
) -> None:
    said = [send(web, *word.split()) for word in words.split(", ")]

    assert " ".join(said) == outcomes
    kept = record(redis)
    assert kept is not None
    assert f"{kept.receipt.source} {kept.state} {kept.status}" == stands
    if kept.body is not None:
        assert json.loads(kept.body)["status"] == kept.status
    assert redis.llen("rq:queue:persist") == int(kept.body is not None)


def test_what_a_token_says_of_a_prediction_of_replicate_is_kept_aside_whole(web: Web, redis: Redis) -> None:
    send(web, "replicate", "processing")
    assert send(web, "cog", "failed", error="a mark of this test") == "quarantined"

    aside = [json.loads(path.read_bytes()) for path in (web.folder / "outputs/quarantine").rglob("*.json")]
    (mine,) = [one for one in aside if "a mark of this test" in one["body"]]
    assert (mine["reason"]["code"], mine["source"]) == ("foreign_id", "cog")


def test_a_token_does_not_keep_reconciliation_from_asking(web: Web, redis: Redis) -> None:
    send(web, "replicate", "processing")
    send(web, "cog", "failed")
    assert redis.zrange(AWAITED, 0, -1) == [f"prediction:{ID}".encode()]


def test_what_an_overruled_end_leaves_in_the_record_is_gone(web: Web, redis: Redis) -> None:
    token = seal({"order": "forged"}, context_keys([SECRET_KEY.encode()]))
    body = prediction(ID, status="failed", model="somebody/else")
    headers = {"authorization": f"Bearer {TOKEN}"}
    web.ask("POST", f"/webhooks/cog?outkeep_context={token}&x=1", body, headers)
    Records(redis, ttl=60).keep(Kind.PREDICTION, ID, {"0": {"name": "output-0.png"}})

    assert web.outcome(prediction(ID)) == "accepted"

    kept = record(redis)
    assert kept is not None
    assert (kept.model, kept.receipt.context, kept.receipt.query, kept.kept) == (None, None, {}, {})


@pytest.mark.parametrize("order", ["cog replicate", "replicate cog"])
def test_in_the_spool_the_same_holds(valkey_url: str, redis: Redis, tmp_path: Path, order: str) -> None:
    more = {"OUTKEEP_COG_TOKEN": TOKEN, "OUTKEEP_DISK_FLOOR": "0"}
    with in_thread(f"unix://{tmp_path}/nobody", tmp_path, **more) as away:
        for who in order.split():
            assert send(away, who, "failed" if who == "cog" else "succeeded") == "spooled"
    with in_thread(valkey_url, tmp_path, **more):
        wait_until(lambda: not list((tmp_path / "spool").glob("*.delivery")))

    kept = record(redis)
    assert kept is not None
    assert (kept.receipt.source, kept.status) == ("webhook", "succeeded")
    aside = list((tmp_path / "outputs" / "quarantine").rglob("*.json"))
    assert len(aside) == (1 if order == "replicate cog" else 0)


@pytest.mark.parametrize("status", ["succeeded", "failed", "processing", "starting"])
@pytest.mark.parametrize("paths", [(WEBHOOK, TRAININGS), (TRAININGS, WEBHOOK)])
def test_one_delivery_on_two_paths_counts_once(
    web: Web, redis: Redis, status: str, paths: tuple[str, str]
) -> None:
    body = prediction(ID, status=status)
    headers = signed(body, webhook_id="msg_once")
    first, second, again = (web.deliver(body, path, headers).json()["outcome"] for path in (*paths, paths[0]))

    is_end = status in {"succeeded", "failed"}
    assert first == ("accepted" if is_end else "progress")
    assert second == ("duplicate" if is_end else "stale")
    assert again == "duplicate"
    kinds = [kind for kind in Kind if record(redis, kind) is not None]
    assert kinds == [Kind.TRAINING if paths[0] == TRAININGS else Kind.PREDICTION]
    assert redis.llen("rq:queue:persist") == int(is_end)


def test_one_delivery_counts_once_although_others_came_after_it(web: Web, redis: Redis) -> None:
    stolen = prediction(ID, status="processing", output=["a"])
    headers = signed(stolen, webhook_id="msg_stolen")
    assert web.deliver(stolen, WEBHOOK, headers).json()["outcome"] == "progress"
    for number in range(2, 5):
        assert web.outcome(prediction(ID, status="processing", output=["a"] * number)) == "progress"
    assert send(web, "replicate", "succeeded") == "accepted"

    assert web.deliver(stolen, TRAININGS, headers).json()["outcome"] == "stale"
    assert record(redis, Kind.TRAINING) is None


def test_one_delivery_on_two_paths_counts_once_out_of_the_spool(
    valkey_url: str, redis: Redis, tmp_path: Path
) -> None:
    body = prediction(ID)
    headers = signed(body, webhook_id="msg_once")
    with in_thread(f"unix://{tmp_path}/nobody", tmp_path, OUTKEEP_DISK_FLOOR="0") as away:
        for path in (WEBHOOK, TRAININGS):
            assert away.deliver(body, path, headers).json()["outcome"] == "spooled"
    with in_thread(valkey_url, tmp_path, OUTKEEP_DISK_FLOOR="0"):
        wait_until(lambda: not list((tmp_path / "spool").glob("*.delivery")))

    assert sum(record(redis, kind) is not None for kind in Kind) == 1
    assert redis.llen("rq:queue:persist") == 1


@pytest.mark.parametrize(
    ("deliveries", "believed"),
    [
        # Each is a status and the context in its URL.
        (["succeeded a"], "a"),
        (["processing a", "succeeded a"], "a"),
        (["processing b", "succeeded a"], "a"),  # the end itself counts
        (["processing b", "succeeded -"], None),
        (["processing -", "succeeded a"], "a"),
        (["processing a"], "a"),
        (["processing b", "processing -"], None),  # a replay that came first is not believed
        (["processing b", "processing a"], None),
        (["processing -", "processing b"], None),
        (["processing a", "processing b", "processing a"], None),
        (["processing b", "processing a", "succeeded a"], "a"),
        (["starting a", "processing a"], "a"),
        (["processing b", "starting -"], None),  # what is stale disagrees all the same
        (["succeeded a", "succeeded b"], "a"),
        (["succeeded -", "processing b"], None),
    ],
)
def test_a_context_is_that_of_the_end_or_one_that_all_agree_on(
    web: Web, redis: Redis, deliveries: list[str], believed: str | None
) -> None:
    keys = context_keys([SECRET_KEY.encode()])
    for number, delivery in enumerate(deliveries):
        status, order = delivery.split()
        query = f"?outkeep_context={seal({'order': order}, keys)}" if order != "-" else ""
        body = prediction(ID, status=status)
        headers = signed(body, webhook_id=f"msg_{number}")
        assert web.deliver(body, WEBHOOK + query, headers).status == 202

    kept = record(redis)
    assert kept is not None
    assert kept.receipt.context == (None if believed is None else {"order": believed})
