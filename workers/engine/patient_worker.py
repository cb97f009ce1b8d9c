"""RQ's worker as it bears whatever Redis does: what all of our workers have in common.

RQ's loop ends at nearly any error of Redis: out of memory, read-only, loading, a time-out. Here nothing that
is only said to Redis ends a worker, and jobs are taken again as soon as Redis serves.
"""

import logging
import math
import time
from functools import cached_property

from redis import ConnectionPool, Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry
from rq.connections import parse_connection
from rq.job import Job
from rq.worker.base import BaseWorker

from app.clock import EVERY, Clock
from workers.engine.commands import Commands

log = logging.getLogger("outkeep.worker")


class Outage:
    """Whether Redis serves, as one worker sees it: each change is one line in the log."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __bool__(self) -> bool:
        """Whether it does not."""
        return self._since is not None

    def begins(self, error: RedisError) -> None:
        """Note that it does not serve."""
        if self._since is None:
            self._since = time.monotonic()
            log.warning("Redis does not serve, no jobs are taken until it does: %s", error)

    def ends(self) -> None:
        """Note that it serves."""
        if self._since is not None:
            log.warning("Redis is back after %.0f s", time.monotonic() - self._since)
            self._since = None


class PatientWorker(BaseWorker):
    """Registers, cleans up, listens to commands and signs off; a subclass takes jobs and runs them.

    `clock`, `outage` and `silence`, the seconds after which a run is given up, must be set before `work`.
    """

    clock: Clock
    outage: Outage
    silence: int
    _cleaned_at = -math.inf

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002
        """Seconds of silence after which a run is given up; RQ adds a minute."""
        return self.silence

    def register_birth(self) -> None:
        """Say that this worker lives, as soon as Redis takes it."""
        while True:
            try:
                self.connection.delete(self.key)  # of a try whose answer was lost; the name is ours alone
                super().register_birth()  # type: ignore[no-untyped-call]
            except RedisError as error:
                self.outage.begins(error)
                time.sleep(1)
            else:
                self.outage.ends()
                return

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Whether maintenance is due; RQ goes by a clock that may step."""
        return time.monotonic() - self._cleaned_at > self.maintenance_interval

    def run_maintenance_tasks(self) -> None:
        """RQ's maintenance, of which a failure does not end the worker.

        When Redis has stepped, or it or we stood still, living runs seem silent until their next heartbeat.
        """
        try:
            self.clock.ask(self.connection)
            if self.clock.is_steady(self.silence + EVERY):
                super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except RedisError as error:
            self.outage.begins(error)
        except Exception:
            log.exception("maintenance failed: jobs of dead workers wait until the cause is gone")
        self._cleaned_at = time.monotonic()

    @cached_property
    def commands(self) -> Commands:
        """What RQ's functions tell this worker."""
        return Commands(self.connection, self.pubsub_channel_name, self.handle_payload)

    def subscribe(self) -> None:
        """Left to the subclass, which calls `commands.obey`: RQ's own thread ends at a time-out."""

    def unsubscribe(self) -> None:
        """Listen no more."""
        self.commands.close()

    def teardown(self) -> None:
        """Leave Redis' lists of workers, unless Redis is away."""
        if self.outage:
            return
        try:
            super().teardown()  # type: ignore[no-untyped-call]
        except RedisError as error:
            log.warning("this worker could not sign off, its registration expires by itself: %s", error)


def own_client(connection: Redis) -> Redis:
    """A client that rides out a restart of Redis: about 5 s of new attempts, but none after a time-out."""
    client, connection_class, options = parse_connection(connection)
    backoff = ExponentialBackoff(cap=1, base=0.1)
    options["retry"] = Retry(backoff, 6, supported_errors=(RedisConnectionError,))
    return client(connection_pool=ConnectionPool(connection_class=connection_class, **options))
