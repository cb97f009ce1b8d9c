"""Downloads that outlast every time-out that RQ has of its own."""

import hashlib
import os
from pathlib import Path

import pytest

from app.core.names import Kind
from app.simulator import Simulator
from tests.e2e.file_host import file_host
from tests.e2e.recorder import recorder
from tests.e2e.running import running_up
from tests.e2e.traffic import finished

pytestmark = pytest.mark.soak

SECONDS = 200
"""RQ takes a job for abandoned after 180 s, unless told otherwise."""

RATE = 10_000
"""Bytes a second; less than about two thousand would be taken for a stall."""


def test_a_download_longer_than_the_time_out_of_rq_runs_once(tmp_path: Path) -> None:
    with (
        file_host(pieces=SECONDS, pause=1.0) as host,
        Simulator() as simulator,
        recorder() as downstream,
    ):
        url = host.add("out-0.bin", os.urandom(SECONDS * RATE))
        settings = {"REPLICATE_WEBHOOK_SECRET": simulator.secret, "OUTKEEP_OUTPUT_HOSTS": host.url}
        with running_up(tmp_path, handlers=downstream.handler(), settings=settings) as up:
            simulator.finish(Kind.PREDICTION, finished("slow", [url]), up.hook)
            downstream.wait_for(lambda it: it.ids() == {"slow"}, "it is told", seconds=2 * SECONDS)
            stored = (up.outputs / "predictions" / "slow" / "output-0.bin").read_bytes()
        assert hashlib.sha256(stored).hexdigest() == host.sha256(url)
        assert list(host.asked.values()) == [1]
