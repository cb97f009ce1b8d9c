"""Results of checks, and the rules that turn numbers into them. Ages and times are in seconds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from app.core.lifecycle import Repair
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE


class Level(StrEnum):
    """How a check ended.

    To `/readyz`, `FAIL` means that deliveries are not acknowledged; to `outkeep doctor`, that something can
    be lost or is not done.
    """

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of a report. `detail` says what is wrong and what to do."""

    level: Level
    check: str
    detail: str


DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
"""How Redis must be configured."""

_LOSSES = {
    "appendonly": "a restart of Redis loses every event that was not yet stored",
    "appendfsync": "a crash of Redis' host loses up to the last second of acknowledged events",
    "no-appendfsync-on-rewrite": "a crash of its host loses what was acknowledged while it rewrote its log",
    "maxmemory-policy": "Redis may drop queued work without an error when its memory is full",
}
_A_CHOICE = frozenset({"appendfsync", "no-appendfsync-on-rewrite"})
"""What somebody may have chosen with open eyes: no more than a warning."""

OLDEST_REDIS = (7, 0)
"""`SET` with `NX` and `GET` together is new in it. Valkey says 7.2 here, whatever its own version."""

SKEW_WARN = 5.0
SKEW_FAIL = 60.0
"""Of the 300 s that a delivery may be old; and workers are missed after 15 s."""

MEMORY_WARN, MEMORY_FAIL = 0.75, 0.95
"""Shares of the memory that Redis may use."""

SWEEP_WARN = 300.0

RECONCILE_WARN = 600.0
"""Of the hour after which nothing can be found any more."""

SHORTEST_TOKEN = 16
"""Characters of a token that is tried without a limit."""


def warned(finding: Finding) -> Finding:
    """The same for `/readyz`, where what does not keep a delivery from being acknowledged is a warning."""
    return replace(finding, level=Level.WARN) if finding.level is Level.FAIL else finding


def token(given: bool) -> Finding:  # noqa: FBT001
    """Judge whether there is a token of Replicate's API."""
    if given:
        return Finding(Level.OK, "token", "set")
    detail = "REPLICATE_API_TOKEN is not set: a prediction whose webhook never arrives is not missed"
    return Finding(Level.WARN, "token", detail)


def cog_token(length: int) -> Finding:
    """Judge the token of Cog, of `length` characters: wrong ones lock nobody out."""
    if length >= SHORTEST_TOKEN:
        return Finding(Level.OK, "cog token", "set")
    detail = f"OUTKEEP_COG_TOKEN has fewer than {SHORTEST_TOKEN} characters, so it can be guessed; "
    return Finding(Level.WARN, "cog token", detail + "take one from `openssl rand -hex 32`")


def secret_missing(reason: str | None) -> Finding:
    """No delivery can be verified; `reason` is why the last try to fetch the secret failed."""
    detail = "it is being fetched with REPLICATE_API_TOKEN; deliveries are answered with 503 until then"
    if reason is not None:
        detail = (
            f"{reason}; deliveries are answered with 503 until it can be fetched: mend that, or set "
            "REPLICATE_WEBHOOK_SECRET"
        )
    return Finding(Level.FAIL, "webhook secret", detail)


def reconciled(mode: str, age: float | None) -> Finding:
    """Judge when the last complete pass of reconciliation ended, in seconds; None: none ever did."""
    if mode == "off":
        detail = "OUTKEEP_RECONCILE is off: a prediction whose webhook never arrives is not missed"
        return Finding(Level.WARN, "reconcile", detail)
    if age is None:
        return Finding(Level.WARN, "reconcile", "no pass is complete yet; the persist workers make them")
    if age > RECONCILE_WARN:
        detail = f"the last complete pass ended {age:.0f} s ago; look at the logs of the persist workers"
        return Finding(Level.WARN, "reconcile", detail)
    return Finding(Level.OK, "reconcile", f"{max(age, 0):.0f} s ago")


