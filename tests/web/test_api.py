"""The JSON API over a socket."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.core.names import NOTIFY_QUEUE, Kind
from tests.receive.web import prediction, wait_until
from tests.web.api import AUTHORIZED, Api, serving


@pytest.fixture
def api(redis: Redis, valkey_url: str, tmp_path: Path) -> Iterator[Api]:
    with serving(redis, valkey_url, tmp_path) as running:
        yield running


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), answer
    found: dict[str, Any] = answer.json()
    assert (found["status"], found["code"]) == (status, code)
    return found


def test_lists_are_filtered_searched_and_read_page_by_page(api: Api) -> None:
    for number in range(5):
        api.past.keep(f"p{number}", ago=60 - number, model=f"owner/m{number % 2}", told=number != 3)
    api.past.keep("t0", kind=Kind.TRAINING)
    api.web.deliver(prediction("runs", status="processing", model="owner/m0", logs=" 50%|##| 1/2\n"))
    api.follow()
    assert api.ids() == ["runs", "p4", "p3", "p2", "p1", "p0"]
    assert api.ids("model=owner/m1") == ["p3", "p1"]
    assert api.ids("model=owner/*&state=running") == ["runs"]
    assert api.ids("untold=true&handler=mail") == ["p3"]
    assert api.ids("q=secret+of+p2") == ["p2"]
    assert api.ids("q=%22of+p2%22") == ["p2"]
    assert api.ids("q=%22p2+of%22") == []
    assert api.ids("q=***") == []
    assert api.ids("since=30s&status=succeeded") == []
    first = api.get("/predictions?limit=4&status=succeeded")
    assert [one["id"] for one in first["results"]] == ["p4", "p3", "p2", "p1"]
    assert api.ids(f"limit=4&status=succeeded&cursor={first['next']}") == ["p0"]
    problem(api.ask("GET", f"/predictions?cursor={first['next']}"), 400, "bad_cursor")
    assert [one["id"] for one in api.get("/trainings")["results"]] == ["t0"]


@pytest.mark.parametrize(
    ("path", "code", "names"),
    [
        ("/predictions?colour=red&lost=true&size=1", "unknown_parameter", ["colour", "size"]),
        ("/predictions?lost=yes", "bad_parameter", ["lost"]),
        ("/predictions?limit=0", "bad_parameter", ["limit"]),
        ("/predictions?limit=1&limit=2", "bad_parameter", ["limit"]),
        ("/predictions?state=lost", "bad_parameter", ["state"]),
        ("/predictions?since=yesterday&until=0", "bad_parameter", ["since", "until"]),
        ("/handlers?x=1", "unknown_parameter", ["x"]),
    ],
)
def test_a_wrong_parameter_is_named(api: Api, path: str, code: str, names: list[str]) -> None:
    assert problem(api.ask("GET", path), 400, code)["parameters"] == names


def test_one_is_shown_whole_with_a_strong_etag(api: Api) -> None:
    api.past.keep("p0")
    answer = api.ask("GET", "/predictions/p0")
    found = answer.json()
    assert found["manifest"]["prediction"]["input"] == {"prompt": "secret of p0"}
    assert [one["handler"] for one in found["told"]] == ["gallery", "mail"]
    assert found["record"]["state"] == "dispatched"
    path = found["files"][0]["url"].partition("127.0.0.1:8000")[2]
    assert api.web.ask("GET", path).body == b"\x89PNG"
    etag = answer.headers["etag"]
    assert api.ask("GET", "/predictions/p0", headers={"if-none-match": f'"other", {etag}'}).status == 304
    problem(api.ask("GET", "/predictions/none"), 404, "unknown")
    problem(api.ask("GET", "/trainings/p0"), 404, "unknown")


def test_nothing_is_shown_without_the_token(api: Api, redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    for path in ("/predictions", "/openapi.json", "/stream"):
        problem(api.web.ask("GET", f"/api/v1{path}"), 401, "sign_in_needed")
    problem(
        api.web.ask("GET", "/api/v1/checks", headers={"authorization": "Bearer no"}), 401, "token_refused"
    )
    other = tmp_path / "other"
    other.mkdir()
    with serving(redis, valkey_url, other, OUTKEEP_ADMIN_TOKEN=None) as off:
        assert off.ask("GET", "/predictions").status == 404
        assert not (other / "catalog.db").exists()


def test_a_replay_is_asked_for_once_for_each_key(api: Api) -> None:
    api.past.keep("p0")
    key = {"idempotency-key": "once"}
    first = api.ask("POST", "/predictions/p0/replay", {"handler": "mail"}, key)
    assert (first.status, first.json()["results"][0]["outcome"]) == (202, "enqueued")
    assert api.ask("POST", "/predictions/p0/replay", {"handler": "mail"}, key).body == first.body
    assert len(api.past.queued(NOTIFY_QUEUE)) == 1
    other = api.ask("POST", "/predictions/p0/replay", {"handler": "gallery"}, key)
    problem(other, 422, "idempotency_key_reused")
    problem(api.ask("POST", "/predictions/p0/replay", {"handler": "nobody"}), 404, "handler_unknown")
    problem(api.ask("POST", "/predictions/p0/replay", {"who": 1}), 400, "unknown_key")
    attempts = api.get("/predictions/p0/attempts")["results"]
    assert {(one["handler"], one["replay"]) for one in attempts} >= {("mail", 1)}


def test_what_is_removed_is_gone_from_lists_and_file(api: Api) -> None:
    api.past.keep("p0", input={"prompt": "unforgettable-word"})
    api.follow()
    assert api.ids("q=unforgettable-word") == ["p0"]
    assert api.ask("DELETE", "/predictions/p0").status == 202
    api.follow()
    assert api.ids() == []

    def is_gone() -> bool:
        files = api.web.folder.glob("catalog.db*")
        return not any(b"unforgettable" in path.read_bytes() for path in files)

    wait_until(is_gone)
    problem(api.ask("DELETE", "/predictions/p0"), 404, "unknown")


def test_many_are_replayed_with_the_number_said_first(api: Api) -> None:
    for number in range(3):
        api.past.keep(f"p{number}", model=f"owner/m{number % 2}")
    api.follow()
    asked = {"since": "1h", "handler": "mail", "model": "owner/m0"}
    plan = api.ask("POST", "/replays", {**asked, "dry_run": True})
    assert (plan.status, plan.json()) == (200, {"dry_run": True, "count": 2})
    assert api.past.queued(NOTIFY_QUEUE) == []
    begun = api.ask("POST", "/replays", asked)
    assert (begun.status, begun.json()["count"]) == (202, 2)
    path = f"/replays/{begun.json()['id']}"
    wait_until(lambda: api.get(path)["state"] == "done")
    assert (api.get(path)["done"], len(api.past.queued(NOTIFY_QUEUE))) == (2, 2)
    assert api.ask("DELETE", path).json()["state"] == "done"
    problem(api.ask("POST", "/replays", {}), 400, "nothing_chosen")
    problem(api.ask("GET", "/replays/none"), 404, "unknown")


def test_handlers_checks_and_sums_are_told(api: Api) -> None:
    api.past.keep("p0", metrics={"predict_time": 2.5})
    api.past.keep("p1", model=None, status="failed", told=False)
    api.follow()
    found = {one["name"]: one for one in api.get("/handlers")["results"]}
    assert (found["mail"]["state"], found["mail"]["waiting"], found["mail"]["target"]) == (
        "on",
        1,
        "127.0.0.1:9",
    )
    api.redis.hset("outkeep:handlers-off", "mail", "2026-03-16T12:00:00.000Z")
    assert api.ask("POST", "/handlers/mail/enable").json() == {"name": "mail", "was_off": True, "dead": 0}
    tested = api.ask("POST", "/handlers/mail/test").json()
    assert (tested["status"], tested["error"]) == (None, "address_refused")
    problem(api.ask("POST", "/handlers/nobody/test"), 404, "handler_unknown")
    assert {"check", "detail", "level"} == api.get("/checks")["findings"][0].keys()
    stats = api.get("/stats?since=24h&by=model")
    assert (stats["total"]["count"], stats["total"]["failed"], stats["total"]["untold"]) == (2, 1, 1)
    assert stats["catalog"]["state"] == "ready"
    [group] = [one for one in stats["groups"] if one["key"] == "owner/model"]
    assert (group["predict_seconds"], group["bytes"]) == (2.5, 4)
    assert len(api.get("/stats?by=day")["groups"]) == 1


def events(
    api: Api, position: str | None = None
) -> tuple[http.client.HTTPConnection, Iterator[dict[str, Any]]]:
    connection = http.client.HTTPConnection("127.0.0.1", api.web.port, timeout=30)
    more = {"last-event-id": position} if position else {}
    connection.request("GET", "/api/v1/stream", headers={**AUTHORIZED, **more})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.readline() == b"retry: 2000\n"

    def read() -> Iterator[dict[str, Any]]:
        event: dict[str, Any] = {}
        while line := answer.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                event[name] = value
            elif event:
                yield event
                event = {}

    return connection, read()


def test_the_stream_tells_each_change_and_goes_on_where_it_ended(api: Api) -> None:
    api.follow()
    connection, found = events(api)
    api.past.keep("p0", told=False)
    seen = [next(found) for _ in range(3)]
    assert [json.loads(one["data"])["what"] for one in seen] == ["received", "stored", "dispatched"]
    connection.close()
    connection, found = events(api, seen[0]["id"])
    assert [next(found)["id"] for _ in range(2)] == [one["id"] for one in seen[1:]]
    connection.close()
    connection, found = events(api, "1-1")
    assert next(found)["event"] == "reset"
    connection.close()
