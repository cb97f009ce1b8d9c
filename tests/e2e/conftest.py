"""What is around a real `outkeep up` of a module, unless that has its own: a simulator, and a handler."""

from collections.abc import Iterator

import pytest

from app.simulator import Simulator
from tests.e2e.recorder import Recorder, recorder


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(retry_delays=(0.1, 0.2)) as running:
        yield running


@pytest.fixture(scope="module")
def downstream() -> Iterator[Recorder]:
    with recorder() as running:
        yield running
