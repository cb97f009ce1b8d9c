"""The hour of an output, planned against clocks that are right, wrong and absurd."""

import asyncio
from datetime import timedelta

import pytest

from app.core import event
from app.core.manifest import format_time
from app.core.names import Kind
from tests.keep.desk import ID, PNG, Desk
from tests.raw_host import RawHost, ok, raw_host

BROKEN = ok(b"", status="500 Oops")
HOUR = 3600.0


async def seconds_tried(desk: Desk, host: RawHost, completed_at: str | None) -> float:
    """For how long a host that only fails is asked, one run after another."""
    desk.trust(f"http://127.0.0.1:{host.port}")
    desk.receive([f"http://127.0.0.1:{host.port}/out.png"], completed_at=completed_at)
    began = desk.now
    while (wait := await desk.run()) is not None:
        assert 0 < wait <= HOUR
        desk.forward(wait)
    return (desk.now - began).total_seconds()


def tried(desk: Desk, completed_at: str | None) -> float:
    async def scenario() -> float:
        async with raw_host(BROKEN) as host:
            return await seconds_tried(desk, host, completed_at)

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    "completed_at",
    [
        None,
        "0001-01-01T00:00:00Z",
        "1970-01-01T00:00:00.000Z",
        "2016-03-01T12:00:00Z",
        "2036-03-01T12:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
        "yesterday",
        "",
    ],
)
def test_an_absurd_end_counts_for_nothing_and_the_hour_runs_from_the_receipt(
    desk: Desk, completed_at: str | None
) -> None:
    assert tried(desk, completed_at) == HOUR
    [file] = desk.manifest()["files"]
    assert file["error"] == "server_error"


@pytest.mark.parametrize("minutes", [-5, 0, 10, 59])
def test_a_believable_end_shortens_or_lengthens_the_tries(desk: Desk, minutes: int) -> None:
    assert tried(desk, format_time(desk.now - timedelta(minutes=minutes))) == HOUR - 60 * minutes


def test_a_clock_that_says_the_hour_is_over_costs_no_output(desk: Desk) -> None:
    """The host still has the file: no clock but its own decides about that."""

    async def scenario() -> None:
        async with raw_host(ok(PNG)) as host:
            desk.trust(f"http://127.0.0.1:{host.port}")
            late = format_time(desk.now - timedelta(minutes=119))
            desk.receive([f"http://127.0.0.1:{host.port}/out.png"], completed_at=late)
            assert await desk.run() is None

    asyncio.run(scenario())
    assert desk.file("output-0.png") == PNG


def test_what_is_lost_stands_in_the_manifest_the_record_and_the_event_with_its_code(desk: Desk) -> None:
    assert tried(desk, None) == HOUR
    [file] = desk.manifest()["files"]
    assert desk.record().lost == 1
    manifest = desk.storage.read_manifest(Kind.PREDICTION, ID)
    assert manifest is not None
    data = event.build(manifest, lambda name: name)["data"]
    assert data["lost"] == [{"pointer": "/output/0", "source": file["source"], "error": "server_error"}]
    assert data["files"] == []
