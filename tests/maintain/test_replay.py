"""Telling handlers again and keeping what failed: the service, and the command as people type it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from app.accept import queues
from app.accept.records import Arrival, Records
from app.core import handlers
from app.core.lifecycle import Move
from app.core.manifest import Manifest, Receipt
from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE, Kind, persist_job_id
from app.core.prediction import from_object, parse
from app.maintain.backlog import backlog
from app.maintain.handler_states import HandlerStates
from app.maintain.replay import Outcome, Replay, Replayed
from app.storage.store import Storage
from tests.cli.test_cli import complaints, outkeep
from tests.receive.web import environment

SECRET = "whsec_Z2FsbGVyeS1nYWxsZXJ5LWdhbGxlcnkh"
FILE = "".join(
    f'[[handler]]\nname = "{name}"\nurl = "http://127.0.0.1:9/"\nsecret = "{SECRET}"\non = ["{on}"]\n'
    for name, on in (("gallery", "succeeded"), ("mail", "succeeded"), ("alarm", "failed"))
)
NOW = datetime.now(UTC)


class Past:
    """A deployment with a past: what is stored, and what RQ lists."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self.folder = folder
        self.storage = Storage((folder / "outputs").as_uri())
        self.records = Records(redis, ttl=86400)
        self.handlers = handlers.parse(FILE, lambda text: text)
        (folder / "handlers.toml").write_text(FILE)

    def store(self, prediction_id: str, *, ago: float = 0, kind: Kind = Kind.PREDICTION) -> None:
        """Store a prediction that reached us some seconds ago."""
        at = NOW - timedelta(seconds=ago)
        raw = {"id": prediction_id, "status": "succeeded", "output": None}
        self.storage.commit(Manifest(from_object(raw, kind), (), None, Receipt(at, "msg"), at))

    def receive(self, prediction_id: str) -> Job:
        """Accept an event; its persist job waits."""
        body = json.dumps({"id": prediction_id, "status": "succeeded", "output": "text"}).encode()
        job = queues.persist_job(self.redis, Kind.PREDICTION, prediction_id, timeout=60)
        arrival = Arrival(parse(body, Kind.PREDICTION), body, Receipt(NOW, "msg"), job)
        self.records.accept([arrival], NOW)
        return job

    def fail_to_keep(self, prediction_id: str) -> Job:
        """A prediction that was given up."""
        job = self.receive(prediction_id)
        self.records.move(Kind.PREDICTION, prediction_id, Move.FAIL, NOW, {"error": "crashed"})
        self.fail(job.id, PERSIST_QUEUE)
        return job

    def kill(self, prediction_id: str, handler: str = "gallery") -> str:
        """A dead letter; the id of its job."""
        assert queues.enqueue_notify(self.redis, handler, Kind.PREDICTION, prediction_id)
        job_id = f"notify-{handler}-prediction-{prediction_id}"
        self.fail(job_id, NOTIFY_QUEUE)
        return job_id

    def fail(self, job_id: str, name: str) -> None:
        """End a queued job as RQ does."""
        queue = queues.queue(name, self.redis)
        job = queue.fetch_job(job_id)
        assert job is not None
        queue.remove(job_id)
        job.meta = {"attempts": [{"at": "2026-03-16T10:00:00.000Z", "error": "status_500"}]}
        job.retries_left = 0
        job.save()
        job.set_status(JobStatus.FAILED)
        with self.redis.pipeline() as pipeline:
            queue.failed_job_registry.add(job, ttl=60, exc_string="no", pipeline=pipeline)
            pipeline.execute()

    def replay(self, only: str | None = None) -> Replay:
        return Replay(self.redis, self.storage, self.records, self.handlers, only)

    def queued(self, name: str = NOTIFY_QUEUE) -> list[str]:
        return list(queues.queue(name, self.redis).job_ids)

    def failed(self, name: str = NOTIFY_QUEUE) -> list[str]:
        return list(backlog(name, self.redis).failed)


