"""A quick fuzz of the receiver; `make soak` does it for ten minutes."""

import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from redis import Redis

from tests.receive.fuzz import GOOD, SETTINGS, attack
from tests.receive.web import in_process, prediction


def test_no_input_makes_the_receiver_fail(valkey_url: str, redis: Redis, tmp_path: Path) -> None:
    with in_process(valkey_url, tmp_path, **SETTINGS) as (web, process):
        with ThreadPoolExecutor(8) as pool:
            statuses = Counter(pool.map(partial(attack, web), range(800)))
        assert web.outcome(prediction("afterwards")) == "accepted"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0

    assert set(statuses) - {0} <= GOOD - {503}, statuses
    assert statuses[202] > 50
    assert b"Traceback" not in (tmp_path / "serve.log").read_bytes()
