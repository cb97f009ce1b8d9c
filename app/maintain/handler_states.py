"""How each handler fares: whether it was switched off, and its latest attempt.

The hash `HANDLERS_OFF` holds the name of each handler that is switched off, with the time (RFC 3339). Each
handler has a hash of its own, all text: `last` (the latest attempt as JSON), and `timeouts` (attempts in a
row without an answer, as the process saw it that made the latest one).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from redis import Redis

from app.accept.changes import Notified, note_attempt
from app.core.manifest import format_time
from app.core.names import HANDLERS_OFF, Kind, handler_key
from app.core.shares import TIMEOUTS


@dataclass(frozen=True)
class HandlerState:
    """How one handler fares. `last` has the keys `at`, `status`, `error`, `detail` and `milliseconds`."""

    off_since: str | None
    last: Mapping[str, Any] | None
    timeouts: int

    @property
    def word(self) -> str:
        """`off`, `slow` while it is only probed, else `on`."""
        if self.off_since is not None:
            return "off"
        return "slow" if self.timeouts >= TIMEOUTS else "on"


class HandlerStates:
    """States over one Redis connection. Methods block; errors are redis-py's.

    Over a pipeline they put their commands on it: so jobs use `is_off`, `report` and `switch_off`.
    """

    def __init__(self, connection: Redis) -> None:
        self._redis = connection

    def get(self, handler: str) -> HandlerState:
        """How a handler fares; one that was never told is on."""
        raw = cast(Mapping[bytes, bytes], self._redis.hgetall(handler_key(handler)))
        texts = {name.decode(): value.decode() for name, value in raw.items()}
        last = json.loads(texts["last"]) if "last" in texts else None
        return HandlerState(self.switched_off().get(handler), last, int(texts.get("timeouts", 0)))

    def switched_off(self) -> Mapping[str, str]:
        """The handlers that are told nothing, each with the time since when."""
        raw = cast(Mapping[bytes, bytes], self._redis.hgetall(HANDLERS_OFF))
        return {name.decode(): since.decode() for name, since in raw.items()}

    def is_off(self, handler: str) -> bool:
        """Whether a handler is switched off."""
        return bool(self._redis.hexists(HANDLERS_OFF, handler))

    def report(
        self,
        handler: str,
        attempt: Mapping[str, Any],
        timeouts: int,
        *,
        about: tuple[Kind, str, Notified] | None = None,
    ) -> None:
        """Keep the latest attempt, and append what it was `about` to the stream of changes."""
        items = ["last", json.dumps(dict(attempt)), "timeouts", str(timeouts)]
        self._redis.hset(handler_key(handler), items=items)
        if about is not None:
            note_attempt(self._redis, *about)

    def switch_off(self, handler: str, now: datetime) -> bool:
        """Tell a handler nothing any more until `switch_on`; whether it was on."""
        return bool(self._redis.hsetnx(HANDLERS_OFF, handler, format_time(now)))

    def switch_on(self, handler: str) -> bool:
        """Tell a handler again; whether it was off."""
        return bool(self._redis.hdel(HANDLERS_OFF, handler))
