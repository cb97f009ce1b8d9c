"""Every string that outlives a process: Redis keys, queues, job names and ids, object names.

Nothing else in the project spells one of these. Ids of predictions and names of handlers were checked
against `ID` before they come here, so they contain no separator of keys and paths. RQ allows only `-` as one
in the id of a job: Replicate's own ids (26 letters and digits) contain none, and where it could mislead in
other ids it is escaped.
"""

import hashlib
import re
from contextlib import suppress
from datetime import UTC, date, datetime, time
from enum import StrEnum

ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
"""What the id of a prediction, a training or a handler looks like; use `fullmatch`."""

ID_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
"""What Replicate makes ids of, 26 of these."""


class Kind(StrEnum):
    """What a delivery is about. Nothing in a body tells the two apart; the receiving path does."""

    PREDICTION = "prediction"
    TRAINING = "training"

    @property
    def folder(self) -> str:
        """The plural, as folders and routes spell it."""
        return f"{self.value}s"


PredictionRef = tuple[Kind, str]
"""What names a prediction or training: its kind and its id."""

DeliveryRef = tuple[str, Kind, str]
"""What names the delivery to a handler: its name, then kind and id."""

COG_PATH = "/webhooks/cog"
"""Where Cog sends, which gives an event up after most answers of the kind 4xx."""

# Queues. One worker process listens to exactly one: with two or more RQ pops without a safety copy.
PERSIST_QUEUE = "persist"
NOTIFY_QUEUE = "notify"
HANDLE_QUEUE = "handle"

# Jobs, by the name that RQ stores. A test proves that each resolves.
PERSIST_JOB = "workers.jobs.persist"
NOTIFY_JOB = "workers.jobs.notify"


_KIND = rf"(?P<kind>{'|'.join(Kind)})"
_CLAIM = re.compile(
    rf"claims/{_KIND}-(?P<id>[A-Za-z0-9_-]{{1,64}})-(?P<digest>[0-9a-f]{{64}})\.json",
    re.ASCII,
)
_PLACE = rf"{_KIND}-(?:_(?P<escaped>[A-Za-z0-9_]{{1,128}})|(?P<id>[A-Za-z0-9][A-Za-z0-9_-]{{0,63}}?))"
_PERSIST_ID = re.compile(rf"persist-{_KIND}-(?P<id>[A-Za-z0-9_-]{{1,64}})", re.ASCII)
_DELIVERY = rf"-(?P<handler>[A-Za-z0-9_-]{{1,64}})-{_PLACE}(-r[1-9][0-9]*)?"
_NOTIFY_ID = re.compile(rf"notify{_DELIVERY}", re.ASCII)
_HANDLE_ID = re.compile(rf"handle{_DELIVERY}", re.ASCII)
_OF_A_HANDLER = re.compile(rf"(?:notify|handle){_DELIVERY}", re.ASCII)
_AMBIGUOUS = re.compile(rf"[_-].*|.*(?:{'|'.join(Kind)}).*|(?:.*-)?r[0-9]+", re.ASCII)
"""Ids that could be read in two ways beside the name of a handler or the number of a replay."""


def persist_job_id(kind: Kind, prediction_id: str) -> str:
    """The one persist job of a prediction."""
    return f"persist-{kind}-{prediction_id}"


def notify_job_id(handler: str, kind: Kind, prediction_id: str) -> str:
    """The one first notification of a handler about a prediction."""
    return f"notify-{handler}-{_place(kind, prediction_id)}"


def replay_job_id(handler: str, kind: Kind, prediction_id: str, number: int) -> str:
    """A job that tells a handler again because somebody asked for it; `number` counts from 1."""
    return f"{notify_job_id(handler, kind, prediction_id)}-r{number}"


def split_persist_job_id(job_id: str) -> tuple[Kind, str] | None:
    """The reverse of `persist_job_id`; None for anything else."""
    found = _PERSIST_ID.fullmatch(job_id)
    return (Kind(found["kind"]), found["id"]) if found else None


def split_notify_job_id(job_id: str) -> tuple[str, Kind, str] | None:
    """Handler, kind and id out of `notify_job_id` or `replay_job_id`; None for anything else."""
    found = _NOTIFY_ID.fullmatch(job_id)
    return (found["handler"], *_split_place(found)) if found else None


