"""What was sent against what is kept and told, once all work has ended."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue
from rq.registry import DeferredJobRegistry, FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from app.core.names import IDENTITY_NAME, Kind
from app.core.signature import parse_verifying_keys, verify
from tests.e2e.file_host import FileHost
from tests.e2e.recorder import Received, Recorder
from tests.e2e.running import Up, unfinished
from tests.e2e.traffic import TEXT, Traffic

SETTLING = 180.0
"""Seconds that all work gets to end; what is not done then is reported as it stands."""

QUEUES = ("persist", "notify")

FAULTS = ("lost", "differing", "untold", "ambiguous", "strange", "unfinished")


@dataclass(frozen=True)
class Balance:
    """Counts, and whatever should not be: ids, paths below the data, or places of work."""

    sent: int
    acknowledged: int
    stored: int
    files: int
    notifications: int
    half_written: int
    """What killed writes left (`name#N`, `*.part`): nobody reads it, and it is removed within the hour."""
    lost: list[str]
    """Acknowledged, but not stored."""
    differing: list[str]
    """Stored files that are not the bytes of their source."""
    untold: list[str]
    """Acknowledged or stored, but no notification came."""
    ambiguous: list[str]
    """Told under more than one `webhook-id`, or as something else than was sent."""
    strange: list[str]
    """Stored but never sent, not named by a manifest, or temporary."""
    unfinished: list[str]
    """Queues and registries that still hold jobs."""

    @property
    def wrong(self) -> dict[str, list[str]]:
        """What should not be, by name."""
        return {name: found for name in FAULTS if (found := getattr(self, name))}


def balance(traffic: Traffic, up: Up, host: FileHost, recorder: Recorder) -> Balance:
    """Wait until no work is left, then compare every byte and verify every notification."""
    host.hurry()
    traffic.wait_until_settled()
    acknowledged = traffic.acknowledged()
    assert not up.has_ended(), f"up has ended\n{up.text()[-3000:]}"
    _wait(lambda: acknowledged <= recorder.ids() and not _works(up) and not _temporary(up))
    manifests = _manifests(up)
    stored = {identity for _, identity in manifests}
    known = {place: manifests[place] for place in manifests if place in traffic.sources}
    told: dict[str, list[Received]] = {}
    for request in recorder.received:
        _require_signed(request, recorder.secret)
        told.setdefault(request.event["data"]["id"], []).append(request)
    return Balance(
        sent=len(traffic.ids()),
        acknowledged=len(acknowledged),
        stored=len(stored),
        files=sum(len(manifest["files"]) for manifest in manifests.values()),
        notifications=len(recorder.received),
        half_written=sum(_is_half_written(name) for name in _files_below(up, "")),
        lost=sorted(acknowledged - stored),
        differing=[
            f"{place[1]} {problem}"
            for place, manifest in known.items()
            for problem in _differences(up, host, place, traffic.sources[place], manifest)
        ],
        untold=sorted((acknowledged | stored) - told.keys()),
        ambiguous=[place[1] for place in known if not _is_told_well(place, told.get(place[1], []))],
        strange=sorted(_temporary(up) | (_stored_files(up) ^ _expected_files(known))),
        unfinished=_work_left(up),
    )


def require_nothing_lost(traffic: Traffic, up: Up, host: FileHost, recorder: Recorder) -> Balance:
    """The balance, in which everything sent was acknowledged in the end and nothing is wrong."""
    found = balance(traffic, up, host, recorder)
    assert not found.wrong, f"{found.wrong}\n{up.text()[-3000:]}"
    assert found.sent == found.acknowledged == found.stored
    return found


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SETTLING
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)


def _require_signed(request: Received, secret: str) -> None:
    """Verify as of the time of sending: this may be many minutes ago, for which the libraries refuse it."""
    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers]
    now = int(request.header("webhook-timestamp"))
    verify(headers, request.body, parse_verifying_keys(secret), now=now)


def _manifests(up: Up) -> dict[tuple[Kind, str], dict[str, Any]]:
    return {
        (kind, path.parent.name): json.loads(path.read_text())
        for kind in Kind
        for path in (up.outputs / kind.folder).glob("*/prediction.json")
    }


def _differences(
    up: Up, host: FileHost, place: tuple[Kind, str], sources: list[str], manifest: dict[str, Any]
) -> list[str]:
    """What of one prediction is not as it was sent: `sources`, or text without any."""
    files = manifest["files"]
    wanted: list[str | None] = [*sources] or [None]
    if [(file["source"], file["error"]) for file in files] != [(source, None) for source in wanted]:
        return [f"keeps {files}"]
    return [file["name"] for file in files if not _is_same(up, host, place, file)]


def _is_same(up: Up, host: FileHost, place: tuple[Kind, str], file: dict[str, Any]) -> bool:
    stored = (up.outputs / place[0].folder / place[1] / file["name"]).read_bytes()
    source = file["source"]
    wanted = host.sha256(source) if source else hashlib.sha256(TEXT).hexdigest()
    return {hashlib.sha256(stored).hexdigest(), file["sha256"]} == {wanted}


def _is_told_well(place: tuple[Kind, str], told: list[Received]) -> bool:
    """Whether all is said under one `webhook-id`; that something is said is counted elsewhere."""
    ids = {request.header("webhook-id") for request in told}
    return len(ids) <= 1 and {request.event["type"] for request in told} <= {f"{place[0]}.succeeded"}


def _expected_files(manifests: dict[tuple[Kind, str], dict[str, Any]]) -> set[str]:
    own = {"prediction.json", "told-recorder.json"}
    return {
        f"outputs/{kind.folder}/{identity}/{name}"
        for (kind, identity), manifest in manifests.items()
        for name in own | {file["name"] for file in manifest["files"]}
    }


def _stored_files(up: Up) -> set[str]:
    """Objects, as the storage lists them."""
    found = {name for name in _files_below(up, "outputs") if not _is_half_written(name)}
    return found - {f"outputs/{IDENTITY_NAME}"}


def _temporary(up: Up) -> set[str]:
    """What waits on disk: downloads and deliveries."""
    waiting = _files_below(up, "tmp") | _files_below(up, "spool")
    return {name for name in waiting if not _is_half_written(name)}


def _is_half_written(name: str) -> bool:
    folder, _, rest = name.partition("/")
    return (folder == "outputs" and "#" in rest) or (folder == "spool" and rest.endswith(".part"))


def _files_below(up: Up, folder: str) -> set[str]:
    # Not `rglob`: folders may be swept while we look.
    walk = os.walk(up.data / folder)
    return {str((Path(where) / name).relative_to(up.data)) for where, _, names in walk for name in names}


def _works(up: Up) -> bool:
    """Whether any job waits or runs, or is listed by RQ although it does not."""
    with up.redis() as redis:
        return bool(unfinished(redis, *QUEUES) or _work_left(up))


def _work_left(up: Up) -> list[str]:
    """Where jobs stand that are not done."""
    with up.redis() as redis:
        return [
            f"{name} {place}: {count}"
            for name in QUEUES
            for place, count in _places(name, redis).items()
            if count
        ]


def _places(name: str, redis: Redis) -> dict[str, int]:
    queue = Queue(name, connection=redis, serializer=JSONSerializer)
    registries = (StartedJobRegistry, ScheduledJobRegistry, FailedJobRegistry, DeferredJobRegistry)
    counts = {each.__name__: each(queue=queue).get_job_count(cleanup=False) for each in registries}
    return {"queue": queue.count, "taken": redis.llen(queue.intermediate_queue_key), **counts}
