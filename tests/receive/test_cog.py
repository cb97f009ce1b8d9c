"""The endpoint for self-hosted Cog: who may use it, what its bodies become, and what it is never told."""

import json
import logging
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from app.accept.records import Record, Records
from app.core.context import Lineage, context_keys, followed, seal
from app.core.lifecycle import State
from app.core.names import AWAITED, Kind
from app.deployment import connect, prepare
from app.main import create_app
from app.receive.rate_limit import LIMIT
from tests.receive.test_protocol import QUICK, error, rest, status
from tests.receive.web import SECRET_KEY, Answer, Web, environment, in_thread, prediction, signed, wait_until

COG = "/webhooks/cog"
TOKEN = "a-token-of-cog-workers"
COG_RUNNING = {"id": "pred_18ebaedd6edcdf2d", "logs": "", "metrics": {}, "status": "processing"}
COG_ENDED = {
    "id": "pred_18ebaedd6edcdf2d",
    "logs": "step 0\n",
    "metrics": {"predict_time": 0.002311899},
    "output": ["data:image/png;base64,iVBORw0KGgoAAAA="],
    "status": "succeeded",
}
"""As recorded from a Cog 0.23.1, save the bytes of the output."""

OLD_COG_ENDED = {
    "input": {"n": 1},
    "output": ["data:image/png;base64,iVBORw0KGgoAAAA="],
    "id": None,
    "created_at": None,
    "started_at": "2026-11-26T19:45:56.584646+00:00",
    "completed_at": "2026-11-26T19:45:56.613188+00:00",
    "logs": "",
    "status": "succeeded",
    "metrics": {"predict_time": 0.028542},
}
"""As recorded from a Cog 0.16.12, which makes no ids of its own, save the output."""


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with in_thread(valkey_url, tmp_path_factory.mktemp("cog"), QUICK, OUTKEEP_COG_TOKEN=TOKEN) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(redis: Redis) -> None:
    """Every test begins on an empty database."""


def send(web: Web, body: Any, path: str = COG, headers: Mapping[str, str] | None = None) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return web.ask("POST", path, content, {"authorization": f"Bearer {TOKEN}", **(headers or {})})


def outcome(web: Web, body: Any, path: str = COG) -> str:
    answer = send(web, body, path)
    assert answer.status == 202, answer
    return str(answer.json()["outcome"])


def record(redis: Redis, prediction_id: str = COG_ENDED["id"]) -> Record:  # type: ignore[assignment]
    found = Records(redis, ttl=60).get(Kind.PREDICTION, prediction_id)
    assert found is not None
    return found


def quarantined(web: Web) -> list[dict[str, Any]]:
    folder = web.folder / "outputs" / "quarantine"
    return [json.loads(path.read_bytes()) for path in folder.rglob("*.json")]


def test_an_end_without_input_and_times_is_accepted_with_its_job(web: Web, redis: Redis) -> None:
    assert outcome(web, COG_ENDED) == "accepted"

    kept = record(redis)
    assert (kept.state, kept.status) == (State.RECEIVED, "succeeded")
    assert (kept.receipt.source, kept.receipt.webhook_id) == ("cog", None)
    assert redis.lrange("rq:queue:persist", 0, -1) == [b"persist-prediction-pred_18ebaedd6edcdf2d"]


@pytest.mark.parametrize("word", ["succeeded", "failed", "canceled"])
def test_each_of_cogs_ends_is_one(web: Web, word: str) -> None:
    assert outcome(web, {"id": word, "status": word, "error": "boom"}) == "accepted"


def test_the_query_and_what_we_signed_into_it_are_told_apart(web: Web, redis: Redis) -> None:
    lineage = Lineage(Kind.PREDICTION, "parent", "upscale", 1)
    token = seal(followed({"order": 17}, lineage), context_keys([SECRET_KEY.encode()]))

    assert outcome(web, COG_ENDED, f"{COG}?color=red&outkeep_context={token}") == "accepted"

    receipt = record(redis).receipt
    assert receipt.query == {"color": "red"}
    assert receipt.context["order"] == 17
    assert receipt.parent == "parent"


def test_progress_that_comes_after_the_end_is_stale_although_a_list_became_a_scalar(
    web: Web, redis: Redis
) -> None:
    def running(output: Any, logs: str = "") -> dict[str, Any]:
        return {**COG_RUNNING, "output": output, "logs": logs}

    assert outcome(web, running(["one", "two", "three"])) == "progress"
    assert outcome(web, running(["one"])) == "stale"
    assert outcome(web, running(["one", "two", "three"])) == "duplicate"
    assert outcome(web, {**COG_ENDED, "output": "3"}) == "accepted"
    assert outcome(web, running(["one", "two", "three", "four"], "more\n")) == "stale"
    assert json.loads(record(redis).body or b"")["output"] == "3"


