"""Removing everything of a prediction: the service, what it keeps out afterwards, and the command."""

import json
import os
import pty
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from app.accept import queues
from app.accept.records import Accepted, Arrival
from app.core.errors import Removed, StorageFailure
from app.core.manifest import Receipt
from app.core.names import (
    FOLLOW_UPS_OPEN,
    HANDLE_QUEUE,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    REMOVALS,
    Kind,
    awaited_member,
    removed_name,
)
from app.core.outcomes import Told
from app.core.prediction import parse
from app.core.reconciling import FARTHEST_LOOK
from app.maintain.rebuild import Rebuild, Restoration, Wanted
from app.maintain.removal import LIFE, PATIENCE, Found, LocalCopies, Removal, RemovedNotes, erase
from app.maintain.replay import Outcome, Replay
from app.storage.store import folders
from tests import forked
from tests.bucket import S3, Asked, FaultyProxy, Refusal
from tests.cli.test_cli import complaints, outkeep
from tests.kept import TTL, Deployment
from tests.receive.web import clean_environment, environment, in_thread, prediction, wait_until

NOW = datetime(2026, 3, 16, 10, 0, tzinfo=UTC)
ID = "zxnmcx7c2p3wp0fkexvxs6zf6p"
PLACE = (Kind.PREDICTION, ID)


@pytest.fixture
def past(redis: Redis, tmp_path: Path) -> Deployment:
    return Deployment(redis, tmp_path, NOW, ("gallery", "mail"))


@pytest.fixture
def settings(past: Deployment, valkey_url: str) -> dict[str, str]:
    return environment(valkey_url, past.folder, OUTKEEP_HANDLERS=str(past.folder / "handlers.toml"))


def removal(past: Deployment) -> Removal:
    local = LocalCopies(past.folder / "tmp", past.folder / "spool", past.folder / "thumbs")
    return Removal(past.redis, past.storage, ttl=TTL, clock=lambda: past.now, local=local)


def remove(past: Deployment, prediction_id: str = ID) -> Found:
    service = removal(past)
    return service.remove(service.search(Kind.PREDICTION, prediction_id))


def traces(past: Deployment, prediction_id: str = ID) -> list[str]:
    """Every key, and every entry of a list or set, that names the prediction; the mark does."""
    found = []
    for key in past.redis.scan_iter():
        content: list[Any] = []
        if past.redis.type(key) == b"list":
            content = past.redis.lrange(key, 0, -1)
        if past.redis.type(key) == b"zset":
            content = past.redis.zrange(key, 0, -1)
        found += [text for text in [key, *content] if prediction_id.encode() in text]
    return sorted(text.decode() for text in found)


def deliver(past: Deployment, status: str = "succeeded", prediction_id: str = ID) -> Accepted:
    body = json.dumps({"id": prediction_id, "status": status}).encode()
    job = queues.persist_job(past.redis, Kind.PREDICTION, prediction_id, timeout=60)
    ended = None if status == "processing" else job
    arrival = Arrival(parse(body, Kind.PREDICTION), body, Receipt(NOW, "m"), ended)
    [outcome] = past.records.accept([arrival], NOW)
    return outcome


def start(past: Deployment, job: Job) -> None:
    """Let a job run, as RQ lists it."""
    queue = queues.queue(job.origin, past.redis)
    queue.remove(job.id)
    job.set_status(JobStatus.STARTED)
    past.redis.zadd(queue.started_job_registry.key, {f"{job.id}:run": 2_000_000_000})


def stop(past: Deployment, job: Job) -> None:
    """Let it end, as RQ lists it."""
    queue = queues.queue(job.origin, past.redis)
    past.redis.zrem(queue.started_job_registry.key, f"{job.id}:run")
    job.set_status(JobStatus.FINISHED)
    past.redis.zadd(queue.finished_job_registry.key, {job.id: 2_000_000_000})


