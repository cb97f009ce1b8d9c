"""Every recorded object through a real `outkeep up`: received, kept byte for byte, told."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from rq.job import JobStatus
from svix.webhooks import Webhook

from app.accept import queues
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE, Kind, notify_job_id, persist_job_id
from app.core.prediction import TERMINAL
from app.simulator import Simulator
from tests import forked
from tests.e2e.recorder import DEFAULT_SECRET, Recorder
from tests.e2e.running import Up, running_up, unfinished, until
from tests.receive.web import prediction, signed
from tests.serving import PLAIN

pytestmark = pytest.mark.slow

HANDLER = "recorder"
HEADS = {
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "mp4": b"\0\0\0\x18ftypmp42",
    "zip": b"PK\x03\x04",
    "glb": b"glTF\x02\0\0\0",
}


@dataclass
class Sample:
    """A recorded object under an id of its own; `served` is what its URLs lead to, in order of appearance."""

    kind: Kind
    object: dict[str, Any]
    served: list[tuple[str, bytes]]

    @property
    def id(self) -> str:
        identity: str = self.object["id"]
        return identity

    @property
    def body(self) -> bytes:
        return json.dumps(self.object, ensure_ascii=False, separators=(",", ":")).encode()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator, downstream: Recorder) -> Iterator[Up]:
    settings = {"OUTKEEP_OUTPUT_HOSTS": simulator.url, "REPLICATE_WEBHOOK_SECRET": DEFAULT_SECRET}
    folder = tmp_path_factory.mktemp("up")
    with running_up(folder, handlers=downstream.handler(HANDLER), settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def recorded(samples: list[dict[str, Any]], simulator: Simulator) -> list[Sample]:
    """All samples, their URLs pointed at the simulator's file host; some were recorded twice under one id."""
    return [_sample(number, sample, simulator) for number, sample in enumerate(samples)]


def _sample(number: int, sample: dict[str, Any], simulator: Simulator) -> Sample:
    served: list[tuple[str, bytes]] = []

    def host(url: str) -> str:
        name = urlsplit(url).path.rpartition("/")[2] or "file"
        head = HEADS.get(name.rpartition(".")[2].lower(), b"")
        content = head + hashlib.sha256(f"{number} {len(served)}".encode()).digest() * 50
        served.append((simulator.add_file(name, content), content))
        return served[-1][0]

    found = {**sample["object"], "id": f"{sample['object']['id'][:50]}-{number}"}
    if "output" in found:
        found["output"] = _with_urls(found["output"], host)
    return Sample(Kind(sample["kind"]), found, served)


def _with_urls(value: Any, host: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return host(value) if value.startswith(("http://", "https://")) and not _has_space(value) else value
    if isinstance(value, list):
        return [_with_urls(item, host) for item in value]
    if isinstance(value, dict):
        return {_with_urls(key, host): _with_urls(item, host) for key, item in value.items()}
    return value


def _has_space(text: str) -> bool:
    return len(text.split()) != 1


def deliver(up: Up, sample: Sample, *, webhook_id: str | None = None) -> str:
    """Sign with Svix's own library, send, and give back the outcome."""
    webhook_id = webhook_id or f"msg_{sample.id}"
    now = datetime.now(UTC)
    headers = {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(DEFAULT_SECRET).sign(webhook_id, now, sample.body.decode()),
    }
    hook = f"{up.hook}/trainings" if sample.kind is Kind.TRAINING else up.hook
    answer = PLAIN.post(hook, content=sample.body, headers=headers)
    assert answer.status_code == 202, answer.text
    outcome: str = answer.json()["outcome"]
    return outcome


def folder_of(up: Up, sample: Sample) -> Path:
    return up.outputs / sample.kind.folder / sample.id


def terminal(recorded: list[Sample]) -> list[Sample]:
    return [sample for sample in recorded if sample.object["status"] in TERMINAL]


def has_ended(up: Up, queue: str, job_id: str) -> bool:
    with up.redis() as redis:
        job = queues.queue(queue, redis).fetch_job(job_id)
        return job is not None and job.get_status() == JobStatus.FINISHED


def is_idle(up: Up) -> bool:
    with up.redis() as redis:
        return not unfinished(redis, PERSIST_QUEUE, NOTIFY_QUEUE)


def test_every_sample_that_ended_is_kept_byte_for_byte_and_told(
    up: Up, recorded: list[Sample], downstream: Recorder
) -> None:
    ended = terminal(recorded)
    assert len(ended) > 80
    assert sum(len(sample.served) for sample in ended) > 100
    assert {sample.kind for sample in ended} == set(Kind)
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda sample: deliver(up, sample), ended))
    assert set(outcomes) == {"accepted"}
    wanted = {sample.id for sample in ended}
    downstream.wait_for(lambda it: it.ids() >= wanted, "every sample is told")
    for sample in ended:
        # The outcome is written when the handler has answered, under another name first.
        until((folder_of(up, sample) / f"told-{HANDLER}.json").exists, "the outcome is written")
        require_kept(up, sample)
        [request] = downstream.of(sample.id)
        downstream.verify(request)
        assert request.event["type"] == f"{sample.kind}.{sample.object['status']}"


