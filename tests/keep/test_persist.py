import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.accept import queues
from app.accept.records import Accepted, Arrival
from app.core import outcomes, prediction
from app.core.context import Lineage, followed
from app.core.handlers import Handler, parse
from app.core.lifecycle import Move, State
from app.core.manifest import Receipt, build
from app.core.names import Kind, notify_job_id, object_name, outcome_name, persist_job_id, record_key
from app.core.outcomes import Told
from app.core.policy import Tries
from app.simulator import Simulator
from tests.keep.desk import ID, JPEG, PNG, WAV, ZIP, Desk
from workers.keep.collect import Run

PERSIST = persist_job_id(Kind.PREDICTION, ID)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def handlers(*names: str, extra: str = "") -> tuple[Handler, ...]:
    tables = [
        f'[[handler]]\nname = "{name}"\nurl = "https://example.com/x"\nsecret = "{SECRET}"\n{extra}'
        for name in names
    ]
    return parse("\n".join(tables), lambda text: text)


@pytest.fixture
def desk(redis: Redis, tmp_path: Path, simulator: Simulator) -> Desk:
    desk = Desk(redis, tmp_path)
    desk.trust(simulator.url)
    return desk


@pytest.fixture
def host(simulator: Simulator) -> Callable[..., str]:
    """Host a file under a name; its URL."""
    return lambda content=PNG, name="out-0.png": simulator.add_file(name, content)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_manifest_is_what_the_contract_says(desk: Desk, host: Callable[..., str]) -> None:
    url = host()
    sent = desk.receive([url])
    assert desk.work() is None
    assert desk.manifest() == {
        "outkeep": 1,
        "kind": "prediction",
        "id": ID,
        "prediction": sent,
        "files": [
            {
                "name": "output-0.png",
                "pointer": "/output/0",
                "source": url,
                "media_type": "image/png",
                "size": len(PNG),
                "sha256": sha256(PNG),
                "error": None,
            }
        ],
        "links": [],
        "output": ["output-0.png"],
        "received_at": "2026-03-01T12:00:00.000Z",
        "stored_at": "2026-03-01T12:00:00.000Z",
        "webhook_id": "msg_received",
        "source": "webhook",
        "parent": None,
        "query": {"customId": "123"},
        "context": {"user": 7},
    }
    assert list(desk.manifest()["prediction"]) == list(sent)
    assert desk.file("output-0.png") == PNG
    assert (desk.record().state, desk.record().files, desk.record().lost) == (State.DISPATCHED, 1, 0)
    assert desk.record().body is None
    assert list(desk.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "expected", "pointers"),
    [
        (lambda a, b: a, "output-0.png", ["/output"]),
        (lambda a, b: [a, b], ["output-0.png", "output-1.wav"], ["/output/0", "/output/1"]),
        (lambda a, b: [a, a], ["output-0.png", "output-1.png"], ["/output/0", "/output/1"]),
        (lambda a, b: [{"file": a}], [{"file": "output-0.png"}], ["/output/0/file"]),
        (
            lambda a, b: {"x": {"y/z": [[a], 3, None]}, "t~": b, "text": f"see {a}"},
            {"x": {"y/z": [["output-0.png"], 3, None]}, "t~": "output-1.wav", "text": "see output-2.png"},
            ["/output/x/y~1z/0/0", "/output/t~0", "/output/text"],
        ),
        (
            lambda a, b: [a, "a caption", b],
            ["output-0.png", "a caption", "output-1.wav"],
            ["/output/0", "/output/2", "/output"],
        ),
    ],
)
def test_files_are_found_in_any_shape(
    desk: Desk,
    host: Callable[..., str],
    shape: Callable[[str, str], Any],
    expected: Any,
    pointers: list[str],
) -> None:
    a, b = host(), host(WAV, "sound.wav")
    output = shape(a, b)
    desk.receive(output)
    assert desk.work() is None
    manifest = desk.manifest()
    assert manifest["output"] == expected
    assert [file["pointer"] for file in manifest["files"]] == pointers
    for file in manifest["files"]:
        content = desk.file(file["name"])
        assert content == {a: PNG, b: WAV, None: f"{a}a caption{b}".encode()}[file["source"]]
        assert (file["size"], file["sha256"]) == (len(content), sha256(content))


