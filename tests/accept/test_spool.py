"""Deliveries while Redis is away: kept in the spool, acknowledged, and fed back afterwards."""

import asyncio
import itertools
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

from app.accept.claim_check import ClaimCheck
from app.accept.quarantine import Quarantine
from app.accept.records import Records
from app.accept.spool import MAX_BATCH, MAX_FAILURES, Drainer, Spool, Spooled
from app.core.errors import Transient
from app.core.manifest import Receipt
from app.core.names import Kind, persist_job_id
from app.core.policy import HOUR, PERSIST_MARGIN
from app.receive.listening import free_port
from app.storage.store import Storage
from app.valkey.client import connect
from tests import forked
from tests.own_valkey import OwnValkey, own_valkey
from tests.receive import web as webs
from tests.receive.web import BOUND, ENDING, WEBHOOK, Web, prediction, signed, wait_until

in_thread = partial(webs.in_thread, OUTKEEP_DISK_FLOOR="0")
in_process = partial(webs.in_process, OUTKEEP_DISK_FLOOR="0")
ROOT = Path(__file__).parents[2]
NOWHERE = f"redis://127.0.0.1:{free_port()}"
NOON = datetime(2026, 3, 16, 12, tzinfo=UTC)


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(tmp_path / "spool", disk_floor=0)) as spool:
        yield spool


def spooled(body: bytes = b"{}", *, at: datetime = NOON, webhook_id: str = "msg_1") -> Spooled:
    return Spooled(Kind.PREDICTION, body, Receipt(at, webhook_id, query={"order": "17"}))


def keep(spool: Spool, *many: Spooled, identity: str = "abc") -> None:
    async def all_of_them() -> None:
        await asyncio.gather(*(spool.keep(identity, one) for one in many))

    asyncio.run(all_of_them())


def files(folder: Path) -> list[Path]:
    return sorted((folder / "spool").glob("*"))


def spools(web: Web, identity: str = "waits", **changes: str) -> None:
    """A delivery that must be acknowledged from the spool; the socket's time-out is the judge."""
    answer = web.deliver(prediction(identity, **changes), timeout=BOUND)
    assert (answer.status, answer.json()) == (202, {"outcome": "spooled"})


def count(redis: Redis, identity: str) -> int:
    """How often the persist job of a prediction is queued, once it has a record."""
    if Records(redis, ttl=60).get(Kind.PREDICTION, identity) is None:
        return 0
    job = persist_job_id(Kind.PREDICTION, identity).encode()
    return cast(list[bytes], redis.lrange("rq:queue:persist", 0, -1)).count(job)


def drained(folder: Path) -> bool:
    return files(folder) == []


def test_what_is_kept_is_read_as_it_was(spool: Spool) -> None:
    one = spooled(b'{"id": "abc"}\nand more \x00\xff')
    keep(spool, one)

    (waiting,) = spool.waiting()
    assert spool.read(waiting.path) == one
    assert waiting.received_at == NOON
    assert waiting.path.name.startswith("prediction-abc-")


def test_the_same_delivery_again_takes_the_same_place_and_keeps_the_first_receipt(spool: Spool) -> None:
    keep(spool, spooled())
    keep(spool, spooled(at=NOON + timedelta(minutes=1)), spooled(at=NOON + timedelta(minutes=2)))

    (waiting,) = spool.waiting()
    assert waiting.received_at == NOON
    read = spool.read(waiting.path)
    assert read is not None
    assert read.receipt.received_at == NOON
    assert len(list(spool.folder.iterdir())) == 1


def test_the_oldest_is_first_whatever_its_name(spool: Spool) -> None:
    times = [NOON + timedelta(milliseconds=n * 7919 % 1000) for n in range(100)]
    keep(spool, *(spooled(at=at, webhook_id=f"msg_{n}") for n, at in enumerate(times)))

    assert [one.received_at for one in spool.waiting()] == sorted(times)


