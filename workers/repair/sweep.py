"""Mend what fell between two steps: everything that waits has a job, and every job stands where RQ finds it.

The sweep does not act on what it read: for each gap that was found a script in Redis looks again and mends in
one step. So it may run twice, at the same time, and die anywhere.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from redis import Redis
from rq.job import Job
from rq.queue import Queue
from rq.worker_registration import clean_worker_registry

from app.accept import queues
from app.accept.records import Records
from app.core.lifecycle import Move
from app.core.names import PERSIST_QUEUE, RECORDS, Kind, lost_mark, record_key, record_member
from app.core.policy import PERSIST_MARGIN, keep_until
from app.core.repairs import PATIENCE, Repair
from app.maintain.gaps import Gap, Gaps, RecordGap
from workers.repair.sweep_scripts import LIST_RECORD, MAKE_JOB, REQUEUE_JOB, UNLIST_RECORD

log = logging.getLogger("outkeep.sweep")


class Sweep:
    """The half of the sweep that looks at Redis. `ttl` is how long records live, in seconds.

    `users` are queues beside ours that hold jobs of the user's.
    """

    def __init__(
        self, redis: Redis, *, ttl: int, clock: Callable[[], datetime], users: Sequence[str] = ()
    ) -> None:
        self._redis = redis
        self._gaps = Gaps(redis, ttl=ttl, clock=clock, users=users)
        self._records = Records(redis, ttl=ttl)
        self._clock = clock
        self._make_job = redis.register_script(MAKE_JOB)
        self._requeue_job = redis.register_script(REQUEUE_JOB)
        self._list_record = redis.register_script(LIST_RECORD)
        self._unlist_record = redis.register_script(UNLIST_RECORD)

    def run(self) -> Counter[Repair]:
        """Mend what is wrong; how often which repair was made. Raises redis' errors."""
        mended: Counter[Repair] = Counter()
        for gap in self._gaps.look():
            if self.mend(gap):
                mended[gap.repair] += 1
        return mended

    def mend(self, gap: Gap) -> bool:
        """Mend one gap, and say so; whether it was still there. Raises redis' errors."""
        if not self._mend(gap):
            return False
        log.warning("mended: %s", gap.repair, extra={"repair": str(gap.repair), **gap.facts})
        return True

    def _mend(self, gap: Gap) -> bool:
        match gap.repair:
            case Repair.RECORD_LISTED:
                return self._list(Kind(gap.where), gap.name)
            case Repair.RECORD_UNLISTED:
                return self._unlist(Kind(gap.where), gap.name)
            case Repair.RECORD_FAILED:
                fields = {"error": "job_failed"}
                return self._records.move(Kind(gap.where), gap.name, Move.FAIL, self._clock(), fields)
            case Repair.JOB_REQUEUED:
                return self._requeue(self._gaps.queues[gap.where], gap.name)
            case Repair.WORKER_DROPPED:
                clean_worker_registry(self._gaps.queues[gap.where])
                return True
            case _:
                assert isinstance(gap, RecordGap)
                return self._make(gap)

    def _make(self, gap: RecordGap) -> bool:
        left = (keep_until(None, gap.received_at) - self._clock()).total_seconds()
        timeout = math.ceil(max(left, 0)) + PERSIST_MARGIN
        place = (Kind(gap.where), gap.name)
        job = queues.persist_job(self._redis, *place, timeout=timeout)
        queue = self._gaps.queues[PERSIST_QUEUE]
        keys = [record_key(*place), job.key, queue.key, queue.redis_queues_keys]
        return bool(self._make_job(keys=keys, args=[gap.state, job.id, *queues.fields(job)]))

    def _requeue(self, queue: Queue, job_id: str) -> bool:
        keys = [
            Job.key_for(job_id),
            queue.key,
            queue.intermediate_queue_key,
            queue.started_job_registry.key,
            queue.scheduled_job_registry.key,
            queue.deferred_job_registry.key,
            lost_mark(job_id),
            queue.redis_queues_keys,
        ]
        # One sweep may come a little early.
        args: list[str | float] = [job_id, self._clock().timestamp(), PATIENCE / 2]
        return bool(self._requeue_job(keys=keys, args=args))

    def _list(self, kind: Kind, prediction_id: str) -> bool:
        # The age of the latest change would let the next delivery drop it again.
        keys = [record_key(kind, prediction_id), RECORDS]
        args: list[str | float] = [record_member(kind, prediction_id), self._clock().timestamp()]
        return bool(self._list_record(keys=keys, args=args))

    def _unlist(self, kind: Kind, prediction_id: str) -> bool:
        keys = [record_key(kind, prediction_id), RECORDS]
        return bool(self._unlist_record(keys=keys, args=[record_member(kind, prediction_id)]))