def test_urls_as_keys_are_files_too_even_when_the_value_is_one(desk: Desk, host: Callable[..., str]) -> None:
    key, value, other = host(), host(WAV, "a.wav"), host(JPEG, "b.jpg")
    desk.receive({key: value, other: {"score": 0.5}})
    assert desk.work() is None
    assert desk.manifest()["output"] == {
        "output-0.png": "output-1.wav",
        "output-2.jpg": {"score": 0.5},
    }
    assert [desk.file(name) for name in ("output-0.png", "output-1.wav", "output-2.jpg")] == [PNG, WAV, JPEG]


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("out.png", JPEG, ("output-0.jpg", "image/jpeg")),
        ("file", PNG, ("output-0.png", "image/png")),
        ("weights.safetensors", bytes(100), ("output-0.safetensors", "application/octet-stream")),
        ("model.pt", ZIP, ("output-0.pt", "application/octet-stream")),
        ("all.zip", ZIP, ("output-0.zip", "application/zip")),
        ("notes.md", b"# Notes\n", ("output-0.md", "text/markdown")),
        ("strange.exe", b"MZ", ("output-0.bin", "application/octet-stream")),
        ("..\\etc\\passwd", PNG, ("output-0.png", "image/png")),
        ("\u202egnp.exe" + "a" * 300, PNG, ("output-0.png", "image/png")),
    ],
)
def test_the_content_names_the_file_and_then_the_url(
    desk: Desk, host: Callable[..., str], name: str, content: bytes, kept: tuple[str, str]
) -> None:
    desk.receive(host(content, name))
    assert desk.work() is None
    [file] = desk.manifest()["files"]
    assert (file["name"], file["media_type"]) == kept
    assert desk.file(file["name"]) == content
    assert len(desk.files()) == 2


@pytest.mark.parametrize(
    ("head", "content", "stored"),
    [
        ("data:image/png;base64,", PNG, "output-0.png"),
        ("data:image/jpg;base64,", JPEG, "output-0.jpg"),
        ("data:image/jpg;base64,", PNG, "output-0.png"),
        ("data:audio/mpeg;base64,", b"no signature at all", "output-0.mp3"),
        ("DATA:application/x-unheard-of;name=x;base64,", b"?", "output-0.bin"),
    ],
)
def test_a_data_uri_is_kept_as_the_file_it_is(desk: Desk, head: str, content: bytes, stored: str) -> None:
    desk.receive([head + base64.b64encode(content).decode()])
    assert desk.work() is None
    [file] = desk.manifest()["files"]
    declared = head[5:].partition(";")[0]
    assert file["source"] == f"data:{declared};sha256={sha256(content)}"
    assert (file["name"], file["size"], file["sha256"]) == (stored, len(content), sha256(content))
    assert desk.file(stored) == content
    assert desk.manifest()["output"] == [stored]


def test_a_data_uri_that_cannot_be_read_is_lost_and_stands_in_the_prediction(
    desk: Desk, host: Callable[..., str]
) -> None:
    sent = desk.receive(["data:image/png;base64,?????", host()])
    assert desk.work() is None
    [lost, kept] = desk.manifest()["files"]
    assert (lost["error"], lost["name"], lost["sha256"]) == ("data_uri_malformed", None, None)
    assert kept["error"] is None
    assert desk.manifest()["output"] == [sent["output"][0], "output-1.png"]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("A haiku, größer", "A haiku, größer"),
        (["", "To", "kens", " ", "\n", ""], "Tokens \n"),
        ("https://example.com is where it stands", "https://example.com is where it stands"),
    ],
)
def test_text_and_tokens_are_kept_joined(desk: Desk, output: Any, text: str) -> None:
    desk.receive(output)
    assert desk.work() is None
    manifest = desk.manifest()
    assert manifest["output"] == output
    assert manifest["files"] == [
        {
            "name": "output.txt",
            "pointer": "/output",
            "source": None,
            "media_type": "text/plain",
            "size": len(text.encode()),
            "sha256": sha256(text.encode()),
            "error": None,
        }
    ]
    assert desk.file("output.txt").decode() == text


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled", "aborted", "invented"])
@pytest.mark.parametrize("output", [None, [], {}, 0.5, [[1, 2]], ""])
def test_without_files_the_manifest_stands_alone(desk: Desk, status: str, output: Any) -> None:
    sent = desk.receive(output, status=status, error="out of memory")
    assert desk.work() is None
    manifest = desk.manifest()
    assert (manifest["prediction"], manifest["files"], manifest["output"]) == (sent, [], output)
    assert desk.record().state is State.DISPATCHED


