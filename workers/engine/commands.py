"""Listens to what RQ's functions tell a worker: to stop a job, or to shut down."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError
from rq.exceptions import StopRequested

QUIET = 5.0
"""Seconds of silence after which the server is asked whether it is still there."""

SILENCE = 3 * QUIET
"""Seconds of silence after which a connection is taken for dead: a partition may end without a word."""

AGAIN = 1.0
"""Seconds until it is tried again when Redis does not serve."""

log = logging.getLogger("outkeep.worker")


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
