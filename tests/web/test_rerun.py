"""Running a prediction again, at a simulated Replicate."""

from pathlib import Path

from redis import Redis

from app.core.manifest import KeptFile, Manifest
from app.core.names import Kind
from app.simulator import Simulator
from tests.web.api import serving


def test_a_rerun_takes_stored_inputs_and_what_was_changed_and_is_a_child(
    redis: Redis, valkey_url: str, tmp_path: Path
) -> None:
    with Simulator() as simulator:
        account = {"REPLICATE_BASE_URL": simulator.url, "REPLICATE_API_TOKEN": simulator.token}
        with serving(redis, valkey_url, tmp_path, OUTKEEP_RECONCILE="off", **account) as api:
            url = "https://dead.example/a.png"
            given = {"prompt": "dusk", "seconds": 0, "images": [url]}
            first = api.past.keep("p0", input=given)
            stored = KeptFile("/input/images/0", url, "input-images-0.png", "image/png", 4, "ab" * 32)
            whole = Manifest(
                first.prediction, (*first.files, stored), first.output, first.receipt, first.stored_at
            )
            api.past.storage.put_bytes("predictions/p0/prediction.json", whole.to_json())
            api.past.storage.put_bytes("predictions/p0/input-images-0.png", b"\x89PNG")
            answer = api.ask("POST", "/predictions/p0/rerun", {"input": {"prompt": "dawn"}})
            assert answer.status == 202, answer
            child = answer.json()["id"]
            created = simulator.object(Kind.PREDICTION, child)["input"]
            assert (created["prompt"], created["seconds"]) == ("dawn", 0)
            assert created["images"][0].startswith(f"{simulator.url}/v1/files/")
            api.follow()
            assert api.ids("parent=p0") == [child]
            shown = api.get("/predictions/p0")["lineage"]["children"]
            assert shown == [{"id": child, "handler": None}]
            assert api.get(f"/predictions/{child}")["lineage"]["parent"] == {"id": "p0", "handler": None}


def test_without_a_token_nothing_is_run(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    with serving(redis, valkey_url, tmp_path) as api:
        api.past.keep("p0")
        answer = api.ask("POST", "/predictions/p0/rerun", {})
        assert (answer.status, answer.json()["code"]) == (409, "token_missing")
