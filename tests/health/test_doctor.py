"""`outkeep doctor` as people run it, over deployments in which one thing is really wrong."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from rq import Worker
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from app.accept import queues
from app.accept.spool import Spool, Spooled
from app.core.manifest import Receipt
from app.core.names import (
    KEY_FINGERPRINT,
    NOTIFY_QUEUE,
    PERSIST_QUEUE,
    RECONCILED,
    SWEPT,
    Kind,
    handle_job_id,
    notify_job_id,
)
from app.maintain.handler_states import HandlerStates
from app.receive.listening import free_port
from tests import forked
from tests.forked import run_command
from tests.own_valkey import WEAK, OwnValkey, own_valkey
from tests.receive.web import SECRET, clean_environment, environment, wait_until
from tests.redis_proxy import rewriting

ROOT = Path(__file__).parents[2]
FLOOR = {"OUTKEEP_DISK_FLOOR": "0"}
OTHER_KEY = "another-key-of-thirty-two-bytes!"


@dataclass(frozen=True)
class Report:
    """What it said."""

    code: int
    lines: list[str]

    def of(self, check: str) -> list[str]:
        return [line for line in self.lines if line[5:].partition(":")[0] == check]

    def line(self, check: str) -> str:
        [found] = self.of(check)
        return found

    def wrong(self) -> list[str]:
        return [line for line in self.lines if not line.startswith("ok ")]


def run(folder: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return run_command("doctor", *arguments, env=clean_environment(FLOOR | settings), cwd=folder)


def doctor(folder: Path, *arguments: str, **settings: str) -> Report:
    done = run(folder, *arguments, **settings)
    assert done.stderr == ""
    assert done.returncode in {0, 1}
    report = Report(done.returncode, done.stdout.splitlines())
    assert (report.code == 1) is any(line.startswith("fail ") for line in report.lines)
    return report


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


@contextmanager
def workers(valkey: OwnValkey, folder: Path) -> Iterator[dict[str, "subprocess.Popen[bytes]"]]:
    """Real workers of both queues, once they work, schedule and have swept."""
    settings = clean_environment(environment(valkey.url, folder, **FLOOR))
    running = {
        queue: forked.Popen(
            [sys.executable, "-m", "workers", queue], cwd=ROOT, env=settings, stderr=subprocess.DEVNULL
        )
        for queue in (PERSIST_QUEUE, NOTIFY_QUEUE)
    }
    try:
        wait_until(
            lambda: (
                valkey.redis.exists(SWEPT, "rq:scheduler-lock:persist", "rq:scheduler-lock:notify") == 3
                and all(valkey.redis.scard(f"rq:workers:{queue}") for queue in running)
            ),
            timeout=90,
        )
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def test_a_sound_deployment_passes_and_one_without_workers_fails(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    settings = environment(valkey.url, tmp_path, REPLICATE_API_TOKEN="r8_" + "x" * 20)
    valkey.redis.set(RECONCILED, time.time())
    with workers(valkey, tmp_path) as running:
        report = doctor(tmp_path, **settings)
        assert report.wrong() == []
        assert report.code == 0
        assert report.line("workers of persist") == "ok   workers of persist: 1 running"
        assert report.line("sweep").startswith("ok ")
        assert report.line("repairs") == "ok   repairs: none within the last hour"
        for process in running.values():
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    report = doctor(tmp_path, **settings)
    assert report.code == 1
    assert report.line("workers of persist") == (
        "fail workers of persist: none runs; start `outkeep work persist`"
    )
    assert report.line("workers of notify").startswith("fail ")
    assert report.line("scheduler").startswith("fail scheduler: none for persist, notify, handle: ")


def test_a_redis_that_fills_up_is_named(valkey: OwnValkey, tmp_path: Path) -> None:
    """Beside 64 MiB connections and scripts weigh little."""
    valkey.start()
    valkey.redis.set("weight", "x" * (64 << 20))
    settings = environment(valkey.url, tmp_path)
    used = int(str(cast(dict[str, object], valkey.redis.info("memory"))["used_memory"]))
    for room, level in ((10.0, None), (1.2, "warn"), (1.02, "fail")):
        valkey.redis.config_set("maxmemory", int(used * room))
        found = doctor(tmp_path, **settings).of("redis memory")
        assert [line[:4] for line in found] == ([] if level is None else [level]), found


def test_a_worker_that_was_killed_is_not_counted(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    beat = datetime.now(UTC) - timedelta(seconds=31)
    items = ["last_heartbeat", beat.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "queues", "persist"]
    valkey.redis.hset("rq:worker:dead", items=items)
    valkey.redis.sadd("rq:workers:persist", "rq:worker:dead")
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert report.line("workers of persist").startswith("fail workers of persist: none runs")


def test_suspended_workers_are_named(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.redis.set("rq:suspended", 1)
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert report.line("workers") == "fail workers: all are suspended; `rq resume` lets them go on"


@pytest.mark.parametrize(("option", "value", "said"), WEAK)
def test_a_redis_that_may_lose_is_named(
    valkey: OwnValkey, tmp_path: Path, option: str, value: str, said: str
) -> None:
    valkey.start(f"--{option}", value)
    level = "warn" if "appendfsync" in option else "fail"
    line = doctor(tmp_path, **environment(valkey.url, tmp_path)).line("redis")
    assert line.startswith(f"{level} redis: {said}")


def test_a_redis_that_says_little_is_warned_of(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    report = doctor(tmp_path, **environment(valkey.narrow("config", "info"), tmp_path))
    assert report.of("redis") == [
        "warn redis: INFO is not allowed, so its version and role are unknown",
        "warn redis: CONFIG GET is not allowed, so durability is unknown",
    ]


def test_a_cluster_is_refused(valkey: OwnValkey, tmp_path: Path) -> None:
    # Without a port of its own its bus takes 10000, which another run of the tests, or anybody, may have.
    valkey.start("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--bind", "127.0.0.1")
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert "fail redis: this is a cluster, which is not supported; use a single server" in report.lines


def test_a_redis_without_room_is_named(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.redis.config_set("maxmemory", "1mb")
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert report.line("redis").startswith("fail redis: takes no writes (OutOfMemoryError)")


def test_a_replica_is_named(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.redis.replicaof("127.0.0.1", "1")
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert (
        "fail redis: this is a replica, which takes no writes; point REDIS_URL to its master" in report.lines
    )


def test_a_user_who_may_not_do_enough_is_named(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    report = doctor(tmp_path, **environment(valkey.narrow("lindex"), tmp_path))
    assert "fail redis: refuses commands that are needed (NoPermissionError)" in report.line("redis")


def older(data: bytes) -> bytes:
    return re.sub(rb"redis_version:[0-9]", b"redis_version:5", data)


def a_minute_ago(data: bytes) -> bytes:
    """Only `TIME` answers with two texts of which the first is a Unix time."""
    return re.sub(
        rb"\*2\r\n\$10\r\n([0-9]{10})\r\n", lambda found: b"*2\r\n$10\r\n%d\r\n" % (int(found[1]) - 90), data
    )


def test_an_old_redis_and_a_clock_that_is_off_are_named(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    path = valkey.url.removeprefix("unix://")
    with rewriting(path, lambda data: older(a_minute_ago(data))) as url:
        report = doctor(tmp_path, **environment(url, tmp_path))
    assert "is too old; use Redis 7.0 or later, or Valkey" in report.line("redis")
    assert re.match(r"fail clock: \+(89|9[0-9])\.[0-9] s against Redis' host; let both", report.line("clock"))


def test_without_redis_the_rest_is_examined(tmp_path: Path) -> None:
    report = doctor(tmp_path, **environment(f"redis://127.0.0.1:{free_port()}", tmp_path))
    assert report.code == 1
    assert report.line("redis").startswith("fail redis: no answer (ConnectionError): nothing is stored")
    assert report.line("storage").startswith("ok ")
    assert report.line("disk").startswith("ok ")


def test_a_redis_that_hangs_is_named(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.signal(signal.SIGSTOP)
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert report.line("redis").startswith("fail redis: no answer (TimeoutError)")


def test_a_wrong_password_is_named_and_not_shown(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start("--requirepass", "right")
    url = valkey.url.replace("unix://", "unix://:canary-password@")
    report = doctor(tmp_path, **environment(url, tmp_path))
    assert report.line("redis") == "fail redis: it refuses the user or password of REDIS_URL"
    assert "canary" not in "".join(report.lines)


def test_a_data_folder_on_which_nothing_runs_is_named(tmp_path: Path) -> None:
    report = doctor(tmp_path, OUTKEEP_DATA=str(tmp_path / "data"), REPLICATE_WEBHOOK_SECRET=SECRET)
    assert "no embedded server answers on" in report.line("redis")
    assert not (tmp_path / "data" / "secret.key").exists(), "a doctor makes nothing"


def test_what_an_embedded_server_has_left_is_named_once_another_one_is_used(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    (tmp_path / "valkey").mkdir()
    settings = environment(valkey.url, tmp_path)
    assert (
        doctor(tmp_path, **settings).line("embedded server").startswith(f"warn embedded server: {tmp_path}")
    )
    (tmp_path / "valkey").rmdir()
    assert doctor(tmp_path, **settings).of("embedded server") == []
    embedded = {name: text for name, text in settings.items() if name != "REDIS_URL"}
    (tmp_path / "valkey").mkdir()
    assert doctor(tmp_path, **embedded).of("embedded server") == []


def test_a_configuration_that_is_refused_fails_with_every_mistake(tmp_path: Path) -> None:
    report = doctor(tmp_path, OUTKEEP_SLOTS="many", OUTKEEP_STORRAGE="x", REDIS_URL="unix:///nowhere")
    assert report.code == 1
    said = [
        line.removeprefix("fail configuration: ").partition(":")[0] for line in report.of("configuration")
    ]
    assert sorted(said) == ["OUTKEEP_SECRET_KEY", "OUTKEEP_SLOTS", "OUTKEEP_STORRAGE"]


def test_a_cog_token_that_can_be_guessed_is_warned_of(tmp_path: Path) -> None:
    settings = environment("unix:///nowhere", tmp_path)
    assert doctor(tmp_path, **settings, OUTKEEP_COG_TOKEN="x" * 16).line("cog token").startswith("ok ")
    short = doctor(tmp_path, **settings, OUTKEEP_COG_TOKEN="guess-me").line("cog token")
    assert short.startswith("warn cog token: OUTKEEP_COG_TOKEN has fewer than 16 characters")
    assert "guess-me" not in short


def test_missing_credentials_are_warned_of(tmp_path: Path) -> None:
    report = doctor(tmp_path, OUTKEEP_DATA=str(tmp_path))
    assert report.line("token").startswith("warn token: REPLICATE_API_TOKEN is not set: a prediction whose")
    assert report.line("webhook secret").startswith(
        "warn webhook secret: REPLICATE_WEBHOOK_SECRET is not set"
    )


def test_a_key_of_another_deployment_fails(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.redis.set(KEY_FINGERPRINT, "of another key")
    report = doctor(tmp_path, **environment(valkey.url, tmp_path, OUTKEEP_SECRET_KEY=OTHER_KEY))
    assert report.line("secret key").startswith(
        "fail secret key: OUTKEEP_SECRET_KEY is not the one that was used on this Redis"
    )
    assert OTHER_KEY not in "".join(report.lines)


def test_storage_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file in its place")
    report = doctor(tmp_path, **environment("unix:///nowhere", tmp_path))
    assert report.line("storage").startswith("fail storage: cannot write to")
    assert report.of("configuration") == []


@pytest.mark.parametrize("url", ["s3a://bucket/prefix", "s3:///prefix", "s3://key:secret@bucket"])
def test_a_storage_that_keeps_up_from_starting_fails(tmp_path: Path, url: str) -> None:
    report = doctor(tmp_path, **environment("unix:///nowhere", tmp_path, OUTKEEP_STORAGE=url))
    assert "OUTKEEP_STORAGE: " in report.line("configuration")
    assert report.of("storage") == []


def test_a_remote_storage_that_does_not_answer_fails(tmp_path: Path) -> None:
    settings = environment("unix:///nowhere", tmp_path, OUTKEEP_STORAGE="s3://bucket/prefix")
    remote = {
        "AWS_ENDPOINT": f"http://127.0.0.1:{free_port()}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "x",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }  # fmt: skip
    report = doctor(tmp_path, **settings, **remote)
    assert report.line("storage").startswith("fail storage: s3://bucket/prefix: no answer from http://")


def test_a_disk_below_its_floor_fails(tmp_path: Path) -> None:
    report = doctor(tmp_path, **environment("unix:///nowhere", tmp_path, OUTKEEP_DISK_FLOOR="1000TiB"))
    assert "below 1048576000 MiB nothing is downloaded (OUTKEEP_DISK_FLOOR)" in report.line("disk")
    assert report.line("disk").startswith("fail ")


def test_a_spool_that_is_off_or_not_empty_is_warned_of(tmp_path: Path) -> None:
    settings = environment("unix:///nowhere", tmp_path)
    assert doctor(tmp_path, **settings, OUTKEEP_SPOOL="off").line("spool").startswith("warn ")
    spool = Spool(tmp_path / "spool", disk_floor=0)
    receipt = Receipt(datetime.now(UTC) - timedelta(seconds=120), "msg_1")
    spool._keep("abc", Spooled(Kind.PREDICTION, b"{}", receipt))
    spool.close()
    assert re.match(
        r"warn spool: 1 deliveries wait for Redis, or, if large, for the storage; the oldest for 1[2-9]\d s",
        doctor(tmp_path, **settings).line("spool"),
    )


def test_predictions_whose_outputs_are_put_off_are_named(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    settings = environment(valkey.url, tmp_path)
    assert doctor(tmp_path, **settings).of("outputs put off") == []
    later = queues.persist_job(valkey.redis, Kind.PREDICTION, "abc", timeout=60)
    later.set_status(JobStatus.SCHEDULED)
    persist = queues.queue(PERSIST_QUEUE, valkey.redis)
    valkey.redis.zadd(persist.scheduled_job_registry.key, {later.id: 2e9})
    report = doctor(tmp_path, **settings)
    assert report.line("outputs put off").startswith(
        "warn outputs put off: 1 predictions wait for the next try"
    )


def test_queues_that_wait_and_dead_letters_are_named(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    for handler in ("one", "two"):
        queues.enqueue_notify(valkey.redis, handler, Kind.PREDICTION, "abc")
    notify = queues.queue(NOTIFY_QUEUE, valkey.redis)
    old = (datetime.now(UTC) - timedelta(seconds=700)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    valkey.redis.hset(Job.key_for(notify.job_ids[0]), "enqueued_at", old)
    dead = queues.persist_job(valkey.redis, Kind.PREDICTION, "abc", timeout=60)
    dead.set_status(JobStatus.FAILED)
    valkey.redis.zadd(queues.queue(PERSIST_QUEUE, valkey.redis).failed_job_registry.key, {dead.id: 2e9})
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert re.match(r"fail queue notify: 2 waiting, the oldest for 7\d\d s", report.line("queue notify"))
    assert report.line("queue persist") == "ok   queue persist: 0 waiting"
    assert report.line("dead letters of persist").startswith("warn dead letters of persist: 1; look at")
    assert report.line("dead letters of notify") == "ok   dead letters of notify: none"


def test_a_sweep_that_stands_still_is_warned_of(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.redis.set(SWEPT, str(time.time() - 1000))
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert re.match(r"warn sweep: the last one was 10\d\d s ago; look at", report.line("sweep"))


HANDLERS = """
[[handler]]
name = "gallery"
url = "http://127.0.0.1:9/hook"
secret = "whsec_Z2FsbGVyeS1nYWxsZXJ5LWdhbGxlcnkh"