def place_of_job(job_id: str) -> tuple[Kind, str] | None:
    """The prediction that a job of ours works on, whatever it does; None for any other job."""
    found = _OF_A_HANDLER.fullmatch(job_id)
    return _split_place(found) if found else split_persist_job_id(job_id)


def _place(kind: Kind, prediction_id: str) -> str:
    """Kind and id as part of the id of a job: as they are, unless that could be read in two ways."""
    if not _AMBIGUOUS.fullmatch(prediction_id):
        return f"{kind}-{prediction_id}"
    return f"{kind}-_{prediction_id.replace('_', '_u').replace('-', '_d')}"


def _split_place(found: re.Match[str]) -> tuple[Kind, str]:
    if found["escaped"] is None:
        return Kind(found["kind"]), found["id"]
    return Kind(found["kind"]), found["escaped"].replace("_d", "-").replace("_u", "_")


def handle_job_id(notify_id: str) -> str:
    """The user's job that a notify job, first one or replay, hands the event to: one for each."""
    return f"handle-{notify_id.removeprefix('notify-')}"


def split_handle_job_id(job_id: str) -> tuple[str, Kind, str] | None:
    """Handler, kind and id out of `handle_job_id`; None for anything else."""
    found = _HANDLE_ID.fullmatch(job_id)
    return (found["handler"], *_split_place(found)) if found else None


def notification_id(handler: str, kind: Kind, prediction_id: str) -> str:
    """The `webhook-id` a handler sees: the same for every attempt and replay."""
    digest = hashlib.sha256(f"{handler}:{kind}:{prediction_id}".encode())
    return f"msg_{digest.hexdigest()[:32]}"


# Redis keys.
RECORDS = "outkeep:records"
"""Sorted set of `<kind>:<id>`, scored by the time of the latest change (seconds)."""

REFUSED = "outkeep:refused"
"""Sorted set of predictions with outputs that a setting can still mend, by when their hour ends."""

COUNTERS = "outkeep:counters"
"""Hash of counter name with labels → count; read by `/metrics`."""

CHANGES = "outkeep:changes"
"""Stream: what has changed, trimmed to the latest (see `app.accept.changes`)."""

SWEPT = "outkeep:swept"
"""When the last sweep ended (Unix seconds)."""

REPAIRED = "outkeep:repairs"
"""Hash: repair → how many the sweep made when it last made any, and when (`<count> <Unix seconds>`)."""

WRITE_PROBE = "outkeep:write-probe"
"""Written to learn whether Redis takes writes; expires at once."""

SWEEP_TURN = "outkeep:sweep-turn"
"""Lease of the process that sweeps now; expires before the next sweep is due."""

AWAITED = "outkeep:awaited"
"""Sorted set of `awaited_member`s, scored by when they are asked for (`app.replicate.watchlist`)."""

AWAITED_HERE = "outkeep:awaited-here"
"""The same of what was created here without a webhook, by their `record_member`s."""

RUNNING, RUNNING_OF_COG = "outkeep:running", "outkeep:running-of-cog"
"""Sorted sets of `record_member`s of which no more than progress was sent, scored by when (Unix seconds)."""

FIRST_START = "outkeep:first-start"
"""When Outkeep first ran on this Redis (Unix seconds); never changed. See `IDENTITY_NAME`."""

PASSED_OVER = "outkeep:passed-over"
"""Sorted set of `<kind>:<id>` that reconciliation has looked at and left alone, scored by when (seconds)."""

RECONCILE_TURN = "outkeep:reconcile-turn"
"""Lease of the process that reconciles now."""

ASKING_TURN = "outkeep:asking-turn"
"""Lease of the process that polls what was created here."""

RECONCILE_MARKS = "outkeep:reconcile-marks"
"""Hash: kind → from which time of creation the next pass has to look (Unix seconds)."""

RECONCILED = "outkeep:reconciled"
"""When the last complete pass of reconciliation ended (Unix seconds)."""

_RECORD_PREFIX = "outkeep:record:"

CLOCKS = "outkeep:clocks"
"""Hash: `<host>:<pid>` of each process on a host whose clock is off → how far (s), and when it said so."""

