"""The entry points of RQ jobs, thin: they turn what a job asks for into RQ's words.

A job carries ids, not objects, and may run twice; two runs may overlap. Its `meta` is what one run tells
the next.
"""

import logging
import math

from rq import Retry
from rq.job import Job

from app.core.errors import OutkeepError, Permanent, Rejected
from app.core.names import ID, Kind
from app.core.policy import Tries
from app.telemetry.logs import bind
from workers.keep.persist import Persist
from workers.tell.notify import Delivery, Notify

_ENDLESS = 1_000_000
"""Our policies decide when to stop, not RQ's counter."""

log = logging.getLogger("outkeep.worker")


async def persist(service: Persist, job: Job, kind: str, prediction_id: str) -> Retry | None:
    """Keep the outputs of one prediction."""
    place = _place(job, kind, prediction_id)
    tries = Tries(job.meta.setdefault("tries", {}))
    try:
        wait = await service.run(*place, tries, attempt=max(1, _run(job) - tries.turned_away))
    except (Permanent, Rejected) as error:
        await service.give_up(*place, error)
        raise _final(job, error) from None
    except Exception as error:
        if not job.retries_left:
            fault = Permanent("crashed", f"the job raised {type(error).__name__} every time")
            await service.give_up(*place, fault)
        raise
    return None if wait is None else _again(wait)


async def notify(service: Notify, job: Job, handler: str, kind: str, prediction_id: str) -> Retry | None:
    """Tell one handler about one prediction; a dead letter ends in RQ's registry of failed jobs."""
    place = _place(job, kind, prediction_id, handler)
    try:
        wait = await service.run(Delivery(handler, *place, job.id), job.meta)
    except Permanent as error:
        raise _final(job, error) from None
    return None if wait is None else _again(wait)


def _run(job: Job) -> int:
    """Which run of the job this is, from 1."""
    return (job.number_of_retries or 0) + 1


def _place(job: Job, kind: str, *ids: str) -> tuple[Kind, str]:
    """The prediction that a job names; whoever can write to Redis can plant any arguments.

    From here on each line of the log names the job.
    """
    bind(job=job.id)
    if kind not in list(Kind) or not all(isinstance(text, str) and ID.fullmatch(text) for text in ids):
        error = Permanent("job_refused", "its arguments are not a kind and ids")
        log.error("job %s is refused and stands with the failed jobs: %s", job.id, error.message)
        raise _final(job, error)
    return Kind(kind), ids[0]


def _final(job: Job, error: OutkeepError) -> OutkeepError:
    """Keep RQ from trying again what `error` ended."""
    job.retries_left = 0
    return error


def _again(wait: float) -> Retry:
    # RQ waits whole seconds; 0 would run it at once.
    return Retry(max=_ENDLESS, interval=max(1, math.ceil(wait)))
