"""Follow-up predictions, through the notify job and the worker that runs in production."""

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from redis import Redis
from redis.exceptions import LockError
from rq.job import Job, JobStatus

from app.accept import queues
from app.accept.records import Records
from app.core import handlers, prediction
from app.core.context import PARAMETER, Lineage, context_keys, followed, unseal
from app.core.handlers import Handler
from app.core.manifest import KeptFile, Manifest, Receipt, format_time
from app.core.names import (
    CREATIONS,
    NOTIFY_QUEUE,
    DeliveryRef,
    Kind,
    follow_up_key,
    follow_up_lock,
    manifest_name,
    notify_job_id,
)
from app.core.reconciling import fingerprint
from app.deployment import Deployment
from app.replicate.client import LONG
from app.replicate.creation import CreationLimit
from app.replicate.follow_ups import LEASE, FollowUps, Intent
from app.settings import load
from app.simulator import Simulator
from app.storage.store import Storage
from tests import forked
from tests.api_host import (
    ApiHost,
    Hanging,
    api_host,
    failing,
    lost,
    predictions,
    refuses,
    unreachable,
)
from tests.engine.worker_process import ROOT, wait_until
from tests.keep.desk import Quick
from tests.serving import PLAIN
from tests.wrong_clock import WrongClock
from workers.services import Jobs, notify_jobs
from workers.tell.follow import DEEPEST, SETTLE
from workers.tell.notify import MAX_DETAIL, Delivery

ID = "zxnmcx7c2p3wp0fkexvxs6zf6p"
NAME = "upscale"
KEYS = (b"k" * 32,)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 400
PLACE = (NAME, Kind.PREDICTION, ID)
UPSCALE = """
[[handler]]
name = "upscale"
predict = "acme/upscale"
input = { image = "{files[0].url}", scale = 2 }
"""
CAPTION = """
[[handler]]
name = "upscale"
predict = "acme/caption"
input = { prompt = "about {input.prompt}" }
"""