@pytest.fixture
def past(redis: Redis, tmp_path: Path) -> Past:
    return Past(redis, tmp_path)


def outcomes(lines: Iterator[Replayed]) -> list[tuple[str, str | None]]:
    return [(line.outcome, line.handler) for line in lines]


def reason(lines: Iterator[Replayed]) -> str:
    (line,) = lines
    assert line.outcome is Outcome.REFUSED
    assert line.reason is not None
    return line.reason


def test_all_handlers_that_want_a_prediction_are_told_again_with_an_emptied_redis(past: Past) -> None:
    past.store("abc")
    lines = list(past.replay().one("abc"))
    assert [(line.outcome, line.handler, line.job) for line in lines] == [
        (Outcome.ENQUEUED, "gallery", "notify-gallery-prediction-abc-r1"),
        (Outcome.ENQUEUED, "mail", "notify-mail-prediction-abc-r1"),
    ]
    assert past.queued() == [line.job for line in lines]


def test_a_replay_is_a_job_with_every_bound_of_the_first_one(past: Past) -> None:
    past.store("abc")
    queues.enqueue_notify(past.redis, "first", Kind.PREDICTION, "abc")
    list(past.replay("gallery").one("abc"))
    first, again = (queues.queue(NOTIFY_QUEUE, past.redis).fetch_job(one) for one in past.queued())
    assert first is not None
    assert again is not None
    assert again.args == ["gallery", "prediction", "abc"]
    for bound in ("timeout", "retries_left", "retry_intervals", "result_ttl", "failure_ttl", "func_name"):
        assert getattr(first, bound) == getattr(again, bound)


def test_each_replay_of_what_was_told_is_a_new_job(past: Past) -> None:
    past.store("abc")
    for number in (1, 2, 3):
        (line,) = past.replay("mail").one("abc")
        assert line.job == f"notify-mail-prediction-abc-r{number}"
        job = queues.queue(NOTIFY_QUEUE, past.redis).fetch_job(line.job)
        assert job is not None
        queues.queue(NOTIFY_QUEUE, past.redis).remove(job.id)
        job.set_status(JobStatus.FINISHED)


def test_what_is_on_its_way_is_not_enqueued_twice(past: Past) -> None:
    past.store("abc")
    queues.enqueue_notify(past.redis, "gallery", Kind.PREDICTION, "abc")
    assert outcomes(past.replay().one("abc")) == [("waiting", "gallery"), ("enqueued", "mail")]
    assert outcomes(past.replay().one("abc")) == [("waiting", "gallery"), ("waiting", "mail")]
    assert len(past.queued()) == 2


def test_what_waits_for_its_next_attempt_makes_it_now(past: Past) -> None:
    past.store("abc")
    queues.enqueue_notify(past.redis, "gallery", Kind.PREDICTION, "abc")
    queue = queues.queue(NOTIFY_QUEUE, past.redis)
    (job_id,) = past.queued()
    job = queue.fetch_job(job_id)
    assert job is not None
    queue.remove(job_id)
    queue.schedule_job(job, NOW + timedelta(hours=24))
    job.set_status(JobStatus.SCHEDULED)

    assert outcomes(past.replay("gallery").one("abc")) == [("hastened", "gallery")]

    assert past.queued() == [job_id]
    assert job.get_status(refresh=True) == JobStatus.QUEUED
    assert queue.scheduled_job_registry.get_job_ids() == []


def test_a_dead_letter_gives_its_place_to_the_replay(past: Past) -> None:
    past.store("abc")
    past.store("other")
    dead, other = past.kill("abc"), past.kill("other")
    assert outcomes(past.replay("gallery").one("abc")) == [("enqueued", "gallery")]
    assert past.failed() == [other]
    assert not past.redis.exists(Job.key_for(dead))
    assert past.queued() == ["notify-gallery-prediction-abc-r1"]


