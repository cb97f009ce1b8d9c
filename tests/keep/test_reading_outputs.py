"""How an output is read, from the event to what lies in storage: file, link or text."""

import asyncio
import base64
import json
import logging
from datetime import timedelta
from typing import Any

import pytest

from app.core import event
from app.core.hosts import HostRules
from app.core.lifecycle import Repair, State
from app.core.names import Kind, persist_job_id
from tests.keep.desk import ID, PNG, Desk
from tests.raw_host import ok, raw_host
from workers.repair.inconsistencies import Consistency, RefusedOutputs

LINK = "https://en.wikipedia.org/wiki/Cat"
REFUSED = "https://files.example.com/cat.png"
INLINE = base64.b64encode(PNG).decode()
WHOLE = f"data:image/png;base64,{INLINE}"


@pytest.mark.parametrize(
    ("output", "links", "text", "kept"),
    [
        # `{}` is where the host of the list lies.
        (["{}/cat.png", LINK], [LINK], None, ["output-0.png"]),
        ([LINK, "{}/cat.png"], [LINK], None, ["output-0.png"]),
        (LINK, [LINK], None, []),
        ({"image": "{}/cat.png", "source": LINK}, [LINK], None, ["output-0.png"]),
        (["See ", LINK, " for"], [], f"See {LINK} for", []),
        (["See ", "{}/cat.png", " for"], [], "See {}/cat.png for", ["output-0.png"]),
        (" {}/cat.png\n", [], None, ["output-0.png"]),
        (["{}/my cat.png"], [], None, ["output-0.png"]),
        ("Here: ![a cat]({}/cat.png)!", [], "Here: ![a cat]({}/cat.png)!", ["output-0.png"]),
        ('{"image": "{}/cat.png"}', [], '{"image": "{}/cat.png"}', ["output-0.png"]),
        ({"answer": "It is {}/cat.png."}, [], None, ["output-0.png"]),
        (f"data:png;base64,{INLINE.replace('+', '-').replace('/', '_')}=", [], None, ["output-0.png"]),
        (["words", WHOLE], [], f"words{WHOLE}", ["output-0.png"]),
    ],
    ids=range(13),
)  # fmt: skip
def test_files_are_kept_links_listed_and_text_joined_at_once(
    desk: Desk, output: Any, links: list[str], text: str | None, kept: list[str]
) -> None:
    async def scenario() -> str:
        async with raw_host(ok(PNG)) as host:
            origin = f"http://127.0.0.1:{host.port}"
            desk.trust(origin)
            desk.receive(json.loads(json.dumps(output).replace("{}", origin)))
            assert await desk.run() is None
            return origin

    origin = asyncio.run(scenario())
    assert [link["url"] for link in desk.manifest()["links"]] == links
    assert [file["error"] for file in desk.manifest()["files"]] == [None] * (len(kept) + (text is not None))
    assert [desk.file(name) for name in kept] == [PNG] * len(kept)
    if text is not None:
        assert desk.file("output.txt").decode() == text.replace("{}", origin)
    assert (desk.record().state, desk.record().lost) == (State.DISPATCHED, 0)
    manifest = desk.storage.read_manifest(Kind.PREDICTION, ID)
    assert manifest is not None
    assert [link["url"] for link in event.build(manifest, str)["data"]["links"]] == links


