"""The life of a record: one table; a move that is not in it does not exist."""

from enum import StrEnum


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


def origins(move: Move) -> tuple[State | None, ...]:
    """The states from which a move is legal; None stands for no record."""
    return tuple(state for state, known in MOVES if known is move)


def target(move: Move) -> State:
    """Where a move leads; each move leads to one state."""
    (state,) = {to for (_, known), to in MOVES.items() if known is move}
    return state
