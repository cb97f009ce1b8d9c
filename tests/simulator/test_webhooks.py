"""Webhooks arrive signed, filtered, throttled and retried as Replicate's do."""

import json
import re
import socket
import time
from itertools import pairwise
from typing import Any

import pytest
import standardwebhooks
import svix
from replicate.client import Client
from replicate.webhook import Webhooks, WebhookSigningSecret

from app.core.names import Kind
from app.simulator import Simulator
from app.simulator.webhooks import EVENT_INTERVAL, RETRY_DELAYS, sign
from tests.simulator.receiver import Received, receiver


def statuses(received: list[Received]) -> list[str]:
    return [json.loads(one.body)["status"] for one in received]


def test_the_signature_is_the_one_of_the_shared_vector() -> None:
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_three_verifiers_accept_a_delivery(client: Client, simulator: Simulator) -> None:
    with receiver() as target:
        client.predictions.create(
            model="outkeep/image", input={"prompt": "é"}, webhook=target.url, webhook_events_filter=["start"]
        )
        (one,) = target.wait(1)
    svix.Webhook(simulator.secret).verify(one.body, one.headers)
    standardwebhooks.Webhook(simulator.secret).verify(one.body.decode(), one.headers)
    secret = WebhookSigningSecret(key=simulator.secret)
    Webhooks.validate(headers=one.headers, body=one.body.decode(), secret=secret, tolerance=5)


def test_a_delivery_looks_like_the_recorded_one(
    client: Client, simulator: Simulator, recorded_delivery: dict[str, Any]
) -> None:
    with receiver() as target:
        created = client.predictions.create(
            model="outkeep/image", input={}, webhook=target.url, webhook_events_filter=["completed"]
        )
        simulator.wait_for_delivery(created.id)
        (one,) = target.wait(1)
    recorded = recorded_delivery["headers"]
    assert set(one.headers) == set(recorded) | {"host", "content-length", "webhook-signature"}
    assert one.headers["content-type"] == recorded["content-type"]
    assert one.headers["user-agent"] == "Webhooks/1.66.0 (simulator)"
    assert re.fullmatch(r"msg_[0-9A-Za-z]{27}", one.headers["webhook-id"])
    body = json.loads(one.body)
    expected = json.loads(recorded_delivery["body"])
    assert list(body) == [*expected, "webhook_events_filter"]
    assert one.body == json.dumps(body, separators=(",", ":")).encode()
    assert body["webhook"] == target.url
    assert body["webhook_events_filter"] == ["completed"]


def test_without_a_filter_every_event_comes_and_the_end_once(client: Client, simulator: Simulator) -> None:
    with receiver() as target:
        created = client.predictions.create(model="outkeep/llama", input={}, webhook=target.url)
        end = simulator.wait_for_delivery(created.id)
        events = [attempt.event for attempt in simulator.wait_for_attempts(created.id, 3)]
        received = target.wait(3)
    assert set(events) == {"start", "output", "completed"}
    assert events.count("completed") == 1
    assert statuses(received).count("succeeded") == 1
    assert (end.status, end.number, end.error) == (200, 1, None)


def test_progress_comes_at_most_every_interval_as_full_snapshots(
    client: Client, simulator: Simulator
) -> None:
    began = time.monotonic()
    with receiver() as target:
        created = client.predictions.create(
            model="outkeep/llama",
            input={"seconds": 1.3, "num_outputs": 40},
            webhook=target.url,
            webhook_events_filter=["output", "completed"],
        )
        simulator.wait_for_delivery(created.id)
        attempts = simulator.wait_for_attempts(created.id, 4)
    sent = [one for one in attempts if one.event == "output"]
    # A busy machine can stretch the 1.3 s, never shorten them.
    assert 3 <= len(sent) <= (time.monotonic() - began) / EVENT_INTERVAL + 1
    outputs = sorted((json.loads(one.body)["output"] for one in target.received), key=len)
    assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(outputs))
    assert len(outputs[-1]) == 40


def test_logs_events_come_while_an_image_is_drawn(client: Client, simulator: Simulator) -> None:
    with receiver() as target:
        created = client.predictions.create(
            model="outkeep/image", input={}, webhook=target.url, webhook_events_filter=["logs"]
        )
        ended = simulator.wait_for_end(Kind.PREDICTION, created.id)
        one = target.wait(1)[0]
    body = json.loads(one.body)
    assert body["output"] is None
    assert body["logs"] != ""
    assert ended["logs"].startswith(body["logs"])


def test_a_canceled_training_is_told(client: Client, simulator: Simulator) -> None:
    with receiver() as target:
        training = client.trainings.create(
            model="outkeep/slow",
            version="1" * 64,
            input={},
            destination="me/mine",
            webhook=target.url,
            webhook_events_filter=["completed"],
        )
        client.trainings.cancel(training.id)
        assert simulator.wait_for_delivery(training.id).status == 200
        assert statuses(target.wait(1)) == ["canceled"]


