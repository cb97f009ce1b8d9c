"""The notify job through RQ: each test works the queue off with the worker that runs in production."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from redis import Redis
from rq import Retry
from rq.job import Job, JobStatus

from app.accept import queues
from app.core import handlers, prediction
from app.core.links import check_path, link_keys
from app.core.manifest import KeptFile, Manifest, Receipt, format_time
from app.core.names import NOTIFY_JOB, NOTIFY_QUEUE, Kind, notification_id, notify_job_id
from app.core.policy import NOTIFY_DELAYS, UNKNOWN_PATIENCE
from app.core.signature import generate_secret
from app.deployment import Deployment
from app.maintain.handler_states import HandlerStates
from app.receive.listening import free_port
from app.settings import load
from app.storage.store import Storage
from tests.e2e.recorder import DEFAULT_SECRET, recorder
from tests.engine.worker_process import failure, wait_until
from tests.keep.desk import Quick
from tests.raw_host import (
    RawHost,
    Script,
    ok,
    raw_host,
    self_signed,
    then_for_ever,
    then_reset,
    then_silence,
)
from workers.services import Jobs, notify_jobs

ID = "zxnmcx7c2p3wp0fkexvxs6zf6p"
HANDLER = "gallery"
KEYS = (b"k" * 32,)


class Office:
    """A stored prediction, handlers, and a worker that works the queue `notify` off."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self.folder = folder
        self.outputs = folder / "outputs"
        self.environment = {
            "OUTKEEP_DATA": str(folder),
            "OUTKEEP_NOTIFY_PRIVATE": "true",
            "OUTKEEP_PUBLIC_URL": "https://keep.example.com",
        }
        self.handlers = ""

    def store(self, kind: Kind = Kind.PREDICTION, *, files: int = 1, **keys: Any) -> None:
        raw = {"id": ID, "status": "succeeded", "input": {"prompt": "größer"}, "output": ["u"], **keys}
        kept = [
            KeptFile(f"/output/{n}", "https://x/y.png", f"output-{n}.png", "image/png", 3, "00")
            for n in range(files)
        ]
        now = datetime.now(UTC)
        received = Receipt(now, "msg_1", query={"customId": "1"}, context={"user": 7})
        manifest = Manifest(prediction.from_object(raw, kind), tuple(kept), ["output-0.png"], received, now)
        Storage(self.outputs.as_uri()).commit(manifest)

    def tell(
        self, url: str, *, name: str = HANDLER, secret: str = DEFAULT_SECRET, kind: Kind = Kind.PREDICTION
    ) -> Job:
        """Add a handler and enqueue its job."""
        self.handlers += f'[[handler]]\nname = "{name}"\nurl = "{url}"\nsecret = "{secret}"\n'
        assert queues.enqueue_notify(self.redis, name, kind, ID)
        return self.job(name, kind)

    def job(self, name: str = HANDLER, kind: Kind = Kind.PREDICTION) -> Job:
        job = queues.queue(NOTIFY_QUEUE, self.redis).fetch_job(notify_job_id(name, kind, ID))
        assert job is not None
        return job

    def work(self, *, timeout: float = 10) -> None:
        """Run every job that is due, with a worker of its own; handlers have `timeout` seconds to answer."""
        known = handlers.parse(self.handlers, lambda text: text)
        deployment = Deployment(load(self.environment), "", KEYS, known)

        def jobs() -> AbstractAsyncContextManager[Jobs]:
            return notify_jobs(deployment, self.redis, patience=timeout)

        Quick(NOTIFY_QUEUE, connection=self.redis, jobs=jobs).work(burst=True)

    def hasten(self, job: Job) -> None:
        """Let the time come for which a job is scheduled, as RQ's scheduler would."""
        queue = queues.queue(NOTIFY_QUEUE, self.redis)
        queue.scheduled_job_registry.remove(job.id)
        job.refresh()  # type: ignore[no-untyped-call]
        queue.enqueue_job(job)

    def wait(self, job: Job) -> float:
        """Seconds from the end of the last run until the next, by RQ's registry."""
        job.refresh()  # type: ignore[no-untyped-call]
        registry = queues.queue(NOTIFY_QUEUE, self.redis).scheduled_job_registry
        at = registry.get_scheduled_time(job.id)
        assert job.ended_at is not None
        seconds: float = (at - job.ended_at.replace(tzinfo=UTC)).total_seconds()
        return seconds

    def told(self, name: str = HANDLER, kind: Kind = Kind.PREDICTION) -> dict[str, Any] | None:
        path = self.outputs / kind.folder / ID / f"told-{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def failed(self) -> list[str]:
        ids: list[str] = queues.queue(NOTIFY_QUEUE, self.redis).failed_job_registry.get_job_ids()
        return ids