@pytest.mark.parametrize(
    ("output", "error"),
    [
        (REFUSED, "host_refused"),
        ([REFUSED, LINK], "host_refused"),
        ({"video": "https://cdn.example.com/a.mp4?x=1"}, "host_refused"),
        ("http://replicate.delivery/cat.png", "scheme_refused"),
        ("https://replicate.delivery:444/cat.png", "port_refused"),
        (["https://10.0.0.1/cat.png"], "host_refused"),
    ],
)
def test_a_file_that_the_setting_refuses_is_lost_at_once_and_named_with_the_line(
    desk: Desk, output: Any, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    desk.receive(output)
    assert desk.work() is None
    assert [file["error"] for file in desk.manifest()["files"]] == [error]
    assert desk.record().state is State.DISPATCHED
    said = [line.getMessage() for line in caplog.records if line.levelno == logging.ERROR]
    assert 'OUTKEEP_OUTPUT_HOSTS="replicate.delivery ' in said[0]


def test_a_refused_host_is_named_once_for_all_its_files(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.receive([f"https://files.example.com/{number}.png" for number in range(300)])
    assert desk.work() is None
    assert desk.record().lost == 300
    assert len([line for line in caplog.records if "OUTKEEP_OUTPUT_HOSTS" in line.getMessage()]) == 1


def sought(desk: Desk, **rules: str) -> int:
    """How many predictions the sweep of a process that has just started takes up again."""
    hosts = HostRules.parse(rules.get("hosts", desk.hosts))
    consistency = Consistency(desk.redis, ttl=86400, clock=lambda: desk.now)
    refused = RefusedOutputs(consistency, desk.records, desk.storage, hosts, clock=lambda: desk.now)
    first, second = refused.run(), refused.run()
    assert second[Repair.OUTPUT_SOUGHT] == 0
    return first[Repair.OUTPUT_SOUGHT]


@pytest.mark.parametrize(("before", "number"), [([], 0), (["words", 1], 0), (["{}/first.png"], 1)])
def test_what_was_refused_is_fetched_once_that_is_mended_within_the_hour(
    desk: Desk, before: list[Any], number: int
) -> None:
    async def scenario() -> None:
        async with raw_host(ok(PNG)) as host, raw_host(ok(PNG)) as known:
            origin, own = f"http://127.0.0.1:{host.port}", f"http://127.0.0.1:{known.port}"
            desk.trust(own)
            first = json.loads(json.dumps(before).replace("{}", own))
            desk.receive([*first, f"{origin}/cat.png", LINK])
            assert await desk.run() is None
            assert desk.record().lost == 1
            assert sought(desk) == 0
            desk.redis.delete(*desk.redis.keys("rq:*"))
            desk.forward(1800)
            desk.trust(origin, own, "en.wikipedia.org")
            assert sought(desk) == 1
            assert desk.waiting == [persist_job_id(Kind.PREDICTION, ID)]
            assert await desk.run() is None
            assert (host.connections, known.connections) == (1, number)
            assert sought(desk) == 0

    asyncio.run(scenario())
    assert desk.manifest()["files"][number]["error"] is None
    assert desk.file(f"output-{number}.png") == PNG
    assert desk.manifest()["output"][-2:] == [f"output-{number}.png", LINK]
    assert (desk.record().state, desk.record().lost) == (State.DISPATCHED, 0)


def test_nothing_is_sought_after_the_hour(desk: Desk) -> None:
    desk.receive(REFUSED)
    assert desk.work() is None
    desk.trust("files.example.com")
    desk.forward(3600)
    assert sought(desk) == 0
    assert desk.work() is None
    assert [file["error"] for file in desk.manifest()["files"]] == ["host_refused"]


def test_what_fails_while_it_is_mended_is_tried_again_and_stays_lost_with_its_reason(desk: Desk) -> None:
    async def scenario() -> None:
        async with raw_host(ok(b"", status="500 Oops")) as host:
            desk.receive([f"http://127.0.0.1:{host.port}/cat.png"])
            assert await desk.run() is None
            desk.trust(f"http://127.0.0.1:{host.port}")
            wait = await desk.run()
            assert wait is not None
            while wait is not None:
                desk.forward(wait)
                wait = await desk.run()

    asyncio.run(scenario())
    [file] = desk.manifest()["files"]
    assert file["error"] is not None
    assert desk.record().state is State.DISPATCHED


def test_a_refusal_that_was_remembered_while_another_file_waits_is_mended_by_a_restart(desk: Desk) -> None:
    async def scenario() -> None:
        async with raw_host(ok(PNG)) as host, raw_host(ok(b"", status="500 Oops"), ok(PNG)) as slow:
            desk.trust(f"http://127.0.0.1:{slow.port}")
            desk.receive([f"http://127.0.0.1:{host.port}/a.png", f"http://127.0.0.1:{slow.port}/b.png"])
            assert await desk.run() is not None
            desk.trust(f"http://127.0.0.1:{slow.port}", f"http://127.0.0.1:{host.port}")
            desk.now += timedelta(seconds=60)
            assert await desk.run() is None

    asyncio.run(scenario())
    assert desk.manifest()["output"] == ["output-0.png", "output-1.png"]