class Studio:
    """A stored prediction, a handler that follows it, and a worker that works the queue `notify` off."""

    def __init__(self, redis: Redis, folder: Path, api: ApiHost) -> None:
        self.redis = redis
        self.api = api
        self.storage = Storage((folder / "outputs").as_uri())
        self.outputs = folder / "outputs"
        self.handlers = UPSCALE
        self.environment = {
            "OUTKEEP_DATA": str(folder),
            "OUTKEEP_PUBLIC_URL": "https://keep.example.com",
            "REPLICATE_API_TOKEN": api.simulator.token,
            "REPLICATE_BASE_URL": api.url,
        }

    def store(
        self,
        *files: KeptFile,
        context: Any = None,
        size: int = len(PNG),
        stored_output: Any = "output-0.png",
        **keys: Any,
    ) -> None:
        """A prediction with one output, or with `files`."""
        path = self.outputs / "predictions" / ID / "output-0.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
        raw = {"id": ID, "status": "succeeded", "model": "acme/image", "input": {"prompt": "größer"}, **keys}
        kept = KeptFile("/output", "https://x/y.png", "output-0.png", "image/png", size, "00")
        now = datetime.now(UTC)
        receipt = Receipt(now, "msg_1", context=context)
        read = prediction.from_object(raw, Kind.PREDICTION)
        manifest = Manifest(read, files or (kept,), stored_output, receipt, now)
        self.storage.put_bytes(manifest_name(Kind.PREDICTION, raw["id"]), manifest.to_json())

    def known(self) -> tuple[Handler, ...]:
        return handlers.parse(self.handlers, lambda text: text)

    def tell(self) -> Job:
        assert queues.enqueue_notify(self.redis, *PLACE)
        return self.job()

    def job(self) -> Job:
        job = queues.queue(NOTIFY_QUEUE, self.redis).fetch_job(notify_job_id(*PLACE))
        assert job is not None
        return job

    def work(self) -> None:
        """Run every job that is due."""
        deployment = Deployment(load(self.environment), "", KEYS, self.known())

        def jobs() -> AbstractAsyncContextManager[Jobs]:
            return notify_jobs(deployment, self.redis)

        Quick(NOTIFY_QUEUE, connection=self.redis, jobs=jobs).work(burst=True)

    @contextmanager
    def working(self) -> Iterator["subprocess.Popen[bytes]"]:
        """A worker process of the queue `notify`, killed at the end if it still lives."""
        path = Path(self.environment["OUTKEEP_DATA"]) / "outkeep.toml"
        path.write_text(self.handlers)
        environment = {**self.environment, "OUTKEEP_HANDLERS": str(path)}
        process = forked.Popen([sys.executable, "-m", "workers", NOTIFY_QUEUE], cwd=ROOT, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def show(self, prediction_id: str) -> str:
        """What `outkeep show` prints."""
        command = [sys.executable, "-m", "app.cli", "show", prediction_id]
        done = forked.run(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, check=True)
        return done.stdout.decode()

    def again(self) -> None:
        """Let the time come for which the job is scheduled, and run it."""
        queue = queues.queue(NOTIFY_QUEUE, self.redis)
        job = self.job()
        assert job.get_status() == JobStatus.SCHEDULED
        queue.scheduled_job_registry.remove(job.id)
        queue.enqueue_job(job)
        self.work()

    def told(self) -> dict[str, Any] | None:
        path = self.outputs / "predictions" / ID / f"told-{NAME}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def attempts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.job().meta.get("attempts", [])
        return found

    def age_intent(self, seconds: float, place: DeliveryRef = PLACE) -> None:
        """As if the API had been asked so much earlier."""
        key = follow_up_key(*place)
        data = self.redis.get(key)
        assert data is not None
        intent = json.loads(data)
        at = datetime.fromisoformat(intent["at"]) - timedelta(seconds=seconds)
        self.redis.set(key, json.dumps({**intent, "at": format_time(at)}))

    @property
    def only(self) -> dict[str, Any]:
        """The one prediction that there is at Replicate."""
        [found] = predictions(self.api.simulator)
        return found


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(retry_delays=()) as running:
        yield running


@pytest.fixture
def api(simulator: Simulator) -> Iterator[ApiHost]:
    with api_host(simulator) as running:
        yield running


@pytest.fixture
def studio(redis: Redis, tmp_path: Path, api: ApiHost) -> Studio:
    studio = Studio(redis, tmp_path, api)
    studio.store()
    return studio


def test_a_follow_up_gets_a_link_to_the_stored_file_and_a_signed_context(studio: Studio) -> None:
    studio.store(context={"order": 42})
    studio.tell()
    studio.work()
    child = studio.only
    assert child["model"] == "acme/upscale"
    assert child["input"]["scale"] == 2
    image = urlsplit(child["input"]["image"])
    assert f"{image.scheme}://{image.netloc}" == "https://keep.example.com"
    assert image.path == f"/files/predictions/{ID}/output-0.png"
    assert "signature" in parse_qs(image.query)
    assert child["webhook_events_filter"] == ["completed"]
    webhook = urlsplit(child["webhook"])
    assert webhook.path == "/webhooks/replicate"
    [token] = parse_qs(webhook.query)[PARAMETER]
    ours = {"kind": "prediction", "parent": ID, "handler": NAME, "depth": 1}
    assert unseal(token, context_keys(KEYS)) == {"order": 42, "outkeep": ours}
    told = studio.told()
    assert told is not None
    assert (told["outcome"], told["child"], told["attempts"]) == ("delivered", child["id"], 1)


def test_what_is_created_shows_at_once_with_its_parent(studio: Studio) -> None:
    studio.tell()
    studio.work()
    record = Records(studio.redis, ttl=60).get(Kind.PREDICTION, studio.only["id"])
    assert record is not None
    assert (record.state, record.receipt.parent, record.model) == ("running", ID, "acme/upscale")


@pytest.mark.parametrize(
    ("predict", "version"),
    [("acme/upscale:" + "1" * 64, "1" * 64), ("deployments/acme/mine", "dp-"), ("acme/upscale", "hidden")],
)
def test_models_versions_and_deployments_are_run(studio: Studio, predict: str, version: str) -> None:
    studio.handlers = studio.handlers.replace("acme/upscale", predict)
    studio.tell()
    studio.work()
    assert studio.only["version"].startswith(version)


def test_a_model_that_runs_only_by_its_version_is_run_by_its_latest(studio: Studio) -> None:
    studio.api.mishaps = [refuses(404, "The requested resource could not be found.")]
    studio.tell()
    studio.work()
    assert len(studio.only["version"]) == 64
    assert [sorted(body) for body in studio.api.creations] == [
        ["input", "webhook", "webhook_events_filter"],
        ["input", "version", "webhook", "webhook_events_filter"],
    ]


def test_a_follow_up_has_the_deadline_of_its_handler(studio: Studio) -> None:
    studio.handlers += 'cancel_after = "1h30m"\n'
    studio.tell()
    studio.work()
    times = [datetime.fromisoformat(studio.only[key]) for key in ("created_at", "deadline")]
    assert times[1] - times[0] == timedelta(minutes=90)


def test_without_a_public_url_the_file_itself_is_uploaded(studio: Studio) -> None:
    del studio.environment["OUTKEEP_PUBLIC_URL"]
    studio.tell()
    studio.work()
    child = studio.only
    assert "webhook" not in child
    url = child["input"]["image"].replace(studio.api.url, studio.api.simulator.url)
    headers = {"authorization": f"Bearer {studio.api.simulator.token}"}
    uploaded = PLAIN.get(url, headers=headers).json()
    assert (uploaded["size"], uploaded["name"]) == (len(PNG), "output-0.png")
    assert uploaded["content_type"] == "image/png"
    assert uploaded["checksums"]["sha256"] == hashlib.sha256(PNG).hexdigest()
    record = Records(studio.redis, ttl=60).get(Kind.PREDICTION, child["id"])
    assert record is not None
    assert record.receipt.context["outkeep"]["parent"] == ID


@pytest.mark.parametrize(
    ("coding", "name", "media_type"),
    [
        (None, "output-0.png", "image/png"),
        ("gzip", "output-0.png.gz", "application/gzip"),
        ("zstd", "output-0.png.zst", "application/zstd"),
        ("br", "output-0.png.br", "application/octet-stream"),
        ("deflate", "output-0.png.deflate", "application/octet-stream"),
        ("br, gzip", "output-0.png.gz", "application/gzip"),
    ],
)
def test_an_uploaded_file_says_by_its_name_and_type_what_coding_its_bytes_have(
    studio: Studio, coding: str | None, name: str, media_type: str
) -> None:
    studio.store(KeptFile("/output", None, "output-0.png", "image/png", len(PNG), "00", encoding=coding))
    del studio.environment["OUTKEEP_PUBLIC_URL"]
    studio.tell()
    studio.work()
    url = studio.only["input"]["image"].replace(studio.api.url, studio.api.simulator.url)
    headers = {"authorization": f"Bearer {studio.api.simulator.token}"}
    uploaded = PLAIN.get(url, headers=headers).json()
    assert (uploaded["name"], uploaded["content_type"]) == (name, media_type)
    assert uploaded["checksums"]["sha256"] == hashlib.sha256(PNG).hexdigest()


def test_what_is_too_large_to_upload_is_a_dead_letter_that_says_what_to_do(studio: Studio) -> None:
    studio.store(size=200 << 20)
    del studio.environment["OUTKEEP_PUBLIC_URL"]
    job = studio.tell()
    studio.work()
    assert job.get_status() == JobStatus.FAILED
    [attempt] = studio.attempts()
    assert attempt["error"] == "file_too_large"
    assert "output-0.png has 200 MiB" in attempt["detail"]
    assert "set OUTKEEP_PUBLIC_URL" in attempt["detail"]


def test_a_job_that_runs_again_makes_no_second_follow_up(studio: Studio) -> None:
    studio.tell()
    studio.work()
    queues.enqueue_replay(studio.redis, *PLACE)
    studio.work()
    assert studio.told() is not None
    assert studio.only["id"] == studio.told()["child"]  # type: ignore[index]


def test_when_the_outcome_was_not_written_the_follow_up_is_remembered(studio: Studio) -> None:
    studio.tell()
    studio.work()
    (studio.outputs / "predictions" / ID / f"told-{NAME}.json").unlink()
    queues.enqueue_replay(studio.redis, *PLACE)
    studio.work()
    told = studio.told()
    assert told is not None
    assert told["child"] == studio.only["id"]


def test_when_redis_was_emptied_a_replay_makes_no_second_follow_up(studio: Studio) -> None:
    studio.tell()
    studio.work()
    child = studio.only["id"]
    studio.redis.flushdb()
    queues.enqueue_replay(studio.redis, *PLACE)
    studio.work()
    told = studio.told()
    assert told is not None
    assert told["child"] == child == studio.only["id"]


@pytest.mark.parametrize("minutes", [4, 59])
def test_a_follow_up_is_found_although_the_clock_of_replicate_is_behind_ours(
    studio: Studio, minutes: int
) -> None:
    studio.api.mishaps = [lost]
    studio.tell()
    studio.work()
    child, intent = studio.only["id"], follow_up_key(*PLACE)
    written = json.loads(studio.redis.get(intent) or b"")
    ahead = datetime.fromisoformat(written["at"]) + timedelta(minutes=minutes)
    studio.redis.set(intent, json.dumps(written | {"at": format_time(ahead)}))
    studio.again()
    told = studio.told()
    assert told is not None
    assert told["child"] == child == studio.only["id"]


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 422, 500])
def test_a_search_that_fails_is_never_final(studio: Studio, status: int) -> None:
    """What an earlier run has created may be there, whatever the API says of its list today."""
    studio.api.mishaps = [lost]
    studio.tell()
    studio.work()
    studio.api.simulator.refuse(1, status=status)
    studio.again()
    assert studio.told() is None
    assert studio.job().get_status() == JobStatus.SCHEDULED
    studio.again()
    told = studio.told()
    assert told is not None
    assert told["child"] == studio.only["id"]


