"""Jobs of the user's from end to end: real workers, a real Valkey, code in a folder of its own."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis import Redis
from rq.job import JobStatus

from app import queues, told
from app.core.names import HANDLE_QUEUE, Kind, handle_job_id, notify_job_id
from tests.workers.desk import ID, Desk
from tests.workers.test_jobs import process
from tests.workers.worker_process import ROOT, failure, wait_until
from workers.ends import Ends

CODE = """
import json, os, pathlib, time
def keep(*given):
    pathlib.Path("given.json").write_text(json.dumps(given))
def raises(event):
    raise ValueError("no such colour")
def hangs(event):
    time.sleep(600)
def leaves(event):
    os._exit(7)
def eats(event):
    bytearray(1 << 30)
"""
MENDED = CODE + "raises = hangs = leaves = eats = lambda event: None\n"
BAD = {"raises": "", "hangs": 'timeout = "1s"\n', "leaves": "", "eats": 'memory = "256MiB"\n'}


def handler(function: str, extra: str = "") -> str:
    return f'[[handler]]\nname = "{function}"\njob = "users.{function}"\n{extra}\n'


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    desk = Desk(redis, tmp_path)
    desk.now = datetime.now(UTC)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "users.py").write_text(CODE)
    return desk


def outcome(desk: Desk, name: str) -> str | None:
    found = told.read(desk.storage, name, Kind.PREDICTION, ID)
    return found.outcome if found else None


def job_id(name: str) -> str:
    return handle_job_id(notify_job_id(name, Kind.PREDICTION, ID))


def stands(desk: Desk, name: str, status: JobStatus) -> bool:
    job = desk.queue(HANDLE_QUEUE).fetch_job(job_id(name))
    return job is not None and job.get_status() == status


def outkeep(desk: Desk, settings: dict[str, str], *arguments: str) -> str:
    folder = desk.outputs.parent
    environment = {"PYTHONPATH": str(ROOT), "OUTKEEP_DATA": str(folder), **settings}
    command = [sys.executable, "-m", "app.cli", *arguments]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return ended.stdout + ended.stderr


def test_code_that_fails_in_any_way_fails_alone_and_is_told_by_a_replay(desk: Desk, valkey_url: str) -> None:
    folder = desk.outputs.parent
    text = handler("keep") + "".join(handler(*bad) for bad in BAD.items())
    (folder / "outkeep.toml").write_text(text)
    settings = {"REDIS_URL": valkey_url, "OUTKEEP_SECRET_KEY": "k" * 32}
    with process(desk, "persist", **settings), process(desk, "notify", **settings):
        desk.receive("a text")
        names = ("keep", *BAD)
        wait_until(lambda: set(desk.queue(HANDLE_QUEUE).job_ids) == {*map(job_id, names)}, seconds=60)
        for name in BAD:
            # This is the last attempt: the others are made over half an hour.
            desk.redis.hset(f"rq:job:{job_id(name)}", "retries_left", 0)
        with process(desk, "handle", "--path", "code", **settings):
            wait_until(lambda: outcome(desk, "keep") == "delivered", seconds=60)
            wait_until(lambda: all(stands(desk, name, JobStatus.FAILED) for name in BAD), seconds=60)
            [event] = json.loads((folder / "given.json").read_text())
            assert event["data"]["id"] == ID
            Ends(desk.redis, desk.storage, [HANDLE_QUEUE]).run()
            assert {outcome(desk, name) for name in BAD} == {"dead"}
            listed = outkeep(desk, settings, "ls", "--failed")
            for word in (*BAD, "no such colour", "MemoryError"):
                assert word in listed
            (folder / "code" / "users.py").write_text(MENDED)
            outkeep(desk, settings, "replay", "--failed")
            wait_until(lambda: all(outcome(desk, name) == "delivered" for name in BAD), seconds=60)


def test_a_stock_worker_takes_a_queue_of_its_own_and_the_sweep_tells_the_end(
    desk: Desk, valkey_url: str
) -> None:
    folder = desk.outputs.parent
    (folder / "outkeep.toml").write_text(handler("keep", 'queue = "thumbs"\n'))
    settings = {"REDIS_URL": valkey_url}
    with process(desk, "persist", **settings), process(desk, "notify", **settings):
        desk.receive("a text")
        wait_until(lambda: desk.queue("thumbs").job_ids == [job_id("keep")], seconds=60)
    rq = [str(Path(sys.executable).parent / "rq"), "worker", "-S", "json", "--burst"]
    subprocess.run([*rq, "--url", valkey_url, "--path", "code", "thumbs"], cwd=folder, check=True, timeout=60)
    assert len(json.loads((folder / "given.json").read_text())) == 1
    assert outcome(desk, "keep") is None
    Ends(desk.redis, desk.storage, ["thumbs"]).run()
    assert outcome(desk, "keep") == "delivered"


def test_a_planted_job_is_refused_by_a_worker_process(desk: Desk, valkey_url: str) -> None:
    folder = desk.outputs.parent
    (folder / "outkeep.toml").write_text(handler("raises"))
    planted = queues.queue(HANDLE_QUEUE, desk.redis).enqueue("users.keep", args=("x",))
    with process(desk, "handle", "--path", "code", REDIS_URL=valkey_url):
        wait_until(lambda: planted.get_status() == JobStatus.FAILED, seconds=60)
    assert "is not a job of the handlers file" in failure(planted)
    assert not (folder / "given.json").exists()