def test_nothing_is_left_but_the_mark_that_it_is_gone(past: Deployment) -> None:
    past.keep(ID, told=False)
    past.tell(ID, "gallery", Told("dead", 10, NOW, "status_500"))
    (past.folder / "outputs/predictions" / ID / "output-1.png#7").write_bytes(b"half written")
    past.storage.put_bytes(f"claims/prediction-{ID}-{'ab' * 32}.json", b"a large body")
    (past.folder / "thumbs").mkdir()
    (past.folder / f"thumbs/prediction-{ID}-{'ab' * 32}.webp").write_bytes(b"small")
    (past.folder / f"thumbs/prediction-{ID}-2-{'ab' * 32}.webp").write_bytes(b"of another")
    past.redis.set(f"outkeep:follow-up:gallery:prediction:{ID}", "{}")
    past.redis.set(f"outkeep:follows:{ID}", "upscale:prediction:parent")
    past.redis.hset(FOLLOW_UPS_OPEN, f"gallery:prediction:{ID}", "a fingerprint")
    past.redis.hset(FOLLOW_UPS_OPEN, "gallery:prediction:other", "a fingerprint")
    queues.enqueue_replay(past.redis, "gallery", *PLACE)
    queues.queue(HANDLE_QUEUE, past.redis).enqueue("os.getpid", job_id=f"handle-thumb-prediction-{ID}")
    queues.queue("thumbs", past.redis).enqueue("os.getpid", job_id=f"handle-thumb-prediction-{ID}-r2")
    past.keep("other", told=False)

    found = remove(past)

    assert traces(past) == [f"outkeep:removed:prediction:{ID}"]
    assert 0 < past.redis.ttl(f"outkeep:removed:prediction:{ID}") <= TTL
    assert past.redis.hkeys(FOLLOW_UPS_OPEN) == [b"gallery:prediction:other"]
    assert not (past.folder / "outputs/predictions" / ID).exists()
    assert [path.read_bytes() for path in (past.folder / "thumbs").iterdir()] == [b"of another"]
    assert (found.state, found.running) == ("dispatched", [])
    names = ["output-0.png", "prediction.json", "told-gallery.json"]
    claim = f"claims/prediction-{ID}-{'ab' * 32}.json"
    assert found.objects == [claim, *(f"predictions/{ID}/{name}" for name in names)]
    assert not (past.folder / "outputs" / claim).exists()
    assert found.size > 4
    assert sorted(job.id for job in found.jobs) == [
        f"handle-thumb-prediction-{ID}",
        f"handle-thumb-prediction-{ID}-r2",
        f"notify-gallery-prediction-{ID}-r1",
        f"notify-mail-prediction-{ID}",
    ]
    assert [record.id for record in past.records.newest()] == ["other"]
    assert past.storage.read_manifest(Kind.PREDICTION, "other") is not None
    assert past.queued() == ["notify-gallery-prediction-other", "notify-mail-prediction-other"]


@pytest.mark.parametrize("name", ["failed", "finished", "scheduled", "deferred", "canceled"])
def test_jobs_go_from_every_list_of_rq(past: Deployment, name: str) -> None:
    past.keep(ID)
    job = queues.notify_job(past.redis, "gallery", *PLACE)
    job.save()
    registry = getattr(queues.queue(NOTIFY_QUEUE, past.redis), f"{name}_job_registry")
    past.redis.zadd(registry.key, {job.id: 2_000_000_000})
    assert [one.id for one in remove(past).jobs] == [job.id]
    assert traces(past) == [f"outkeep:removed:prediction:{ID}"]


def test_what_waits_on_this_host_and_in_quarantine_goes_too(past: Deployment) -> None:
    past.keep(ID)
    (past.folder / "tmp").mkdir()
    (past.folder / "spool").mkdir()
    mine = [
        past.folder / "tmp" / f"held.prediction.{ID}.0.abcd",
        past.folder / "spool" / f"prediction-{ID}-0123456789abcdef01234567.delivery",
        past.folder / "spool" / f"prediction-{ID}-0123456789abcdef01234568.damaged",
    ]
    others = [
        past.folder / "tmp" / f"held.training.{ID}.0.abcd",
        past.folder / "tmp" / "held.prediction.other.0.abcd",
        past.folder / "spool" / f"prediction-{ID}-x-0123456789abcdef01234567.delivery",
        past.folder / "spool" / f"training-{ID}-0123456789abcdef01234567.delivery",
    ]
    for path in [*mine, *others]:
        path.write_bytes(b"personal")
    found = remove(past)
    assert sorted(found.local) == sorted(mine)
    assert [path.exists() for path in mine] == [False, False, False]
    assert all(path.exists() for path in others)


