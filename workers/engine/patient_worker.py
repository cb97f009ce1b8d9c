"""Listens to what RQ's functions tell a worker: to stop a job, or to shut down.

RQ's loop ends at nearly any error of Redis: out of memory, read-only, loading, a time-out. Here nothing that
is only said to Redis ends a worker, and jobs are taken again as soon as Redis serves.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import ExponentialBackoff
from redis.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry
from rq.connections import parse_connection
from rq.exceptions import StopRequested
from rq.job import Job
from rq.worker.base import BaseWorker

from app.clock import EVERY, Clock

QUIET = 5.0
"""Seconds of silence after which the server is asked whether it is still there."""

SILENCE = 3 * QUIET
"""Seconds of silence after which a connection is taken for dead: a partition may end without a word."""

AGAIN = 1.0
"""Seconds until it is tried again when Redis does not serve."""

log = logging.getLogger("outkeep.worker")


@dataclass(frozen=True)
class Pace:
    """How often a worker says that it lives, and when others believe that it died. All in seconds.

    beat: between heartbeats of executions. silence: after which an execution is given up.
    maintenance: between RQ's clean-ups. stuck: after which a taken job that was never begun comes back.
    worker_ttl: after which the registration of a silent worker goes.
    """

    beat: int = 5
    silence: int = 15
    maintenance: int = 10
    stuck: float = 10
    worker_ttl: int = 30


class Commands:
    """Calls `handle` with each message on `channel`, whatever becomes of Redis.

    RQ's own thread ends at a time-out, and at a message that it cannot read. This starts none.
    """

    def __init__(self, connection: Redis, channel: str, handle: Callable[[dict[str, Any]], None]) -> None:
        self._connection = connection
        self._channel = channel
        self._handle = handle
        self._subscription: PubSub | None = None
        self._heard = self._asked = 0.0
        self._again_at = 0.0

    def obey(self, timeout: float = 0) -> None:
        """Carry out what has come, and wait up to `timeout` seconds for it; subscribe first where needed.

        Raises nothing but what comes out of a signal handler of RQ's.
        """
        try:
            while self._has_obeyed(timeout):
                timeout = 0
        except (RedisError, OSError):  # the worker itself says that Redis is away
            self.close()
            self._again_at = time.monotonic() + AGAIN
        except StopRequested:
            raise
        except Exception:  # whoever can write to Redis can write anything
            log.exception("a command to this worker cannot be carried out")

    def close(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            with suppress(RedisError, OSError):
                self._subscription.close()
            self._subscription = None

    def _has_obeyed(self, timeout: float) -> bool:
        now = time.monotonic()
        if self._subscription is not None and now - self._heard > SILENCE:
            self.close()
        if self._subscription is None:
            if now < self._again_at:
                time.sleep(min(timeout, self._again_at - now))
                return False
            self._subscription = self._connection.pubsub()  # type: ignore[no-untyped-call]
            self._subscription.subscribe(self._channel)
            self._heard = self._asked = now
        elif now - max(self._heard, self._asked) > QUIET:
            self._asked = now
            self._subscription.ping()
        message = self._subscription.get_message(timeout=timeout)
        if message is None:
            return False
        self._heard = time.monotonic()
        if message["type"] == "message":
            self._handle(message)
        return True


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
