"""RQ's scheduler in a thread: it moves jobs whose time has come, such as delayed retries, to their queues.

One process at a time does so for each queue, by RQ's own locks in Redis. The lock of a killed process would
stand for a minute. Names are unique, since two processes under one name would both hold the lock; instead,
a lock is released when its owner was on this host (the same clock) and has been silent for some seconds.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError
from rq.scheduler import SCHEDULER_KEY_TEMPLATE, RQScheduler
from rq.scripts import release_lock
from rq.serializers import JSONSerializer
from rq.utils import as_text, now, utcparse

log = logging.getLogger("outkeep.worker")

LOCKS_EVERY = 10.0
"""Seconds between attempts to get the locks that others hold."""

SILENT_AFTER = 10.0
"""Seconds without a heartbeat (there is one a second) after which a scheduler of this host is dead."""


class Schedule:
    """A thread that schedules for `queues` from `start` to `stop`, whenever no other process does."""

    def __init__(self, queues: Sequence[str], connection: Redis) -> None:
        self._queues = frozenset(queues)
        self._ended = threading.Event()
        self._scheduler: Any = RQScheduler(
            sorted(self._queues),
            connection=connection,
            logging_level="WARNING",
            serializer=JSONSerializer,
            name=f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}",
        )
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)
        self._locks_tried_at: float | None = None

    def start(self) -> None:
        """Begin to schedule."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and release the locks so that another process goes on at once."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def _run(self) -> None:
        failing = False
        while not self._ended.is_set():
            try:
                self._step()
                failing = False
            except Exception as error:
                if not failing:
                    expected = isinstance(error, RedisError)
                    log.warning("scheduled jobs wait, tried again: %s", error, exc_info=not expected)
                failing = True
            self._ended.wait(self._scheduler.interval)
        try:
            self._scheduler.stop()
        except RedisError as error:
            log.warning("the scheduler's locks were not released and stand for a minute: %s", error)

    def _step(self) -> None:
        scheduler = self._scheduler
        if scheduler.acquired_locks != self._queues and self._locks_due():
            self._release_locks_of_the_dead()
            scheduler.acquire_locks()
        if scheduler.acquired_locks:
            scheduler.register_birth()  # each time: a Redis that comes back empty has forgotten us
            scheduler.heartbeat()
            scheduler.enqueue_scheduled_jobs()

    def _locks_due(self) -> bool:
        due = self._locks_tried_at is None or time.monotonic() - self._locks_tried_at >= LOCKS_EVERY
        if due:
            self._locks_tried_at = time.monotonic()
        return due

    def _release_locks_of_the_dead(self) -> None:
        connection = self._scheduler.connection
        for queue in self._queues:
            lock = self._scheduler.get_locking_key(queue)
            owner = connection.get(lock)
            if owner is not None and self._is_dead(as_text(owner)):
                release_lock(connection, lock, as_text(owner))

    def _is_dead(self, name: str) -> bool:
        fields = ("hostname", "last_heartbeat")
        host, heartbeat = self._scheduler.connection.hmget(SCHEDULER_KEY_TEMPLATE % name, fields)
        if host is None or heartbeat is None or as_text(host) != self._scheduler.hostname:
            return False
        return bool((now() - utcparse(as_text(heartbeat))).total_seconds() > SILENT_AFTER)
