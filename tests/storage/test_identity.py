"""The storage and Redis name each other: at the start, after a loss, and when somebody means to change it."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.accept import queues
from app.core.errors import ConfigurationError
from app.core.manifest import format_time
from app.core.names import (
    EPOCH,
    IDENTITY_LOCK,
    IDENTITY_NAME,
    NOTIFY_QUEUE,
    REBUILD_TURN,
    STORAGE_ID,
    Kind,
    notify_job_id,
)
from app.maintain.lease import leased
from app.maintain.rebuild import BATCH
from app.receive.listening import free_port
from app.storage.identity import Identity, read
from app.storage.store import Storage
from tests import forked
from tests.kept import TTL, Deployment
from tests.own_valkey import OwnValkey
from tests.receive.web import clean_environment, environment, wait_until
from tests.redis_proxy import rewriting
from tests.wrong_clock import WrongClock
from workers.repair.recovery import Epochs

NOW = datetime(2026, 3, 16, 10, 0, tzinfo=UTC)
OF_0_1 = {"first_start": "2026-01-01T00:00:00Z"}


def storage_in(folder: Path, document: dict[str, Any] | str | None = None) -> Storage:
    """A storage whose outkeep.json is `document`, JSON or any text."""
    storage = Storage(folder.as_uri())
    if document is not None:
        text = document if isinstance(document, str) else json.dumps(document)
        storage.put_bytes(IDENTITY_NAME, text.encode())
    return storage


def settle(redis: Redis, storage: Storage, *handlers: str, alive: tuple[str, ...] = ()) -> str:
    return Identity(redis, storage).settle(handlers, alive, NOW)


@pytest.mark.parametrize(
    ("document", "known", "starts"),
    [
        (None, None, True),  # both are new
        (OF_0_1, None, True),  # both are of 0.1
        ({"id": "a", "epoch": 7}, None, True),  # a new Redis
        ({"id": "a"}, "a", True),
        ({"id": "b"}, "a", False),
        (None, "a", False),  # forgotten on one host
        (OF_0_1, "a", False),  # another storage of 0.1
        ("{torn", "a", True),  # by a power cut
        ({"id": 7}, "a", False),
        ({"id": ""}, "a", False),
    ],
)
def test_a_process_starts_with_the_storage_of_its_redis_only(
    redis: Redis, tmp_path: Path, document: dict[str, Any] | str | None, known: str | None, *, starts: bool
) -> None:
    storage = storage_in(tmp_path, document)
    if known is not None:
        redis.set(STORAGE_ID, known)
    if not starts:
        with pytest.raises(ConfigurationError, match="outkeep storage adopt") as refused:
            settle(redis, storage)
        assert len(refused.value.problems) == 1
        return
    identity = settle(redis, storage)
    assert redis.get(STORAGE_ID) == identity.encode()
    assert read(storage).id == identity
    assert settle(redis, storage) == identity


def test_what_0_1_wrote_stays(redis: Redis, tmp_path: Path) -> None:
    storage = storage_in(tmp_path, OF_0_1)
    settle(redis, storage, "gallery")
    assert read(storage).fields["first_start"] == OF_0_1["first_start"]
    assert read(storage).handlers == {"gallery": None}


def test_since_when_a_handler_is_in_the_file_is_remembered_until_nobody_knows_it(
    redis: Redis, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path)
    settle(redis, storage, "first")
    settle(redis, storage, "first", "second")
    assert read(storage).handlers == {"first": None, "second": NOW}
    settle(redis, storage, "first", alive=("second",))
    assert read(storage).handlers == {"first": None, "second": NOW}
    settle(redis, storage, "first")
    assert read(storage).handlers == {"first": None}


@pytest.fixture
def past(redis: Redis, tmp_path: Path) -> Deployment:
    return Deployment(redis, tmp_path, NOW)


def epochs(past: Deployment) -> Epochs:
    """The part of the sweep of a process that has just started."""
    Identity(past.redis, past.storage).settle([one.name for one in past.handlers], (), NOW)
    return Epochs(past.redis, past.storage, past.handlers, ttl=TTL, clock=lambda: past.now)


def lose_nothing(_: Redis) -> None:
    pass


def lose_all(redis: Redis) -> None:
    redis.flushall()


def lose_the_epoch(redis: Redis) -> None:
    redis.delete(EPOCH)


def go_back(redis: Redis) -> None:
    """As an older copy of its data has it."""
    redis.flushall()
    redis.set(EPOCH, 1)


def garble(redis: Redis) -> None:
    redis.set(EPOCH, "x")


@pytest.mark.parametrize(
    ("loss", "rebuilt"),
    [(lose_nothing, False), (lose_all, True), (lose_the_epoch, True), (go_back, True), (garble, True)],
)
def test_a_redis_that_has_lost_data_whole_or_in_part_is_rebuilt_once_by_itself(
    past: Deployment, loss: Any, caplog: pytest.LogCaptureFixture, *, rebuilt: bool
) -> None:
    before = epochs(past)
    before.run()
    before.run()
    past.keep("p1", ago=60, told=False)
    loss(past.redis)
    assert Identity(past.redis, past.storage).trouble() is None

    for sweep in (before, epochs(past), epochs(past)):  # the last two have not lived through it
        sweep.run()
    assert past.queued() == [notify_job_id("gallery", Kind.PREDICTION, "p1")]
    assert past.records.get(Kind.PREDICTION, "p1") is not None
    said = [record.message for record in caplog.records]
    assert said.count("rebuilt from the storage") == (1 if rebuilt else 0)
    epoch = past.redis.get(EPOCH)
    assert epoch is not None
    assert int(epoch) == read(past.storage).epoch


def test_a_process_that_starts_after_the_loss_sees_it_in_the_storage(past: Deployment) -> None:
    epochs(past).run()
    past.keep("p1", ago=60, told=False)
    past.redis.flushall()
    epochs(past).run()
    assert past.queued() == [notify_job_id("gallery", Kind.PREDICTION, "p1")]


def test_while_one_process_rebuilds_no_other_does_and_whoever_comes_later_need_not(past: Deployment) -> None:
    epochs(past).run()
    past.keep("p1", ago=60, told=False)
    past.redis.flushall()
    with leased(past.redis, REBUILD_TURN) as ours:
        assert ours
        epochs(past).run()
        assert past.queued() == []
        assert past.redis.get(EPOCH) is None  # nor does anybody call it whole
    epochs(past).run()
    assert past.queued() == [notify_job_id("gallery", Kind.PREDICTION, "p1")]


def test_a_redis_that_is_emptied_again_meanwhile_is_rebuilt_again(past: Deployment) -> None:
    epochs(past).run()
    names = {f"p{number:03}" for number in range(BATCH + 1)}
    for name in sorted(names):
        past.keep(name, ago=60, told=False)
    past.redis.flushall()
    asked = []

    def clock() -> datetime:
        asked.append(past.now)
        if len(asked) == BATCH + 2:  # once for all and once for each: the second batch has just begun
            past.redis.flushall()
        return past.now

    Epochs(past.redis, past.storage, past.handlers, ttl=TTL, clock=clock).run()
    epochs(past).run()
    assert set(past.queued()) == {notify_job_id("gallery", Kind.PREDICTION, name) for name in names}
    assert not Identity(past.redis, past.storage).is_lost()


def test_what_another_process_has_rebuilt_meanwhile_is_not_rebuilt_again(
    past: Deployment, valkey_url: str
) -> None:
    epochs(past).run()
    past.keep("p1", ago=60, told=False)
    past.redis.flushall()
    ended: list[bytes] = []

    def ask(question: bytes) -> bytes:
        """Just before our turn is asked for, that of another process ends."""
        if REBUILD_TURN.encode() in question and not ended:
            ended.append(question)
            other = Identity(past.redis, past.storage)
            other.look()
            other.renew()
        return question

    with rewriting(valkey_url.removeprefix("unix://"), bytes, ask) as url, Redis.from_url(url) as wire:
        Epochs(wire, past.storage, past.handlers, ttl=TTL, clock=lambda: past.now).run()
    assert ended
    assert past.queued() == []


def test_what_rebuilds_by_itself_is_bounded(past: Deployment) -> None:
    """Neither what is too old to wait for anything, nor what a handler is not owed, is told."""
    epochs(past).run()
    past.now = datetime.now(UTC)
    old = past.keep("old", ago=10 * 86400, told=False)
    path = past.folder / "outputs/predictions/old/prediction.json"
    stamp = old.stored_at.timestamp()
    os.utime(path, (stamp, stamp))
    past.keep("before", ago=3600, told=False)
    past.keep("after", ago=60, told=False)
    added = format_time(past.now - timedelta(seconds=600))
    document = dict(read(past.storage).fields) | {"handlers": {"gallery": added}}
    past.storage.put_bytes(IDENTITY_NAME, json.dumps(document).encode())
    past.redis.flushall()
    Epochs(past.redis, past.storage, past.handlers, ttl=TTL, clock=lambda: past.now).run()
    assert past.queued() == [notify_job_id("gallery", Kind.PREDICTION, "after")]
    assert past.records.get(Kind.PREDICTION, "before") is not None
    assert past.records.get(Kind.PREDICTION, "old") is None


def test_what_is_too_old_to_wait_for_anything_is_not_told_after_a_loss(
    past: Deployment,
) -> None:
    epochs(past).run()
    past.now = datetime.now(UTC)
    for name, ago in (("old", 10 * 86400.0), ("waits", 5 * 86400.0), ("young", 60.0)):
        stamp = past.keep(name, ago=ago, told=False).stored_at.timestamp()
        os.utime(past.folder / f"outputs/predictions/{name}/prediction.json", (stamp, stamp))
    past.redis.flushall()
    Epochs(past.redis, past.storage, past.handlers, ttl=TTL, clock=lambda: past.now).run()
    told = {notify_job_id("gallery", Kind.PREDICTION, name) for name in ("waits", "young")}
    assert set(past.queued()) == told


def outkeep(*words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", *words]
    return forked.run(
        command, env=clean_environment(settings), capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "words",
    [
        ("app.cli", "serve"),
        ("app.cli", "up"),
        ("app.cli", "rebuild"),
        ("workers", "persist"),
        ("workers", "notify"),
        ("workers", "handle"),
    ],
)
def test_a_host_with_another_storage_does_not_start_and_one_line_says_why(
    valkey: OwnValkey, tmp_path: Path, words: tuple[str, ...]
) -> None:
    Identity(valkey.redis, storage_in(tmp_path / "right")).settle((), (), NOW)
    ended = outkeep(*words, **environment(valkey.url, tmp_path / "host", PORT="0"))
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if "is not the storage of this Redis" in line]
    assert len(lines) >= 1
    assert "OUTKEEP_STORAGE: file://" in lines[0]
    assert "outkeep storage adopt" in lines[0]
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (("replay", "p1"), {"id": "own"}),
        (("replay", "--since", "1h"), None),
        (("replay", "--failed"), OF_0_1),
        (("rm", "p1", "--yes"), None),
        (("rm", "p1", "--yes", "--json"), {"id": "own"}),
        (("link", "p1"), None),
        (("link", "p1", "output-0.png", "--json"), {"id": "own"}),
        (("verify", "p1"), {"id": "own"}),
        (("verify", "--all", "--json"), None),
        (("reconcile", "--since", "1h"), OF_0_1),
        (("run", "owner/model", "-i", "prompt=x"), {"id": "own"}),
    ],
)
def test_a_command_that_writes_or_promises_does_so_with_the_storage_of_its_redis_only(
    valkey: OwnValkey, tmp_path: Path, words: tuple[str, ...], own: dict[str, Any] | None
) -> None:
    """Else `rm` would leave the files, `replay` find nothing, and `verify` call an empty folder sound."""
    right = Deployment(valkey.redis, tmp_path, datetime.now(UTC))
    Identity(valkey.redis, right.storage).settle((), (), NOW)
    right.keep("p1", ago=60)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "outputs/predictions", other / "predictions")
    storage_in(other, own)
    api = {"REPLICATE_API_TOKEN": "r8_x", "REPLICATE_BASE_URL": f"http://127.0.0.1:{free_port()}"}
    before = right.stored(), sorted(valkey.redis.keys()), sorted(other.rglob("*"))

    ended = outkeep(
        "app.cli", *words, **environment(valkey.url, tmp_path, OUTKEEP_STORAGE=other.as_uri(), **api)
    )

    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"outkeep: OUTKEEP_STORAGE: {other.as_uri()} ")
    assert "is not the storage of this Redis" in line
    assert (right.stored(), sorted(valkey.redis.keys()), sorted(other.rglob("*"))) == before


@pytest.mark.parametrize("words", [("link", "p1"), ("verify", "p1"), ("verify", "--all")], ids=" ".join)
@pytest.mark.parametrize("redis_is", ["away", "refusing", "unset"])
def test_what_needs_the_storage_alone_works_without_a_redis(
    valkey: OwnValkey, tmp_path: Path, words: tuple[str, ...], redis_is: str
) -> None:
    Deployment(valkey.redis, tmp_path, datetime.now(UTC)).keep("p1", ago=60)
    valkey.redis.set(STORAGE_ID, "another")
    url = {
        "away": f"redis://127.0.0.1:{free_port()}",
        "refusing": valkey.narrow("get"),
        "unset": None,
    }[redis_is]
    ended = outkeep("app.cli", *words, **environment("", tmp_path, REDIS_URL=url))
    assert "is not the storage" not in ended.stderr
    assert ended.returncode == (0 if words[0] == "link" else 1)  # its sample says a hash that is not its own


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        (("app.cli", "serve"), 7200.0),
        (("app.cli", "serve"), -7200.0),
        (("workers", "persist"), 7200.0),
        (("workers", "notify"), 45.0),
        (("workers", "handle"), 7200.0),
    ],
)
def test_since_when_a_handler_is_in_the_file_is_written_by_the_time_of_redis(
    valkey: OwnValkey, tmp_path: Path, words: tuple[str, ...], seconds: float
) -> None:
    """Else what older processes store until then would never be told to it."""
    storage = storage_in(tmp_path / "outputs", {"id": "a", "handlers": {}})
    handlers = tmp_path / "outkeep.toml"
    handlers.write_text('[[handler]]\nname = "added"\njob = "tasks.work"\n')
    host = environment(valkey.url, tmp_path, PORT="0", OUTKEEP_HANDLERS=str(handlers))
    clock = WrongClock(tmp_path, seconds)
    before = datetime.now(UTC)
    process = forked.Popen([sys.executable, "-m", *words], env=clean_environment(host) | clock.environment)
    try:
        wait_until(lambda: "added" in read(storage).handlers)
        added = read(storage).handlers["added"]
        assert added is not None
        assert before - timedelta(seconds=5) < added < datetime.now(UTC) + timedelta(seconds=5)
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("queue", ["persist", "notify", "handle"])
def test_a_worker_that_could_not_compare_at_its_start_ends_once_it_can(
    valkey: OwnValkey, tmp_path: Path, queue: str
) -> None:
    valkey.redis.set(IDENTITY_LOCK, "somebody's")  # as if the storage did not answer
    host = environment(valkey.url, tmp_path)
    with (tmp_path / "log").open("wb") as log:
        process = forked.Popen(
            [sys.executable, "-m", "workers", queue], env=clean_environment(host), stdout=log, stderr=log
        )
    try:
        wait_until(lambda: valkey.redis.scard("rq:workers") == 1, timeout=120)
        valkey.redis.set(STORAGE_ID, "another")
        valkey.redis.delete(IDENTITY_LOCK)
        assert process.wait(60) == 0
        said = (tmp_path / "log").read_text()
        assert said.count("is not the storage of this Redis") == 1
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()


def test_another_storage_is_adopted_on_purpose(valkey: OwnValkey, tmp_path: Path) -> None:
    right = Identity(valkey.redis, storage_in(tmp_path / "right")).settle((), (), NOW)
    host = environment(valkey.url, tmp_path / "host")
    doctor = outkeep("app.cli", "doctor", **host)
    assert "fail storage id: OUTKEEP_STORAGE: file://" in doctor.stdout

    adopted = outkeep("app.cli", "storage", "adopt", **host)
    assert adopted.returncode == 0, adopted.stderr
    assert f"the one with the id {right}" in adopted.stdout or right in adopted.stdout
    assert "fail storage id" not in outkeep("app.cli", "doctor", **host).stdout
    again = outkeep("app.cli", "storage", "adopt", **host)
    assert "already" in again.stdout
    assert queues.queue(NOTIFY_QUEUE, valkey.redis).count == 0


def test_the_doctor_names_a_redis_that_has_lost_data_and_the_command(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path / "outputs", {"id": "a", "epoch": 12})
    host = environment(valkey.url, tmp_path)
    said = outkeep("app.cli", "doctor", **host).stdout
    assert "fail redis data: it has come back without data that it held" in said
    assert "outkeep rebuild" in said
    rebuilt = outkeep("app.cli", "rebuild", **host)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "redis data" not in outkeep("app.cli", "doctor", **host).stdout
    assert read(storage).epoch == 13