def test_progress_that_falls_silent_is_not_asked_for_at_replicate(web: Web, redis: Redis) -> None:
    assert outcome(web, COG_RUNNING) == "progress"
    assert not redis.exists(AWAITED)
    assert web.outcome(prediction("of-replicate", status="processing")) == "progress"
    assert redis.zrange(AWAITED, 0, -1) == [b"prediction:of-replicate"]


def test_the_same_end_again_is_a_duplicate_with_one_job(web: Web, redis: Redis) -> None:
    assert [outcome(web, COG_ENDED) for _ in range(3)] == ["accepted", "duplicate", "duplicate"]
    assert redis.llen("rq:queue:persist") == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "bad_id"),
        ({"id": 17}, "bad_id"),
        ({"id": "a/b"}, "bad_id"),
        ({"id": "x" * 65}, "bad_id"),
        ({"id": ""}, "bad_id"),
        ({"status": None}, "bad_status"),
    ],
)
def test_an_end_without_a_usable_id_is_kept_aside_with_the_reason(
    web: Web, redis: Redis, changes: dict[str, Any], reason: str
) -> None:
    body = {name: value for name, value in {**COG_ENDED, **changes}.items() if value is not None}
    before = len(quarantined(web))

    assert outcome(web, {**body, "logs": f"{changes}"}) == "quarantined"

    aside = quarantined(web)
    assert len(aside) == before + 1
    assert any(
        one["reason"]["code"] == reason
        and one["source"] == "cog"
        and json.loads(one["body"])["logs"] == f"{changes}"
        for one in aside
    )
    assert TOKEN not in json.dumps(aside)
    assert redis.keys("outkeep:record:*") == []


def test_an_old_cog_is_kept_aside_without_an_id_and_accepted_with_one(web: Web, redis: Redis) -> None:
    assert outcome(web, OLD_COG_ENDED) == "quarantined"
    assert outcome(web, {**OLD_COG_ENDED, "id": "order-17"}) == "accepted"
    assert record(redis, "order-17").status == "succeeded"


@pytest.mark.parametrize("word", ["starting", "processing"])
def test_progress_without_an_id_fills_no_quarantine(web: Web, word: str) -> None:
    before = len(quarantined(web))
    assert outcome(web, {"status": word, "output": ["data:,x"]}) == "progress"
    assert len(quarantined(web)) == before


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        "Bearer \xe9\xff",
    ],
)
def test_without_the_token_a_delivery_is_refused_with_401(
    web: Web, redis: Redis, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    answer = web.ask("POST", COG, json.dumps(COG_ENDED).encode(), headers)

    assert (answer.status, answer.json()["error"]) == (401, "bad_token")
    assert TOKEN.encode() not in answer.body
    assert redis.keys("outkeep:record:*") == []


def test_the_word_bearer_may_be_spelled_in_any_case(web: Web) -> None:
    assert send(web, COG_ENDED, headers={"authorization": f"bEARER  {TOKEN} "}).status == 202


def test_a_doubled_authorization_header_is_no_token(web: Web) -> None:
    body = json.dumps(COG_ENDED).encode()
    lines = f"authorization: Bearer {TOKEN}\r\n" * 2
    with socket.create_connection(("127.0.0.1", web.port), timeout=20) as connection:
        top = f"POST {COG} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
        connection.sendall(top.encode() + body)
        answer = rest(connection)
    assert (status(answer), error(answer)) == (401, "bad_token")


def test_a_signature_of_replicate_opens_nothing_here_and_the_token_nothing_there(web: Web) -> None:
    assert web.ask("POST", COG, prediction(), signed(prediction())).status == 401
    assert send(web, COG_ENDED, "/webhooks/replicate").status == 400


def test_without_the_token_the_body_is_not_even_read(web: Web) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=20) as connection:
        connection.sendall(f"POST {COG} HTTP/1.1\r\nhost: x\r\ncontent-length: 30000000\r\n\r\n".encode())
        answer = rest(connection)
    assert (status(answer), error(answer)) == (401, "bad_token")