@pytest.mark.parametrize("mishap", [lost, failing])
@pytest.mark.parametrize("without", [frozenset(), frozenset({"webhook", "model", "logs"})])
def test_a_follow_up_whose_creation_was_not_confirmed_is_found(
    studio: Studio, mishap: Any, without: frozenset[str]
) -> None:
    studio.api.mishaps = [mishap]
    studio.api.without = without
    # More than is read of an item of the list.
    studio.handlers = UPSCALE.replace("scale = 2", f'scale = 2, prompt = "{"p" * (LONG + 1)}"')
    studio.tell()
    studio.work()
    assert studio.told() is None
    child = studio.only
    studio.again()
    told = studio.told()
    assert told is not None
    assert told["child"] == child["id"] == studio.only["id"]
    assert len(studio.api.creations) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "skews",
    [
        (0.0, 0.0, 0.0),
        (0.0, 320.0, 0.0),
        (0.0, -7200.0, 45.0),
        (45.0, 7200.0, -45.0),
        (-55.0, 0.0, 0.0),
    ],
)
def test_a_worker_that_is_killed_between_creating_and_noting_leaves_no_second_follow_up(
    studio: Studio, valkey_url: str, tmp_path: Path, skews: tuple[float, float, float]
) -> None:
    """Nobody receives webhooks here, so that only Replicate's list tells the next run what was created.

    The clock of the host is off by so many seconds at first, then when it is killed, and that of another
    host; a third one, 320 s ahead, takes nothing.
    """
    first, then, next_one = skews
    host = WrongClock(tmp_path, first)
    right = dict(studio.environment)
    right |= {"REDIS_URL": valkey_url, "OUTKEEP_SECRET_KEY": KEYS[0].decode()}
    studio.environment = right | host.environment
    hanging = Hanging()
    studio.api.mishaps = [hanging]
    studio.tell()
    with studio.working() as doomed:
        assert hanging.created.wait(60)
        host.step_to(then)
        doomed.kill()
        doomed.wait()
    hanging.release.set()
    child = studio.only["id"]
    assert studio.told() is None
    studio.environment = right | WrongClock(tmp_path, 320.0).environment
    with studio.working():
        studio.environment = right | WrongClock(tmp_path, next_one).environment
        with studio.working():
            wait_until(studio.told, seconds=120)
    studio.environment = right
    told = studio.told()
    assert told is not None
    assert told["child"] == child == studio.only["id"]
    assert len(studio.api.creations) == 1
    assert f"follows {ID} by {NAME}" in studio.show(child)
    assert f"followed by {child} ({NAME})" in studio.show(ID)