def test_what_a_failed_prediction_had_produced_is_kept(desk: Desk, host: Callable[..., str]) -> None:
    desk.receive([host()], status="failed", error="at the second image")
    assert desk.work() is None
    assert desk.manifest()["output"] == ["output-0.png"]


def test_a_training_keeps_its_weights_in_its_own_folder(desk: Desk, host: Callable[..., str]) -> None:
    url = host(ZIP, "trained_model.tar")
    desk.receive({"version": "you/model:abc", "weights": url}, kind=Kind.TRAINING)
    assert desk.work(Kind.TRAINING) is None
    manifest = desk.manifest(Kind.TRAINING)
    assert (manifest["kind"], manifest["output"]["version"]) == ("training", "you/model:abc")
    assert desk.file(manifest["output"]["weights"], Kind.TRAINING) == ZIP
    assert set(desk.files()) == {
        f"trainings/{ID}/{manifest['output']['weights']}",
        f"trainings/{ID}/prediction.json",
    }


def test_every_interested_handler_gets_one_job(desk: Desk) -> None:
    desk.handlers = (
        *handlers("all"),
        *handlers("failures", extra='on = ["failed"]'),
        *handlers("trainings", extra='kind = "training"'),
        *handlers("flux", extra='model = "black-forest-labs/*"'),
    )
    desk.receive(None, model="black-forest-labs/flux-dev")
    assert desk.work() is None
    assert desk.work() is None
    assert desk.told == [notify_job_id(name, Kind.PREDICTION, ID) for name in ("all", "flux")]
    [job, _] = desk.queue("notify").jobs
    assert (job.func_name, job.args) == ("workers.jobs.notify", ["all", "prediction", ID])
    assert job.retries_left
    assert None not in (job.timeout, job.result_ttl, job.failure_ttl)


def test_running_twice_changes_nothing_and_downloads_nothing(
    desk: Desk, host: Callable[..., str], simulator: Simulator
) -> None:
    desk.handlers = handlers("one")
    url = host()
    desk.receive([url])
    assert desk.work() is None
    before = desk.files()
    desk.forward(60)
    assert desk.work() is None
    assert desk.files() == before
    assert simulator.downloads(url) == 1
    assert len(desk.told) == 1


def test_two_runs_at_once_end_in_the_same_objects(desk: Desk, host: Callable[..., str]) -> None:
    desk.handlers = handlers("one")
    urls = [host(PNG + bytes([number])) for number in range(12)]
    desk.receive(urls)

    async def scenario() -> list[float | None]:
        return list(await asyncio.gather(*(desk.run() for _ in range(3))))

    assert asyncio.run(scenario()) == [None, None, None]
    names = [f"output-{number}.png" for number in range(12)]
    assert desk.manifest()["output"] == names
    assert [desk.file(name)[-1] for name in names] == list(range(12))
    assert len(desk.files()) == 13
    assert len(desk.told) == 1
    assert list(desk.temporary.iterdir()) == []


async def committed(desk: Desk) -> None:
    """Run only as far as the manifest."""
    async with desk.service() as service:
        record = desk.record()
        assert record.body is not None
        parsed = prediction.parse(record.body, record.kind)
        rules = service.collector.rules
        run = Run.of(record, parsed, Tries({}), 1, desk.now.timestamp(), max_files=1000, rules=rules)
        ended = await service.collector.decide(run, await service.collector.collect(run))
        assert not isinstance(ended, float)
        service.commit(run, ended)
        desk.attempt += 1


@pytest.mark.parametrize("moves", [(), (Move.STORE,)])
def test_after_a_crash_behind_the_manifest_nothing_is_downloaded_and_handlers_are_told_once(
    desk: Desk, host: Callable[..., str], simulator: Simulator, moves: tuple[Move, ...]
) -> None:
    desk.handlers = handlers("one", "two")
    url = host()
    desk.receive([url])
    asyncio.run(committed(desk))
    for move in moves:
        assert desk.records.move(Kind.PREDICTION, ID, move, desk.now)
    assert desk.told == []
    assert desk.work() is None
    assert desk.work() is None
    assert simulator.downloads(url) == 1
    assert desk.record().state is State.DISPATCHED
    assert desk.told == [notify_job_id(name, Kind.PREDICTION, ID) for name in ("one", "two")]