@pytest.fixture
def office(redis: Redis, tmp_path: Path) -> Office:
    office = Office(redis, tmp_path)
    office.store()
    return office


def attempts(job: Job) -> list[dict[str, Any]]:
    job.refresh()  # type: ignore[no-untyped-call]
    found: list[dict[str, Any]] = job.meta["attempts"]
    return found


@contextmanager
def raw(*answers: bytes | Script, tls: ssl.SSLContext | None = None) -> Iterator[RawHost]:
    """A raw host in a thread of its own: the worker needs the main one for its signals."""
    loop, started, ending = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[RawHost] = []

    async def serve() -> None:
        async with raw_host(*answers, tls=tls) as host:
            found.append(host)
            started.set()
            await ending.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(60)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


def url_of(host: RawHost) -> str:
    return f"http://127.0.0.1:{host.port}/hook"


def test_a_handler_is_told_once_and_three_official_verifiers_agree(office: Office) -> None:
    with recorder() as downstream:
        job = office.tell(downstream.url)
        office.work()
        [request] = downstream.received
        downstream.verify(request)
    assert request.header("content-type") == "application/json"
    assert request.header("webhook-id") == notification_id(HANDLER, Kind.PREDICTION, ID)
    assert request.event["type"] == "prediction.succeeded"
    assert request.event["data"]["context"] == {"user": 7}
    assert job.get_status(refresh=True) == JobStatus.FINISHED
    [attempt] = attempts(job)
    assert (attempt["status"], attempt["error"], attempt["detail"]) == (204, None, "")
    told = office.told()
    assert told is not None
    assert datetime.fromisoformat(told.pop("at")).tzinfo is UTC
    assert told == {
        "webhook_id": request.header("webhook-id"),
        "outcome": "delivered",
        "attempts": 1,
        "child": None,
    }


def test_what_is_sent_is_the_event_of_the_contract(office: Office) -> None:
    with recorder() as downstream:
        office.tell(downstream.url)
        office.work()
        [request] = downstream.received
    assert set(request.event) == {"type", "timestamp", "data"}
    assert set(request.event["data"]) >= {
        "id", "kind", "status", "model", "version", "input", "output", "files", "error", "metrics", "logs",
        "created_at", "completed_at", "query", "context", "lost",
    }  # fmt: skip
    assert request.event["data"]["input"] == {"prompt": "größer"}


def test_links_in_an_event_are_signed_for_seven_days(office: Office) -> None:
    with recorder() as downstream:
        office.tell(downstream.url)
        office.work()
        [file] = downstream.received[0].event["data"]["files"]
    url = urlsplit(file["url"])
    query = parse_qs(url.query)
    assert f"{url.scheme}://{url.netloc}" == "https://keep.example.com"
    assert url.path == f"/files/predictions/{ID}/output-0.png"
    in_a_week = time.time() + 7 * 86400
    check_path(url.path, query["expires"][0], query["signature"][0], link_keys(KEYS), now=in_a_week)


def test_a_training_is_told_about_as_one(office: Office) -> None:
    office.store(Kind.TRAINING)
    with recorder() as downstream:
        office.tell(downstream.url, kind=Kind.TRAINING)
        office.work()
        assert downstream.received[0].event["type"] == "training.succeeded"
    assert office.told(kind=Kind.TRAINING)


def test_each_of_several_secrets_verifies(office: Office) -> None:
    old, new = (generate_secret(bytes([number]) * 32) for number in (1, 2))
    with recorder() as downstream:
        office.tell(downstream.url, secret=f"{new} {old}")
        office.work()
        [request] = downstream.received
        for secret in (old, new):
            downstream.secret = secret
            downstream.verify(request)


