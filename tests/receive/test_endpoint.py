"""Every answer of the webhook routes, over HTTP."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from app.accept.records import Records
from app.core.context import Lineage, context_keys, followed, seal
from app.core.errors import Unusable
from app.core.names import Kind, persist_job_id, record_key
from app.core.prediction import parse
from app.deployment import connect, prepare
from app.main import create_app
from tests.receive.web import (
    SECRET_KEY,
    WEBHOOK,
    Web,
    environment,
    in_thread,
    prediction,
    signed,
    whole_answer,
)

LIMIT = 64 << 10


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """One receiver for all tests of this module; each test has its own database content."""
    folder = tmp_path_factory.mktemp("receiver")
    with in_thread(valkey_url, folder, OUTKEEP_MAX_BODY=str(LIMIT)) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(redis: Redis) -> None:
    """Every test begins on an empty database."""


def quarantined(web: Web) -> list[dict[str, Any]]:
    folder = web.folder / "outputs" / "quarantine"
    return [json.loads(path.read_bytes()) for path in folder.rglob("*.json")]


def test_the_recorded_delivery_is_accepted_with_record_and_job(
    web: Web, redis: Redis, recorded_delivery: dict[str, Any]
) -> None:
    body = recorded_delivery["body"].encode()
    headers = {**recorded_delivery["headers"], **signed(body)}

    answer = web.ask("POST", WEBHOOK, body, headers)

    assert (answer.status, answer.json()) == (202, {"outcome": "accepted"})
    assert answer.headers["content-type"] == "application/json"
    record = Records(redis, ttl=60).get(Kind.PREDICTION, "ype2b3w02xrme0cqadzrms82nm")
    assert record is not None
    assert record.body == body
    assert redis.lrange("rq:queue:persist", 0, -1) == [b"persist-prediction-ype2b3w02xrme0cqadzrms82nm"]


def test_every_recorded_object_is_taken(web: Web, redis: Redis, samples: list[dict[str, Any]]) -> None:
    for number, sample in enumerate(samples):
        kind = Kind.TRAINING if sample["kind"] == "training" else Kind.PREDICTION
        path = f"{WEBHOOK}/trainings" if kind is Kind.TRAINING else WEBHOOK
        body = json.dumps({**sample["object"], "id": f"sample-{number}"}).encode()
        if len(body) <= LIMIT:
            assert web.outcome(body, path) in {"accepted", "progress"}
            assert redis.exists(record_key(kind, f"sample-{number}"))


def test_a_repeat_is_answered_as_duplicate(web: Web) -> None:
    assert [web.outcome(prediction()) for _ in range(3)] == ["accepted", "duplicate", "duplicate"]


def test_progress_is_told_from_repeats_and_from_what_is_older(web: Web, redis: Redis) -> None:
    def running(produced: int) -> bytes:
        return prediction(status="processing", output=["x"] * produced)

    outcomes = [web.outcome(body) for body in (running(1), running(3), running(3), running(2), running(4))]

    assert outcomes == ["progress", "progress", "duplicate", "stale", "progress"]
    assert redis.llen("rq:queue:persist") == 0


def test_progress_after_the_end_is_stale_and_changes_nothing(web: Web, redis: Redis) -> None:
    web.outcome(prediction())
    before = redis.hgetall(record_key(Kind.PREDICTION, "ype2b3w02xrme0cqadzrms82nm"))

    assert web.outcome(prediction(status="processing", output="much longer than before")) == "stale"
    assert redis.hgetall(record_key(Kind.PREDICTION, "ype2b3w02xrme0cqadzrms82nm")) == before


def test_the_end_after_progress_is_accepted(web: Web, redis: Redis) -> None:
    assert web.outcome(prediction(status="starting", output=None)) == "progress"
    assert web.outcome(prediction()) == "accepted"
    assert redis.llen("rq:queue:persist") == 1


def test_an_unknown_status_ends_a_prediction_only_with_a_completion_time(web: Web) -> None:
    assert web.outcome(prediction("one", status="pondering")) == "progress"
    assert (
        web.outcome(prediction("two", status="pondering", completed_at="2026-01-01T00:00:00Z")) == "accepted"
    )


def test_a_training_and_a_prediction_of_one_id_are_two(web: Web, redis: Redis) -> None:
    assert web.outcome(prediction()) == "accepted"
    assert web.outcome(prediction(), f"{WEBHOOK}/trainings") == "accepted"
    assert redis.exists(record_key(Kind.TRAINING, "ype2b3w02xrme0cqadzrms82nm"))


def test_of_fifty_equal_deliveries_at_once_one_is_accepted_with_one_job(web: Web, redis: Redis) -> None:
    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(web.outcome, [prediction()] * 50))

    assert sorted(outcomes) == ["accepted"] + ["duplicate"] * 49
    assert redis.lrange("rq:queue:persist", 0, -1) == [b"persist-prediction-ype2b3w02xrme0cqadzrms82nm"]


def test_a_repeat_mends_a_job_that_vanished(web: Web, redis: Redis) -> None:
    web.outcome(prediction())
    job = f"rq:job:{persist_job_id(Kind.PREDICTION, 'ype2b3w02xrme0cqadzrms82nm')}"
    redis.delete(job, "rq:queue:persist")

    assert web.outcome(prediction()) == "duplicate"
    assert redis.exists(job)
    assert redis.llen("rq:queue:persist") == 1


def test_a_context_that_we_signed_is_told_apart_from_what_anybody_can_write(web: Web, redis: Redis) -> None:
    given = followed({"order": "42"}, Lineage(Kind.PREDICTION, "parent", "upscale", 1))
    token = seal(given, context_keys((SECRET_KEY.encode(),)))
    assert web.outcome(prediction("signed"), f"{WEBHOOK}?customId=7&outkeep_context={token}") == "accepted"
    forged = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert web.outcome(prediction("forged"), f"{WEBHOOK}?outkeep_context={forged}") == "accepted"
    records = Records(redis, ttl=60)
    signed, unsigned = records.get(Kind.PREDICTION, "signed"), records.get(Kind.PREDICTION, "forged")
    assert signed is not None
    assert signed.receipt.query == {"customId": "7"}
    assert signed.receipt.context == given
    assert signed.receipt.parent == "parent"
    assert unsigned is not None
    assert unsigned.receipt.query == {"outkeep_context": forged}
    assert unsigned.receipt.context is None
    assert unsigned.receipt.parent is None


QUERIES = [
    ("customId=123&name=a%20b%C3%A9&empty=", {"customId": "123", "name": "a bé", "empty": ""}),
    ("tag=a&tag=b", {"tag": ["a", "b"]}),
    ("tag=b&order=7&tag=a&tag=b", {"tag": ["b", "a", "b"], "order": "7"}),
    ("tag=&tag=", {"tag": ["", ""]}),
    ("tag&tag=x", {"tag": ["", "x"]}),
    ("a[]=1&a[]=2&a=3", {"a[]": ["1", "2"], "a": "3"}),
    ("t%61g=1&tag=2", {"tag": ["1", "2"]}),
    ("", {}),
]


@pytest.mark.parametrize(("query", "kept"), QUERIES)
def test_a_parameter_given_once_is_a_text_and_one_given_more_often_a_list(
    web: Web, redis: Redis, query: str, kept: dict[str, str | list[str]]
) -> None:
    web.outcome(prediction(), f"{WEBHOOK}?{query}")

    record = Records(redis, ttl=60).get(Kind.PREDICTION, "ype2b3w02xrme0cqadzrms82nm")
    assert record is not None
    assert record.receipt.query == kept


@pytest.mark.parametrize(("query", "kept"), QUERIES)
def test_parameters_of_what_is_set_aside_are_kept_alike(
    web: Web, query: str, kept: dict[str, str | list[str]]
) -> None:
    body = f"[{query!r}]".encode()
    assert web.outcome(body, f"{WEBHOOK}?{query}") == "quarantined"

    (aside,) = [one for one in quarantined(web) if base64.b64decode(one["body_base64"]) == body]
    assert aside["query"] == kept


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/json; charset=utf-16", "a/b/c;;"])
def test_the_content_type_does_not_matter(web: Web, content_type: str) -> None:
    assert web.deliver(prediction(), headers={"content-type": content_type}).status == 202


def test_a_missing_content_type_does_not_matter(web: Web) -> None:
    assert web.ask("POST", WEBHOOK, prediction(), signed(prediction())).status == 202


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe{\x00}\x00",
        b"[1, 2]",
        b'{"status": "succeeded"}',
        b'{"id": "../../etc/passwd", "status": "succeeded"}',
        b'{"id": "abc"}',
        b"[" * 50_000,
        b'{"id": "abc", "status": "succeeded", "n": NaN}',
        b'{"id": "abc", "status": "succeeded", "n": ' + b"9" * 5000 + b"}",
        b'{"id": "abc", "status": "\\ud800"}',
        b"",
    ],
)
def test_what_is_signed_but_unusable_is_kept_aside_whole(web: Web, body: bytes) -> None:
    with pytest.raises(Unusable) as unusable:
        parse(body, Kind.PREDICTION)
    answer = web.deliver(body, f"{WEBHOOK}?customId=7", {"user-agent": "Webhooks/1.66.0", "cookie": "sid=1"})

    assert (answer.status, answer.json()) == (202, {"outcome": "quarantined"})
    (kept,) = [one for one in quarantined(web) if base64.b64decode(one["body_base64"]) == body]
    assert kept["reason"] == {"code": unusable.value.code, "message": unusable.value.message}
    assert kept["headers"]["webhook-id"] == "msg_pGEvjbj5JfrCSTduf2IL4TZgFz"
    assert kept["headers"]["webhook-signature"].startswith("v1,")
    assert kept["headers"]["user-agent"] == "Webhooks/1.66.0"
    assert "cookie" not in kept["headers"]
    assert kept["query"] == {"customId": "7"}
    assert kept["kind"] == "prediction"


def _kept(redis: Redis) -> list[bytes]:
    """What stands in Redis of any delivery; the receiver itself is known there, too."""
    return [*redis.scan_iter("outkeep:record*"), *redis.scan_iter("rq:*")]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"webhook-id": ""}, 400, "header_missing"),
        ({"webhook-id": "a.b"}, 400, "header_malformed"),
        ({"webhook-timestamp": "1.7e9"}, 400, "timestamp_malformed"),
        ({"webhook-signature": "v1"}, 400, "signature_malformed"),
        ({"webhook-signature": "v1," + "A" * 43 + "="}, 401, "signature_mismatch"),
        ({"webhook-id": "msg_other"}, 401, "signature_mismatch"),
        ({"content-encoding": "gzip"}, 415, "content_encoding"),
    ],
)
def test_a_refusal_says_why_in_json(
    web: Web, redis: Redis, changes: dict[str, str], status: int, code: str
) -> None:
    answer = web.deliver(prediction(), headers=changes)

    assert (answer.status, answer.json()["error"]) == (status, code)
    assert answer.json()["message"]
    assert answer.headers["content-type"] == "application/json"
    assert _kept(redis) == []


def test_a_doubled_header_is_refused(web: Web) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(prediction()).items())
    raw = f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\nwebhook-id: msg_2\r\n{head}"
    answer = exchange(web, f"{raw}Content-Length: {len(prediction())}\r\n\r\n".encode() + prediction())

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"header_doubled"' in answer


@pytest.mark.parametrize("offset", [-310, 310])
def test_a_delivery_of_another_time_is_refused(web: Web, offset: int) -> None:
    answer = web.ask("POST", WEBHOOK, prediction(), signed(prediction(), now=time.time() + offset))

    assert (answer.status, answer.json()["error"]) == (401, "timestamp_out_of_range")


def test_a_changed_body_is_refused(web: Web) -> None:
    answer = web.ask("POST", WEBHOOK, prediction() + b"\n", signed(prediction()))

    assert (answer.status, answer.json()["error"]) == (401, "signature_mismatch")


def sized(size: int) -> bytes:
    return prediction(logs="x" * (size - len(prediction(logs=""))))


def test_a_body_at_the_limit_is_accepted(web: Web) -> None:
    assert len(sized(LIMIT)) == LIMIT
    assert web.outcome(sized(LIMIT)) == "accepted"


def test_a_chunked_body_at_the_limit_is_accepted(web: Web) -> None:
    body = sized(LIMIT)
    pieces = (body[start : start + 5000] for start in range(0, LIMIT, 5000))

    assert web.ask("POST", WEBHOOK, pieces, signed(body)).json() == {"outcome": "accepted"}


def test_a_body_over_the_limit_is_refused(web: Web, redis: Redis) -> None:
    answer = web.deliver(sized(LIMIT + 1))

    assert (answer.status, answer.json()["error"]) == (413, "body_too_large")
    assert _kept(redis) == []


def test_a_body_declared_too_large_is_refused_before_it_is_sent(web: Web) -> None:
    answer = exchange(
        web, f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n".encode()
    )

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


def test_an_endless_chunked_body_is_cut_off(web: Web) -> None:
    head = f"POST {WEBHOOK} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as connection:
        connection.sendall(head)
        # Far more than the limit and all buffers together: sending must fail, since nobody reads it.
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(chunk * 4000)


@pytest.mark.parametrize(
    "path",
    [
        f"{WEBHOOK}/",
        f"/{WEBHOOK}",
        "/webhooks//replicate",
        "/webhooks/%2e%2e/webhooks/replicate",
        "/webhooks/../webhooks/replicate",
        f"{WEBHOOK}/trainings/",
        "/webhooks",
        "/",
        "/webhooks/replicate%2ftrainings%00",
    ],
)
def test_another_path_is_not_found_and_never_redirected(web: Web, path: str) -> None:
    answer = web.deliver(prediction(), path)

    assert answer.status == 404
    assert answer.json()["error"] == "not_found"
    assert "location" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", [WEBHOOK, f"{WEBHOOK}/trainings"])
def test_another_method_is_refused(web: Web, method: str, path: str) -> None:
    answer = web.ask(method, path, prediction(), signed(prediction()))

    assert answer.status == 405
    assert answer.json() == {"error": "method_not_allowed", "message": "Method Not Allowed"}
    assert answer.headers["allow"] == "POST"


def test_a_head_request_is_refused(web: Web) -> None:
    assert web.ask("HEAD", WEBHOOK).status == 405


def test_a_delivery_signed_with_either_of_two_secrets_is_accepted(valkey_url: str, tmp_path: Path) -> None:
    other = "whsec_" + base64.b64encode(b"o" * 32).decode()
    with in_thread(
        valkey_url, tmp_path, REPLICATE_WEBHOOK_SECRET=f"{other} whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    ) as both:
        assert both.outcome(prediction()) == "accepted"


def test_a_quarantine_that_cannot_be_written_is_answered_with_503(valkey_url: str, tmp_path: Path) -> None:
    with in_thread(valkey_url, tmp_path) as unlucky:
        (tmp_path / "outputs").mkdir(exist_ok=True)
        (tmp_path / "outputs" / "quarantine").write_text("a file where the folder should be")
        answer = unlucky.deliver(b"[]")

    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"].startswith("storage_")


def test_a_fault_of_our_own_is_answered_with_503_and_asked_for_again(valkey_url: str, tmp_path: Path) -> None:
    async def broken(_: Request) -> Response:
        raise ArithmeticError("a detail that nobody outside needs")

    app = create_app(connect(*prepare(environment(valkey_url, tmp_path), receives=True)))
    app.router.routes.append(Route("/broken", broken))
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/broken")

    assert answer.status_code == 503
    assert answer.json()["error"] == "internal"
    assert "detail" not in answer.text
    assert int(answer.headers["retry-after"]) > 0


def test_no_answer_names_a_secret(web: Web) -> None:
    for answer in (
        web.deliver(prediction()),
        web.deliver(prediction(), headers={"webhook-id": "x"}),
        web.ask("GET", "/readyz"),
    ):
        assert SECRET_KEY.encode() not in answer.body
        assert b"MfKQ9r8" not in answer.body


def exchange(web: Web, request: bytes) -> bytes:
    """Send raw bytes and read the answer."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as connection:
        connection.sendall(request)
        return whole_answer(connection)