def test_what_is_not_listed_is_waited_for_and_then_created(studio: Studio) -> None:
    studio.api.mishaps = [unreachable]
    studio.tell()
    studio.work()
    studio.again()
    assert len(studio.api.creations) == 1, "it may still come"
    assert len(studio.attempts()) == 1, "waiting is no attempt"
    studio.age_intent(SETTLE)
    studio.again()
    assert len(studio.api.creations) == 2
    told = studio.told()
    assert told is not None
    assert told["child"] == studio.only["id"]


def test_the_follow_up_of_another_parent_is_not_taken_for_ours(studio: Studio) -> None:
    studio.handlers = CAPTION
    studio.api.without = frozenset({"webhook"})
    studio.tell()
    studio.work()
    first = studio.only["id"]
    other = ("upscale", Kind.PREDICTION, "another")
    ours = FollowUps(studio.redis)
    assert not ours.claim(other, first)
    assert ours.claim(PLACE, first)
    intent = Intent(format_time(datetime.now(UTC)), fingerprint({"prompt": "about größer"}), None, None)
    lease = ours.lease(other)
    assert lease.acquire()
    assert ours.intend(other, lease, intent)
    lease.release()
    raw = json.loads((studio.outputs / "predictions" / ID / "prediction.json").read_text())
    path = studio.outputs / "predictions" / "another" / "prediction.json"
    path.parent.mkdir()
    path.write_text(
        json.dumps({**raw, "id": "another", "prediction": {**raw["prediction"], "id": "another"}})
    )
    studio.redis.set(
        follow_up_key(*other),
        json.dumps({**vars(intent), "at": format_time(datetime.now(UTC) - timedelta(seconds=SETTLE + 1))}),
    )
    queues.enqueue_notify(studio.redis, *other)
    studio.work()
    told = json.loads(path.with_name("told-upscale.json").read_text())
    assert told["child"] != first
    assert len(predictions(studio.api.simulator)) == 2