def test_every_attempt_has_the_same_id_and_a_fresh_timestamp(office: Office) -> None:
    statuses = iter([500, 204])
    with recorder(answer=lambda _: next(statuses)) as downstream:
        job = office.tell(downstream.url)
        office.work()
        said = int(downstream.received[0].header("webhook-timestamp"))
        wait_until(lambda: time.time() >= said + 1)
        office.hasten(job)
        office.work()
        first, second = downstream.received
        downstream.verify(first)
        downstream.verify(second)
    assert first.header("webhook-id") == second.header("webhook-id")
    assert int(second.header("webhook-timestamp")) > int(first.header("webhook-timestamp"))
    assert first.header("webhook-signature") != second.header("webhook-signature")
    assert [attempt["status"] for attempt in attempts(job)] == [500, 204]
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("delivered", 2)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (
            ok(b"", status="301 Moved Permanently").replace(b"\r\n\r\n", b"\r\nLocation: /other\r\n\r\n"),
            "status_301",
        ),
        (ok(b"", "Location: /other", status="307 Temporary Redirect"), "status_307"),
        (ok(b"no", status="400 Bad Request"), "status_400"),
        (ok(b"no", status="404 Not Found"), "status_404"),
        (ok(b"no", status="500 Oops"), "status_500"),
        (b"nonsense\r\n\r\n", "answer_malformed"),
        (then_reset(b""), "connection_reset"),
        (b"", "connection_reset"),
    ],
)
def test_only_2xx_is_success_and_nothing_is_followed(
    office: Office, answer: bytes | Script, code: str
) -> None:
    with raw(answer) as host:
        job = office.tell(url_of(host))
        office.work()
        assert host.connections == 1
    [attempt] = attempts(job)
    assert attempt["error"] == code
    assert attempt["detail"]
    assert job.get_status() == JobStatus.SCHEDULED
    assert 4 <= office.wait(job) <= 7
    assert office.told() is None
    assert office.failed == []


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "202 Accepted", "204 No Content", "299 Odd"])
def test_any_2xx_is_success(office: Office, status: str) -> None:
    with raw(ok(b"", status=status)) as host:
        job = office.tell(url_of(host))
        office.work()
    assert attempts(job)[0]["status"] == int(status[:3])
    assert office.told()


def test_nobody_there_and_no_such_name_are_failures(office: Office) -> None:
    closed = office.tell(f"http://127.0.0.1:{free_port()}/", name="closed")
    unnamed = office.tell("http://no-such-name.invalid/", name="unnamed")
    office.work()
    assert attempts(closed)[0]["error"] == "connect_failed"
    assert attempts(unnamed)[0]["error"] == "dns_failed"


def test_silence_is_a_time_out(office: Office) -> None:
    with raw(then_silence(b"HTTP/1.1 2")) as host:
        job = office.tell(url_of(host))
        office.work(timeout=0.3)
        [attempt] = attempts(job)
    assert (attempt["error"], attempt["status"]) == ("timeout", None)
    assert job.get_status() == JobStatus.SCHEDULED


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        then_for_ever(HEAD, b"10000\r\n" + b"a" * 65536 + b"\r\n"),
        then_for_ever(HEAD, b"1\r\na\r\n", every=0.01),
        then_silence(HEAD),
        then_reset(HEAD + b"5\r\nabc"),
    ],
)
def test_the_status_counts_whatever_the_body_does(office: Office, answer: Script) -> None:
    with raw(answer) as host:
        job = office.tell(url_of(host))
        office.work()
        assert host.connections == 1
    assert attempts(job)[0]["error"] is None
    assert office.told()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"X: " + b"a" * 9_000 + b"\r\n\r\nok", ""),
        (b"X: " + b"a" * 300_000 + b"\r\n\r\nok", "of more than"),
        (b"X: 1\r\n" * 129 + b"\r\nok", ""),
        (b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", "the same length"),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", "lengths that do not agree"),
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok", "length unclear"),
        (b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", "a transfer coding"),
        (b"Content-Length: two\r\n\r\nok", "no numbers"),
        (b"X Y: 1\r\nContent-Length: 2\r\n\r\nok", "proper name"),
        (b"garbage\r\n\r\n", "proper name"),
        (b"X: \0\r\n\r\n", "control character"),
        (b"Content-Length: 2\r\n\r\nokay and more", ""),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\nok", "a body that is not whole"),
        (b"Content-Length: 200\r\n\r\nok", "a body that is not whole"),
        (b"X: cut", "headers that were cut off"),
        (b"", ""),
    ],
)
def test_a_handler_that_has_answered_200_is_not_asked_again(
    office: Office, answer: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with raw(b"HTTP/1.1 200 OK\r\n" + answer) as host:
        job = office.tell(url_of(host))
        office.work()
        assert host.connections == 1
    [attempt] = attempts(job)
    assert (attempt["status"], attempt["error"]) == (200, None)
    assert office.told()
    assert said in "".join(str(getattr(record, "odd", "")) for record in caplog.records)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200", 200),
        (b"HTTP/1.1 200 OK", 200),
        (b"HTTP/1.0 202 Accepted", 202),
        (b"HTTP/1.1 204 No Content\r", 204),
        (then_silence(b"HTTP/1.1 200 OK"), 200),
        (b"HTTP/1.1 103 Early\r\nX: 1\r\n\r\nHTTP/1.1 201 C", 201),
    ],
)
def test_a_status_without_the_end_of_its_line_is_an_answer(
    office: Office, answer: bytes | Script, status: int
) -> None:
    with raw(answer) as host:
        job = office.tell(url_of(host))
        office.work()
        assert host.connections == 1
    assert (attempts(job)[0]["status"], attempts(job)[0]["error"]) == (status, None)


