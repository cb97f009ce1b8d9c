"""Functions of the user's behind handlers, with outputs in a bucket: no thread lives before the fork."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.names import Kind
from app.simulator import Simulator
from app.storage.store import Storage
from tests.bucket import S3
from tests.e2e.running import Up, running_up, until

pytestmark = pytest.mark.slow

HANDLER = '[[handler]]\nname = "note"\njob = "mine.note"\n'
CODE = """
import os, pathlib, threading, time

def note(event):
    identity = event["data"]["id"]
    parent = os.listdir(f"/proc/{os.getppid()}/task")
    pathlib.Path(f"ran-{identity}").write_text(str(len(parent)))
"""
MANY = 6


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator, s3_process: S3) -> Iterator[Up]:
    s3_process.clear()
    folder = tmp_path_factory.mktemp("up")
    (folder / "mine.py").write_text(CODE)
    settings = s3_process.settings(
        OUTKEEP_OUTPUT_HOSTS=simulator.url, REPLICATE_WEBHOOK_SECRET=simulator.secret
    )
    with running_up(folder, handlers=HANDLER, settings=settings) as running:
        until(lambda: "handle" in running.pids(), "the worker of functions runs")
        yield running


def finish(up: Up, simulator: Simulator, identity: str) -> None:
    stamps = {"created_at": "2026-01-01T00:00:00Z", "completed_at": None, "error": None, "version": "hidden"}
    ended: dict[str, Any] = {"id": identity, "input": {}, "output": "text", "status": "succeeded", **stamps}
    simulator.finish(Kind.PREDICTION, ended, up.hook)


def test_functions_end_one_after_the_other_and_each_end_is_told_in_the_bucket(
    up: Up, simulator: Simulator, s3_process: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_process.variables().items():
        monkeypatch.setenv(name, value)
    storage = Storage(s3_process.url)
    for number in range(MANY):
        finish(up, simulator, f"job{number}")
    names = [f"predictions/job{number}/told-note.json" for number in range(MANY)]
    # One that hangs is killed a minute after its time limit of three.
    until(lambda: all(storage.get(name) for name in names), "all are told", seconds=120)

    told = [json.loads(storage.get(name) or b"") for name in names]
    assert {(one["outcome"], one["attempts"]) for one in told} == {("delivered", 1)}
    assert "handler_job_overrun" not in up.text()


def test_the_parent_has_one_thread_idle_and_when_it_forks(up: Up, simulator: Simulator) -> None:
    finish(up, simulator, "counted")
    mark = Path(up.folder) / "ran-counted"
    until(lambda: mark.exists() and mark.read_text(), "the function ran")

    assert mark.read_text() == "1"
    assert len(list(Path(f"/proc/{up.pids()['handle']}/task").iterdir())) == 1