KEY_FINGERPRINT = "outkeep:key-fingerprint"
"""Fingerprint of the first `OUTKEEP_SECRET_KEY` that used this Redis."""


PROCESSES = "outkeep:processes"
"""Set of the names of the processes (`<role>:<host>:<pid>`) that were heard of lately."""


def process_key(name: str) -> str:
    """JSON: what a process says of itself (see `app.core.fleet`); it is said again before it expires."""
    return f"outkeep:process:{name}"


STORAGE_ID = "outkeep:storage"
"""Id of the storage that this Redis belongs to; the same stands in `IDENTITY_NAME`."""

EPOCH = "outkeep:epoch"
"""A number that grows every minute, and that `IDENTITY_NAME` follows: where it is smaller, data is lost."""

IDENTITY_LOCK = "outkeep:identity-lock"
"""Held while `IDENTITY_NAME` is written; expires."""

REBUILD_TURN = "outkeep:rebuild-turn"
"""Lease of the process that rebuilds by itself after Redis has lost its data."""

CAUGHT_UP = "outkeep:caught-up"
"""Hash: name of a handler that some processes do not know → up to when it was seen to that it is told (Unix
seconds)."""


def catch_up_turn(fingerprint: str) -> str:
    """Lease of the process that tells new handlers now, one for each handlers file."""
    return f"outkeep:catch-up-turn:{fingerprint}"


HANDLERS_OFF = "outkeep:handlers-off"
"""Hash: name of each handler that answered 410 → since when it is told nothing (RFC 3339)."""


REMOVALS = "outkeep:removals"
"""Sorted set of `<kind>:<id>` that are being removed, scored by when that was asked for (seconds)."""

RETENTION_TURN = "outkeep:retention-turn"
"""Lease of the process that looks for what is too old to be kept, and after that until it is time again."""


def removed_key(kind: Kind, prediction_id: str) -> str:
    """Set when a prediction is removed, so that nothing brings it back; expires like a record."""
    return f"outkeep:removed:{kind}:{prediction_id}"


def delivery_key(prediction_id: str, webhook_id: str) -> str:
    """The kind that a signed delivery was first taken for; expires when nobody can repeat it."""
    digest = hashlib.sha256(f"{prediction_id}:{webhook_id}".encode())
    return f"outkeep:delivery:{digest.hexdigest()[:32]}"


def bulk_replay_key(identity: str) -> str:
    """Hash: a bulk replay, how far it is (fields: see `app.web.actions`); expires."""
    return f"outkeep:bulk-replay:{identity}"


def idempotency_key(digest: str) -> str:
    """Hash: what a request with this `Idempotency-Key` was, and its answer; expires."""
    return f"outkeep:idempotency:{digest}"


def used_link_key(once: str) -> str:
    """Set when a link has signed somebody in; expires after the link."""
    return f"outkeep:used-link:{once}"


ALBUMS = "outkeep:albums"
"""Sorted set: the albums by when they end."""


def album_key(album_id: str) -> str:
    """Sorted set: what is in an album, in its order; expires with it."""
    return f"outkeep:album:{album_id}"


def handler_key(handler: str) -> str:
    """Hash: how a handler fares (fields: see `app.maintain.handler_states`)."""
    return f"outkeep:handler:{handler}"


def record_key(kind: Kind, prediction_id: str) -> str:
    """Hash: the live view of one prediction (fields: see `app.accept.records`)."""
    return f"{_RECORD_PREFIX}{kind}:{prediction_id}"


def split_record_key(key: bytes) -> tuple[Kind, str] | None:
    """The reverse of `record_key`; None for every other key in Redis."""
    text = key.decode(errors="replace")
    kind, _, prediction_id = text.removeprefix(_RECORD_PREFIX).partition(":")
    if not text.startswith(_RECORD_PREFIX) or kind not in list(Kind) or not ID.fullmatch(prediction_id):
        return None
    return Kind(kind), prediction_id


def record_member(kind: Kind, prediction_id: str) -> str:
    """How `RECORDS` and `CHANGES` name a prediction."""
    return f"{kind}:{prediction_id}"