def creating_for_long(studio: Studio) -> tuple[Hanging, threading.Thread]:
    """A run whose creation is not answered yet."""
    hanging = Hanging()
    studio.api.mishaps = [hanging]
    studio.tell()
    worker = threading.Thread(target=asyncio.run, args=(_make(studio),))
    worker.start()
    assert hanging.created.wait(60)
    return hanging, worker


def test_of_runs_that_overlap_one_creates(studio: Studio) -> None:
    hanging, worker = creating_for_long(studio)
    studio.work()
    assert studio.told() is None
    assert studio.job().get_status() == JobStatus.SCHEDULED
    hanging.release.set()
    worker.join()
    studio.again()
    told = studio.told()
    assert told is not None
    assert told["child"] == studio.only["id"]
    assert len(studio.api.creations) == 1


def test_whoever_creates_for_long_keeps_the_lock(studio: Studio) -> None:
    hanging, worker = creating_for_long(studio)
    lock, nearly_over = follow_up_lock(*PLACE), LEASE // 2
    studio.redis.expire(lock, nearly_over)
    wait_until(lambda: studio.redis.ttl(lock) > nearly_over)
    hanging.release.set()
    worker.join()
    assert not studio.redis.exists(lock)


async def _make(studio: Studio) -> None:
    """Another run of the same job, in a worker that RQ has given up."""
    deployment = Deployment(load(studio.environment), "", KEYS, studio.known())
    async with notify_jobs(deployment, studio.redis) as jobs:
        [job] = jobs.values()
        service = job.args[0]  # type: ignore[attr-defined]
        await service.attempt(Delivery(*PLACE, "another"))


def test_whoever_has_lost_the_lock_does_not_create(redis: Redis) -> None:
    ours = FollowUps(redis)
    intent = Intent("2026-03-01T12:00:00.000Z", "x", None, None)
    first, second = ours.lease(PLACE), ours.lease(PLACE)
    assert first.acquire()
    assert not second.acquire(blocking=False)
    redis.delete(follow_up_lock(*PLACE))  # it was paused for longer than the lease lives
    assert not ours.intend(PLACE, first, intent)
    assert second.acquire()
    for call in (first.reacquire, first.release):
        with pytest.raises(LockError):
            call()
    assert not ours.intend(PLACE, first, intent)
    assert ours.intend(PLACE, second, intent)
    assert ours.intent(PLACE) == intent


def test_a_line_of_follow_ups_ends(studio: Studio) -> None:
    line = Lineage(Kind.PREDICTION, "before", NAME, DEEPEST)
    studio.store(context=followed(None, line))
    job = studio.tell()
    studio.work()
    assert job.get_status() == JobStatus.FAILED
    [attempt] = studio.attempts()
    assert attempt["error"] == "follow_up_too_deep"
    assert "does handler 'upscale' want what it makes itself?" in attempt["detail"]
    assert studio.api.creations == []