@pytest.mark.parametrize("answer", [400, 404, 410, 413, 429, 500, 503])
def test_the_terminal_event_is_retried_with_its_id_and_a_fresh_signature(
    answer: int, client: Client, simulator: Simulator
) -> None:
    with receiver(answer, answer) as target:
        created = client.predictions.create(
            model="outkeep/caption", input={}, webhook=target.url, webhook_events_filter=["completed"]
        )
        end = simulator.wait_for_delivery(created.id)
        received = target.wait(3)
    assert [one.status for one in simulator.attempts(created.id)] == [answer, answer, 200]
    assert (end.number, end.settled) == (3, True)
    assert len({one.headers["webhook-id"] for one in received}) == 1
    for one in received:
        svix.Webhook(simulator.secret).verify(one.body, one.headers)


def test_each_attempt_is_signed_anew() -> None:
    with receiver(500) as target, Simulator(retry_delays=(1.01,)) as own:
        own.finish(Kind.PREDICTION, {"id": "a", "status": "succeeded"}, target.url)
        own.wait_for_delivery("a")
        first, second = target.wait(2)
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    assert second.headers["webhook-signature"] != first.headers["webhook-signature"]


def test_it_gives_up_when_the_schedule_ends(client: Client, simulator: Simulator) -> None:
    with receiver(500, 500, 500, 500) as target:
        created = client.predictions.create(
            model="outkeep/caption", input={}, webhook=target.url, webhook_events_filter=["completed"]
        )
        end = simulator.wait_for_delivery(created.id)
    assert (end.status, end.number, end.settled) == (500, 4, True)
    assert len(target.received) == 4


def test_the_last_retry_comes_a_minute_after_the_end_and_each_waits_longer() -> None:
    assert sum(RETRY_DELAYS) == 60
    assert all(later > earlier for earlier, later in pairwise(RETRY_DELAYS))


def test_a_refused_connection_is_retried(client: Client, simulator: Simulator) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        created = client.predictions.create(
            model="outkeep/caption",
            input={},
            webhook=f"http://127.0.0.1:{taken.getsockname()[1]}/",
            webhook_events_filter=["completed"],
        )
        end = simulator.wait_for_delivery(created.id)
    assert (end.status, end.number) == (None, 4)
    assert end.error is not None
    assert "ClientConnectorError" in end.error


def test_a_url_that_cannot_be_requested_counts_as_a_failure(simulator: Simulator) -> None:
    simulator.finish(Kind.PREDICTION, {"id": "odd", "status": "failed"}, "http://127.0.0.1:99999/")
    end = simulator.wait_for_delivery("odd")
    assert (end.status, end.number) == (None, 4)


def test_intermediate_events_are_sent_once(client: Client, simulator: Simulator) -> None:
    with receiver(500) as target:
        created = client.predictions.create(
            model="outkeep/slow", input={}, webhook=target.url, webhook_events_filter=["start", "completed"]
        )
        (first,) = simulator.wait_for_attempts(created.id, 1)
        assert (first.event, first.status, first.settled) == ("start", 500, True)
        client.predictions.cancel(created.id)
        simulator.wait_for_delivery(created.id)
    assert [one.event for one in simulator.attempts(created.id)] == ["start", "completed"]


def test_a_redirect_loses_the_event(client: Client, simulator: Simulator) -> None:
    with receiver(301) as target:
        created = client.predictions.create(
            model="outkeep/caption", input={}, webhook=target.url, webhook_events_filter=["completed"]
        )
        end = simulator.wait_for_delivery(created.id)
    assert (end.status, end.number, end.settled) == (301, 1, True)
    assert [one.path for one in target.received] == ["/"]


def test_the_query_comes_back_exactly_as_given(client: Client, simulator: Simulator) -> None:
    path = "/hooks/a%2Fb?customId=123&x=%28%7E%29&y=a+b%20c&z"
    with receiver() as target:
        created = client.predictions.create(
            model="outkeep/caption", input={}, webhook=target.url + path, webhook_events_filter=["completed"]
        )
        simulator.wait_for_delivery(created.id)
    assert [one.path for one in target.received] == [path]


def test_a_recorded_object_can_be_delivered_as_it_is(
    simulator: Simulator, client: Client, samples: list[dict[str, Any]]
) -> None:
    terminal = [one for one in samples if one["object"]["status"] == "succeeded"][:20]
    with receiver() as target:
        for sample in terminal:
            webhook_id = simulator.finish(Kind(sample["kind"]), sample["object"], target.url)
            end = simulator.wait_for_delivery(sample["object"]["id"])
            assert end.webhook_id == webhook_id
        bodies = [json.loads(one.body) for one in target.received]
    assert bodies == [sample["object"] for sample in terminal]


def test_a_scripted_delivery_can_be_repeated_with_its_id(simulator: Simulator) -> None:
    with receiver() as target:
        given = {"id": "repeated", "status": "succeeded", "created_at": "2026-01-01T00:00:00Z"}
        first = simulator.finish(Kind.PREDICTION, given, target.url)
        second = simulator.finish(Kind.PREDICTION, given, target.url, webhook_id=first)
        received = target.wait(2)
    assert first == second
    assert {one.headers["webhook-id"] for one in received} == {first}


def test_waiting_for_what_never_comes_says_what_did(simulator: Simulator) -> None:
    with pytest.raises(TimeoutError, match="the attempts about nobody are"):
        simulator.wait_for_delivery("nobody", timeout=0.05)