def test_a_flood_of_wrong_tokens_is_told_429_and_the_right_one_passes(web: Web) -> None:
    def ask(address: str, token: str) -> int:
        headers = {"authorization": f"Bearer {token}", "x-forwarded-for": address}
        return send(web, COG_ENDED, headers=headers).status

    assert [ask("203.0.113.9", "guess") for _ in range(LIMIT + 2)] == [401] * LIMIT + [429] * 2
    assert ask("203.0.113.9", TOKEN) == 202
    assert ask("203.0.113.10", "guess") == 401


def test_a_body_that_does_not_arrive_is_asked_for_again_since_cog_drops_what_is_told_408(web: Web) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=20) as connection:
        lines = f"host: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 100\r\n"
        connection.sendall(f"POST {COG} HTTP/1.1\r\n{lines}\r\n{{".encode())
        answer = rest(connection)
    assert (status(answer), error(answer)) == (503, "too_slow")
    assert b"retry-after: 2" in answer


def test_while_redis_is_away_an_end_is_spooled_with_its_source_and_comes_in_later(
    valkey_url: str, tmp_path: Path, redis: Redis
) -> None:
    missing = f"unix://{tmp_path}/nobody"
    with in_thread(missing, tmp_path, OUTKEEP_COG_TOKEN=TOKEN, OUTKEEP_DISK_FLOOR="0") as web:
        assert outcome(web, COG_ENDED, f"{COG}?order=17") == "spooled"
        answer = send(web, COG_RUNNING)
        assert (answer.status, answer.json()["error"]) == (503, "progress_dropped")

    with in_thread(valkey_url, tmp_path, OUTKEEP_COG_TOKEN=TOKEN, OUTKEEP_DISK_FLOOR="0") as web:
        wait_until(lambda: redis.exists("outkeep:record:prediction:pred_18ebaedd6edcdf2d") == 1)
    kept = record(redis)
    assert (kept.receipt.source, kept.receipt.query) == ("cog", {"order": "17"})


def test_trouble_of_our_own_is_always_503(tmp_path: Path) -> None:
    missing = f"unix://{tmp_path}/nobody"
    with in_thread(missing, tmp_path, OUTKEEP_COG_TOKEN=TOKEN, OUTKEEP_SPOOL="off") as web:
        answer = send(web, COG_ENDED)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1


def test_without_a_token_set_there_is_no_such_route(valkey_url: str, tmp_path: Path) -> None:
    with in_thread(valkey_url, tmp_path) as web:
        assert send(web, COG_ENDED).status == 404


def test_who_hosts_all_models_needs_no_secret_of_replicate(valkey_url: str, tmp_path: Path) -> None:
    settings = environment(valkey_url, tmp_path, OUTKEEP_COG_TOKEN=TOKEN)
    del settings["REPLICATE_WEBHOOK_SECRET"]
    app = create_app(connect(*prepare(settings, receives=True)))

    with TestClient(app) as client:
        answer = client.post(COG, json=COG_ENDED, headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 202
        unsigned = client.post("/webhooks/replicate", content=prediction(), headers=signed(prediction()))
        assert unsigned.status_code == 404


@pytest.mark.parametrize(("method", "path"), [("GET", COG), ("PUT", COG), ("POST", f"{COG}/")])
def test_another_method_or_path_is_refused(web: Web, method: str, path: str) -> None:
    answer = web.ask(method, path, b"{}", {"authorization": f"Bearer {TOKEN}"})
    assert answer.status == (404 if path.endswith("/") else 405)


def test_an_event_that_is_too_large_is_an_error_in_the_log_since_cog_gives_it_up(
    valkey_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with in_thread(valkey_url, tmp_path, OUTKEEP_COG_TOKEN=TOKEN, OUTKEEP_MAX_BODY="10000") as web:
        assert send(web, {**COG_ENDED, "logs": "x" * 10000}).status == 413
        assert send(web, {"logs": "x" * 10000}, headers={"authorization": "Bearer no"}).status == 401
        assert web.deliver(prediction(logs="x" * 10000)).status == 413  # anybody can send that
    [said] = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "OUTKEEP_MAX_BODY" in said.getMessage()


def test_the_token_shows_in_no_log(valkey_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), in_thread(valkey_url, tmp_path, OUTKEEP_COG_TOKEN=TOKEN) as web:
        send(web, COG_ENDED)
        send(web, {"status": "failed"})
        send(web, COG_ENDED, headers={"authorization": f"Bearer {TOKEN}x"})
    assert caplog.records
    assert not any(TOKEN in f"{vars(one)} {one.getMessage()}" for one in caplog.records)
