"""The description of the API holds: generated requests find nothing, and a client made from it works."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.web import openapi
from tests.web.api import AUTHORIZED, Api, serving

ROOT = Path(__file__).parents[2]
OPAQUE = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 400, 404, 409, 422, "5xx"]
"""
"""What no schema can say: whether a cursor is ours, whether a key came with another body before."""


@pytest.fixture
def api(redis: Redis, valkey_url: str, tmp_path: Path) -> Iterator[Api]:
    with serving(redis, valkey_url, tmp_path) as running:
        for number in range(3):
            running.past.keep(f"p{number}", model=f"owner/m{number}")
        running.follow()
        yield running


def test_the_description_is_made_from_what_answers() -> None:
    assert (ROOT / "docs" / "openapi.json").read_text() == openapi.document(), "`make openapi` writes it"


@pytest.mark.slow
def test_generated_requests_find_nothing(api: Api, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(OPAQUE)
    url = f"http://127.0.0.1:{api.web.port}/api/v1/openapi.json"
    options = [
        *("--exclude-operation-id", "stream"),  # it does not end
        *(
            "--exclude-checks",
            "ignored_auth",
        ),  # wrong tokens have to wait, and all others from here with them
        *("--max-examples", "2", "--phases", "coverage,fuzzing", "--seed", "1"),
        *("--request-timeout", "60", "--generation-database", "none", "--continue-on-failure"),
    ]
    header = f"Authorization: {AUTHORIZED['authorization']}"
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", url, "-H", header, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


class Client:
    """Made from a description alone: a method for each operation, by its id."""

    def __init__(self, api: Api) -> None:
        self._api = api
        document = api.get("/openapi.json")
        self._operations = {
            one["operationId"]: (method.upper(), path)
            for path, methods in document["paths"].items()
            for method, one in methods.items()
        }

    def __call__(self, operation: str, body: Any = None, **given: str) -> Any:
        method, path = self._operations[operation]
        named = set(re.findall(r"\{(\w+)\}", path))
        query = "&".join(f"{name}={value}" for name, value in given.items() if name not in named)
        answer = self._api.ask(method, path.format(**given) + (f"?{query}" if query else ""), body)
        assert 200 <= answer.status < 300, answer
        return answer.json()


def test_a_client_made_from_it_lists_shows_and_replays(api: Api) -> None:
    client = Client(api)
    page = client("listPredictions", model="owner/m1")
    [found] = page["results"]
    assert client("showPredictions", id=found["id"])["manifest"]["id"] == "p1"
    told = client("replayPredictions", {"handler": "mail"}, id=found["id"])
    assert [one["outcome"] for one in told["results"]] == ["enqueued"]
    assert client("replayMany", {"since": "1h", "dry_run": True}) == {"dry_run": True, "count": 3}