def test_a_handler_whose_head_never_ends_has_answered(office: Office) -> None:
    with raw(then_for_ever(b"HTTP/1.1 204 No Content\r\n", b"X: 1\r\n", every=0.05)) as host:
        job = office.tell(url_of(host))
        office.work()
        assert host.connections == 1
    assert (attempts(job)[0]["status"], attempts(job)[0]["error"]) == (204, None)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 600\r\nX Y: 1\r\n\r\n", "status_503"),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nRetry-After: 600\r\nX Y: 1\r\n\r\n",
            "status_503",
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: /b\r\nX Y: 1\r\n\r\n", "status_302"),
        (b"HTTP/1.1 20", "connection_reset"),
        (b"HTTP/1.1 100 Continue\r\nX: cut", "connection_reset"),
        (b"HTTP/1.1 503", "status_503"),
        (b"nonsense\r\n\r\n", "answer_malformed"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "answer_malformed"),
    ],
)
def test_an_odd_answer_without_success_is_a_failure(office: Office, answer: bytes, error: str) -> None:
    with raw(answer) as host:
        job = office.tell(url_of(host))
        office.work()
    assert attempts(job)[0]["error"] == error
    if b"Retry-After" in answer:
        assert office.wait(job) > 590


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [("600", 600, 601), ("1", 4, 6), ("abc", 4, 6), ("-5", 4, 6), ("99999999999", 86400, 86401)],
)
def test_retry_after_is_honoured_up_to_a_day(office: Office, asked: str, least: int, most: int) -> None:
    with raw(ok(b"", f"Retry-After: {asked}", status="503 Busy")) as host:
        job = office.tell(url_of(host))
        office.work()
    assert least - 1 <= office.wait(job) <= most + 1


def test_a_date_in_retry_after_is_honoured(office: Office) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    with raw(ok(b"", f"Retry-After: {later}", status="429 Too Many Requests")) as host:
        job = office.tell(url_of(host))
        office.work()
    assert 7100 <= office.wait(job) <= 7201


def test_the_schedule_is_kept_and_ends_in_a_dead_letter(office: Office) -> None:
    with recorder(answer=lambda _: 500) as downstream:
        job = office.tell(downstream.url)
        for number, delay in enumerate(NOTIFY_DELAYS, 1):
            office.work()
            assert len(attempts(job)) == number
            assert 0.9 * delay - 1 <= office.wait(job) <= 1.1 * delay + 1
            assert office.told() is None
            office.hasten(job)
        office.work()
        assert len({request.header("webhook-id") for request in downstream.received}) == 1
        assert len(downstream.received) == len(NOTIFY_DELAYS) + 1 == 10
    assert job.get_status(refresh=True) == JobStatus.FAILED
    assert office.failed == [job.id]
    assert "the handler answered 500" in failure(job)
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("dead", 10)
    assert told["error"] == attempts(job)[-1]["error"]