def test_what_was_set_aside_is_found_by_the_id_in_it(past: Deployment, valkey_url: str) -> None:
    with in_thread(valkey_url, past.folder) as web:
        for body in (
            b'{"id": "' + ID.encode() + b'", "status": ""}',
            b'{"status": "",\n "id":\n "' + ID.encode() + b'"}',
            b'{"id": "other", "status": "", "logs": "' + ID.encode() + b'"}',
        ):
            assert web.outcome(body) == "quarantined"
        assert (
            web.outcome(b'{"id": "' + ID.encode() + b'"}', "/webhooks/replicate/trainings") == "quarantined"
        )
    found = remove(past)
    assert (len(found.quarantined), found.state, found.objects) == (2, None, [])
    assert len(list(past.storage.names("quarantine"))) == 2


@pytest.mark.parametrize(("status", "outcome"), [("succeeded", "duplicate"), ("processing", "stale")])
def test_a_delivery_that_comes_late_is_kept_out(past: Deployment, status: str, outcome: str) -> None:
    past.keep(ID)
    remove(past)
    assert deliver(past, status) == outcome
    assert traces(past) == [f"outkeep:removed:prediction:{ID}"]
    assert past.stored() == []


def test_what_still_runs_can_be_removed_and_is_not_asked_for_any_more(past: Deployment) -> None:
    assert deliver(past, "processing") == "progress"
    past.redis.zadd("outkeep:awaited", {awaited_member(*PLACE, web=True): NOW.timestamp()})
    assert any(ID in one for one in traces(past))
    assert remove(past).state == "running"
    assert traces(past) == [f"outkeep:removed:prediction:{ID}"]
    assert deliver(past) == "duplicate"


def test_a_late_delivery_is_acknowledged_by_the_receiver(past: Deployment, valkey_url: str) -> None:
    past.keep(ID)
    remove(past)
    with in_thread(valkey_url, past.folder) as web:
        assert web.outcome(prediction(ID)) == "duplicate"
        assert web.outcome(prediction("somebody-else")) == "accepted"


def test_nothing_restores_what_was_removed(past: Deployment) -> None:
    manifest = past.keep(ID)
    remove(past)
    wanted = Wanted(manifest, TTL, past.handlers[:1], {"mail": Told("dead", 1, NOW, "status_500")})
    [made] = Restoration(past.redis).restore([wanted])
    assert (made.record, made.jobs, made.dead_letters) == (False, 0, 0)
    with pytest.raises(Removed):
        past.records.dispatch(*PLACE, NOW, {}, [queues.notify_job(past.redis, "gallery", *PLACE)])
    assert traces(past) == [f"outkeep:removed:prediction:{ID}"]


def test_a_job_that_runs_is_left_to_its_end_and_what_it_leaves_goes_then(past: Deployment) -> None:
    past.keep(ID, told=False)
    for one in past.queued():
        job = queues.queue(NOTIFY_QUEUE, past.redis).fetch_job(one)
        assert job is not None
        if "gallery" in one:
            start(past, job)
            running = job
    found = remove(past)
    assert [job.id for job in found.running] == [running.id]
    assert past.queued() == []
    assert past.redis.zcard(REMOVALS) == 1
    past.storage.put_bytes(f"predictions/{ID}/told-gallery.json", b"{}")  # as its run ends
    past.now += timedelta(seconds=PATIENCE)
    assert [found.objects for found in removal(past).resume()] == [[f"predictions/{ID}/told-gallery.json"]]
    assert past.redis.zcard(REMOVALS) == 1
    stop(past, running)
    assert removal(past).resume() == []  # it was looked after just now
    past.now += timedelta(seconds=PATIENCE)
    assert [[job.id for job in found.jobs] for found in removal(past).resume()] == [[running.id]]
    assert traces(past) == [f"outkeep:removed:prediction:{ID}"]
    assert past.stored() == []