CHILD = """
import errno, os, sys
from datetime import UTC, datetime
from pathlib import Path
from app.core.errors import OutkeepError
from app.core.manifest import Receipt
from app.core.names import Kind
from app.accept.spool import Spool, Spooled
from tests.kernel import LARGE, fill_the_disk, forbid_fsync, forbid_links, forbid_new_files

def keep(body=b"{}"):
    spool = Spool(Path(sys.argv[1]), disk_floor=0)
    try:
        spool._keep("abc", Spooled(Kind.PREDICTION, body, Receipt(datetime.now(UTC), "msg_1")))
        print("kept")
    except OutkeepError as error:
        print(error.code)

def tell(frame, event, called):
    if event == "c_call" and called is os.fsync:
        numbers = [value for value in frame.f_locals.values() if isinstance(value, int)]
        numbers += [file.fileno() for file in [frame.f_locals.get("file")] if file]
        print(os.readlink(f"/proc/self/fd/{numbers[-1]}"))
"""


def run_child(code: str, folder: Path) -> list[str]:
    command = [sys.executable, "-c", CHILD + code, str(folder)]
    done = forked.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_delivery_is_kept_only_after_its_fsync(tmp_path: Path) -> None:
    folder = tmp_path / "spool"

    assert run_child("forbid_fsync()\nkeep()", folder) == ["spool_unusable"]
    assert run_child("forbid_fsync()\nkeep()", folder) == ["spool_unusable"]
    assert run_child("keep()", folder) == ["kept"]


def test_the_bytes_are_synced_before_the_name_and_the_folders(tmp_path: Path) -> None:
    lines = run_child("sys.setprofile(tell)\nkeep()", tmp_path / "new" / "spool")

    assert lines[:2] == [str(tmp_path / "new"), str(tmp_path)]
    assert lines[2].startswith(str(tmp_path / "new" / "spool"))
    assert lines[2].endswith(".part")
    assert lines[3:] == [str(tmp_path / "new" / "spool"), "kept"]


def test_drafts_of_processes_that_died_are_removed(spool: Spool) -> None:
    keep(spool, spooled())
    old, new = spool.folder / "old.part", spool.folder / "new.part"
    for draft in (old, new):
        draft.touch()
    os.utime(old, (0, 0))
    spool.tidy(time.time())

    assert not old.exists()
    assert new.exists()
    assert len(spool.waiting()) == 1


def test_a_disk_that_is_full_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "spool"

    assert run_child('fill_the_disk()\nkeep(b"x" * LARGE)', folder) == ["spool_unusable"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS"])
def test_a_disk_without_inodes_or_without_writing_refuses(tmp_path: Path, error: str) -> None:
    assert run_child(f"forbid_new_files(errno.{error})\nkeep()", tmp_path) == ["spool_unusable"]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_knows_no_second_names_keeps_deliveries_too(tmp_path: Path) -> None:
    assert run_child("forbid_links()\nkeep()", tmp_path) == ["kept"]
    (first,) = tmp_path.iterdir()
    content = first.read_bytes()

    assert run_child("forbid_links()\nkeep()", tmp_path) == ["kept"]
    assert list(tmp_path.iterdir()) == [first]
    assert first.read_bytes() == content


def test_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool", disk_floor=1 << 60)) as spool:
        with pytest.raises(Transient) as refusal:
            keep(spool, spooled())
        assert refusal.value.code == "spool_full"
        assert spool.trouble() == refusal.value.message
        assert spool.waiting() == []


def test_the_spool_may_use_half_of_what_downloads_leave_free(tmp_path: Path) -> None:
    between = shutil.disk_usage(tmp_path).free * 3 // 2
    with closing(Spool(tmp_path / "spool", disk_floor=between)) as spool:
        keep(spool, spooled())
        assert spool.trouble() is None
        assert len(spool.waiting()) == 1


def test_a_delivery_must_fit_into_what_is_free(spool: Spool) -> None:
    with pytest.raises(Transient) as refusal:
        spool._require_room(1 << 60)
    assert refusal.value.code == "spool_full"


def test_what_cannot_be_read_now_waits_on(spool: Spool) -> None:
    unreadable = spool.folder / "prediction-abc-00.delivery"
    unreadable.mkdir(parents=True)

    assert spool.read(unreadable) is None
    assert [one.path for one in spool.waiting()] == [unreadable]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:40],
        lambda content: content.replace(b"succeeded", b"succeedeD"),
        lambda content: content.replace(b'"kind": "prediction"', b'"kind": "surprise"'),
        lambda content: b"[]\n" + content,
        lambda content: b"\xff\n",
        lambda content: b"\x00" * len(content),
    ],
)
def test_a_damaged_file_is_set_aside(spool: Spool, damage: Callable[[bytes], bytes]) -> None:
    keep(spool, spooled(prediction()))
    (waiting,) = spool.waiting()
    waiting.path.write_bytes(damage(waiting.path.read_bytes()))

    assert spool.read(waiting.path) is None
    assert spool.waiting() == []
    assert spool.damaged() == 1


