"""The rules that turn what RQ says of workers and jobs into the lines of a report. Ages are in seconds."""

from collections.abc import Sequence

from app.core.findings import Finding, Level
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE

OURS = (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE)
"""The queues that workers of ours serve; the user's own workers serve all others."""

SILENCE = 30.0
"""A worker of ours that was not heard of for this long is dead; each reports every few seconds."""

WAIT_WARN = 60.0
WAIT_FAIL = 600.0
"""How long a job may wait for a worker: Replicate deletes the files after an hour."""

UNTOLD_AFTER = 120.0
"""How long the sweep, which runs every minute, may take to tell how a job of the user's ended."""

_NAMED = 3


def workers(queue: str, silences: Sequence[float]) -> Finding:
    """Judge who serves a queue: for each registered worker, how long it was not heard of."""
    check = f"workers of {queue}"
    heard = [silence for silence in silences if silence < SILENCE]
    if heard or (silences and queue not in OURS):
        return Finding(Level.OK, check, _running(silences, heard))
    return Finding(Level.FAIL, check, f"none runs; start `{command(queue)}`")


def _running(silences: Sequence[float], heard: Sequence[float]) -> str:
    if heard:
        return f"{len(heard)} running"
    # RQ's own worker says nothing for up to seven minutes while it has nothing to do.
    return f"{len(silences)} registered, last heard of {min(silences):.0f} s ago"


def waiting(queue: str, count: int, oldest: float) -> Finding:
    """Judge a queue of `count` jobs, the first of which has waited for `oldest` seconds."""
    level = Level.FAIL if oldest >= WAIT_FAIL else Level.WARN if oldest >= WAIT_WARN else Level.OK
    detail = f"{count} waiting" + (f", the oldest for {oldest:.0f} s" if count else "")
    if level is not Level.OK:
        detail += f"; start more of `{command(queue)}`"
    return Finding(level, f"queue {queue}", detail)


def put_off(count: int) -> Finding:
    """Warn of `count` predictions whose outputs could not be kept yet: their hour passes meanwhile."""
    detail = f"{count} predictions wait for the next try; the log of the persist workers says what failed"
    return Finding(Level.WARN, "outputs put off", detail)


def dead_letters(queue: str, count: int) -> Finding:
    """Judge how many jobs of a queue have failed for good."""
    if not count:
        return Finding(Level.OK, f"dead letters of {queue}", "none")
    detail = f"{count}; look at the log, mend the cause, then `outkeep replay --failed`"
    return Finding(Level.WARN, f"dead letters of {queue}", detail)


def untold(job_ids: Sequence[str]) -> Finding:
    """Warn of jobs of the user's whose end the sweep should have told by now."""
    if not job_ids:
        return Finding(Level.OK, "ends of jobs", "all are told")
    named = ", ".join(job_ids[:_NAMED]) + (", …" if len(job_ids) > _NAMED else "")
    detail = (
        f"{len(job_ids)} jobs of handlers have ended, and no outcome says so ({named}); the sweep writes "
    )
    detail += f"them: look at the logs of the workers of {PERSIST_QUEUE} and {NOTIFY_QUEUE}"
    return Finding(Level.WARN, "ends of jobs", detail)


def function(handler: str, name: str, queue: str, trouble: str | None) -> Finding:
    """Judge a handler that is a function; `trouble` is why the workers of `handle` would not find it."""
    check = f"handler {handler}"
    if queue not in OURS:
        return Finding(Level.OK, check, f"{name} on queue {queue}, whose workers are your own")
    if trouble is None:
        return Finding(Level.OK, check, f"{name} on queue {queue}")
    detail = f"{trouble}, so {name} would not run; mend that, or name the folder of your code with --path, "
    return Finding(Level.WARN, check, f"{detail}here and at `{command(queue)}`")


def command(queue: str) -> str:
    """What starts a worker of a queue."""
    return f"outkeep work {queue}" if queue in OURS else f"rq worker -S json {queue}"