def lost_mark(job_id: str) -> str:
    """Since when the sweep has found a job in no list of RQ (Unix seconds); expires."""
    return f"outkeep:lost:{job_id}"


def split_member(member: str) -> tuple[Kind, str]:
    """The reverse of `record_member`."""
    kind, _, prediction_id = member.partition(":")
    return Kind(kind), prediction_id


JOB_TOLD = "outkeep_told"
"""Field of the hash of a user's job: the end (`<status> <time>`) that the outcome file tells already."""

CREATIONS = "outkeep:creations"
"""When the next follow-up prediction may be created, by all processes (`app.replicate.creation`)."""


def follow_up_key(handler: str, kind: Kind, prediction_id: str) -> str:
    """JSON: the follow-up being created, written before the API is asked (`app.replicate.follow_ups`)."""
    return f"outkeep:follow-up:{handler}:{kind}:{prediction_id}"


FOLLOW_UPS_OPEN = "outkeep:follow-ups-open"
"""Hash: `<handler>:<kind>:<id>` → fingerprint of the input of a follow-up that may have been created."""


def follow_up_lock(handler: str, kind: Kind, prediction_id: str) -> str:
    """Lease of the one run that creates this follow-up."""
    return f"outkeep:following:{handler}:{kind}:{prediction_id}"


def follow_up_child(prediction_id: str) -> str:
    """Which follow-up (`<handler>:<kind>:<id>`) the prediction with this id is."""
    return f"outkeep:follows:{prediction_id}"


_WEB = ":web"


def awaited_member(kind: Kind, prediction_id: str, *, web: bool = False) -> str:
    """How `AWAITED` names a prediction; `web` when a list said that it was made on the web site."""
    return record_member(kind, prediction_id) + (_WEB if web else "")


def split_awaited(member: str) -> tuple[Kind, str, bool]:
    """The reverse of `awaited_member`."""
    return *split_member(member.removesuffix(_WEB)), member.endswith(_WEB)


# Objects in storage.
IDENTITY_NAME = "outkeep.json"
"""What a Redis that was emptied has forgotten (`app.storage.identity`): `id` of this storage, its `epoch`,
`first_start`: when Outkeep first ran with it, and `handlers`: since when each is in the handlers file."""

MANIFEST_NAME = "prediction.json"
TEXT_NAME = "output.txt"
CLAIMS = "claims"
"""The folder of bodies that wait."""

REMOVED = "removed"
"""The folder of notes about what was removed."""

PROBE_NAME = "outkeep.txt"
"""Written to a bucket to learn whether it takes writes."""

CHECKS = "checks"
"""The folder in which the calls to a bucket are tried; a later check removes what a crash has left there."""
MAX_INPUT_KEY = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)


def object_name(kind: Kind, prediction_id: str, name: str) -> str:
    """Where a file of a prediction lies."""
    return f"{folder_name(kind, prediction_id)}/{name}"


def folder_name(kind: Kind, prediction_id: str) -> str:
    """What holds everything of a prediction."""
    return f"{kind.folder}/{prediction_id}"


def manifest_name(kind: Kind, prediction_id: str) -> str:
    """Where the manifest lies: written last, it is the commit point."""
    return object_name(kind, prediction_id, MANIFEST_NAME)


def removed_name(kind: Kind, prediction_id: str) -> str:
    """Where it is noted that a prediction was removed."""
    return f"{REMOVED}/{kind}-{prediction_id}.json"


def output_stem(index: int) -> str:
    """What the name of the output file begins with that appears as number `index`."""
    return f"output-{index}"


def input_stem(key: str, index: int) -> str:
    """What the name of input file number `index` of those below `key` begins with; `input_key` made `key`."""
    return f"input-{key}-{index}"


def file_name(stem: str, extension: str) -> str:
    """Our own name for a file of a prediction; `extension` has no dot."""
    return f"{stem}.{extension}"


def input_key(key: str) -> str:
    """What stands for a key of an input in the name of its file. Two keys may share it: count them as one."""
    return _UNSAFE.sub("_", key[:MAX_INPUT_KEY]) or "_"


def outcome_name(handler: str) -> str:
    """The file that says how the delivery to a handler ended."""
    return f"told-{handler}.json"


