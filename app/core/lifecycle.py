"""The states of a record in one table of legal moves, and what the sweep may repair."""

import re
from enum import StrEnum
from functools import cache


class State(StrEnum):
    """Where a prediction stands with us."""

    RUNNING = "running"
    """Replicate still works on it; only progress was seen."""
    RECEIVED = "received"
    """It ended and the event is durable; its persist job is on the way."""
    STORED = "stored"
    """Its manifest is written."""
    DISPATCHED = "dispatched"
    """A job for each interested handler is enqueued."""
    FAILED = "failed"
    """Its persist job gave up; replayable."""


class Move(StrEnum):
    """What can happen to a record."""

    PROGRESS = "progress"
    FINISH = "finish"
    STORE = "store"
    DISPATCH = "dispatch"
    TELL = "tell"
    """What nobody was to be told of is told after all."""
    MEND = "mend"
    """Files are kept after all that were refused."""
    FAIL = "fail"


MOVES: dict[tuple[State | None, Move], State] = {
    (None, Move.PROGRESS): State.RUNNING,
    (None, Move.FINISH): State.RECEIVED,
    (State.RUNNING, Move.PROGRESS): State.RUNNING,
    (State.RUNNING, Move.FINISH): State.RECEIVED,
    (State.RECEIVED, Move.STORE): State.STORED,
    (State.RECEIVED, Move.FAIL): State.FAILED,
    (State.STORED, Move.DISPATCH): State.DISPATCHED,
    (State.STORED, Move.FAIL): State.FAILED,
    (State.DISPATCHED, Move.MEND): State.DISPATCHED,
    (State.DISPATCHED, Move.TELL): State.STORED,
    (State.FAILED, Move.STORE): State.STORED,
    (State.FAILED, Move.FAIL): State.FAILED,
}
"""From a state (None: no record) by a move to a state."""


@cache
def origins(move: Move) -> tuple[State | None, ...]:
    """The states from which a move is legal; None stands for no record."""
    return tuple(state for state, known in MOVES if known is move)


@cache
def target(move: Move) -> State:
    """Where a move leads; each move leads to one state."""
    (state,) = {to for (_, known), to in MOVES.items() if known is move}
    return state


class Repair(StrEnum):
    """What was repaired; the name stands in logs and counts."""

    JOB_MADE = "job_made"
    """A prediction had no job that would work on it."""
    JOB_REQUEUED = "job_requeued"
    """A job was called waiting or running, and stood in no list of RQ."""
    RECORD_FAILED = "record_failed"
    """A prediction was called received, and its job had given up."""
    RECORD_LISTED = "record_listed"
    """A prediction that is worked on was missing in the index."""
    RECORD_UNLISTED = "record_unlisted"
    """The index named a prediction whose record has expired."""
    OUTPUT_SOUGHT = "output_sought"
    """An output was refused, and is permitted now."""
    WORKER_DROPPED = "worker_dropped"
    """A dead worker was still registered."""
    REMOVAL_ENDED = "removal_ended"
    """A prediction was to be removed, and not all of it was."""
    FILE_REMOVED = "file_removed"
    """A killed process had left a temporary file."""
    CLAIM_REMOVED = "claim_removed"
    """A large body waited in storage for nobody."""


PATIENCE = 60.0
"""What is in motion gets this long before the sweep looks at it."""

STRAY_AFTER = 86400.0
"""Age at which a download belongs to nobody: no job runs for so long."""

HALF_WRITTEN_AFTER = 3600.0
"""Age without a change at which an object that is being written belongs to nobody."""

CLAIM_AFTER = 3600.0
"""Age at which a large body that waits in storage is looked at: it comes before what leads to it."""

LIVE = frozenset({"queued", "started", "scheduled", "deferred"})
"""Statuses in which RQ will run a job, or runs it."""

_ENDED_BADLY = frozenset({"failed", "stopped", "canceled"})
_UNSETTLED = frozenset({State.RECEIVED, State.STORED})

_DOWNLOAD = re.compile(r"(?:fetch|upload)-[^/]+\.part", re.ASCII)
_HELD = re.compile(r"held\.[^/]+", re.ASCII)
_DRAFT_OF_OURS = re.compile(
    r"(?:(?:output|input)[A-Za-z0-9_.-]*|prediction\.json|told-[A-Za-z0-9_-]+\.json"
    r"|(?:(?:prediction|training)-[A-Za-z0-9_-]+-)?[0-9a-f]{64}\.(?:json|bin))#[0-9]+",
    re.ASCII,
)
"""obstore writes `name` under `name#N` and renames it. Only names of ours: the folder may hold more."""


def record_repair(state: State, job_status: str | None, *, silent: float) -> Repair | None:
    """What to do about a record whose persist job RQ calls `job_status` (None: there is none).

    `silent` is the age of its latest change.
    """
    if state not in _UNSETTLED or silent < PATIENCE or job_status in LIVE:
        return None
    return Repair.RECORD_FAILED if job_status in _ENDED_BADLY else Repair.JOB_MADE


def is_stray_download(name: str, age: float, *, held_for: float) -> bool:
    """Whether a file in the folder for temporary files belongs to nobody.

    `held_for` is how long a download waits for the storage: no longer than there is a record.
    """
    if _HELD.fullmatch(name):
        return age > held_for
    return bool(_DOWNLOAD.fullmatch(name)) and age > STRAY_AFTER


def is_draft(name: str) -> bool:
    """Whether a file beside stored objects is one that is being written, or that a killed write has left."""
    return _DRAFT_OF_OURS.fullmatch(name) is not None


def is_half_written(name: str, age: float) -> bool:
    """Whether a file beside stored objects is what a killed write of one has left."""
    return is_draft(name) and age > HALF_WRITTEN_AFTER
