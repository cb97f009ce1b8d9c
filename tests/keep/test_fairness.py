"""What waits on one slow host holds up no other prediction: real worker processes, hosts and Valkey."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from app.accept import queues
from app.accept.claim_check import ClaimCheck
from app.accept.records import LARGE, Arrival
from app.core.manifest import Receipt, format_time
from app.core.names import PERSIST_QUEUE, Kind
from app.core.prediction import parse
from tests.e2e.file_host import FileHost, file_host
from tests.engine.worker_process import wait_until
from tests.keep.desk import PNG, Desk
from tests.workers.test_jobs import process

PREDICTION = Kind.PREDICTION
SLOTS = 8
SHARE = 2
INLINE = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"

Outputs = Callable[[FileHost, FileHost], list[Any]]
"""The slow host, the quick one → the outputs of predictions."""


@pytest.fixture
def slow() -> Iterator[FileHost]:
    """Says nothing but the heads of its answers until it is told to hurry."""
    with file_host(pause=600) as host:
        yield host


@pytest.fixture
def quick() -> Iterator[FileHost]:
    with file_host(pause=0) as host:
        yield host


def receive(desk: Desk, identity: str, output: Any, **keys: Any) -> str:
    """Accept the end of a prediction as the receiver does; its id."""
    now = datetime.now(UTC)
    raw = {"id": identity, "status": "succeeded", "input": {}, "output": output, **keys}
    body = json.dumps(raw | {"completed_at": format_time(now)}).encode()
    job = queues.persist_job(desk.redis, PREDICTION, identity, timeout=4200)
    arrival = Arrival(parse(body, PREDICTION), body, Receipt(now, "msg"), job)
    desk.records.accept([ClaimCheck(desk.storage, desk.records, patience=30).check_in(arrival)], now)
    return identity


def stored(desk: Desk, ids: list[str]) -> bool:
    return all(desk.storage.read_manifest(PREDICTION, one) is not None for one in ids)


OF_A_SLOW_HOST: list[Outputs] = [
    lambda slow, _: [slow.add("a.png", PNG) for _ in range(4 * SLOTS)],
    lambda slow, _: [[slow.add("a.png", PNG) for _ in range(249)]],
    lambda slow, _: [[slow.add("a.png", PNG) for _ in range(20)] for _ in range(2 * SLOTS)],
    lambda slow, quick: [quick.leading_to(slow.add("a.png", PNG)) for _ in range(4 * SLOTS)],
    lambda slow, quick: [
        {"a": "text", "b": [quick.add("a.png", PNG), slow.add("a.png", PNG)]} for _ in range(2 * SLOTS)
    ],
]


@pytest.mark.parametrize("outputs", OF_A_SLOW_HOST)
def test_a_slow_host_gets_a_quarter_of_the_slots_and_holds_up_no_other_output(
    desk: Desk, valkey_url: str, slow: FileHost, quick: FileHost, outputs: Outputs
) -> None:
    """What came behind it is stored while nothing of it moves, and all of it once it does."""
    held = [receive(desk, f"slow{number}", one) for number, one in enumerate(outputs(slow, quick))]
    others = ["text", ["to", "kens"], None, INLINE, quick.add("b.png", PNG), [quick.add("c.png", PNG)] * 3]
    passing = [receive(desk, f"other{number}", one) for number, one in enumerate(others)]
    settings = {
        "REDIS_URL": valkey_url,
        "OUTKEEP_SLOTS": str(SLOTS),
        "OUTKEEP_OUTPUT_HOSTS": f"{slow.url} {quick.url}",
    }
    with process(desk, PERSIST_QUEUE, **settings) as running:
        wait_until(lambda: slow.open == SHARE or stored(desk, passing), seconds=30)
        wait_until(lambda: stored(desk, passing), seconds=30)
        assert slow.most <= SHARE
        assert not any(stored(desk, [one]) for one in held)
        slow.hurry()
        wait_until(lambda: stored(desk, held), seconds=120)
        assert slow.most <= SHARE
        assert running.stop() == 0
    manifests = [desk.storage.read_manifest(PREDICTION, one) for one in held + passing]
    assert all(manifest is not None and not manifest.lost for manifest in manifests)


@pytest.mark.parametrize(
    "large", [(kind, size) for kind in ("output", "input") for size in (80 << 10, 2 << 20)]
)
def test_large_events_that_wait_for_a_slow_host_hold_up_no_large_event_that_does_not(
    desk: Desk, valkey_url: str, slow: FileHost, quick: FileHost, large: tuple[str, int]
) -> None:
    """Of both sizes of which a bounded number is in memory at a time."""
    waits_for, size = large
    for number in range(200 if size < LARGE else 20):
        url = slow.add("a.png", PNG)
        output, given = (url, {}) if waits_for == "output" else ("text", {"image": url})
        receive(desk, f"slow{number}", output, input=given, logs="x" * size)
    others = ["text", ["to", "kens"], INLINE, quick.add("b.png", PNG)]
    passing = [receive(desk, f"other{number}", one, logs="x" * size) for number, one in enumerate(others)]
    hosts = f"{slow.url} {quick.url}"
    settings = {"REDIS_URL": valkey_url, "OUTKEEP_OUTPUT_HOSTS": hosts, "OUTKEEP_KEEP_INPUTS": "true"}
    with process(desk, PERSIST_QUEUE, **settings):
        wait_until(lambda: stored(desk, passing), seconds=40)


STUCK = 40
"""More than one kind of threads has, fewer than there are for the storage."""


@pytest.mark.parametrize("output", ["text", INLINE, "file"])
def test_folders_of_the_storage_that_hang_hold_up_no_other_prediction(
    desk: Desk, valkey_url: str, quick: FileHost, output: str
) -> None:
    """Named pipes stand where manifests do: a call about them waits for ever, as on a share that has gone."""
    given = quick.add("a.png", PNG) if output == "file" else output
    hanging = [receive(desk, f"stuck{number}", given) for number in range(STUCK)]
    passing = [receive(desk, f"other{number}", given) for number in range(5)]
    for one in hanging:
        (desk.outputs / "predictions" / one).mkdir(parents=True)
        os.mkfifo(desk.outputs / "predictions" / one / "prediction.json")
    settings = {"REDIS_URL": valkey_url, "OUTKEEP_OUTPUT_HOSTS": quick.url}
    with process(desk, PERSIST_QUEUE, **settings):
        wait_until(lambda: stored(desk, passing), seconds=25)
        late = [receive(desk, f"late{number}", given) for number in range(5)]
        wait_until(lambda: stored(desk, late), seconds=25)


def test_inputs_of_a_slow_host_hold_up_no_prediction_without_inputs(
    desk: Desk, valkey_url: str, slow: FileHost
) -> None:
    for number in range(6 * SLOTS):
        receive(desk, f"slow{number}", "text", input={"image": slow.add("a.png", PNG)})
    passing = [receive(desk, f"other{number}", "text") for number in range(5)]
    settings = {"REDIS_URL": valkey_url, "OUTKEEP_SLOTS": str(SLOTS), "OUTKEEP_OUTPUT_HOSTS": slow.url}
    with process(desk, PERSIST_QUEUE, OUTKEEP_KEEP_INPUTS="true", **settings):
        wait_until(lambda: stored(desk, passing), seconds=50)
        assert slow.most <= SHARE