def half_removed(past: Deployment) -> None:
    """What a process that was killed in the middle has left."""
    past.keep(ID, told=False)
    service = removal(past)
    assert service._mark(*PLACE, only=None)
    past.storage.put_bytes(f"predictions/{ID}/prediction.json", b'{"outkeep": 1, "removed_at": "2026"}')
    past.storage.remove([f"predictions/{ID}/output-0.png"])


def test_what_is_half_removed_is_neither_told_nor_rebuilt_nor_replayed(past: Deployment) -> None:
    half_removed(past)
    for emptied in (False, True):
        if emptied:
            past.redis.flushall()
        queued = past.queued()
        rebuild = Rebuild(
            past.redis, past.storage, past.handlers, ttl=TTL, everything=True, clock=lambda: NOW
        )
        [line] = rebuild.run()
        assert "outkeep rm" in str(line.fault)
        replay = Replay(past.redis, past.storage, past.records, past.handlers, None)
        assert [(one.outcome, one.handler) for one in replay.one(ID)] == [(Outcome.REFUSED, None)]
        assert past.queued() == queued
        assert past.records.get(*PLACE) is None


def test_the_sweep_ends_what_was_half_removed(past: Deployment) -> None:
    half_removed(past)
    assert removal(past).resume() == []
    past.now += timedelta(seconds=PATIENCE)
    assert [found.id for found in removal(past).resume()] == [ID]
    assert past.stored() == []
    assert traces(past) == [f"outkeep:removed:prediction:{ID}"]


def test_running_it_again_ends_what_was_half_removed_with_redis_emptied(past: Deployment) -> None:
    half_removed(past)
    past.redis.flushall()
    assert remove(past).objects == [f"predictions/{ID}/prediction.json"]
    assert past.stored() == []


def test_the_command_says_what_it_removed(past: Deployment, settings: dict[str, str]) -> None:
    past.keep(ID)
    past.keep("b")
    past.keep("b", kind=Kind.TRAINING)
    done = outkeep("rm", ID, settings=settings)
    assert (done.returncode, done.stderr) == (0, "")
    size = done.stdout.partition("objects of ")[2].partition(" (")[0]
    assert done.stdout == (
        f"removed prediction {ID}: 4 objects of {size} "
        "(output-0.png, prediction.json, told-gallery.json, told-mail.json); the record (dispatched)\n"
    )
    text = outkeep("rm", "b", "--kind", "training", "--json", settings=settings).stdout
    document: dict[str, Any] = json.loads(text)
    assert document.pop("bytes") > 4
    assert document == {
        "kind": "training",
        "id": "b",
        "state": "dispatched",
        "objects": [
            f"trainings/b/{name}"
            for name in ("output-0.png", "prediction.json", "told-gallery.json", "told-mail.json")
        ],
        "jobs": [],
        "running": [],
        "local": [],
        "quarantined": [],
    }
    assert past.storage.read_manifest(Kind.PREDICTION, "b") is not None
    assert past.redis.hget("outkeep:counters", 'outkeep_removed_total{kind="training",cause="asked"}') == b"1"


def test_the_command_ends_with_1_when_nothing_is_known_and_does_the_others(
    past: Deployment, settings: dict[str, str]
) -> None:
    past.keep(ID)
    done = outkeep("rm", "nobody", ID, settings=settings)
    assert done.returncode == 1
    assert done.stdout.startswith(f"removed prediction {ID}")
    assert done.stderr == "outkeep: nothing is known of nobody\n"
    assert deliver(past, prediction_id="nobody") == "accepted"  # it may still come
    (complaint,) = complaints(outkeep("rm", ID, settings=settings), 1)
    assert complaint == f"nothing is known of {ID}"


def test_misuse_and_a_redis_that_is_away_remove_nothing(past: Deployment, settings: dict[str, str]) -> None:
    past.keep(ID)
    before = past.stored()
    for arguments in ((), ("../x",), (ID, "--kind", "picture")):
        assert outkeep("rm", *arguments, settings=settings).returncode == 2
    away = {**settings, "REDIS_URL": "redis://127.0.0.1:1"}
    (complaint,) = complaints(outkeep("rm", ID, settings=away), 1)
    assert complaint.startswith("Redis does not answer")
    assert past.stored() == before