def test_all_dead_letters_and_failed_predictions_are_replayed_at_once(past: Past) -> None:
    for prediction_id in ("a", "b"):
        past.store(prediction_id)
        past.kill(prediction_id, "gallery")
    past.kill("a", "mail")
    job = past.fail_to_keep("c")

    lines = list(past.replay().failed())

    assert [(line.outcome, line.id, line.handler) for line in lines] == [
        (Outcome.ENQUEUED, "c", None),
        (Outcome.ENQUEUED, "a", "gallery"),
        (Outcome.ENQUEUED, "b", "gallery"),
        (Outcome.ENQUEUED, "a", "mail"),
    ]
    assert past.failed() == past.failed(PERSIST_QUEUE) == []
    assert len(past.queued()) == 3
    assert past.queued(PERSIST_QUEUE) == [job.id]
    assert [line.outcome for line in past.replay().failed()] == [Outcome.WAITING]  # still marked as failed


def test_a_persist_job_that_is_replayed_starts_afresh(past: Past) -> None:
    job = past.fail_to_keep("c")
    list(past.replay().one("c"))
    fresh = queues.queue(PERSIST_QUEUE, past.redis).fetch_job(job.id)
    assert fresh is not None
    assert fresh.get_status() == JobStatus.QUEUED
    assert fresh.retries_left == job.retries_left
    assert fresh.meta == {}
    assert past.failed(PERSIST_QUEUE) == []


def test_the_dead_letters_of_one_handler_can_be_replayed_alone(past: Past) -> None:
    past.store("a")
    past.kill("a", "gallery")
    mail = past.kill("a", "mail")
    past.fail_to_keep("c")
    assert outcomes(past.replay("gallery").failed()) == [("enqueued", "gallery")]
    assert past.failed() == [mail]
    assert past.failed(PERSIST_QUEUE) == [persist_job_id(Kind.PREDICTION, "c")]


def test_everything_since_a_time_is_told_again_trainings_too(past: Past) -> None:
    past.store("old", ago=7200)
    past.store("new", ago=60)
    past.store("tuned", ago=60, kind=Kind.TRAINING)
    lines = list(past.replay("gallery").since(NOW - timedelta(hours=1)))
    assert [(line.kind, line.id) for line in lines] == [("prediction", "new"), ("training", "tuned")]
    assert past.queued() == ["notify-gallery-prediction-new-r1", "notify-gallery-training-tuned-r1"]


def test_what_nobody_wants_of_a_time_is_no_failure(past: Past, settings: dict[str, str]) -> None:
    past.store("abc")
    assert list(past.replay("alarm").since(NOW - timedelta(hours=1))) == []
    done = outkeep("replay", "--since", "1h", "--handler", "alarm", settings=settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "there is nothing to replay\n")


def test_what_cannot_be_replayed_is_said_with_its_reason(past: Past) -> None:
    assert reason(past.replay().one("nobody")) == "nothing is known of it"
    past.receive("early")
    assert reason(past.replay().one("early")) == "nothing is stored of it, it is received"
    past.store("abc")
    assert reason(past.replay("alarm").one("abc")) == "alarm does not want it"
    past.storage.put_bytes("predictions/odd/prediction.json", b"{}")
    assert "manifest" in reason(past.replay().one("odd"))
    past.kill("gone")
    assert reason(past.replay().failed()) == "nothing is stored of it"
    assert past.failed() == ["notify-gallery-prediction-gone"]
    assert past.queued() == []


def test_a_failed_prediction_of_which_nothing_is_left_stays_on_the_list(past: Past) -> None:
    job = past.fail_to_keep("c")
    past.redis.delete("outkeep:record:prediction:c")
    assert "its event is gone" in reason(past.replay().failed())
    assert past.failed(PERSIST_QUEUE) == [job.id]