def require_kept(up: Up, sample: Sample) -> None:
    """The manifest holds the object as it was sent, and each file is what was served."""
    folder = folder_of(up, sample)
    manifest = json.loads((folder / "prediction.json").read_text())
    # As text: the order of keys and the digits of numbers count, too.
    assert json.dumps(manifest["prediction"]) == json.dumps(sample.object)
    assert (manifest["kind"], manifest["id"]) == (sample.kind, sample.id)
    files = [file for file in manifest["files"] if file["source"] is not None]
    assert [file["source"] for file in files] == [url for url, _ in sample.served]
    for file, (_, content) in zip(files, sample.served, strict=True):
        assert file["error"] is None
        stored = (folder / file["name"]).read_bytes()
        assert stored == content
        assert (file["size"], file["sha256"]) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert len({file["name"] for file in manifest["files"]}) == len(manifest["files"])
    present = {path.name for path in folder.iterdir()} - {f"told-{HANDLER}.json"}
    assert present == {"prediction.json", *(file["name"] for file in manifest["files"])}
    assert not any(url in json.dumps(manifest["output"]) for url, _ in sample.served)


def test_links_in_a_notification_open_the_stored_files(
    up: Up, recorded: list[Sample], downstream: Recorder
) -> None:
    sample = next(sample for sample in terminal(recorded) if 1 < len(sample.served) < 10)
    again = Sample(sample.kind, {**sample.object, "id": f"{sample.id}-links"}, sample.served)
    deliver(up, again)
    downstream.wait_for(lambda it: bool(it.of(again.id)), "it is told")
    [request] = downstream.of(again.id)
    files = request.event["data"]["files"]
    assert len(files) == len(sample.served)
    with httpx.Client(timeout=30, trust_env=False) as client:
        for file, (_, content) in zip(files, sample.served, strict=True):
            answer = client.get(file["url"])
            assert (answer.status_code, answer.content) == (200, content)
            assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
            assert client.get(f"{file['url']}x").status_code == 403


def test_one_webhook_fifty_times_at_once_is_one_job_one_set_and_one_notification(
    up: Up, recorded: list[Sample], downstream: Recorder, simulator: Simulator
) -> None:
    content = HEADS["png"] + b"fifty" * 1000
    url = simulator.add_file("out-0.png", content)
    sample = Sample(
        Kind.PREDICTION,
        {**terminal(recorded)[0].object, "id": "fifty-times", "output": [url]},
        [(url, content)],
    )
    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(lambda _: deliver(up, sample, webhook_id="msg_fifty"), range(50)))
    assert sorted(outcomes) == ["accepted", *["duplicate"] * 49]
    told = notify_job_id(HANDLER, sample.kind, sample.id)
    until(lambda: has_ended(up, NOTIFY_QUEUE, told), "the notification has ended")
    until(lambda: has_ended(up, PERSIST_QUEUE, persist_job_id(sample.kind, sample.id)), "the job has ended")
    assert deliver(up, sample, webhook_id="msg_fifty") == "duplicate"
    with up.redis() as redis:
        jobs = [key.decode() for key in redis.keys(f"rq:job:*{sample.id}")]
        assert sorted(jobs) == sorted([f"rq:job:{told}", f"rq:job:{persist_job_id(sample.kind, sample.id)}"])
    until(lambda: is_idle(up), "both queues are idle")
    assert simulator.downloads(url) == 1
    require_kept(up, sample)
    [request] = downstream.of(sample.id)
    downstream.verify(request)


def test_samples_that_still_run_make_no_job(up: Up, recorded: list[Sample], downstream: Recorder) -> None:
    running = [sample for sample in recorded if sample.object["status"] not in TERMINAL]
    assert len(running) >= 5
    for sample in running:
        assert deliver(up, sample) == "progress"
    with up.redis() as redis:
        for sample in running:
            assert not redis.exists(f"rq:job:{persist_job_id(sample.kind, sample.id)}")
            assert redis.hget(f"outkeep:record:{sample.kind}:{sample.id}", "state") == b"running"
    assert not any(folder_of(up, sample).exists() for sample in running)
    assert not downstream.ids() & {sample.id for sample in running}


def test_a_lost_output_is_said_everywhere_and_the_others_are_kept(
    up: Up, simulator: Simulator, downstream: Recorder
) -> None:
    urls = [simulator.add_file("kept.txt", b"kept"), simulator.add_file("lost.png", b"lost")]
    simulator.remove_file(urls[1])
    body = prediction("partly", output=urls)
    answer = PLAIN.post(up.hook, content=body, headers=signed(body))
    assert answer.status_code == 202
    downstream.wait_for(lambda them: "partly" in them.ids(), "the handler is told")

    lost = {"pointer": "/output/1", "source": urls[1], "error": "not_found"}
    data = downstream.of("partly")[0].event["data"]
    assert data["lost"] == [lost]
    assert [file["pointer"] for file in data["files"]] == ["/output/0"]
    manifest = json.loads((up.outputs / "predictions/partly/prediction.json").read_text())
    assert [file["error"] for file in manifest["files"]] == [None, "not_found"]
    listed = forked.run(
        [sys.executable, "-m", "app.cli", "ls", "--lost", "--json"],
        cwd=up.folder,
        env=up.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = [json.loads(text) for text in listed.stdout.splitlines()]
    assert (line["id"], line["files"], line["lost"]) == ("partly", 1, 1)
    until(
        lambda: 'outkeep_files_lost_total{code="not_found"} 1' in PLAIN.get(f"{up.url}/metrics").text,
        "metrics count it",
    )