def test_a_dead_letter_that_is_requeued_gets_another_attempt(office: Office) -> None:
    statuses = iter([*[500] * 10, 200])
    with recorder(answer=lambda _: next(statuses)) as downstream:
        job = office.tell(downstream.url)
        for _ in NOTIFY_DELAYS:
            office.work()
            office.hasten(job)
        office.work()
        job.refresh()  # type: ignore[no-untyped-call]
        job.requeue()
        office.work()
        assert len(downstream.received) == 11
    assert job.get_status(refresh=True) == JobStatus.FINISHED
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("delivered", 11)


def test_a_handler_that_this_process_does_not_know_waits_half_an_hour_for_one_that_does(
    office: Office,
) -> None:
    with recorder() as downstream:
        job = office.tell(downstream.url)
        known, office.handlers = office.handlers, ""
        office.work()
        assert (office.failed, attempts(job), office.told()) == ([], [], None)
        assert job.get_status(refresh=True) == JobStatus.SCHEDULED

        office.handlers = known
        office.hasten(job)
        office.work()
        assert len(downstream.received) == 1
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("delivered", 1)


def unknown_for(office: Office, age: timedelta) -> Job:
    """A job that has met, so long ago, a process that does not know its handler, and meets one again."""
    job = office.tell("http://127.0.0.1:9/")
    office.handlers = ""
    office.work()
    job.refresh()  # type: ignore[no-untyped-call]
    job.meta["unknown_since"] = format_time(datetime.now(UTC) - age)
    job.save_meta()  # type: ignore[no-untyped-call]
    office.hasten(job)
    office.work()
    return job


@pytest.mark.parametrize("minutes", [0, 1, 10, 20, 29])
def test_a_handler_that_nobody_knows_yet_is_waited_for(office: Office, minutes: float) -> None:
    job = unknown_for(office, timedelta(minutes=minutes))
    assert (office.failed, attempts(job), office.told()) == ([], [], None)
    assert job.get_status(refresh=True) == JobStatus.SCHEDULED


def test_who_was_known_meanwhile_is_waited_for_afresh(office: Office) -> None:
    known = office.tell("http://127.0.0.1:9/"), office.handlers
    job, office.handlers = known[0], ""
    office.work()
    job.refresh()  # type: ignore[no-untyped-call]
    job.meta["unknown_since"] = format_time(datetime.now(UTC) - UNKNOWN_PATIENCE)
    job.save_meta()  # type: ignore[no-untyped-call]
    for office.handlers in (known[1], ""):  # nobody answers there; then an older process has its turn
        office.hasten(job)
        office.work()
    assert (office.failed, len(attempts(job))) == ([], 1)
    assert job.get_status(refresh=True) == JobStatus.SCHEDULED


@pytest.mark.parametrize("minutes", [30, 31, 600])
def test_a_handler_that_nobody_knows_is_a_dead_letter_after_half_an_hour(
    office: Office, minutes: float
) -> None:
    assert timedelta(minutes=30) == UNKNOWN_PATIENCE
    job = unknown_for(office, timedelta(minutes=minutes))
    assert office.failed == [job.id]
    [attempt] = attempts(job)
    assert attempt["error"] == "handler_unknown"
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("dead", 1)


def test_private_addresses_are_refused_unless_permitted(office: Office) -> None:
    del office.environment["OUTKEEP_NOTIFY_PRIVATE"]
    with recorder() as downstream:
        literal = office.tell(downstream.url, name="literal")
        named = office.tell(downstream.url.replace("127.0.0.1", "localhost"), name="named")
        office.work()
        assert downstream.received == []
        for job in (literal, named):
            assert attempts(job)[0]["error"] == "address_refused"
            assert "OUTKEEP_NOTIFY_PRIVATE" in attempts(job)[0]["detail"]
            office.hasten(job)
        office.environment["OUTKEEP_NOTIFY_PRIVATE"] = "true"
        office.work()
        assert len(downstream.received) == 2


@pytest.mark.parametrize("statuses", [[200], [500] * 10])
def test_an_outcome_that_storage_does_not_take_is_written_later_and_nothing_is_sent_again(
    office: Office, statuses: list[int]
) -> None:
    answers = iter(statuses)
    with recorder(answer=lambda _: next(answers)) as downstream:
        job = office.tell(downstream.url)
        obstacle = office.outputs / "predictions" / ID / f"told-{HANDLER}.json"
        obstacle.mkdir()
        for _ in range(len(statuses) + 3):
            office.work()
            assert job.get_status(refresh=True) == JobStatus.SCHEDULED
            office.hasten(job)
        obstacle.rmdir()
        office.work()
        assert len(downstream.received) == len(statuses)
    assert len(attempts(job)) == len(statuses)
    told = office.told()
    assert told is not None
    assert told["outcome"] == ("delivered" if statuses == [200] else "dead")
    assert office.failed == ([] if statuses == [200] else [job.id])


