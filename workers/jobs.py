"""The entry points of RQ jobs, thin: they turn what a job asks for into RQ's words.

A job carries ids, not objects, and may run twice; two runs may overlap.
"""

import asyncio
import math

from rq import Retry
from rq.job import Job

from app.core.errors import Permanent, Rejected, Transient
from app.core.names import Kind
from app.core.policy import store_delay
from workers.notify import Notify
from workers.persist import Persist

_ENDLESS = 1_000_000
"""Our policies decide when to stop, not RQ's counter."""


async def persist(service: Persist, job: Job, kind: str, prediction_id: str) -> Retry | None:
    """Keep the outputs of one prediction."""
    attempt = (job.number_of_retries or 0) + 1
    try:
        wait = await service.run(Kind(kind), prediction_id, attempt=attempt)
    except (Permanent, Rejected) as error:
        await asyncio.to_thread(service.give_up, Kind(kind), prediction_id, error)
        job.retries_left = 0
        raise
    return None if wait is None else _again(wait)


async def notify(service: Notify, job: Job, handler: str, kind: str, prediction_id: str) -> Retry | None:
    """Tell one handler about one prediction; a dead letter ends in RQ's registry of failed jobs."""
    attempts = job.meta.setdefault("attempts", [])
    try:
        verdict = await service.run(handler, Kind(kind), prediction_id, attempts)
    except Transient:
        return _again(store_delay(attempt=job.number_of_retries or 0, jitter=0.5))
    finally:
        await asyncio.to_thread(job.save_meta)
    if verdict.told:
        return None
    if verdict.wait is not None:
        return _again(verdict.wait)
    job.retries_left = 0
    raise Permanent("dead_letter", attempts[-1]["detail"])


def _again(wait: float) -> Retry:
    # RQ waits whole seconds; 0 would run it at once.
    return Retry(max=_ENDLESS, interval=max(1, math.ceil(wait)))