def durability(config: Mapping[str, str]) -> list[Finding]:
    """What a configuration of Redis (of the names in `DURABLE`) could lose."""
    weak = [
        Finding(
            Level.WARN if name in _A_CHOICE else Level.FAIL,
            "redis",
            f"{name} is {config[name]}, not {wanted}: {_LOSSES[name]}",
        )
        for name, wanted in DURABLE.items()
        if config[name] != wanted
    ]
    return weak or [Finding(Level.OK, "redis", "durable")]


def server(info: Mapping[str, object]) -> list[Finding]:
    """What Redis' own `INFO` says against it."""
    found = []
    version = str(info.get("redis_version", "unknown"))
    numbers = tuple(map(int, re.findall(r"[0-9]+", version)[:2]))
    if numbers < OLDEST_REDIS:
        found.append(f"version {version} is too old; use Redis 7.0 or later, or Valkey")
    if info.get("cluster_enabled") == 1:
        found.append("this is a cluster, which is not supported; use a single server")
    if info.get("role") == "slave":
        found.append("this is a replica, which takes no writes; point REDIS_URL to its master")
    if info.get("aof_last_write_status", "ok") != "ok":
        found.append("its last write to disk failed; look at its log and make room on its disk")
    findings = [Finding(Level.FAIL, "redis", detail) for detail in found]
    if replicas := int(str(info.get("connected_slaves", 0))):
        detail = (
            f"{replicas} replica{'s are' if replicas > 1 else ' is'} connected, and nobody waits for what is "
            "acknowledged to reach them: a failover loses what they had not yet"
        )
        findings.append(Finding(Level.WARN, "redis replicas", detail))
    return findings


def default_user(*, refused: bool) -> list[Finding]:
    """Complain if Redis' default user is `refused` commands that stand in its log."""
    if not refused:
        return []
    detail = (
        "its default user may not run our commands: at a restart Redis drops all transactions in its log, "
        "and with them acknowledged events; set `user default off resetpass ~* &* +@all` where its users are "
        "configured (nobody can log in as it)"
    )
    return [Finding(Level.FAIL, "redis default user", detail)]


def text(value: object) -> str:
    """An answer of Redis as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def memory(info: Mapping[str, object]) -> list[Finding]:
    """Judge by `INFO memory` how full Redis is; nothing where it is not, or no limit is known."""
    used, own = int(str(info.get("used_memory", 0))), int(str(info.get("maxmemory", 0)))
    limit = own or int(str(info.get("total_system_memory", 0)))
    if limit == 0 or used < limit * MEMORY_WARN:
        return []
    level = Level.FAIL if used >= limit * MEMORY_FAIL else Level.WARN
    of = "its maxmemory" if own else "all memory of its host"
    detail = (
        f"Redis uses {used >> 20} of {limit >> 20} MiB, {of}: once it is full, deliveries wait in the spool "
        "and workers stop; give it more, or look with `outkeep ls` what fills it"
    )
    return [Finding(level, "redis memory", detail)]


def clock(skew: float) -> Finding:
    """Judge how far the clock of this host is ahead of that of Redis' host."""
    level = Level.FAIL if abs(skew) >= SKEW_FAIL else Level.WARN if abs(skew) >= SKEW_WARN else Level.OK
    detail = f"{skew:+.1f} s against Redis' host"
    if level is not Level.OK:
        detail += "; let both keep time by NTP: all processes go by the clock of Redis"
    if level is Level.FAIL:
        detail += ", and workers of this host take no jobs, and remove nothing for its age, until then"
    return Finding(level, "clock", detail)


def clocks(off: Mapping[str, float]) -> list[Finding]:
    """Warn of hosts with a running process whose clock is off: by how many seconds it is ahead."""
    named = ", ".join(f"{host} {skew:+.0f} s" for host, skew in sorted(off.items())[:_NAMED])
    more = ", …" if len(off) > _NAMED else ""
    detail = f"{named}{more} against Redis' host; over {SKEW_FAIL:.0f} s workers take no jobs: use NTP there"
    return [Finding(Level.WARN, "clocks", detail)] if off else []