def test_a_manifest_that_cannot_be_read_holds_the_notification_back(office: Office) -> None:
    with recorder() as downstream:
        job = office.tell(downstream.url)
        folder = office.outputs / "predictions"
        folder.rename(office.outputs / "away")
        folder.touch()
        office.work()
        assert job.get_status(refresh=True) == JobStatus.SCHEDULED
        assert attempts(job) == []
        folder.unlink()
        (office.outputs / "away").rename(folder)
        office.hasten(job)
        office.work()
        assert len(downstream.received) == 1


def test_an_event_about_nothing_that_is_stored_is_a_dead_letter(office: Office) -> None:
    (office.outputs / "predictions" / ID / "prediction.json").unlink()
    with recorder() as downstream:
        job = office.tell(downstream.url)
        office.work()
        assert downstream.received == []
    assert office.failed == [job.id]
    assert attempts(job)[0]["error"] == "manifest_missing"


def test_one_dead_handler_does_not_hold_up_another(office: Office) -> None:
    told = threading.Event()
    with recorder() as downstream, recorder(answer=lambda _: 204 if told.wait(60) else 500) as dead:
        downstream.answer = lambda _: told.set() or 204  # type: ignore[func-returns-value]
        jobs = [office.tell(dead.url, name=f"dead-{number}") for number in range(5)]
        office.tell(downstream.url, name="alive")
        office.work(timeout=60)
        assert len(downstream.received) == 1
    assert office.told("alive")
    assert [attempts(job)[0]["status"] for job in jobs] == [204] * 5, "they waited for the other one"


@pytest.mark.parametrize(
    "arguments", [["../x", "prediction", ID], ["x", "prediction", "../../x"], ["x", "cat", ID], [1, 2, 3]]
)
def test_planted_arguments_are_refused(office: Office, arguments: list[Any]) -> None:
    queue = queues.queue(NOTIFY_QUEUE, office.redis)
    job = queue.enqueue(NOTIFY_JOB, args=arguments, job_id="planted", retry=Retry(max=3))
    before = sorted(office.outputs.rglob("*"))
    office.work()
    assert office.failed == [job.id]
    assert sorted(office.outputs.rglob("*")) == before


def off(office: Office, name: str = HANDLER) -> bool:
    return HandlerStates(office.redis).is_off(name)


def test_410_switches_the_handler_off_and_its_event_is_a_dead_letter(office: Office) -> None:
    with recorder(answer=lambda _: 410) as downstream:
        job = office.tell(downstream.url)
        office.work()
        assert len(downstream.received) == 1
    assert off(office)
    assert office.failed == [job.id]
    assert "outkeep handlers enable gallery" in failure(job)
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("off", 1)
    state = HandlerStates(office.redis).get(HANDLER)
    assert state.last is not None
    assert (state.word, state.last["error"]) == ("off", "status_410")


def test_a_handler_that_is_off_is_not_even_connected_to_and_others_are(office: Office) -> None:
    HandlerStates(office.redis).switch_off(HANDLER, datetime.now(UTC))
    with recorder() as downstream:
        job = office.tell(downstream.url)
        office.tell(downstream.url, name="other")
        office.work()
        assert len(downstream.received) == 1
    assert office.failed == [job.id]
    assert office.told("other")
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"], told["error"]) == ("off", 0, "handler_off")


def test_retries_that_come_due_after_a_410_are_dead_letters_too(office: Office) -> None:
    with recorder(answer=lambda _: 500) as downstream:
        job = office.tell(downstream.url)
        office.work()
        HandlerStates(office.redis).switch_off(HANDLER, datetime.now(UTC))
        office.hasten(job)
        office.work()
        assert len(downstream.received) == 1
    assert office.failed == [job.id]
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("off", 1)


