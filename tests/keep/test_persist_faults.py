import asyncio
import hashlib
import logging
import shutil
from pathlib import Path
from typing import cast

import pytest

from app.core.lifecycle import State
from app.core.names import Kind, record_key
from app.core.outputs import SHOWN
from app.core.policy import HELD_FOR, NOT_YET_THERE, Tries
from app.simulator import Simulator
from tests.keep.desk import ID, PNG, WAV, Desk
from tests.raw_host import RawHost, Script, ok, raw_host, then_reset
from workers.keep.collect import NAMED_SURPLUS, PARALLEL_FILES, Limits

MISSING = ok(b"", status="404 Not Found")
GONE = ok(b"", status="410 Gone")
FORBIDDEN = ok(b"", status="403 Forbidden")
BROKEN = ok(b"", status="500 Oops")
GOOD = ok(PNG)
HOUR = 3600.0


def url_of(host: RawHost, name: str = "out-0.png") -> str:
    return f"http://127.0.0.1:{host.port}/{name}"


def origin(*hosts: RawHost) -> list[str]:
    return [f"http://127.0.0.1:{host.port}" for host in hosts]


def codes(desk: Desk) -> list[str | None]:
    return [file["error"] for file in desk.manifest()["files"]]


def assert_nothing_is_left(desk: Desk) -> None:
    assert list(desk.temporary.iterdir()) == []


def test_no_manifest_is_visible_while_a_file_is_on_its_way(desk: Desk) -> None:
    async def scenario() -> None:
        going, asked = asyncio.Event(), asyncio.Event()

        async def stall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            writer.write(GOOD[:-100])
            await going.wait()
            writer.write(GOOD[-100:])
            await writer.drain()

        async with raw_host(GOOD) as quick, raw_host(stall) as slow:
            desk.trust(*origin(quick, slow))
            desk.receive([url_of(quick), url_of(slow)])
            running = asyncio.ensure_future(desk.run())
            await asyncio.wait_for(asked.wait(), 10)
            while "0" not in desk.record().kept:
                await asyncio.wait([running], timeout=0.01)
            assert set(desk.files()) == {f"predictions/{ID}/output-0.png"}
            assert desk.told == []
            assert desk.record().state is State.RECEIVED
            going.set()
            assert await asyncio.wait_for(running, 10) is None

    asyncio.run(scenario())
    assert desk.manifest()["output"] == ["output-0.png", "output-1.png"]
    assert_nothing_is_left(desk)


