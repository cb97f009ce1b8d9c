"""Fixtures shared by all tests: a real Valkey, a real HTTP server on a port, recorded samples."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from redis import Redis

from app.receive import listening
from app.simulator import Simulator
from tests.bucket import S3, FaultyProxy, faulty_proxy, s3_server
from tests.own_valkey import OwnValkey, own_valkey

# No test of ours judges by the clock, and the machines of others are slower than ours.
hypothesis.settings.register_profile("outkeep", deadline=None)
hypothesis.settings.load_profile("outkeep")

SAMPLES = Path(__file__).parent / "samples"


def pytest_configure() -> None:
    """Listen to Ctrl-C and to hang-ups: a shell that runs us in the background has the one ignored, `nohup`
    the other, and children inherit that; what has a handler here is at its default in them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    # Tests beside these choose ports at the same time, and use them a little later.
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    each = len(listening.PORTS) // max(1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    listening.PORTS = listening.PORTS[number * each : (number + 1) * each]


@pytest.fixture(scope="session")
def session_valkey() -> Iterator[OwnValkey]:
    """One Valkey for the session, durable as the embedded one is."""
    with own_valkey() as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def valkey_url(session_valkey: OwnValkey) -> str:
    """The same, empty when a module begins: its receiver must not find the storage of another one's there."""
    session_valkey.redis.flushall()
    return session_valkey.url


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """The umask of nearly every shell and service; a start in this process changes it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    """A client on an empty database."""
    client = Redis.from_url(valkey_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    """A server of the test's own."""
    with own_valkey() as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """One for the module."""
    with Simulator() as running:
        yield running


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3]:
    """One S3 server for the session."""
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_process: S3) -> S3:
    """That server with an empty bucket; `s3_here` also sets the variables of this process."""
    s3_process.clear()
    return s3_process


@pytest.fixture
def s3_here(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The usual variables lead to an empty bucket: obstore reads them from the process."""
    for name, value in s3.variables().items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def proxy(s3_here: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The same behind a proxy that fails when told to: the usual variables lead there."""
    with faulty_proxy(s3_here) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.s3.endpoint)
        yield running


@pytest.fixture(scope="session")
def samples() -> list[dict[str, Any]]:
    """The recorded objects: `{"kind", "recorded", "object"}`."""
    return [json.loads(line) for line in (SAMPLES / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def recorded_delivery() -> dict[str, Any]:
    """The recorded delivery: `{"headers", "body"}`; its signature was not recorded."""
    delivery: dict[str, Any] = json.loads((SAMPLES / "delivery.json").read_text())
    return delivery