@pytest.mark.parametrize(
    ("template", "given"),
    [
        ("{output}", "a lighthouse"),
        ("of {output}", "of a lighthouse"),
        ("{output[1]}", "light"),
    ],
)
def test_streamed_text_is_given_as_text(studio: Studio, template: str, given: str) -> None:
    studio.handlers = CAPTION.replace("about {input.prompt}", template)
    tokens = ["a ", "light", "house"]
    text = KeptFile("/output", None, "output.txt", "text/plain", 12, "00")
    studio.store(text, stored_output=tokens, output=tokens)
    studio.tell()
    studio.work()
    assert studio.only["input"]["prompt"] == given


def test_a_list_of_files_is_no_text(studio: Studio) -> None:
    studio.handlers = CAPTION.replace("about {input.prompt}", "{output}")
    studio.store(output=["https://x/y.png"], stored_output=["output-0.png"])
    studio.tell()
    studio.work()
    assert studio.only["input"]["prompt"] == ["output-0.png"]


LOST = KeptFile("/output/0", "https://x/a.png", error="not_found")
SECOND = KeptFile("/output/1", "https://x/y.png", "output-1.png", "image/png", 3, "00")
INPUT = KeptFile("/input/image", "https://x/i.png", "input-image-0.png", "image/png", 3, "00")


@pytest.mark.parametrize("named", ["{files[0].url}", "{files[0].size}", "{files}"])
def test_no_follow_up_is_made_of_what_was_lost(studio: Studio, named: str) -> None:
    studio.handlers = UPSCALE.replace("{files[0].url}", named)
    studio.store(LOST, SECOND, INPUT)
    job = studio.tell()
    studio.work()
    assert studio.api.creations == []
    assert job.get_status(refresh=True) == JobStatus.FAILED
    assert studio.attempts()[-1]["error"] == "file_lost"
    assert "(not_found)" in studio.attempts()[-1]["detail"]


def test_a_number_stands_for_the_same_output_whatever_else_was_lost(studio: Studio) -> None:
    studio.handlers = UPSCALE.replace("files[0]", "files[1]")
    studio.store(LOST, SECOND, INPUT)
    studio.tell()
    studio.work()
    [created] = studio.api.creations
    assert "/output-1.png?" in created["input"]["image"]


def test_an_input_that_is_kept_is_no_output(studio: Studio) -> None:
    studio.store(INPUT)
    studio.tell()
    studio.work()
    assert studio.api.creations == []
    assert studio.attempts()[-1]["error"] == "input_unresolved"


def test_an_input_that_would_be_too_large_is_a_dead_letter_at_once(studio: Studio) -> None:
    studio.handlers = CAPTION.replace("{input.prompt}", "{input.prompt}" * 70)
    studio.store(input={"prompt": "x" * (1 << 20)})
    job = studio.tell()
    studio.work()
    assert job.get_status() == JobStatus.FAILED
    assert [attempt["error"] for attempt in studio.attempts()] == ["input_too_large"]


def test_what_the_event_does_not_hold_is_a_dead_letter(studio: Studio) -> None:
    studio.handlers = studio.handlers.replace("files[0]", "files[7]")
    job = studio.tell()
    studio.work()
    assert job.get_status() == JobStatus.FAILED
    [attempt] = studio.attempts()
    assert (attempt["error"], attempt["detail"]) == ("input_unresolved", "the event has no {files[7].url}")


def test_bad_input_is_a_dead_letter_in_the_words_of_the_api(studio: Studio) -> None:
    studio.api.mishaps = [refuses(422, "- input.scale: must be less than or equal to 1")]
    job = studio.tell()
    studio.work()
    assert job.get_status() == JobStatus.FAILED
    [attempt] = studio.attempts()
    assert attempt["error"] == "api_rejected"
    assert "- input.scale: must be less than or equal to 1" in attempt["detail"]
    assert studio.redis.get(follow_up_key(*PLACE)) is None