_OUTCOME = re.compile(r"told-(?P<handler>[A-Za-z0-9_-]{1,64})\.json", re.ASCII)


def split_outcome_name(name: str) -> str | None:
    """The handler out of `outcome_name`; None for every other file of a prediction."""
    found = _OUTCOME.fullmatch(name)
    return found["handler"] if found else None


QUARANTINE = "quarantine"
"""The folder of what `quarantine_name` names."""

_OF_COG = "cog-"


def claim_name(kind: Kind, prediction_id: str, digest: str) -> str:
    """Where the body of a large delivery waits until it is stored; `digest` is its SHA-256 in hex."""
    return f"{CLAIMS}/{kind}-{prediction_id}-{digest}.json"


def split_claim_name(name: str) -> tuple[Kind, str, str] | None:
    """The reverse of `claim_name`; None for anything else."""
    found = _CLAIM.fullmatch(name)
    return (Kind(found["kind"]), found["id"], found["digest"]) if found else None


def quarantine_name(date: str, digest: str, *, of_cog: bool = False) -> str:
    """Where an unusable delivery is kept; `date` is `YYYY-MM-DD`, `digest` hex."""
    return f"{QUARANTINE}/{date}/{_OF_COG if of_cog else ''}{digest}.json"


def quarantine_body_name(name: str) -> str:
    """Where the bytes of such a delivery lie that do not fit into what `quarantine_name` names."""
    return name.removesuffix(".json") + ".bin"


def is_quarantine_of_cog(name: str) -> bool:
    """Whether a name below `QUARANTINE` is of what came with Cog's token, and is not signed."""
    return name.rpartition("/")[2].startswith(_OF_COG)


def quarantine_day(name: str) -> datetime | None:
    """The day in a name below `QUARANTINE`: its begin, in UTC; None where the name has none."""
    with suppress(ValueError, IndexError):
        return datetime.combine(date.fromisoformat(name.split("/")[1]), time.min, UTC)
    return None


def spool_name(kind: Kind, prediction_id: str, digest: str) -> str:
    """A file in `<data>/spool`: the same delivery sent again takes the same place; `digest` is hex."""
    return f"{kind}-{prediction_id}-{digest}.delivery"


def is_spooled(name: str, kind: Kind, prediction_id: str) -> bool:
    """Whether a file in the spool is a delivery about this prediction, one that was set aside included."""
    return re.fullmatch(rf"{kind}-{prediction_id}-[0-9a-f]+\.(delivery|damaged)", name) is not None


_HELD = "held"
_HELD_PARTS = 5
_MARKS = 2


def held_name(kind: Kind, prediction_id: str, number: int, digest: str) -> str:
    """A download in `<data>/tmp` that waits for the storage; `digest` is hex, or `*` to find it.

    After the digest may stand what the host declared, as `held_mark` has it.
    """
    # Dots, because an id may contain anything else that separates.
    return f"{_HELD}.{kind}.{prediction_id}.{number}.{digest}"


def held_digest(name: str) -> tuple[str, str | None, str | None]:
    """From the last part of a held file's name: its digest, and what `held_mark` has put behind it."""
    digest, *mark = name.rpartition(".")[2].split("-")
    declared, encoding = mark if len(mark) == _MARKS else ("", "")
    return digest, declared or None, encoding.replace("+", ", ") or None


def held_mark(declared: str | None, encoding: str | None) -> str:
    """What follows the digest in a held file's name: the extension that the host declared, and the coding."""
    return f"-{declared or ''}-{(encoding or '').replace(', ', '+')}" if declared or encoding else ""


def held_place(name: str) -> tuple[Kind, str] | None:
    """The prediction that a held file belongs to; None for any other name."""
    parts = name.split(".")
    if len(parts) != _HELD_PARTS or parts[0] != _HELD or parts[1] not in list(Kind):
        return None
    return Kind(parts[1]), parts[2]


def thumb_name(kind: Kind, prediction_id: str, digest: str) -> str:
    """The small picture of a stored one whose content has this SHA-256, in `<data>/thumbs`."""
    return f"{kind}-{prediction_id}-{digest}.webp"


THUMBS_OF_ANY = "?" * 64
"""In place of a digest: the pattern of all thumbnails of a prediction."""