def test_without_redis_an_end_is_spooled_and_accepted_when_redis_comes(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    with in_thread(valkey.url, tmp_path) as web:
        for _ in range(3):
            spools(web)
        assert len(files(tmp_path)) == 1

        valkey.start()
        wait_until(lambda: drained(tmp_path))
        assert count(valkey.redis, "waits") == 1
        wait_until(lambda: web.outcome(prediction("waits")) == "duplicate")
        assert web.outcome(prediction("next")) == "accepted"


def test_without_redis_progress_is_dropped(tmp_path: Path) -> None:
    with in_thread(NOWHERE, tmp_path) as web:
        answer = web.deliver(prediction(status="processing"), timeout=BOUND)

    assert (answer.status, answer.json()["error"]) == (503, "progress_dropped")
    assert int(answer.headers["retry-after"]) >= 1
    assert files(tmp_path) == []


def test_a_spooled_delivery_keeps_its_receipt(valkey: OwnValkey, tmp_path: Path) -> None:
    body = prediction("waits")
    with in_thread(valkey.url, tmp_path) as web:
        answer = web.ask("POST", f"{WEBHOOK}/trainings?order=17", body, signed(body, webhook_id="msg_7"))
        assert answer.json() == {"outcome": "spooled"}
        after = datetime.now(UTC)

        valkey.start()
        wait_until(lambda: drained(tmp_path))
    record = Records(valkey.redis, ttl=60).get(Kind.TRAINING, "waits")
    assert record is not None
    assert record.body == body
    assert record.receipt.received_at <= after
    assert (record.receipt.webhook_id, record.receipt.query) == ("msg_7", {"order": "17"})


def test_the_hour_is_counted_from_the_first_receipt(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    half_an_hour_ago = datetime.now(UTC) - timedelta(minutes=30)
    with closing(Spool(tmp_path / "spool", disk_floor=0)) as spool:
        keep(spool, spooled(prediction("waits"), at=half_an_hour_ago), identity="waits")
    with in_thread(valkey.url, tmp_path):
        wait_until(lambda: drained(tmp_path))

    job = persist_job_id(Kind.PREDICTION, "waits")
    timeout = int(cast(bytes, valkey.redis.hget(f"rq:job:{job}", "timeout")))
    assert timeout <= HOUR / 2 + PERSIST_MARGIN
    record = Records(valkey.redis, ttl=60).get(Kind.PREDICTION, "waits")
    assert record is not None
    assert abs(record.receipt.received_at - half_an_hour_ago) < timedelta(seconds=1)


def test_a_killed_receiver_feeds_back_after_its_restart(valkey: OwnValkey, tmp_path: Path) -> None:
    with in_process(valkey.url, tmp_path) as (web, process):
        spools(web)
        process.kill()
        process.wait()
    assert len(files(tmp_path)) == 1

    valkey.start()
    with in_process(valkey.url, tmp_path) as (web, process):
        wait_until(lambda: drained(tmp_path))
        assert count(valkey.redis, "waits") == 1
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert b"Traceback" not in (tmp_path / "serve.log").read_bytes()


def test_the_spool_is_fed_back_oldest_first(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    names = [f"p{number}" for number in range(2 * MAX_BATCH)]
    begun = datetime.now(UTC) - timedelta(seconds=1000)
    with closing(Spool(tmp_path / "spool", disk_floor=0)) as spool:
        for number, name in sorted(enumerate(names), key=lambda one: one[0] * 37 % 101):
            at = begun + timedelta(seconds=number)
            keep(spool, spooled(prediction(name), at=at), identity=name)
    with in_thread(valkey.url, tmp_path):
        wait_until(lambda: drained(tmp_path))

    queued = valkey.redis.lrange("rq:queue:persist", 0, -1)
    assert queued == [persist_job_id(Kind.PREDICTION, name).encode() for name in names]


def test_receivers_that_share_a_spool_accept_each_delivery_once(valkey: OwnValkey, tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(200)]
    with in_thread(valkey.url, tmp_path) as one, in_thread(valkey.url, tmp_path) as two:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(spools, [one, two] * 100, names))
        assert len(files(tmp_path)) == len(names)
        valkey.start()
        wait_until(lambda: drained(tmp_path))

    assert [count(valkey.redis, name) for name in names] == [1] * len(names)


def test_a_damaged_file_does_not_hold_up_the_others(valkey: OwnValkey, tmp_path: Path) -> None:
    with in_thread(valkey.url, tmp_path) as web:
        spools(web, "damaged")
        (damaged,) = files(tmp_path)
        damaged.write_bytes(damaged.read_bytes()[:-1])
        spools(web, "whole")
        valkey.start()
        wait_until(lambda: count(valkey.redis, "whole") == 1)
        wait_until(lambda: [path.suffix for path in files(tmp_path)] == [".damaged"])
        ready = web.ask("GET", "/readyz").body.decode()

    assert f"warn spool: 1 deliveries are damaged; look at *.damaged in {tmp_path}/spool\n" in ready


READ_ONLY = """
import signal
from app.accept.claim_check import ClaimCheck
from app.accept.spool import TIMEOUT, Drainer
from app.valkey.client import connect
from app.accept.quarantine import Quarantine
from app.accept.records import Records
from app.storage.store import Storage
from tests.kernel import forbid_removals

forbid_removals()
redis = connect(URL, timeout=TIMEOUT)
spool = Spool(Path(sys.argv[1]), disk_floor=0)
storage, records = Storage((spool.folder / "outputs").as_uri()), Records(redis, ttl=60)
now = lambda: datetime.now(UTC)
claims = ClaimCheck(storage, records, patience=1)
Drainer(spool, redis, records, claims, now, quarantine=Quarantine(storage, disk_floor=0, clock=now)).start()
signal.pause()
"""


def test_a_disk_that_became_read_only_holds_up_no_delivery(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    names = [f"p{number}" for number in range(2 * MAX_BATCH)]
    folder = tmp_path / "spool"
    with closing(Spool(folder, disk_floor=0)) as spool:
        for name in names:
            keep(spool, spooled(prediction(name)), identity=name)
        draft = folder / "old.part"
        draft.touch()
        os.utime(draft, (0, 0))
    child = forked.Popen(
        [sys.executable, "-c", f"URL = {valkey.url!r}\n{CHILD}{READ_ONLY}", str(folder)], cwd=ROOT
    )
    try:
        wait_until(lambda: [count(valkey.redis, name) for name in names] == [1] * len(names))
    finally:
        child.kill()
        child.wait()

    assert len(files(tmp_path)) == len(names) + 1
    with in_thread(valkey.url, tmp_path):
        wait_until(lambda: drained(tmp_path))
    assert [count(valkey.redis, name) for name in names] == [1] * len(names)


def test_deliveries_that_redis_refuses_do_not_hold_up_the_others(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    pairs = [(f"stuck{number}", f"p{number}") for number in range(MAX_FAILURES + 1)]
    with closing(Spool(tmp_path / "spool", disk_floor=0)) as spool:
        for stuck, passes in pairs:
            valkey.redis.set(f"outkeep:record:prediction:{stuck}", "of another type than a record")
            for name in (stuck, passes):
                keep(spool, spooled(prediction(name), at=datetime.now(UTC)), identity=name)
        with in_thread(valkey.url, tmp_path):
            wait_until(lambda: len(files(tmp_path)) == len(pairs))
            assert [count(valkey.redis, name) for _, name in pairs] == [1] * len(pairs)
            valkey.redis.delete(*(f"outkeep:record:prediction:{stuck}" for stuck, _ in pairs))
            wait_until(lambda: drained(tmp_path))
        assert [count(valkey.redis, name) for name, _ in pairs] == [1] * len(pairs)


def test_what_is_no_prediction_any_more_is_set_aside(valkey: OwnValkey, tmp_path: Path) -> None:
    """Another version of Outkeep may have put it there."""
    valkey.start()
    with closing(Spool(tmp_path / "spool", disk_floor=0)) as spool:
        keep(spool, spooled(b"[]"))
        keep(spool, spooled(prediction("p")), identity="p")
    with in_thread(valkey.url, tmp_path):
        wait_until(lambda: [path.suffix for path in files(tmp_path)] == [".damaged"])
    assert count(valkey.redis, "p") == 1


def test_a_receiver_that_ends_leaves_the_rest_of_the_spool_where_it_is(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    redis = connect(valkey.url)
    spool = Spool(tmp_path / "spool", disk_floor=0)
    for number in range(2 * MAX_BATCH):
        keep(spool, spooled(prediction(f"p{number}")), identity=f"p{number}")
    stopping: list[threading.Thread] = []
    asked = itertools.count()

    def clock() -> datetime:
        # First for abandoned drafts, then for each delivery of the first batch.
        if next(asked) and not stopping:
            ending = threading.Thread(target=drainer.stop)
            ending.start()
            wait_until(drainer._stopping.is_set)
            stopping.append(ending)
        return NOON

    storage, records = Storage((tmp_path / "outputs").as_uri()), Records(redis, ttl=60)
    claims = ClaimCheck(storage, records, patience=1)
    quarantine = Quarantine(storage, disk_floor=0, clock=clock)
    drainer = Drainer(spool, redis, records, claims, clock, quarantine=quarantine)
    drainer.start()
    wait_until(lambda: bool(stopping))
    stopping[0].join(ENDING)

    assert not stopping[0].is_alive()
    assert len(spool.waiting()) == MAX_BATCH


def test_a_stopped_redis_is_answered_within_the_bound_from_the_spool(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        valkey.signal(signal.SIGSTOP)
        names = [f"p{number}" for number in range(30)]
        with ThreadPoolExecutor(30) as pool:
            # The first ones hang with their batch; those behind it must not wait a second time-out.
            list(pool.map(partial(spools, web), names))
        spools(web)
        valkey.signal(signal.SIGCONT)
        wait_until(lambda: drained(tmp_path))
        assert [count(valkey.redis, name) for name in [*names, "waits"]] == [1] * 31


def test_metrics_that_are_asked_for_while_redis_is_stopped_hold_up_no_delivery(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web, ExitStack() as stack:
        valkey.signal(signal.SIGSTOP)
        for _ in range(100):
            asking = stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            asking.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert web.outcome(prediction(logs="x" * (2 << 20))) == "spooled"
        valkey.signal(signal.SIGCONT)


def answers_from_the_spool(
    valkey: OwnValkey, folder: Path, trouble: Callable[[], object], mend: Callable[[], object]
) -> None:
    """While Redis is in `trouble` an end is spooled, and it comes in once that is mended."""
    valkey.start()
    with in_thread(valkey.url, folder) as web:
        trouble()
        spools(web)
        mend()
        wait_until(lambda: drained(folder))
        assert count(valkey.redis, "waits") == 1


def test_a_full_redis_is_answered_from_the_spool(valkey: OwnValkey, tmp_path: Path) -> None:
    limit = partial(valkey.redis.config_set, "maxmemory")
    answers_from_the_spool(valkey, tmp_path, lambda: limit("1mb"), lambda: limit("0"))


def test_a_read_only_redis_is_answered_from_the_spool(valkey: OwnValkey, tmp_path: Path) -> None:
    follow = valkey.redis.replicaof
    answers_from_the_spool(valkey, tmp_path, lambda: follow("127.0.0.1", "1"), lambda: follow("NO", "ONE"))


def test_a_loading_redis_is_answered_from_the_spool(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.redis.eval("for n = 1, 60000 do redis.call('SET', 'key-' .. n, 'x') end", 0)
    valkey.kill()
    valkey.launch("--key-load-delay", "100")  # microseconds
    with in_thread(valkey.url, tmp_path) as web:
        wait_until(valkey.is_loading)
        spools(web)
        assert "warn redis: loading its data; deliveries wait" in web.ask("GET", "/readyz").body.decode()
        valkey.redis.config_set("key-load-delay", 0)
        wait_until(lambda: drained(tmp_path))
        assert count(valkey.redis, "waits") == 1


def test_a_redis_restarted_empty_is_used_at_once(valkey: OwnValkey, tmp_path: Path) -> None:
    valkey.start()
    with in_thread(valkey.url, tmp_path) as web:
        assert web.outcome(prediction("before")) == "accepted"
        valkey.redis.flushall()
        valkey.redis.script_flush()
        assert web.outcome(prediction("before")) == "accepted"
        assert count(valkey.redis, "before") == 1


def test_a_spool_that_cannot_be_used_refuses_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file in its place")
    with in_thread(NOWHERE, tmp_path) as web:
        answer = web.deliver(prediction(), timeout=BOUND)

    assert (answer.status, answer.json()["error"]) == (503, "spool_unusable")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_full_spool_refuses(tmp_path: Path) -> None:
    with in_thread(NOWHERE, tmp_path, OUTKEEP_DISK_FLOOR="1000TiB") as web:
        answer = web.deliver(prediction(), timeout=BOUND)

    assert (answer.status, answer.json()["error"]) == (503, "spool_full")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_spool_whose_folder_vanishes_is_made_anew(tmp_path: Path) -> None:
    with in_thread(NOWHERE, tmp_path) as web:
        spools(web, "first")
        shutil.rmtree(tmp_path / "spool")
        spools(web, "second")

    assert len(files(tmp_path)) == 1


def test_what_waits_is_fed_back_also_when_nothing_more_is_spooled(valkey: OwnValkey, tmp_path: Path) -> None:
    with in_thread(NOWHERE, tmp_path) as web:
        spools(web)
    valkey.start()
    with in_thread(valkey.url, tmp_path, OUTKEEP_SPOOL="off"):
        wait_until(lambda: drained(tmp_path))
    assert count(valkey.redis, "waits") == 1


def test_a_thousand_deliveries_at_once_are_spooled(tmp_path: Path) -> None:
    with in_thread(NOWHERE, tmp_path) as web, ThreadPoolExecutor(32) as pool:
        list(pool.map(partial(spools, web), [f"p{number}" for number in range(1000)]))

    assert len(files(tmp_path)) == 1000


def test_a_redis_killed_under_traffic_loses_nothing_that_was_acknowledged(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    names = [f"p{number}" for number in range(400)]
    half = threading.Barrier(2)

    def send(web: Web, name: str) -> None:
        if name == "p100":
            half.wait(60)
        assert web.outcome(prediction(name)) in {"accepted", "spooled"}

    with in_thread(valkey.url, tmp_path) as web, ThreadPoolExecutor(17) as pool:
        sent = [pool.submit(send, web, name) for name in names]
        half.wait(60)
        valkey.kill()
        for one in sent:
            one.result()
        valkey.start()
        wait_until(lambda: drained(tmp_path))

    assert [count(valkey.redis, name) for name in names] == [1] * len(names)
