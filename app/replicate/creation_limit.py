"""How many predictions all our processes create: Replicate takes 600 a minute of an account.

The key holds when the next creation would be due if they came evenly (Redis' own clock, in seconds); a few
may come at once.
"""

from redis import Redis

from app.core.names import CREATIONS

EVERY = 60 / 540
"""Seconds between creations when they come without a break."""

AT_ONCE = 30
"""How many may come together; with those no minute has more than 570."""

_TAKE = """
-- KEYS: 1 the limit
-- ARGV: 1 seconds between creations, 2 how many may come at once
-- Returns how many milliseconds too early this one is; 0 when it may be made now, which is then noted.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local early = due - now - ARGV[1] * (ARGV[2] - 1)
if early > 0 then return math.ceil(early * 1000) end
redis.call('SET', KEYS[1], string.format('%.6f', due + ARGV[1]), 'EX', 120)
return 0
"""


class CreationLimit:
    """The limit that all processes on one Redis share. Errors are redis-py's."""

    def __init__(self, redis: Redis, *, every: float = EVERY, at_once: int = AT_ONCE) -> None:
        self._script = redis.register_script(_TAKE)
        self._arguments = (every, at_once)

    def take(self) -> float:
        """0: a prediction may be created now, and counts; else the seconds until that makes sense."""
        return int(self._script(keys=[CREATIONS], args=self._arguments)) / 1000