@pytest.mark.parametrize("status", [400, 402, 403, 422])
@pytest.mark.parametrize("sign", ["x", "\N{CAT}", '"', "\n", "- input: "])
def test_of_what_the_api_says_a_few_hundred_signs_are_kept(
    studio: Studio, status: int, sign: str, caplog: pytest.LogCaptureFixture
) -> None:
    studio.api.mishaps = [refuses(status, sign * 5_000)]
    studio.tell()
    studio.work()
    [attempt] = studio.attempts()
    assert len(attempt["detail"]) < MAX_DETAIL, "it is not cut where it is kept"
    assert max(len(line.getMessage()) for line in caplog.records) < 2 * MAX_DETAIL


def test_of_what_a_template_lacks_a_few_hundred_signs_are_kept(studio: Studio) -> None:
    studio.handlers = studio.handlers.replace("files[0].url", f"input.{'member_' * 500}")
    job = studio.tell()
    studio.work()
    assert job.get_status() == JobStatus.FAILED
    [attempt] = studio.attempts()
    assert attempt["error"] == "input_unresolved"
    assert len(attempt["detail"]) == MAX_DETAIL


def test_a_refused_token_is_tried_again_and_never_shown(studio: Studio) -> None:
    studio.environment["REPLICATE_API_TOKEN"] = "r8_wrong_and_secret"
    studio.tell()
    studio.work()
    [attempt] = studio.attempts()
    assert attempt["error"] == "api_refused"
    assert "r8_wrong" not in json.dumps(attempt)
    studio.environment["REPLICATE_API_TOKEN"] = studio.api.simulator.token
    studio.again()
    assert studio.told() is not None


def test_an_account_without_credit_is_tried_again_and_told_so(studio: Studio) -> None:
    studio.api.mishaps = [refuses(402, "You have insufficient credit to run this model.")]
    studio.tell()
    studio.work()
    [attempt] = studio.attempts()
    assert attempt["error"] == "api_unpaid"
    assert "You have insufficient credit to run this model." in attempt["detail"]
    assert studio.told() is None
    studio.again()
    assert len(studio.attempts()) == 2
    told = studio.told()
    assert told is not None
    assert told["child"] == studio.only["id"]


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (402, "You have insufficient credit to run this model."),
        (429, "Your rate limit is reduced to 6 requests per minute while you have less than $5.0 in credit."),
    ],
)
def test_an_account_that_stops_everything_is_told_of_once(
    studio: Studio, status: int, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [f"p{number}" for number in range(3)]
    for one in ids:
        studio.store(id=one)
        assert queues.enqueue_notify(studio.redis, NAME, Kind.PREDICTION, one)
    studio.api.mishaps = [refuses(status, detail)] * 3
    studio.work()
    lines = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    [line] = [line for line in lines if "credit" in line]
    assert detail in line
    assert "add credit or a payment method at https://replicate.com/account/billing" in line


def test_a_429_is_waited_for_and_is_no_attempt(studio: Studio) -> None:
    busy = refuses(429, "Request was throttled.", retry_after="7")
    studio.api.mishaps = [busy] * 12
    studio.tell()
    studio.work()
    for _ in range(11):
        assert 5 < _wait(studio) < 60
        studio.again()
    assert studio.attempts() == []
    studio.again()
    assert len(studio.attempts()) == 1
    assert studio.told() is not None


def _wait(studio: Studio) -> float:
    job = studio.job()
    at = queues.queue(NOTIFY_QUEUE, studio.redis).scheduled_job_registry.get_scheduled_time(job.id)
    assert job.ended_at is not None
    seconds: float = (at - job.ended_at.replace(tzinfo=UTC)).total_seconds()
    return seconds


def test_all_processes_together_create_no_more_than_replicate_takes(studio: Studio) -> None:
    limit = CreationLimit(studio.redis)
    taken = 0
    while not limit.take():
        taken += 1
    assert 30 <= taken < 60, "a few come at once"
    studio.tell()
    # The limit must not come free meanwhile.
    studio.redis.set(CREATIONS, studio.redis.time()[0] + 60)
    studio.work()
    assert studio.api.creations == []
    assert studio.attempts() == []
    assert 30 < _wait(studio) < 120
    studio.redis.delete(CREATIONS)
    studio.again()
    assert studio.told() is not None


def test_a_limit_lets_through_again_as_time_passes(redis: Redis) -> None:
    limit = CreationLimit(redis, every=60, at_once=1)
    assert limit.take() == 0
    assert 0 < limit.take() <= 60
    redis.set(CREATIONS, float(redis.get(CREATIONS) or 0) - 60)
    assert limit.take() == 0
