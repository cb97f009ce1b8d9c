"""Takes jobs from a queue of RQ, many at a time: off the queue and registered as running in one step.

RQ moves a job to an intermediate list, reads it and registers its execution, in three steps; a worker killed
in between leaves it on the list. Here one script does all of it, and nothing falls between.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.queue import Queue
from rq.utils import utcformat
from rq.worker.base import BaseWorker

from app.accept.group_commit import TIMEOUT, Wire, call, pack

TAKE = """
-- KEYS: 1 queue, 2 its started jobs, 3 worker, 4 executions of the worker
-- ARGV: 1 how many at most, 2 after how many bytes no more, 3 how the ids of their executions begin,
--       4 name of the worker, 5 now (s), 6 now as RQ writes it, 7 when they are silent for too long (s),
--       8 ttl of an execution (s), 9 and of its indexes (s), 10 how many seconds these score later
local found, size = {}, 0
while #found < tonumber(ARGV[1]) and size < tonumber(ARGV[2]) do
  local id = redis.call('LINDEX', KEYS[1], 0)
  if not id then break end
  -- First what a Redis refuses that takes no writes: once a script has written, it must go on.
  if #found == 0 then redis.call('HSET', KEYS[3], 'state', 'busy') end
  local one, key = {id}, 'rq:job:' .. id
  local raw = redis.pcall('HGETALL', key)
  if string.match(id, '^[%w_-]+$') and not raw.err and #raw > 0 then
    local execution = ARGV[3] .. string.format('%08x', #found)
    local run, runs = 'rq:execution:' .. id .. ':' .. execution, 'rq:executions:' .. id
    redis.call('HSET', run, 'id', execution, 'job_id', id, 'created_at', ARGV[5], 'last_heartbeat', ARGV[5],
      'worker_name', ARGV[4])
    redis.call('EXPIRE', run, ARGV[8])
    redis.call('ZADD', runs, ARGV[7] + ARGV[10], execution)
    redis.call('EXPIRE', runs, ARGV[9])
    redis.call('SADD', KEYS[4], id .. ':' .. execution)
    redis.call('EXPIRE', KEYS[4], ARGV[9])
    redis.call('HSET', key, 'last_heartbeat', ARGV[6], 'status', 'started', 'started_at', ARGV[6],
      'worker_name', ARGV[4])
    redis.call('PERSIST', key)
    redis.call('ZADD', KEYS[2], ARGV[7], id .. ':' .. execution)
    one = {id, execution, raw}
    for _, value in ipairs(raw) do size = size + #value end
  elseif raw.err then
    one = {id, '', raw.err}
  end
  redis.call('LPOP', KEYS[1])
  found[#found + 1] = one
end
return found
"""

MAX_BYTES = 8 << 20
"""Size of the jobs of one step, without the last one."""

BELL = 5
"""Seconds after which it is asked again whether the queue is empty: a connection may be dead."""


SILENT = RedisTimeoutError("Redis did not answer in time")


@dataclass(frozen=True)
class Taken:
    """A job that is off the queue; `fields` are its hash as it was before, `execution` the id of this run.

    What is no job has no execution: `problem` says why, or is None where the job has vanished.
    """

    id: bytes
    execution: str
    fields: dict[bytes, bytes]
    problem: str | None = None


class Intake:
    """One queue, as one worker takes jobs from it; `on_news` is called when it is worth to `take`.

    A second connection waits at the queue, without taking anything: it moves the first job from the head of
    the queue to the head of the queue, as soon as there is one. That and the next step share one packet.
    """

    def __init__(
        self,
        worker: BaseWorker,
        queue: Queue,
        connection: Redis,
        *,
        silence: int,
        on_news: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._connection = connection
        self._on_news = on_news
        self._silence = silence
        self._keys = (queue.key, queue.started_job_registry.key, worker.key, worker.executions_key)
        self._waiting = pack([("BLMOVE", queue.key, queue.key, "LEFT", "LEFT", BELL)])
        self._wire: Wire | None = None
        self.is_empty = False
        """Whether the queue was empty a moment ago, and will be told when it no longer is."""

    async def take(self, count: int, now: datetime, *, then_wait: bool = True) -> list[Taken]:
        """Up to `count` jobs, if there are any, registered as running since `now`; raises redis' errors.

        Not to be called while `is_empty`, which `then_wait` sets until there is something.

        It must not be cancelled: what it took would be started again only once it is silent for too long.
        """
        wire = self._wire
        if wire is None or wire.lost:
            wire = self._wire = await Wire.connect(self._connection)
        scored = int(now.timestamp()) + self._silence
        arguments = (count, MAX_BYTES, uuid4().hex[:24], self._worker.name, now.timestamp(), utcformat(now),
                     scored, self._silence, self._silence + 60, 60)  # fmt: skip
        loading = wire.load(TAKE)
        packet = loading + call(TAKE, self._keys, arguments)
        counts = [1 + bool(loading)]
        if then_wait:
            packet, counts, self.is_empty = packet + self._waiting, [*counts, 1], True
        took, *rang = wire.send(packet, *counts)
        for bell in rang:
            self._ring_with(bell, wire)
        timer = asyncio.get_running_loop().call_later(TIMEOUT, wire.close, SILENT)
        try:
            found = (await took)[-1]
        finally:
            timer.cancel()
        if isinstance(found, RedisError):
            wire.close(found)
            raise found
        return [self._taken(one) for one in found]

    def _ring_with(self, bell: "asyncio.Future[list[object]]", wire: Wire) -> None:
        timer = asyncio.get_running_loop().call_later(BELL + TIMEOUT, wire.close, SILENT)

        def ring(_: object) -> None:
            timer.cancel()
            bell.exception()  # whoever takes next finds out
            self.is_empty = False
            self._on_news()

        bell.add_done_callback(ring)

    @staticmethod
    def _taken(one: list[object]) -> Taken:
        job_id, execution, said = [*one, b"", None][:3]
        assert isinstance(job_id, bytes)
        if isinstance(said, list):
            assert isinstance(execution, bytes)
            return Taken(job_id, execution.decode(), dict(zip(said[::2], said[1::2], strict=True)))
        return Taken(job_id, "", {}, said.decode() if isinstance(said, bytes) else None)

    def close(self) -> None:
        """Take no more."""
        if self._wire:
            self._wire.close(RedisError("closed"))