def test_what_a_handler_missed_while_it_was_off_is_told_after_it_is_on_and_replayed(office: Office) -> None:
    statuses = iter([410, 200])
    with recorder(answer=lambda _: next(statuses)) as downstream:
        office.tell(downstream.url)
        office.work()
        HandlerStates(office.redis).switch_on(HANDLER)
        queues.enqueue_replay(office.redis, HANDLER, Kind.PREDICTION, ID)
        office.work()
        first, again = downstream.received
        downstream.verify(again)
    assert first.header("webhook-id") == again.header("webhook-id")
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("delivered", 1)


def test_an_off_that_storage_does_not_take_is_written_later_and_nothing_is_sent_again(
    office: Office,
) -> None:
    with recorder(answer=lambda _: 410) as downstream:
        job = office.tell(downstream.url)
        obstacle = office.outputs / "predictions" / ID / f"told-{HANDLER}.json"
        obstacle.mkdir()
        office.work()
        assert off(office)
        assert job.get_status(refresh=True) == JobStatus.SCHEDULED
        obstacle.rmdir()
        office.hasten(job)
        office.work()
        assert len(downstream.received) == 1
    assert office.failed == [job.id]
    told = office.told()
    assert told is not None
    assert told["outcome"] == "off"


def test_a_replay_tells_a_handler_that_was_told_before_with_the_same_id_and_fresh_links(
    office: Office,
) -> None:
    with recorder() as downstream:
        office.tell(downstream.url)
        office.work()
        office.redis.flushall()
        queues.enqueue_replay(office.redis, HANDLER, Kind.PREDICTION, ID)
        wait_until(lambda: time.time() >= int(downstream.received[0].header("webhook-timestamp")) + 1)
        office.work()
        first, again = downstream.received
        downstream.verify(again)
    assert first.header("webhook-id") == again.header("webhook-id")
    events = [one.event for one in (first, again)]
    links = [event["data"]["files"][0].pop("url") for event in events]
    assert links[0] != links[1]
    assert events[0] == events[1]


def test_a_retry_ends_when_a_replay_has_told_the_handler_meanwhile(office: Office) -> None:
    statuses = iter([500, 200])
    with recorder(answer=lambda _: next(statuses)) as downstream:
        job = office.tell(downstream.url)
        office.work()
        queues.enqueue_replay(office.redis, HANDLER, Kind.PREDICTION, ID)
        office.work()
        office.hasten(job)
        office.work()
        assert len(downstream.received) == 2
    assert job.get_status(refresh=True) == JobStatus.FINISHED
    told = office.told()
    assert told is not None
    assert (told["outcome"], told["attempts"]) == ("delivered", 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"outcome": "dead", "at": "9"}'])
def test_an_outcome_that_does_not_say_delivered_ends_no_retry(office: Office, content: bytes) -> None:
    statuses = iter([500, 200])
    with recorder(answer=lambda _: next(statuses)) as downstream:
        job = office.tell(downstream.url)
        office.work()
        (office.outputs / "predictions" / ID / f"told-{HANDLER}.json").write_bytes(content)
        office.hasten(job)
        office.work()
        assert len(downstream.received) == 2
    assert job.get_status(refresh=True) == JobStatus.FINISHED


def test_how_a_handler_fares_is_shown(office: Office) -> None:
    with raw(then_silence(b"")) as host:
        office.tell(url_of(host))
        office.work(timeout=0.2)
    state = HandlerStates(office.redis).get(HANDLER)
    assert state.last is not None
    assert (state.word, state.timeouts, state.last["error"]) == ("on", 1, "timeout")


def test_a_certificate_that_nobody_vouches_for_is_a_failure(office: Office) -> None:
    server, _ = self_signed(office.folder, "localhost")
    with raw(ok(b""), tls=server) as host:
        job = office.tell(f"https://127.0.0.1:{host.port}/hook")
        office.work()
        assert host.heads == []
    assert attempts(job)[0]["error"] == "tls_failed"
    assert office.told() is None
    assert job.get_status() == JobStatus.SCHEDULED


def test_no_more_than_20_kb_of_an_answer_are_read(office: Office) -> None:
    sent = 0

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        writer.write(HEAD)
        while True:
            writer.write(b"100000\r\n" + b"a" * (1 << 20) + b"\r\n")
            await writer.drain()
            sent += 1 << 20

    with raw(endless) as host:
        office.tell(url_of(host))
        office.work()
    assert office.told()
    assert sent < 16 << 20  # what the buffers of both sides hold