@pytest.mark.parametrize(
    ("answer", "code"),
    [(MISSING, "not_found"), (GONE, "gone"), (ok(b"x" * 1_000_001), "too_large")],
)
def test_a_file_that_is_not_there_is_lost_at_once_and_the_others_are_kept(
    desk: Desk, answer: bytes, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> list[int]:
        async with raw_host(answer) as bad, raw_host(GOOD) as good:
            desk.trust(*origin(bad, good))
            desk.receive([url_of(bad), url_of(good)])
            desk.forward(NOT_YET_THERE + 1)
            assert await desk.run() is None
            assert await desk.run() is None
            return [bad.connections, good.connections]

    assert asyncio.run(scenario()) == [1, 1]
    [lost, kept] = desk.manifest()["files"]
    assert (lost["error"], lost["name"], lost["size"], lost["sha256"]) == (code, None, None, None)
    assert kept["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert desk.manifest()["output"] == [lost["source"], "output-1.png"]
    assert (desk.record().state, desk.record().files, desk.record().lost) == (State.DISPATCHED, 1, 1)
    assert "ERROR" in {record.levelname for record in caplog.records}
    assert_nothing_is_left(desk)


def test_a_lost_file_is_not_asked_for_again_while_others_are_tried(desk: Desk) -> None:
    async def scenario() -> list[int]:
        async with raw_host(GONE) as bad, raw_host(BROKEN, BROKEN, GOOD) as shaky, raw_host(GOOD) as good:
            desk.trust(*origin(bad, shaky, good))
            desk.receive([url_of(bad), url_of(shaky), url_of(good)])
            waits = [await desk.run()]
            assert not desk.is_committed
            while waits[-1] is not None:
                desk.forward(waits[-1])
                waits.append(await desk.run())
            assert waits == [1.0, 2.0, None]  # half of 2 s and 4 s: the jitter of this desk is 0
            return [bad.connections, shaky.connections, good.connections]

    assert asyncio.run(scenario()) == [1, 3, 1]
    assert codes(desk) == ["gone", None, None]


@pytest.mark.parametrize("fault", [BROKEN, then_reset(GOOD[:500]), ok(b"<html>", "Content-Type: text/html")])
def test_a_fault_of_the_host_is_tried_again(desk: Desk, fault: bytes | Script) -> None:
    async def scenario() -> int:
        async with raw_host(fault, GOOD) as host:
            desk.trust(*origin(host))
            desk.receive(url_of(host))
            wait = await desk.run()
            assert wait == 1.0
            assert desk.files() == {}
            desk.forward(wait)
            assert await desk.run() is None
            return host.connections

    assert asyncio.run(scenario()) == 2
    assert desk.file("output-0.png") == PNG
    assert_nothing_is_left(desk)


def test_a_403_is_tried_once_more_even_after_other_failures(desk: Desk) -> None:
    async def scenario() -> list[int]:
        async with raw_host(FORBIDDEN) as first, raw_host(BROKEN, BROKEN, FORBIDDEN, GOOD) as late:
            desk.trust(*origin(first, late))
            desk.receive([url_of(first), url_of(late)])
            while (wait := await desk.run()) is not None:
                desk.forward(wait)
            return [first.connections, late.connections]

    assert asyncio.run(scenario()) == [2, 4]
    assert codes(desk) == ["forbidden", None]


def test_a_file_waits_as_long_as_its_host_asks_and_holds_up_no_other(desk: Desk) -> None:
    async def scenario() -> None:
        busy = ok(b"", "Retry-After: 60", status="503 Busy")
        async with raw_host(busy, GOOD) as patient, raw_host(BROKEN, GOOD) as quick:
            desk.trust(*origin(patient, quick))
            desk.receive([url_of(patient), url_of(quick)])
            assert await desk.run() == 1.0
            desk.forward(1)
            assert await desk.run() == 59.0
            assert (patient.connections, quick.connections) == (1, 2)
            desk.forward(59)
            assert await desk.run() is None
            assert (patient.connections, quick.connections) == (2, 2)

    asyncio.run(scenario())
    assert codes(desk) == [None, None]


def test_what_failed_is_tried_again_while_a_slow_file_is_on_its_way(desk: Desk) -> None:
    async def scenario() -> None:
        async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(ok(PNG[:64], f"Content-Length: {len(PNG)}"))
            at = 64
            while not again.done():
                writer.write(PNG[at : at + 1])
                at += 1
                await asyncio.wait([again], timeout=0.1)
                desk.forward(0.1)
            desk.forward(HOUR)
            writer.write(PNG[at:])

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            again.set_result(None)
            writer.write(GOOD)

        again = asyncio.get_running_loop().create_future()
        async with raw_host(drip) as slow, raw_host(BROKEN, answer) as shaky:
            desk.trust(*origin(slow, shaky))
            desk.receive([url_of(slow), url_of(shaky)])
            assert await desk.run() is None
            assert (slow.connections, shaky.connections) == (1, 2)

    asyncio.run(scenario())
    assert codes(desk) == [None, None]


@pytest.mark.parametrize(("last", "code"), [(GOOD, None), (BROKEN, "server_error")])
def test_an_attempt_in_which_the_hour_ended_is_followed_by_one_more(
    desk: Desk, last: bytes, code: str | None
) -> None:
    async def scenario() -> int:
        async def fail_late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            desk.forward(HOUR + 1)
            writer.write(BROKEN)

        async with raw_host(fail_late, last) as host:
            desk.trust(*origin(host))
            desk.receive([url_of(host)])
            wait = await desk.run()
            assert wait == 1.0
            desk.forward(wait)
            assert await desk.run() is None
            return host.connections

    assert asyncio.run(scenario()) == 2
    assert codes(desk) == [code]


@pytest.mark.parametrize("asked", ["1000000000", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_wait_never_passes_the_hour_and_one_late_attempt_is_made(desk: Desk, asked: str) -> None:
    async def scenario() -> int:
        async with raw_host(ok(b"", f"Retry-After: {asked}", status="429 Slow")) as host:
            desk.trust(*origin(host))
            desk.receive([url_of(host)])
            assert await desk.run() == HOUR
            desk.forward(HOUR)
            assert await desk.run() is None
            return host.connections

    assert asyncio.run(scenario()) == 2
    assert codes(desk) == ["busy"]
    assert desk.record().state is State.DISPATCHED


def test_when_the_hour_passes_the_file_is_lost_with_its_last_code(desk: Desk) -> None:
    async def scenario() -> None:
        async with raw_host(BROKEN) as host:
            desk.trust(*origin(host))
            desk.receive([url_of(host)])
            began, late = desk.now, 0
            while (wait := await desk.run()) is not None:
                late = host.connections
                desk.forward(wait)
            assert (desk.now - began).total_seconds() == HOUR
            assert host.connections == late + 1

    asyncio.run(scenario())
    assert codes(desk) == ["server_error"]


def test_an_event_that_comes_after_the_hour_still_gets_its_attempt(desk: Desk) -> None:
    async def scenario() -> None:
        async with raw_host(GOOD) as host:
            desk.trust(*origin(host))
            desk.receive([url_of(host)])
            desk.forward(5 * HOUR)
            assert await desk.run() is None

    asyncio.run(scenario())
    assert codes(desk) == [None]


def test_a_refused_host_is_loud_names_the_setting_and_is_kept_once_that_is_mended(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with raw_host(GOOD) as host:
            desk.receive([url_of(host)])
            assert await desk.run() is None
            assert host.connections == 0
            [line, _] = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert (
                f'OUTKEEP_OUTPUT_HOSTS="replicate.delivery http://127.0.0.1:{host.port}"' in line.getMessage()
            )
            assert codes(desk) == ["host_refused"]
            desk.forward(1800)
            desk.trust(*origin(host))
            assert await desk.run() is None

    asyncio.run(scenario())
    assert codes(desk) == [None]


def test_lines_of_the_log_show_the_beginning_of_a_long_place(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ["k" * 900, "é" * 400, "/" * 400]
    desk.keep_inputs()
    given = dict.fromkeys(keys, "https://replicate.delivery:444/a.png")
    desk.receive(dict.fromkeys(keys, "https://files.example.com/a.png"), input=given)
    assert desk.work() is None
    shown = [vars(line)["pointer"] for line in caplog.records if "pointer" in vars(line)]
    assert {pointer.split("/")[1] for pointer in shown} == {"input", "output"}
    assert {len(pointer) for pointer in shown} == {SHOWN}


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://files.example.com/a.png", "host_refused"),
        ("http://replicate.delivery/a.png", "scheme_refused"),
        ("https://replicate.delivery:444/a.png", "port_refused"),
    ],
)
def test_what_the_setting_refuses_is_lost_at_once(desk: Desk, url: str, code: str) -> None:
    desk.receive([url])
    assert desk.work() is None
    assert codes(desk) == [code]


@pytest.mark.parametrize("url", ["https://user@replicate.delivery/a", "https://replicate.delivery:0/a"])
def test_a_url_that_no_setting_could_permit_is_lost_at_once(desk: Desk, url: str) -> None:
    desk.receive([url])
    assert desk.work() is None
    assert codes(desk) != [None]


def test_files_over_the_limit_are_lost_with_a_reason(desk: Desk, simulator: Simulator) -> None:
    desk.trust(simulator.url)
    desk.limits = Limits(max_files=3, disk_floor=0)
    urls = [simulator.add_file(f"{number}.png", PNG) for number in range(5)]
    desk.receive(urls)
    assert desk.work() is None
    assert codes(desk) == [None, None, None, "too_many_files", "too_many_files"]
    assert [simulator.downloads(url) for url in urls] == [1, 1, 1, 0, 0]
    assert desk.manifest()["output"][3:] == urls[3:]


def test_an_output_of_very_many_urls_is_reported_without_naming_each(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.limits = Limits(max_files=0, disk_floor=0)
    desk.receive([f"https://replicate.delivery/{number}" for number in range(NAMED_SURPLUS + 50)])
    assert desk.work() is None
    assert codes(desk) == ["too_many_files"] * (NAMED_SURPLUS + 1)
    assert desk.manifest()["files"][-1]["pointer"] == "/output"
    assert sum("OUTKEEP_MAX_FILES" in line for line in caplog.messages) == 1


def test_a_prediction_takes_no_more_than_its_share_of_downloads(desk: Desk) -> None:
    async def scenario() -> int:
        open_now, most, going = 0, 0, asyncio.Event()

        async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)
            if open_now == PARALLEL_FILES:
                going.set()
            await going.wait()
            open_now -= 1
            writer.write(GOOD)
            await writer.drain()

        async with raw_host(count) as host:
            desk.trust(*origin(host))
            desk.receive([url_of(host, f"{number}.png") for number in range(30)])
            assert await asyncio.wait_for(desk.run(), 20) is None
        return most

    assert asyncio.run(scenario()) == PARALLEL_FILES
    assert len(desk.manifest()["files"]) == 30


def test_what_cannot_be_started_in_time_is_left_to_the_next_run(desk: Desk) -> None:
    async def scenario() -> None:
        async def late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            desk.forward(HOUR / 4)
            writer.write(GOOD)
            await writer.drain()

        async with raw_host(late) as host:
            desk.trust(*origin(host))
            desk.receive([url_of(host, f"{number}.png") for number in range(20)])
            assert await desk.run() == 1.0
            assert PARALLEL_FILES <= host.connections < 20
            while await desk.run() is not None:
                pass
            assert host.connections == 20

    asyncio.run(scenario())
    assert codes(desk) == [None] * 20


def test_a_storage_that_fails_is_tried_without_end_and_loses_nothing(
    desk: Desk, simulator: Simulator
) -> None:
    desk.trust(simulator.url)
    urls = [simulator.add_file("a.png", PNG), simulator.add_file("b.wav", WAV)]
    desk.receive([*urls, "data:text/plain,small"])
    # A folder where the file should go: storage takes one file and refuses the other.
    obstacle = desk.outputs / "predictions" / ID / "output-0.png"
    (obstacle / "x").mkdir(parents=True)
    waits = []
    for _ in range(50):
        wait = desk.work()
        assert wait is not None
        waits.append(wait)
        desk.forward(wait)
        if len(waits) == 3:
            simulator.remove_file(urls[0])  # the hour is over for Replicate
    assert sum(waits) > HOUR
    assert max(waits) == 150.0
    assert desk.record().state is State.RECEIVED
    assert not desk.is_committed
    shutil.rmtree(obstacle)
    assert desk.work() is None
    assert codes(desk) == [None, None, None]
    assert desk.file("output-0.png") == PNG
    assert simulator.downloads(urls[1]) == 1
    assert_nothing_is_left(desk)


def hold_one(desk: Desk, simulator: Simulator) -> Path:
    """Let this host hold the only copy of a file, which the folder given back keeps out of the storage."""
    desk.trust(simulator.url)
    url = simulator.add_file("a.png", PNG)
    desk.receive(url)
    obstacle = desk.outputs / "predictions" / ID / "output-0.png"
    (obstacle / "x").mkdir(parents=True)
    assert desk.work() is not None
    simulator.remove_file(url)
    return obstacle


def elsewhere(desk: Desk, folder: Path) -> Desk:
    """Another host: the same Redis, storage and job, and a disk of its own."""
    other = Desk(desk.redis, folder)
    other.outputs, other.storage, other.hosts = desk.outputs, desk.storage, desk.hosts
    other.now, other.tries, other.attempt = desk.now, desk.tries, desk.attempt
    return other


def test_what_another_host_holds_is_not_lost_however_late_it_is(
    desk: Desk, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    obstacle = hold_one(desk, simulator)
    desk.forward(HOUR + 60)
    other = elsewhere(desk, tmp_path_factory.mktemp("other"))
    assert other.work() is not None
    shutil.rmtree(obstacle)
    assert other.work() is not None
    assert not desk.is_committed
    desk.tries = other.tries
    assert desk.work() is None
    assert desk.file("output-0.png") == PNG
    assert_nothing_is_left(desk)


def test_what_a_host_held_that_never_came_back_is_lost_after_a_day(
    desk: Desk, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    obstacle = hold_one(desk, simulator)
    shutil.rmtree(obstacle)
    desk.forward(HELD_FOR)
    other = elsewhere(desk, tmp_path_factory.mktemp("other"))
    assert other.work() is None
    assert codes(desk) == ["not_found"]


def test_a_file_on_hold_that_is_not_whole_is_downloaded_again(desk: Desk, simulator: Simulator) -> None:
    desk.trust(simulator.url)
    url = simulator.add_file("a.png", PNG)
    desk.receive(url)
    obstacle = desk.outputs / "predictions" / ID / "output-0.png"
    (obstacle / "x").mkdir(parents=True)
    assert desk.work() is not None
    [held] = desk.temporary.iterdir()
    held.write_bytes(PNG[:-1])
    shutil.rmtree(obstacle)
    assert desk.work() is None
    assert desk.file("output-0.png") == PNG
    assert simulator.downloads(url) == 2
    assert_nothing_is_left(desk)


def test_a_manifest_that_cannot_be_written_is_tried_again_without_downloads(
    desk: Desk, simulator: Simulator
) -> None:
    desk.trust(simulator.url)
    urls = [simulator.add_file("a.png", PNG), simulator.add_file("b.png", PNG)]
    desk.receive(urls)
    obstacle = desk.outputs / "predictions" / ID / "prediction.json"
    obstacle.mkdir(parents=True)
    for _ in range(3):
        assert desk.work() is not None
    assert desk.told == []
    obstacle.rmdir()
    assert desk.work() is None
    assert [simulator.downloads(url) for url in urls] == [1, 1]
    assert codes(desk) == [None, None]


def test_below_the_disk_floor_nothing_is_fetched(
    desk: Desk, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    desk.trust(simulator.url)
    url = simulator.add_file("a.png", PNG)
    desk.receive([url])
    desk.limits = Limits(max_files=10, disk_floor=1 << 60)
    assert desk.work() is not None
    assert simulator.downloads(url) == 0
    assert "OUTKEEP_DISK_FLOOR" in caplog.text
    desk.limits = Limits(max_files=10, disk_floor=0)
    assert desk.work() is None
    assert codes(desk) == [None]


def test_what_needs_no_download_is_kept_below_the_disk_floor(desk: Desk) -> None:
    desk.receive("a text")
    desk.limits = Limits(max_files=10, disk_floor=1 << 60)
    assert desk.work() is None
    assert desk.file("output.txt") == b"a text"


def test_temporary_files_that_cannot_be_written_are_our_trouble_not_the_files(
    desk: Desk, simulator: Simulator
) -> None:
    desk.trust(simulator.url)
    desk.receive([simulator.add_file("a.png", PNG)])
    desk.temporary.rmdir()
    for _ in range(30):
        wait = desk.work()
        assert wait is not None
        desk.forward(wait)
    desk.temporary.mkdir()
    assert desk.work() is None
    assert codes(desk) == [None]


def test_what_is_noted_of_a_file_is_small_however_long_its_url_and_its_place_are(desk: Desk) -> None:
    """Where it came from stands in the event: the record holds a hash of that, until all files have ended."""

    async def scenario() -> None:
        async with raw_host(GOOD) as good, raw_host(BROKEN, GOOD) as bad:
            desk.trust(*origin(good, bad))
            urls = [
                url_of(good) + "?" + "q" * 7000,
                url_of(good, "n" * 2000 + ".png"),
                "data:image/png;base64," + "QUFB" * 20_000,
                "data:text/plain," + "%41" * 20_000,
                url_of(good) + "#" + "f" * 30_000,
            ]
            output = {"k" * 900: {"l" * 100: urls}, "again": url_of(bad)}
            desk.receive(output)
            assert isinstance(await desk.run(), float)
            noted = [value for key, value in raw(desk).items() if key.startswith(b"kept:")]
            assert len(noted) == len(urls)
            assert max(map(len, noted)) < 512

            desk.forward(60)
            assert await desk.run() is None
            assert len(good.heads) == 3, "what was noted is recalled, and not asked for again"
            files = desk.manifest()["files"]
            assert [file["source"] for file in files if not file["source"].startswith("data:")] == [
                *(url for url in urls if not url.startswith("data:")),
                output["again"],
            ]
            place = f"/output/{'k' * 900}/{'l' * 100}"
            assert [file["pointer"] for file in files] == [
                *(f"{place}/{number}" for number in range(len(urls))),
                "/output/again",
            ]

    asyncio.run(scenario())


def raw(desk: Desk) -> dict[bytes, bytes]:
    """The record as it stands in Redis."""
    return cast(dict[bytes, bytes], desk.redis.hgetall(record_key(Kind.PREDICTION, ID)))


def test_a_record_that_vanishes_during_a_run_does_not_come_back_in_pieces(desk: Desk) -> None:
    async def scenario() -> None:
        async def vanish(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.to_thread(desk.redis.flushall)
            writer.write(BROKEN)
            await writer.drain()

        async with raw_host(GOOD) as good, raw_host(vanish) as host:
            desk.trust(*origin(good, host))
            desk.receive([url_of(good), url_of(host)])
            assert await desk.run() is not None

    asyncio.run(scenario())
    assert desk.redis.keys() == []


@pytest.mark.parametrize(("good", "bad", "stored"), [(1, 0, 1), (0, 1, 0), (2, 1, 1), (0, 3, 0), (0, 0, 1)])
def test_what_was_given_up_is_not_counted_as_stored(
    desk: Desk, simulator: Simulator, good: int, bad: int, stored: int
) -> None:
    desk.trust(simulator.url)
    lost = [simulator.add_file(f"lost{number}.png", b"lost") for number in range(bad)]
    for url in lost:
        simulator.remove_file(url)
    desk.receive([simulator.add_file(f"kept{number}.png", PNG) for number in range(good)] + lost)
    desk.forward(NOT_YET_THERE + 1)

    async def counted() -> int:
        async with desk.service() as service:
            wait = await service.run(Kind.PREDICTION, ID, Tries({}), attempt=1)
            assert wait is None
            await service.run(Kind.PREDICTION, ID, Tries({}), attempt=2)  # as a run that overlaps does
            return service.tally.waiting().get('outkeep_predictions_stored_total{kind="prediction"}', 0)

    assert asyncio.run(counted()) == stored
    assert desk.is_committed
