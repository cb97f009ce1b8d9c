"""What the API refuses, and how."""

import httpx
import pytest

from app.core.names import Kind
from app.simulator import Simulator


@pytest.fixture
def headers(simulator: Simulator) -> dict[str, str]:
    return {"authorization": f"Bearer {simulator.token}"}


def assert_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic {token}", "{token}"])
def test_without_the_token_everything_is_refused(
    authorization: str, simulator: Simulator, http: httpx.Client
) -> None:
    given = {"authorization": authorization.format(token=simulator.token)}
    for path in ("/v1/predictions", "/v1/webhooks/default/secret", "/v1/nothing"):
        assert_problem(http.get(path, headers=given), 401)


@pytest.mark.parametrize(
    "path",
    ["/v1/predictions/x", "/v1/trainings/x", "/v1/files/x", "/v1/nothing", "/xezq/x/out-0.png", "/"],
)
def test_what_is_not_there_is_404(path: str, http: httpx.Client, headers: dict[str, str]) -> None:
    assert_problem(http.get(path, headers=headers), 404)


def test_a_path_without_the_version_means_the_same(http: httpx.Client, headers: dict[str, str]) -> None:
    created = http.post("/models/outkeep/image/predictions", headers=headers, json={"input": {}})
    assert created.status_code == 201
    for path in ("/predictions", f"/predictions/{created.json()['id']}", "/account"):
        assert http.get(path, headers=headers).status_code == 200
        assert_problem(http.get(path), 401)
    assert_problem(http.get("/predictions/x", headers=headers), 404)


@pytest.mark.parametrize(
    ("seconds", "status"), [(None, "succeeded"), ("5s", "canceled")], ids=["without", "with a deadline"]
)
def test_a_deadline_ends_what_runs(
    seconds: str | None, status: str, simulator: Simulator, http: httpx.Client, headers: dict[str, str]
) -> None:
    more = {"prefer": "wait=20"} | ({"cancel-after": seconds} if seconds else {})
    body = {"input": {"seconds": 7 if seconds else 0}}
    answer = http.post("/v1/models/outkeep/image/predictions", headers=headers | more, json=body, timeout=60)
    assert answer.json()["status"] == status
    assert ("deadline" in answer.json()) == (seconds is not None)


@pytest.mark.parametrize("after", ["4s", "25h", "soon", ""])
def test_an_odd_deadline_is_refused(after: str, http: httpx.Client, headers: dict[str, str]) -> None:
    given = headers | {"cancel-after": after}
    answer = http.post("/v1/models/outkeep/image/predictions", headers=given, json={"input": {}})
    assert_problem(answer, 422)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"input": []}',
        b'{"input": {}, "webhook": 1}',
        b'{"input": {}, "webhook": "ftp://example.com"}',
        b'{"input": {}, "webhook": "http://[::1"}',
        b'{"input": {}, "webhook_events_filter": "start"}',
        b'{"input": {}, "webhook_events_filter": ["begin"]}',
        b'{"input": {}, "webhook_events_filter": [{}]}',
        b'{"input": {"num_outputs": 0}}',
        b'{"input": {"num_outputs": "4"}}',
        b'{"input": {"seconds": -1}}',
        b'{"input": {"seconds": true}}',
        b'{"input": {"prompt": NaN}}',
        b'{"input": {"prompt": "\\ud800"}}',
    ],
)
def test_a_bad_body_is_422(body: bytes, http: httpx.Client, headers: dict[str, str]) -> None:
    assert_problem(http.post("/v1/models/outkeep/images/predictions", content=body, headers=headers), 422)


@pytest.mark.parametrize("body", [{}, {"version": ""}, {"version": 1}])
def test_a_prediction_needs_a_version(
    body: dict[str, object], http: httpx.Client, headers: dict[str, str]
) -> None:
    assert_problem(http.post("/v1/predictions", json={"input": {}, **body}, headers=headers), 422)


@pytest.mark.parametrize("destination", [None, "", "mine", "a/b/c"])
def test_a_training_needs_a_destination(
    destination: str | None, http: httpx.Client, headers: dict[str, str]
) -> None:
    path = f"/v1/models/a/b/versions/{'1' * 64}/trainings"
    body: dict[str, object] = {"input": {}, "destination": destination}
    assert_problem(http.post(path, json=body, headers=headers), 422)


def test_an_upload_without_a_file_is_422(http: httpx.Client, headers: dict[str, str]) -> None:
    assert_problem(http.post("/v1/files", content=b"junk", headers=headers), 422)
    assert_problem(http.post("/v1/files", files={"other": b"junk"}, headers=headers), 422)


def test_lists_are_filtered_by_time_and_source(http: httpx.Client) -> None:
    with Simulator() as own, httpx.Client(base_url=own.url, timeout=60) as plain:
        times = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01.123456789Z", "2026-01-01T01:00:02+01:00"]
        for name, at in zip("abc", times, strict=True):
            source = "web" if name == "b" else "api"
            own.finish(
                Kind.TRAINING, {"id": name, "status": "processing", "created_at": at, "source": source}
            )

        def listed(**query: str) -> str:
            headers = {"authorization": f"Bearer {own.token}"}
            answer = plain.get("/v1/trainings", params=query, headers=headers).json()
            return "".join(item["id"] for item in answer["results"])

        assert listed() == "cba"
        assert listed(created_after=times[1]) == "cb"
        assert listed(created_before=times[1]) == "a"
        assert listed(created_after=times[0], created_before=times[2]) == "ba"
        assert listed(source="web") == "b"


@pytest.mark.parametrize("query", [{"created_after": "yesterday"}, {"created_before": "1"}])
def test_a_time_that_cannot_be_read_is_422(
    query: dict[str, str], http: httpx.Client, headers: dict[str, str]
) -> None:
    assert_problem(http.get("/v1/predictions", params=query, headers=headers), 422)


def test_an_unknown_cursor_is_400(http: httpx.Client, headers: dict[str, str]) -> None:
    assert_problem(http.get("/v1/predictions?cursor=x", headers=headers), 400)
