"""Group commit against a real Valkey: what goes together, what fails alone, and what is never sent twice."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.accept.group_commit import GroupCommit
from tests.own_valkey import OwnValkey

COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


@asynccontextmanager
async def opened(url: str, *, answers: float = 5, patience: float = 0.5) -> AsyncIterator[GroupCommit]:
    commit = GroupCommit(Redis.from_url(url), timeout=answers, patience=patience)
    yield commit
    await commit.close()


def _counted(pipe: Pipeline) -> None:
    pipe.incr("x")
    pipe.zadd("z", {"m": 1})
    pipe.zscore("z", "m")


def reads(redis: Redis) -> int:
    return int(redis.info("stats")["total_reads_processed"])


def test_what_is_handed_in_meanwhile_goes_in_one_packet_and_each_gets_its_own_answer(
    redis: Redis, valkey_url: str
) -> None:
    async def work() -> None:
        async with opened(valkey_url) as commit:
            assert await commit.commands(("PING",)) == [b"PONG"]
            before = reads(redis)
            answers = await asyncio.gather(
                *(commit.commands(("INCR", f"n{i}"), ("SET", f"k{i}", b"\x00\xff")) for i in range(100)),
                commit.pipeline(
                    lambda pipe: [pipe.hset("h", "a", "1"), pipe.hexists("h", "a"), pipe.hgetall("h")]
                ),
                commit.pipeline(_counted, atomic=True),
                commit.script(COUNT, ["s"], [3]),
                commit.script(COUNT, ["s"], [4]),
                return_exceptions=True,
            )
            assert reads(redis) - before <= 10  # where each alone would take one
            assert answers == [*[[1, b"OK"]] * 100, [1, True, {b"a": b"1"}], [1, 1, 1.0], 3, 7]
            redis.script_flush()
            assert await commit.script(COUNT, ["s"], [1]) == 8
            assert await commit.pipeline(lambda pipe: None) == []

    asyncio.run(work())


def test_an_error_reaches_its_caller_and_nobody_else(redis: Redis, valkey_url: str) -> None:
    async def work() -> tuple[object, ...]:
        async with opened(valkey_url) as commit:
            return await asyncio.gather(
                commit.commands(("SET", "k", "v")),
                commit.commands(("SET", "good", "1"), ("INCR", "k"), ("SET", "too", "1")),
                commit.pipeline(lambda pipe: [pipe.incr("k"), pipe.set("both", "1")], atomic=True),
                commit.script("return redis.call('INCR', 'k')", [], []),
                commit.commands(("SET", "k", None)),  # type: ignore[arg-type]
                commit.commands(("GET", "k")),
                return_exceptions=True,
            )

    first, wrong, atomic, script, bad, last = asyncio.run(work())
    assert (first, last) == ([b"OK"], [b"v"])
    assert all(isinstance(error, ResponseError) for error in (wrong, atomic, script))
    assert isinstance(bad, DataError)
    assert redis.mget("good", "too", "both") == [b"1", b"1", b"1"]


def test_calls_wait_for_a_redis_that_starts_and_none_is_sent_twice(valkey: OwnValkey) -> None:
    async def work() -> None:
        async with opened(valkey.url, patience=30) as commit:
            assert await commit.commands(("INCR", "n")) == [1]
            await asyncio.to_thread(valkey.kill)
            await asyncio.sleep(0.05)  # the loop hears that the connection is closed
            waiting = [asyncio.create_task(commit.commands(("INCR", "n"))) for _ in range(3)]
            await asyncio.sleep(0)
            await asyncio.to_thread(valkey.start)
            assert await asyncio.gather(*waiting) == [[2], [3], [4]]
        async with opened(valkey.url, answers=0.5) as commit:
            await commit.commands(("PING",))
            valkey.signal(signal.SIGSTOP)
            for error in (RedisTimeoutError, RedisError):  # sent, and not sent
                with pytest.raises(error):
                    await commit.commands(("INCR", "n"))
            valkey.signal(signal.SIGCONT)
            [n] = await commit.commands(("GET", "n"))
            assert n in {b"4", b"5"}  # it may have come through

    asyncio.run(work())


def test_calls_fail_when_redis_stays_away(valkey: OwnValkey) -> None:
    async def work() -> None:
        async with opened(valkey.url) as commit:
            assert await commit.commands(("INCR", "n")) == [1]
            valkey.kill()
            answers = await asyncio.gather(
                *(commit.commands(("INCR", "n")) for _ in range(3)), return_exceptions=True
            )
            assert [type(error) for error in answers] == [RedisConnectionError] * 3
            with pytest.raises(RedisConnectionError):
                await commit.commands(("INCR", "n"))

    asyncio.run(work())


def test_a_password_and_a_database_are_those_of_the_url(valkey: OwnValkey) -> None:
    path = valkey.url.removeprefix("unix://")
    valkey.redis.config_set("requirepass", "secret")

    async def number(url: str) -> object:
        async with opened(url) as commit:
            return (await commit.commands(("CLIENT", "INFO")))[0]

    assert b" db=3 " in asyncio.run(number(f"unix://:secret@{path}?db=3"))  # type: ignore[operator]
    with pytest.raises(RedisError):
        asyncio.run(number(f"unix://:wrong@{path}"))