def test_a_job_whose_hash_nobody_can_read_is_replayed_all_the_same(past: Past) -> None:
    past.store("abc")
    dead, job = past.kill("abc"), past.fail_to_keep("c")
    for job_id in (dead, job.id):
        past.redis.hset(Job.key_for(job_id), mapping={"data": b"\xff", "meta": b"\xff", "created_at": b"x"})
    assert outcomes(past.replay().failed()) == [("enqueued", None), ("enqueued", "gallery")]
    assert past.failed() == past.failed(PERSIST_QUEUE) == []


def test_a_failed_job_of_somebody_else_is_named(past: Past) -> None:
    queue = queues.queue(NOTIFY_QUEUE, past.redis)
    queue.enqueue("os.system", "true", job_id="planted")
    past.fail("planted", NOTIFY_QUEUE)
    assert "no job of ours" in reason(past.replay().failed())
    assert past.failed() == ["planted"]


def test_a_handler_that_is_off_is_told_nothing_before_it_is_on_again(past: Past) -> None:
    past.store("abc")
    dead = past.kill("abc")
    HandlerStates(past.redis).switch_off("gallery", NOW)
    assert "outkeep handlers enable gallery" in reason(past.replay("gallery").one("abc"))
    assert "outkeep handlers enable gallery" in reason(past.replay().failed())
    assert past.failed() == [dead]
    HandlerStates(past.redis).switch_on("gallery")
    assert outcomes(past.replay().failed()) == [("enqueued", "gallery")]


@pytest.fixture
def settings(past: Past, valkey_url: str) -> dict[str, str]:
    return environment(valkey_url, past.folder, OUTKEEP_HANDLERS=str(past.folder / "handlers.toml"))


def test_the_command_says_what_it_enqueued_and_ends_with_1_when_something_could_not_be(
    past: Past, settings: dict[str, str]
) -> None:
    past.store("abc")
    done = outkeep("replay", "abc", "--handler", "gallery", settings=settings)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "enqueued: tell gallery about prediction abc\n",
        "",
    )
    done = outkeep("replay", "abc", "nobody", settings=settings)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "on its way already: tell gallery about prediction abc",
        "enqueued: tell mail about prediction abc",
        "NOT enqueued: nobody: nothing is known of it",
    ]
    assert done.stderr == "outkeep: 1 of 3 could not be enqueued\n"


def test_the_command_speaks_json(past: Past, settings: dict[str, str]) -> None:
    past.store("abc")
    past.kill("abc")
    (line,) = outkeep("replay", "--failed", "--json", settings=settings).stdout.splitlines()
    assert json.loads(line) == {
        "outcome": "enqueued",
        "kind": "prediction",
        "id": "abc",
        "handler": "gallery",
        "job": "notify-gallery-prediction-abc-r1",
        "reason": None,
    }


@pytest.mark.parametrize(
    "since", ["1h", pytest.param((NOW - timedelta(hours=1)).isoformat(), id="a moment"), "2026-01-01"]
)
def test_a_time_is_a_duration_or_a_date(past: Past, settings: dict[str, str], since: str) -> None:
    past.store("abc")
    done = outkeep("replay", "--since", since, "--handler", "mail", settings=settings)
    assert (done.returncode, done.stdout) == (0, "enqueued: tell mail about prediction abc\n")


def test_nothing_to_replay_is_no_failure(settings: dict[str, str]) -> None:
    done = outkeep("replay", "--failed", settings=settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "there is nothing to replay\n")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("abc", "--failed"),
        ("--failed", "--since", "1h"),
        ("--since", "yesterday"),
        ("../x",),
        ("abc", "--handler", "nobody"),
    ],
)
def test_misuse_ends_with_2(settings: dict[str, str], arguments: tuple[str, ...]) -> None:
    done = outkeep("replay", *arguments, settings=settings)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_what_was_given_up_is_listed(past: Past, settings: dict[str, str]) -> None:
    assert outkeep("ls", "--failed", settings=settings).stderr == "nothing was given up\n"
    past.store("abc")
    past.kill("abc")
    past.fail_to_keep("lost")
    lines = outkeep("ls", "--failed", settings=settings).stdout.splitlines()
    assert lines[0].split() == ["ID", "KIND", "HANDLER", "ATTEMPTS", "ERROR", "AT"]
    assert [line.split()[:5] for line in lines[1:]] == [
        ["lost", "prediction", "-", "0", "crashed"],
        ["abc", "prediction", "gallery", "1", "status_500"],
    ]
    text = outkeep("ls", "--failed", "--json", settings=settings).stdout
    found = [json.loads(line) for line in text.splitlines()]
    assert [one["id"] for one in found] == ["lost", "abc"]