@pytest.mark.parametrize("answer", ["n", "y"])
def test_on_a_terminal_it_asks_first(past: Deployment, settings: dict[str, str], answer: str) -> None:
    past.keep(ID)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "app.cli", "rm", ID]
    process = forked.Popen(
        command,
        env=clean_environment(settings),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.write(ours, f"{answer}\n".encode())
    text, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert f"Remove prediction {ID}: 4 objects of " in text.decode()
    assert (past.storage.read_manifest(*PLACE) is None) == (answer == "y")


def killed(past: Deployment, settings: dict[str, str], prediction_id: str) -> bool:
    """Keep a prediction, and kill its removal once the first file is gone; False if that came too late."""
    past.keep(prediction_id)
    for number in range(1500):
        past.storage.put_bytes(f"predictions/{prediction_id}/output-{number}.png", b"personal")
    command = [sys.executable, "-m", "app.cli", "rm", prediction_id]
    first = past.folder / "outputs/predictions" / prediction_id / "output-0.png"
    with forked.Popen(command, env=clean_environment(settings), stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: not first.exists() or process.poll() is not None)
        process.kill()
    assert process.returncode in {0, -signal.SIGKILL}
    return first.with_name("prediction.json").exists()


def test_a_removal_that_is_killed_is_ended_by_running_it_again(
    past: Deployment, settings: dict[str, str]
) -> None:
    half = next(one for one in map(str, range(20)) if killed(past, settings, one))
    with pytest.raises(Removed):
        past.storage.read_manifest(Kind.PREDICTION, half)
    assert past.redis.zscore(REMOVALS, f"prediction:{half}") is not None
    assert outkeep("rm", half, settings=settings).returncode == 0
    assert not (past.folder / "outputs/predictions" / half).exists()
    assert past.redis.zscore(REMOVALS, f"prediction:{half}") is None
    assert past.queued(PERSIST_QUEUE) == past.queued() == []


def test_nothing_is_removed_through_a_link(
    past: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    precious = tmp_path_factory.mktemp("precious")
    (precious / "sub").mkdir()
    (precious / "sub" / "b.txt").write_text("mine")
    (precious / "prediction.json").write_text("mine")
    past.keep(ID)
    outputs = past.folder / "outputs" / "predictions"
    (outputs / ID / "link").symlink_to(precious)
    (outputs / "linked").symlink_to(precious)
    assert remove(past)
    assert not remove(past, "linked")
    erase(past.storage, Kind.PREDICTION, "linked", NOW)
    assert not (outputs / ID / "prediction.json").exists()
    assert (precious / "sub" / "b.txt").read_text() == "mine"
    assert (precious / "prediction.json").read_text() == "mine"
    assert [folder.id for folder in folders(past.storage, Kind.PREDICTION)] == []


def test_notes_of_removals_stand_for_longer_than_reconciliation_looks_back(past: Deployment) -> None:
    past.keep(ID)
    remove(past)
    assert list(past.storage.names("")) == [removed_name(*PLACE)]
    times = iter(
        [timedelta(), timedelta(hours=2), timedelta(seconds=FARTHEST_LOOK), LIFE + timedelta(hours=1)]
    )
    written = datetime.now(UTC)
    notes = RemovedNotes(past.storage, lambda: written + next(times))
    for _ in range(3):
        notes.tidy()
        assert list(past.storage.names("")) == [removed_name(*PLACE)]
    notes.tidy()
    assert list(past.storage.names("")) == []


def test_the_same_in_a_bucket(redis: Redis, s3_here: S3, tmp_path: Path) -> None:
    past = Deployment(redis, tmp_path, NOW, ("gallery", "mail"), storage=s3_here.url)
    past.keep(ID, told=False)
    past.keep(f"{ID}0")
    past.storage.put_bytes(f"claims/prediction-{ID}-{'ab' * 32}.json", b"a large body")
    found = removal(past).find(*PLACE)
    assert len(found.objects) == 3
    assert removal(past).remove(found).objects == found.objects
    assert {name.split("/")[1] for name in past.storage.names("predictions")} == {f"{ID}0"}
    assert list(past.storage.names("claims")) == []
    past.redis.flushall()
    half_removed(past)
    past.now += timedelta(seconds=PATIENCE)
    assert [one.id for one in removal(past).resume()] == [ID]
    assert list(past.storage.names(f"predictions/{ID}")) == []


FULL = """
import errno, sys
from datetime import UTC, datetime
from redis import Redis
from app.cli.rm import _document, _sentence
from app.core.names import Kind
from app.maintain.removal import Removal
from app.storage.store import Storage
from tests.kernel import forbid_new_files

redis, storage = Redis.from_url(sys.argv[1]), Storage(sys.argv[2])
removal = Removal(redis, storage, ttl=86400, clock=lambda: datetime.now(UTC))
found = removal.search(Kind.PREDICTION, sys.argv[3])
forbid_new_files(getattr(errno, sys.argv[4]))
removed = removal.remove(found)
print(_sentence(removed))
print("unnoted" in _document(removed))
"""


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_a_full_storage_gets_room_and_the_missing_note_is_said_and_made_up_for(
    past: Deployment, valkey_url: str, error: str
) -> None:
    past.keep(ID)
    command = [sys.executable, "-c", FULL, valkey_url, past.storage.url, ID, error]
    done = forked.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    sentence, named = done.stdout.splitlines()
    assert "the note of its removal could not be written" in sentence
    assert named == "True"
    assert not (past.folder / "outputs/predictions" / ID).exists()
    assert past.redis.zcard(REMOVALS) == 1

    past.now = datetime.now(UTC) + timedelta(seconds=PATIENCE + 1)
    removal(past).resume()  # as the sweep does, once there is room
    assert RemovedNotes(past.storage, lambda: past.now).has(*PLACE)
    assert past.redis.zcard(REMOVALS) == 0


NO_ROOM = [
    Refusal(507, "XMinioStorageFull"),
    Refusal(507),
    Refusal(403, "QuotaExceeded"),
    Refusal(400, "XMinioAdminBucketQuotaExceeded"),
    Refusal(409, "InsufficientCapacity"),
    Refusal(413, "EntityTooLarge"),
]


@pytest.mark.parametrize("refusal", NO_ROOM, ids=str)
def test_a_full_bucket_gets_room_and_the_note_is_written_at_once(
    redis: Redis, proxy: FaultyProxy, tmp_path: Path, refusal: Refusal
) -> None:
    past = Deployment(redis, tmp_path, NOW, ("gallery", "mail"), storage=proxy.s3.url)
    past.keep(ID)

    def full(asked: Asked) -> Refusal | None:
        """Nothing is taken until something was removed: then there is room."""
        removed = any(one.method == "DELETE" or "?delete" in one.path for one in proxy.asked)
        return refusal if asked.method == "PUT" and not removed else None

    proxy.asked.clear()
    proxy.rule = full
    removed = removal(past).remove(removal(past).find(*PLACE))
    proxy.mend()

    assert removed.unnoted == ""
    assert list(past.storage.names(f"predictions/{ID}")) == []
    assert RemovedNotes(past.storage, lambda: past.now).has(*PLACE)
    assert redis.zcard(REMOVALS) == 0


@pytest.mark.parametrize("refusal", NO_ROOM, ids=str)
def test_in_a_full_bucket_the_manifest_goes_first_so_that_half_a_prediction_is_never_taken_for_whole(
    redis: Redis, proxy: FaultyProxy, tmp_path: Path, refusal: Refusal
) -> None:
    past = Deployment(redis, tmp_path, NOW, ("gallery", "mail"), storage=proxy.s3.url)
    past.keep(ID)
    removals: list[Asked] = []

    def cut_off(asked: Asked) -> Refusal | None:
        """Nothing is taken, and only one object can be removed."""
        if asked.method == "DELETE":
            removals.append(asked)
        return refusal if asked.method == "PUT" or len(removals) > 1 else None

    proxy.rule = cut_off
    with pytest.raises(StorageFailure):
        removal(past).remove(removal(past).find(*PLACE))
    proxy.mend()
    assert past.storage.read_manifest(*PLACE) is None
    assert list(past.storage.names(f"predictions/{ID}")) != []