[[handler]]
name = "metadata"
url = "http://169.254.169.254/hook"
secret = "whsec_Z2FsbGVyeS1nYWxsZXJ5LWdhbGxlcnkh"
"""


def test_handlers_that_can_never_be_told_fail(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    (tmp_path / "outkeep.toml").write_text(HANDLERS)
    settings = environment(valkey.url, tmp_path)
    report = doctor(tmp_path, **settings)
    assert report.line("handler gallery") == (
        "fail handler gallery: 127.0.0.1 is 127.0.0.1, which is not public: it is never told; "
        "set OUTKEEP_NOTIFY_PRIVATE=true to allow it"
    )
    HandlerStates(valkey.redis).switch_off("gallery", datetime.now(UTC))
    report = doctor(tmp_path, **settings, OUTKEEP_NOTIFY_PRIVATE="true")
    off, allowed = report.of("handler gallery")
    assert "`outkeep handlers enable gallery`" in off
    assert allowed == "ok   handler gallery: 127.0.0.1 may be connected to"
    assert report.line("handler metadata").endswith("which is not public: it is never told")


JOBS = """
[[handler]]
name = "thumbnail"
job = "mine.keep"

[[handler]]
name = "misspelt"
job = "mine.kep"

[[handler]]
name = "theirs"
job = "elsewhere.keep"
queue = "thumbs"
"""


def test_queues_of_jobs_are_examined_with_their_workers_and_functions(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    (tmp_path / "outkeep.toml").write_text(JOBS)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text("def keep(event): pass\n")
    settings = environment(valkey.url, tmp_path)
    report = doctor(tmp_path, **settings)
    assert (
        report.line("workers of handle") == "fail workers of handle: none runs; start `outkeep work handle`"
    )
    assert report.line("workers of thumbs") == (
        "fail workers of thumbs: none runs; start `rq worker -S json thumbs`"
    )
    assert report.line("queue thumbs") == "ok   queue thumbs: 0 waiting"
    assert report.line("dead letters of thumbs") == "ok   dead letters of thumbs: none"
    assert report.line("ends of jobs") == "ok   ends of jobs: all are told"
    assert report.line("handler thumbnail") == (
        f"warn handler thumbnail: there is no module 'mine' in {tmp_path} or among the installed packages, "
        "so mine.keep would not run; mend that, or name the folder of your code with --path, here and at "
        "`outkeep work handle`"
    )
    beside = doctor(tmp_path, "--path", "code", **settings)
    assert beside.line("handler thumbnail") == "ok   handler thumbnail: mine.keep on queue handle"
    assert beside.line("handler misspelt").startswith(
        f"warn handler misspelt: {tmp_path}/code/mine.py has no 'kep', so mine.kep would not run"
    )
    assert beside.line("handler theirs") == (
        "ok   handler theirs: elsewhere.keep on queue thumbs, whose workers are your own"
    )


def test_an_idle_stock_worker_counts_and_an_end_that_nobody_told_is_named(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    """As they stand when RQ's own worker has run a job, and has then waited for the next one."""
    valkey.start()
    (tmp_path / "outkeep.toml").write_text(JOBS)
    thumbs = queues.queue("thumbs", valkey.redis)
    notify_id = notify_job_id("theirs", Kind.PREDICTION, "abc")
    job = thumbs.enqueue("builtins.print", {}, job_id=handle_job_id(notify_id), result_ttl=3600)
    worker = Worker([thumbs], connection=valkey.redis, serializer=JSONSerializer, name="stock")
    worker.register_birth()  # type: ignore[no-untyped-call]
    worker.execute_job(job, thumbs)
    ago = datetime.now(UTC) - timedelta(seconds=130)
    for key, field in ((worker.key, "last_heartbeat"), (job.key, "ended_at")):
        valkey.redis.hset(key, field, ago.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    report = doctor(tmp_path, **environment(valkey.url, tmp_path))
    assert re.match(
        r"ok   workers of thumbs: 1 registered, last heard of 1[3-9]\d s ago",
        report.line("workers of thumbs"),
    )
    assert report.line("ends of jobs").startswith(
        f"warn ends of jobs: 1 jobs of handlers have ended, and no outcome says so ({job.id})"
    )


def test_json_says_the_same(tmp_path: Path) -> None:
    settings = environment("unix:///nowhere", tmp_path)
    done = run(tmp_path, "--json", **settings)
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"]) == (1, False)
    lines = [
        f"{one['level']:<4} {one['check']}: {one['detail']}".removesuffix(": ")
        for one in document["findings"]
    ]
    # Free room changes from one moment to the next.
    stable = [line for line in lines if " disk: " not in line]
    assert stable == [line for line in doctor(tmp_path, **settings).lines if " disk: " not in line]