def test_handlers_are_listed_with_their_state_and_what_waits_for_them(
    past: Past, settings: dict[str, str]
) -> None:
    past.store("abc")
    past.kill("abc", "gallery")
    past.kill("abc", "former")
    queues.enqueue_notify(past.redis, "mail", Kind.PREDICTION, "abc")
    attempt = {"at": "2026-03-16T10:00:00.000Z", "status": 410, "error": "status_410"}
    states = HandlerStates(past.redis)
    states.report("gallery", attempt, 0)
    states.switch_off("gallery", NOW)
    states.report("mail", attempt | {"status": None, "error": "timeout"}, 5)

    lines = outkeep("handlers", settings=settings).stdout.splitlines()

    assert [line.split()[:5] for line in lines] == [
        ["HANDLER", "STATE", "WAITING", "DEAD", "LAST"],
        ["gallery", "off", "0", "1", "status_410"],
        ["mail", "slow", "1", "0", "timeout"],
        ["alarm", "on", "0", "0", "-"],
        ["former", "unknown", "0", "1", "-"],
    ]
    first: dict[str, Any] = json.loads(outkeep("handlers", "--json", settings=settings).stdout.split("\n")[0])
    assert first.pop("off_since").endswith("Z")
    assert first == {"handler": "gallery", "state": "off", "waiting": 0, "dead": 1, "last": attempt}


def test_a_function_that_was_only_handed_to_its_queue_is_not_called_told(
    past: Past, settings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "jobs.toml").write_text('[[handler]]\nname = "thumbnail"\njob = "my.tasks.thumbnail"\n')
    done = {"at": "2026-03-16T10:00:00.000Z", "status": None, "error": None, "detail": "", "milliseconds": 4}
    HandlerStates(past.redis).report("thumbnail", done, 0)

    shown = outkeep("handlers", settings={**settings, "OUTKEEP_HANDLERS": str(tmp_path / "jobs.toml")}).stdout

    assert shown.splitlines()[1].endswith("handed to its queue at 2026-03-16T10:00:00.000Z")


def test_a_handler_is_switched_on_by_name(past: Past, settings: dict[str, str]) -> None:
    past.kill("abc", "gallery")
    HandlerStates(past.redis).switch_off("gallery", NOW)
    done = outkeep("handlers", "enable", "gallery", settings=settings)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "gallery is switched on",
        "to send its 1 dead letters: outkeep replay --failed --handler gallery",
    ]
    assert not HandlerStates(past.redis).is_off("gallery")
    assert outkeep("handlers", "enable", "mail", settings=settings).stdout == "mail is on already\n"


def test_a_handler_that_does_not_exist_cannot_be_switched_on(settings: dict[str, str]) -> None:
    done = outkeep("handlers", "enable", "nobody", settings=settings)
    assert done.returncode == 2
    assert "no handler 'nobody'" in done.stderr


def test_without_a_redis_both_commands_say_so(settings: dict[str, str]) -> None:
    away = {**settings, "REDIS_URL": "redis://127.0.0.1:1"}
    for command in (("handlers",), ("replay", "--failed")):
        (complaint,) = complaints(outkeep(*command, settings=away), 1)
        assert complaint.startswith("Redis does not answer")