def test_what_a_manifest_names_and_a_power_cut_has_taken_is_brought_again(
    desk: Desk, host: Callable[..., str]
) -> None:
    desk.receive([host()])
    asyncio.run(committed(desk))
    (desk.outputs / "predictions" / ID / "output-0.png").unlink()
    assert desk.work() is None
    assert desk.file("output-0.png") == PNG


def test_a_first_run_that_finds_a_manifest_leaves_it_and_tells_handlers(
    desk: Desk, host: Callable[..., str], simulator: Simulator
) -> None:
    desk.handlers = handlers("one")
    url = host()
    desk.receive([url])
    asyncio.run(committed(desk))
    before, desk.attempt = desk.files(), 0
    simulator.remove_file(url)
    desk.forward(4000)
    waits = [desk.work()]
    while waits[-1] is not None:
        desk.forward(waits[-1])
        waits.append(desk.work())
    assert desk.files() == before
    assert desk.told == [notify_job_id("one", Kind.PREDICTION, ID)]


def test_after_a_crash_in_the_middle_verified_files_are_not_downloaded_again(
    desk: Desk, host: Callable[..., str], simulator: Simulator
) -> None:
    urls = [host(), host(WAV, "b.wav")]
    desk.receive(urls)
    asyncio.run(committed(desk))
    (desk.outputs / "predictions" / ID / "prediction.json").unlink()
    assert desk.work() is None
    assert [simulator.downloads(url) for url in urls] == [1, 1]
    assert desk.manifest()["output"] == ["output-0.png", "output-1.wav"]


def test_when_redis_was_emptied_nobody_is_told_twice(
    desk: Desk, host: Callable[..., str], simulator: Simulator
) -> None:
    desk.handlers = handlers("told", "new")
    url = host()
    desk.receive([url])
    assert desk.work() is None
    desk.storage.put_bytes(object_name(Kind.PREDICTION, ID, outcome_name("told")), b"{}")
    desk.redis.flushall()
    desk.receive([url])
    assert desk.work() is None
    assert simulator.downloads(url) == 1
    assert desk.told == [notify_job_id("new", Kind.PREDICTION, ID)]
    assert desk.record().state is State.DISPATCHED


def quietly(desk: Desk, output: Any, **keys: Any) -> None:
    """What reconciliation takes in of something that handlers are not told of."""
    desk.receive(output, **keys)
    desk.redis.hset(record_key(Kind.PREDICTION, ID), "quiet", "1")


def test_of_what_is_quiet_nobody_is_told_and_the_files_say_so(desk: Desk) -> None:
    desk.handlers = handlers("one", "two")
    quietly(desk, "text")

    assert desk.work() is None

    assert desk.told == []
    assert desk.record().state is State.DISPATCHED
    for name in ("one", "two"):
        told = outcomes.read(desk.file(outcome_name(name)))
        assert told == Told("off", 0, desk.now, None)
        assert not told.is_dead_letter
    assert "quiet" not in desk.manifest()


def test_of_what_is_quiet_nobody_is_told_after_a_crash_behind_the_manifest_either(desk: Desk) -> None:
    desk.handlers = handlers("one")
    quietly(desk, "text")
    desk.work()
    stored = {name: data for name, data in desk.files().items() if not name.endswith(outcome_name("one"))}
    desk.storage.remove([object_name(Kind.PREDICTION, ID, outcome_name("one"))])
    quiet = desk.record().receipt.quiet

    assert desk.work() is None

    assert (quiet, desk.told) == (True, [])
    assert desk.files().items() > stored.items()


def arrive(desk: Desk, output: Any) -> Accepted:
    """The same event, by a webhook that was on its way for long."""
    body = json.dumps({"id": ID, "status": "succeeded", "output": output}).encode()
    job = queues.persist_job(desk.redis, Kind.PREDICTION, ID, timeout=4200)
    parsed = prediction.parse(body, Kind.PREDICTION)
    [outcome] = desk.records.accept([Arrival(parsed, body, Receipt(desk.now, "msg_late"), job)], desk.now)
    return outcome