def out_of_time(count: int, window: float) -> Finding:
    """Warn of `count` deliveries in the last `window` seconds, signed well but at another time."""
    detail = (
        f"{count} deliveries of the last {window / 60:.0f} minutes were signed well, but long before or "
        "after our time; is there clock skew on this host (NTP), or does somebody send old ones again?"
    )
    return Finding(Level.WARN, "clock", detail)


def sweep(age: float | None) -> Finding:
    """Judge when the last sweep ended; None: none ever did."""
    if age is None:
        return Finding(Level.WARN, "sweep", "none has run yet; the workers do so every minute")
    if age > SWEEP_WARN:
        detail = f"the last one was {age:.0f} s ago; look at the logs of the workers"
        return Finding(Level.WARN, "sweep", detail)
    return Finding(Level.OK, "sweep", f"{max(age, 0):.0f} s ago")


REPAIRS = {
    Repair.JOB_MADE: "predictions that had ended had no job that worked on them",
    Repair.JOB_REQUEUED: "jobs stood in no list of RQ, so none of them would have run",
    Repair.RECORD_FAILED: "predictions were called received, and their jobs had given up",
    Repair.RECORD_LISTED: "predictions that are worked on were missing in `outkeep ls`",
    Repair.RECORD_UNLISTED: "predictions were listed whose records have expired",
    Repair.OUTPUT_SOUGHT: "outputs that were refused are permitted now, and fetched",
    Repair.WORKER_DROPPED: "dead workers were still registered",
    Repair.FILE_REMOVED: "temporary files were left by killed processes",
    Repair.REMOVAL_ENDED: "predictions were to be removed, and not all of them was gone",
    Repair.CLAIM_REMOVED: "large bodies waited in the storage for nobody",
}
"""What was wrong before the sweep made a repair."""

LATELY = 3600.0
"""For so long a repair is told."""

_NAMED = 3


def repairs(made: Mapping[Repair, tuple[int, float]]) -> list[Finding]:
    """Warn of what the sweep has repaired lately: how many, and how many seconds ago."""
    findings = [
        Finding(
            Level.WARN,
            "repairs",
            f"{count} {REPAIRS[repair]}; repaired {max(age, 0):.0f} s ago (the log names them: `{repair}`)",
        )
        for repair, (count, age) in sorted(made.items())
        if age < LATELY
    ]
    return findings or [Finding(Level.OK, "repairs", "none within the last hour")]


def disk(place: str, free: int, floor: int) -> Finding:
    """Judge the room on a disk, in bytes: below `floor` nothing is downloaded."""
    level = Level.FAIL if free < floor else Level.WARN if free < 2 * floor else Level.OK
    detail = f"{free >> 20} MiB free on the disk of {place}"
    if level is not Level.OK:
        detail += f"; below {floor >> 20} MiB nothing is downloaded (OUTKEEP_DISK_FLOOR): make room"
    return Finding(level, "disk", detail)


OURS = (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE)
"""The queues that workers of ours serve; the user's own workers serve all others."""

SILENCE = 30.0
"""A worker of ours that was not heard of for this long is dead; each reports every few seconds."""

WAIT_WARN = 60.0
WAIT_FAIL = 600.0
"""How long a job may wait for a worker: Replicate deletes the files after an hour."""

UNTOLD_AFTER = 120.0
"""How long the sweep, which runs every minute, may take to tell how a job of the user's ended."""


def workers(queue: str, silences: Sequence[float]) -> Finding:
    """Judge who serves a queue: for each registered worker, how long it was not heard of."""
    check = f"workers of {queue}"
    if heard := sum(silence < SILENCE for silence in silences):
        return Finding(Level.OK, check, f"{heard} running")
    if silences and queue not in OURS:
        # RQ's own worker says nothing for up to seven minutes while it has nothing to do.
        detail = f"{len(silences)} registered, last heard of {min(silences):.0f} s ago"
        return Finding(Level.OK, check, detail)
    return Finding(Level.FAIL, check, f"none runs; start `{command(queue)}`")


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
