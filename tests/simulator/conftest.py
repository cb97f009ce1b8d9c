"""A running simulator and the official client on it."""

from collections.abc import Iterator

import httpx
import pytest
from replicate.client import Client

from app.simulator import Simulator


@pytest.fixture(scope="package")
def simulator() -> Iterator[Simulator]:
    with Simulator(retry_delays=(0.01, 0.02, 0.04)) as running:
        yield running


@pytest.fixture(scope="package")
def client(simulator: Simulator) -> Iterator[Client]:
    """It finds the simulator through the variables that the official client reads."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REPLICATE_BASE_URL", simulator.url)
        environment.setenv("REPLICATE_API_TOKEN", simulator.token)
        environment.setenv("REPLICATE_POLL_INTERVAL", "0.01")
        official = Client()
        with official._client:
            yield official


@pytest.fixture(scope="package")
def http(simulator: Simulator) -> Iterator[httpx.Client]:
    """A plain client without a token."""
    with httpx.Client(base_url=simulator.url, timeout=60) as plain:
        yield plain