NOTIFICATIONS = [notify_job_id(name, Kind.PREDICTION, ID) for name in ("one", "two")]


@pytest.mark.parametrize("is_stored", [False, True])
def test_what_was_quiet_is_told_when_its_own_event_comes_after_all(desk: Desk, is_stored: bool) -> None:  # noqa: FBT001
    desk.handlers = handlers("one", "two")
    quietly(desk, "text")
    if is_stored:
        desk.work()
        desk.redis.delete("rq:queue:persist")
        desk.redis.hset(f"rq:job:{PERSIST}", "status", "finished")

    assert arrive(desk, "text") is Accepted.DUPLICATE

    assert desk.waiting == [PERSIST]
    assert desk.work() is None
    assert desk.told == NOTIFICATIONS
    assert desk.record().state is State.DISPATCHED
    assert [name for name in desk.files() if "told-" in name] == []
    desk.redis.delete("rq:queue:persist")
    desk.redis.hset(f"rq:job:{PERSIST}", "status", "finished")
    assert arrive(desk, "text") is Accepted.DUPLICATE
    assert desk.waiting == []


def test_an_event_that_comes_while_its_quiet_run_ends_is_told(desk: Desk) -> None:
    desk.handlers = handlers("one", "two")
    quietly(desk, "text")
    came: list[Accepted] = []

    def clock() -> datetime:
        if not came:
            came.append(arrive(desk, "text"))
        return desk.now

    parsed = prediction.from_object({"id": ID, "status": "succeeded", "output": "text"}, Kind.PREDICTION)
    manifest = desk.storage.commit(build(parsed, [], None, Receipt(desk.now, None), desk.now))

    async def dispatch() -> None:
        async with desk.service() as service:
            await replace(service, clock=clock).dispatch(manifest, quiet=desk.record().receipt.quiet)

    asyncio.run(dispatch())

    assert came == [Accepted.DUPLICATE]
    assert desk.told == NOTIFICATIONS
    assert desk.record().state is State.DISPATCHED
    assert [name for name in desk.files() if "told-" in name] == []


@pytest.mark.parametrize("known", [None, "another"])
def test_the_arrival_of_a_follow_up_is_noted_beside_its_parent(desk: Desk, known: str | None) -> None:
    before = prediction.from_object({"id": "before", "status": "succeeded"}, Kind.TRAINING)
    desk.storage.commit(build(before, [], None, Receipt(desk.now, None), desk.now))
    if known is not None:
        desk.storage.note_outcome(
            "tune", Kind.TRAINING, "before", Told("delivered", 3, desk.now, None, known)
        )
    desk.receive("text", context=followed({}, Lineage(Kind.TRAINING, "before", "tune", 1)))
    assert desk.work() is None
    noted = desk.storage.outcome("tune", Kind.TRAINING, "before")
    assert noted is not None
    assert (noted.outcome, noted.child) == ("delivered", known or ID)


def test_of_a_follow_up_whose_parent_is_not_here_nothing_is_noted(desk: Desk) -> None:
    desk.receive("text", context=followed({}, Lineage(Kind.PREDICTION, "before", "tune", 1)))
    assert desk.work() is None
    assert desk.storage.outcome("tune", Kind.PREDICTION, "before") is None


def test_an_output_that_replicate_has_removed_is_lost_and_named_so(desk: Desk) -> None:
    desk.handlers = handlers("one")
    desk.receive(None, data_removed=True, input={})

    assert desk.work() is None

    assert desk.manifest()["files"] == [
        {
            "pointer": "/output",
            "source": None,
            "name": None,
            "media_type": None,
            "size": None,
            "sha256": None,
            "error": "data_removed",
        }
    ]
    assert desk.record().lost == 1
    assert len(desk.told) == 1


@pytest.mark.parametrize(
    "keys", [{"status": "failed"}, {"status": "canceled"}, {"data_removed": False}, {"data_removed": None}]
)
def test_nothing_is_called_lost_where_no_output_was_to_be_expected(desk: Desk, keys: dict[str, Any]) -> None:
    desk.receive(None, **{"data_removed": True, **keys})
    desk.work()
    assert desk.manifest()["files"] == []
