"""Tell one handler about one prediction: when an attempt is made, the signed POST, what follows from it."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from redis import Redis
from redis.exceptions import RedisError

from app.accept import queues
from app.accept.changes import Notified, note_attempt
from app.accept.group_commit import GroupCommit
from app.accept.records import LARGE
from app.core import event as events
from app.core.answers import retry_after
from app.core.errors import Crowded, OutkeepError, Permanent, StorageFailure, Transient
from app.core.handlers import Call, Handler, Webhook
from app.core.heads import ODD
from app.core.manifest import Manifest, format_time
from app.core.names import Kind, manifest_name, notification_id, notify_job_id
from app.core.outcomes import Told
from app.core.policy import UNCOUNTED, UNKNOWN_PATIENCE, UNKNOWN_WAIT, notify_delay, put_off
from app.core.shares import MOMENT, Downstream
from app.core.signature import signed_headers
from app.core.vocabulary import NOTIFIED, RETRIES, STORED_TO_NOTIFIED
from app.maintain.handler_states import HandlerStates
from app.replicate.guard import network_errors
from app.storage.errors import Large
from app.storage.store import Storage
from app.telemetry.tally import Tally
from workers.tell.follow import Follow, Links

TIMEOUT = 30.0
"""Seconds that a handler has to answer."""

MAX_ANSWER = 20_000
READING = 2.0
"""Bytes and seconds that the body of an answer gets; its status alone decides."""

LARGE_AT_ONCE = 4
"""Manifests of more than `LARGE` bytes that are worked on at the same time, for events and for follow-ups
each; they may hold many megabytes."""

MAX_DETAIL = 500
"""Characters of what is said of a failure: others choose the words, and Redis keeps them."""

_FINAL = frozenset(
    {
        "handler_unknown",
        "manifest_missing",
        "input_unresolved",
        "input_too_large",
        "follow_up_too_deep",
        "context_too_large",
        "file_too_large",
        "file_missing",
        "file_lost",
        "api_rejected",
        "api_absent",
    }
)
"""What no later attempt could change."""

_OF_THE_ACCOUNT = frozenset({"api_unpaid", "api_busy"})
"""What stops every follow-up alike: said once, until one is made again."""

_GONE = 410
_TIMED_OUT = frozenset({"timeout", "stalled"})

log = logging.getLogger("outkeep.notify")

T = TypeVar("T")


@dataclass(frozen=True)
class Post:
    """What it is sent with."""

    session: aiohttp.ClientSession
    clock: Callable[[], datetime]
    timeout: float = TIMEOUT

    async def send(self, webhook: Webhook, webhook_id: str, body: bytes) -> tuple[int, float | None]:
        """The status of the answer, and how many seconds it asks us to wait. Raises `OutkeepError`."""
        now = self.clock().timestamp()
        headers = signed_headers(webhook_id, int(now), body, webhook.keys)
        headers |= {"content-type": "application/json", "user-agent": "Outkeep"}
        try:
            async with asyncio.timeout(self.timeout):
                return await self._send(webhook.url, body, headers, now)
        except TimeoutError:
            raise Transient("timeout", f"no answer within {self.timeout:.0f} s") from None

    async def _send(
        self, url: str, body: bytes, headers: dict[str, str], now: float
    ) -> tuple[int, float | None]:
        request = self.session.post(url, data=body, headers=headers, allow_redirects=False)
        with network_errors(urlsplit(url).hostname or url):
            async with request as answer:
                odd = answer.headers.get(ODD) or await _finish_reading(answer.content)
                if odd:
                    facts = {"host": urlsplit(url).hostname, "status": answer.status, "odd": odd}
                    log.warning("a handler answers oddly, and its status counts", extra=facts)
                return answer.status, retry_after(answer.headers.get("retry-after"), now=now)


async def _finish_reading(content: aiohttp.StreamReader) -> str:
    """Read a short answer to its end, so that its connection serves again; what was wrong with it.

    What it says does not count.
    """
    room = MAX_ANSWER
    try:
        async with asyncio.timeout(READING):
            while room > 0 and (block := await content.read(room)):
                room -= len(block)
    except TimeoutError:
        return f"a body that does not end within {READING:.0f} s"
    except aiohttp.ClientError as error:
        return f"a body that is not whole ({type(error).__name__})"
    return ""


@dataclass(frozen=True)
class Delivery:
    """What the handler named `handler` is told about, by the notify job with the id `job`."""

    handler: str
    kind: Kind
    id: str
    job: str

    @property
    def place(self) -> tuple[str, Kind, str]:
        """What tells it from all others."""
        return self.handler, self.kind, self.id

    @property
    def is_first(self) -> bool:
        """Whether it is no replay."""
        return self.job == notify_job_id(*self.place)

    @property
    def facts(self) -> dict[str, Any]:
        """How log lines name it."""
        return {"handler": self.handler, "kind": str(self.kind), "id": self.id}


@dataclass(frozen=True)
class Attempt:
    """How one attempt ended; kept in the job's `meta`. `error` is a code, None for success."""

    at: str
    status: int | None
    error: str | None
    detail: str
    milliseconds: int


@dataclass(frozen=True)
class Result:
    """What followed from an attempt. `asked`: how many seconds the other side asks us to wait.

    `child`: the follow-up prediction. `handed_on`: the outcome is that of the user's job. `stored_at`: since
    when there was something to tell.
    """

    status: int | None = None
    asked: float | None = None
    child: str | None = None
    handed_on: bool = False
    stored_at: datetime | None = None


@dataclass(frozen=True)
class Notify:
    """What the job works with. `follow` is None where no handler makes follow-ups.

    `downstreams` has one entry for each handler of the file. `redis` is for what RQ does itself.
    """

    redis: Redis
    commit: GroupCommit
    storage: Storage
    handlers: Mapping[str, Handler]
    links: Links
    post: Post
    follow: Follow | None
    downstreams: Mapping[str, Downstream]
    clock: Callable[[], datetime]
    jitter: Callable[[], float]
    tally: Tally = field(default_factory=Tally)
    _said: set[str] = field(init=False, repr=False, default_factory=set)
    _waiting: Mapping[str, "list[asyncio.Future[None]]"] = field(
        init=False, repr=False, default_factory=partial(defaultdict, list)
    )
    """For each handler: the jobs that wait in their slots for one of its places."""
    _telling: asyncio.Semaphore = field(
        init=False, repr=False, default_factory=partial(asyncio.Semaphore, LARGE_AT_ONCE)
    )
    # Of their own: a follow-up may upload for minutes, which a webhook cannot wait for.
    _following: asyncio.Semaphore = field(
        init=False, repr=False, default_factory=partial(asyncio.Semaphore, LARGE_AT_ONCE)
    )

    async def run(self, delivery: Delivery, memory: dict[str, Any]) -> float | None:
        """Make one attempt; seconds to wait before the next run, or None when the handler was told.

        `memory` is kept between runs and changed in place: `attempts` lists all of them, `owed` is an outcome
        that storage did not take yet and `told` what it took, `child` the follow-up that was made, `faults`
        counts the runs that were no attempt. Raises `Permanent` when the delivery is a dead letter:
        `dead_letter` after its last
        attempt, `handler_off`.
        """
        attempts: list[dict[str, Any]] = memory.setdefault("attempts", [])
        try:
            if "owed" not in memory:
                wait, outcome = await self._try(delivery, attempts, memory)
                if outcome is None:
                    return wait
                memory["owed"] = outcome
            memory["told"] = await self._settle(delivery, memory, attempts)
        except (Transient, RedisError) as error:
            return self._put_off(delivery, error, memory)
        outcome = memory.pop("owed")
        if outcome == "off":
            cure = f"`outkeep handlers enable {delivery.handler}`"
            raise Permanent("handler_off", f"{delivery.handler} is switched off; {cure}")
        if outcome == "dead":
            raise Permanent("dead_letter", attempts[-1]["detail"])
        return None

    async def _try(
        self, delivery: Delivery, attempts: list[dict[str, Any]], memory: dict[str, Any]
    ) -> tuple[float | None, str | None]:
        """Make an attempt if one may be made now: seconds until the next run, or the outcome.

        Both are None when somebody else has told the handler since our last attempt, or will: the user's job.
        Raises `Transient` and redis-py's errors when there was no attempt.
        """
        if attempts:
            # By a replay, or by a run that overlapped?
            told = await self.storage.run(partial(self.storage.outcome, *delivery.place), about=delivery.job)
            last = datetime.fromisoformat(attempts[-1]["at"])
            if told is not None and told.outcome == "delivered" and told.at > last:
                log.info("handler told meanwhile", extra=delivery.facts)
                return None, None
        [is_off] = await self.commit.pipeline(lambda pipe: HandlerStates(pipe).is_off(delivery.handler))
        if is_off:
            return None, "off"
        if (wait := self._wait_until_known(delivery, memory)) is not None:
            return wait, None
        downstream = self.downstreams.get(delivery.handler) or Downstream(1)
        turn = await self._in_turn(delivery, downstream)
        if isinstance(turn, float):
            return turn, None
        attempt, result = turn
        attempts.append(asdict(attempt))
        memory["child"] = result.child
        wait, outcome = self._decide(delivery, attempt, result, number=len(attempts))
        notified = Notified(delivery.handler, outcome, len(attempts), attempt.at, attempt.error, result.child)
        await self._report(delivery, attempt, downstream.timeouts, notified)
        self.tally.add(NOTIFIED, delivery.handler, outcome or ("retried" if attempt.error else "handed_on"))
        if attempt.error is None and result.stored_at is not None and delivery.is_first:
            waited = self.clock() - result.stored_at
            self.tally.observe(STORED_TO_NOTIFIED, max(0.0, waited.total_seconds()))
        if attempt.error is not None and outcome is None:
            self.tally.add(RETRIES, "notify", attempt.error)
        return wait, outcome

    async def _in_turn(self, delivery: Delivery, downstream: Downstream) -> tuple[Attempt, Result] | float:
        """Make the attempt in one of the handler's places; seconds to wait when it may not be made now."""
        waiting = self._waiting[delivery.handler]
        await _wait_a_moment(downstream, waiting)
        began = time.monotonic()
        wait = downstream.ask(began)
        if wait is not None:
            return wait
        answered = timed_out = False
        try:
            attempt, result = await self.attempt(delivery)
            answered, timed_out = attempt.status is not None, attempt.error in _TIMED_OUT
        finally:
            downstream.ended(began, time.monotonic(), answered=answered, timed_out=timed_out)
            if first := next((one for one in waiting if not one.done()), None):
                first.set_result(None)
        return attempt, result

    async def _report(self, delivery: Delivery, attempt: Attempt, timeouts: int, notified: Notified) -> None:
        """Show how the handler fares; that alone must not fail a delivery."""
        if delivery.handler in self.downstreams:
            about = (delivery.kind, delivery.id, notified)
            report = (delivery.handler, asdict(attempt), timeouts)
            with suppress(RedisError):
                await self.commit.pipeline(lambda pipe: HandlerStates(pipe).report(*report, about=about))

    def _wait_until_known(self, delivery: Delivery, memory: dict[str, Any]) -> float | None:
        """Seconds to wait for a process whose handlers file has the handler, as during a rolling restart."""
        if delivery.handler in self.handlers:
            memory.pop("unknown_since", None)
            return None
        now = self.clock()
        if "unknown_since" not in memory:
            memory["unknown_since"] = format_time(now)
            log.warning(
                "the handlers file of this process has no such handler; another one may, for %.0f min",
                UNKNOWN_PATIENCE.total_seconds() / 60,
                extra=delivery.facts,
            )
        if now - datetime.fromisoformat(memory["unknown_since"]) >= UNKNOWN_PATIENCE:
            return None
        self.tally.add(RETRIES, "notify", "handler_unknown")
        return UNKNOWN_WAIT * (0.5 + self.jitter())

    async def attempt(self, delivery: Delivery) -> tuple[Attempt, Result]:
        """Do what the handler wants.

        Raises `StorageFailure`, `Transient` when the attempt must not count, and redis-py's errors.
        Then nothing was done, or what was done is found again.
        """
        at, began = self.clock(), time.monotonic()
        result = Result()
        failure: OutkeepError | None = None
        try:
            result = await self._act(delivery)
            if result.status is not None and not 200 <= result.status < 300:  # noqa: PLR2004
                failure = Permanent(f"status_{result.status}", f"the handler answered {result.status}")
        except OutkeepError as error:
            if isinstance(error, StorageFailure | Crowded) or error.code in UNCOUNTED:
                raise
            failure = error
        spent = round((time.monotonic() - began) * 1000)
        code, detail = (failure.code, failure.message[:MAX_DETAIL]) if failure else (None, "")
        return Attempt(format_time(at), result.status, code, detail, spent), result

    async def _act(self, delivery: Delivery) -> Result:
        handler = self.handlers.get(delivery.handler)
        if handler is None:
            raise Permanent(
                "handler_unknown", f"the handlers file has no handler {delivery.handler!r} any more"
            )
        match handler.target:
            case Webhook() as webhook:
                webhook_id = notification_id(*delivery.place)
                if webhook.format == "replicate":
                    # It may be as large as what Replicate sent: few of those are in memory at a time.
                    async with self._made(delivery, self._as_replicate_sends_it, self._telling) as made:
                        return Result(*await self.post.send(webhook, webhook_id, made[0]), stored_at=made[1])
                async with self._made(delivery, self._encoded, self._telling) as made:
                    pass  # of a large manifest no more than that stays in memory
                return Result(*await self.post.send(webhook, webhook_id, made[0]), stored_at=made[1])
            case Call() as call:
                async with self._made(delivery, self._event, self._telling) as (event, stored_at):
                    pass
                names = {"handler": handler.name, "notify_id": delivery.job}
                job = queues.handle_job(self.redis, call, event, **names)
                # Known already: an earlier run of this job was killed after it had handed the event on.
                await asyncio.to_thread(queues.enqueue, self.redis, job)
                return Result(handed_on=True, stored_at=stored_at)
            case _:
                if self.follow is None:
                    raise Permanent("api_refused", "REPLICATE_API_TOKEN is not set")
                async with self._made(delivery, lambda one: one, self._following) as (manifest, stored_at):
                    return Result(child=await self.follow.make(handler, manifest), stored_at=stored_at)

    def _event(self, manifest: Manifest) -> dict[str, Any]:
        return events.build(manifest, self.links(manifest))

    def _encoded(self, manifest: Manifest) -> bytes:
        return events.encode(self._event(manifest))

    def _as_replicate_sends_it(self, manifest: Manifest) -> bytes:
        return events.encode(events.as_replicate_sends_it(manifest, self.links(manifest)))

    @asynccontextmanager
    async def _made(
        self, delivery: Delivery, make: Callable[[Manifest], T], places: asyncio.Semaphore
    ) -> AsyncIterator[tuple[T, datetime]]:
        """What is made of the manifest, and since when that is stored.

        Of a large one it takes one of the `places` during this block.
        """
        place = (delivery.kind, delivery.id)

        def read_and_make(most: int | None) -> tuple[T, datetime]:
            manifest = self.storage.read_manifest(*place, most=most)
            if manifest is None:
                raise Permanent("manifest_missing", f"nothing is stored of {delivery.kind} {delivery.id}")
            return make(manifest), manifest.stored_at

        about = manifest_name(*place)
        async with AsyncExitStack() as stack:
            try:
                made = await self.storage.run(partial(read_and_make, LARGE), about=about)
            except Large:
                await stack.enter_async_context(places)
                made = await self.storage.run(partial(read_and_make, None), about=about)
            yield made

    def _decide(
        self, delivery: Delivery, attempt: Attempt, result: Result, *, number: int
    ) -> tuple[float | None, str | None]:
        """Seconds until the attempt after attempt `number`, or the outcome; neither: another job tells."""
        facts = delivery.facts | {"attempt": number}
        facts |= {"status": attempt.status, "milliseconds": attempt.milliseconds}
        if result.handed_on:
            log.info("event handed on to a job", extra=facts)
            return None, None
        if attempt.error is None:
            if result.child is not None:
                self._said.clear()
            log.info("handler told", extra=facts)
            return None, "delivered"
        facts |= {"code": attempt.error}
        if attempt.status == _GONE:
            return None, "off"
        wait = None
        if attempt.error not in _FINAL:
            wait = notify_delay(attempt=number, retry_after=result.asked, jitter=self.jitter())
        if wait is None:
            log.error("handler not told; the delivery is a dead letter: %s", attempt.detail, extra=facts)
            return None, "dead"
        level = self._level(attempt.error)
        log.log(level, "handler not told, again in %.0f s: %s", wait, attempt.detail, extra=facts)
        return wait, None

    def _level(self, code: str) -> int:
        """How loud to say why something is tried again."""
        if code in self._said:
            return logging.DEBUG
        if code in _OF_THE_ACCOUNT:
            self._said.add(code)
        return logging.WARNING

    async def _settle(
        self, delivery: Delivery, memory: dict[str, Any], attempts: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Note beside the manifest how it ended; what was noted."""
        outcome, last = memory["owed"], attempts[-1] if attempts else None
        if outcome == "off" and last and last["status"] == _GONE:
            switch_off = partial(HandlerStates.switch_off, handler=delivery.handler, now=self.clock())
            [was_on] = await self.commit.pipeline(lambda pipe: switch_off(HandlerStates(pipe)))
            if was_on:
                log.error(
                    "the handler answered 410 and is switched off until `outkeep handlers enable %s`",
                    delivery.handler,
                    extra=delivery.facts,
                )
        why = None  # what stood in the way at last
        if outcome != "delivered":
            why = last["error"] if last else "handler_off"
        told = Told(outcome, len(attempts), self.clock(), why, child=memory.get("child"))
        if not attempts:
            untried = Notified(delivery.handler, outcome, 0, format_time(told.at), told.error)
            with suppress(RedisError):
                await self.commit.pipeline(
                    lambda pipe: note_attempt(pipe, delivery.kind, delivery.id, untried)
                )
        note = partial(self.storage.note_outcome, *delivery.place, told)
        return await self.storage.run(note, about=delivery.job)

    def _put_off(self, delivery: Delivery, error: Transient | RedisError, memory: dict[str, Any]) -> float:
        """Seconds to wait for our own storage or Redis, or for what the API allows."""
        memory["faults"] = memory.get("faults", 0) + 1
        if isinstance(error, RedisError):
            error = Transient("redis_unavailable", f"Redis failed: {type(error).__name__}")
        delay = put_off(error, faults=memory["faults"], jitter=self.jitter())
        facts = delivery.facts | {"code": error.code}
        log.log(self._level(error.code), "trying again in %.0f s: %s", delay, error.message, extra=facts)
        self.tally.add(RETRIES, "notify", error.code)
        return delay


async def _wait_a_moment(downstream: Downstream, waiting: "list[asyncio.Future[None]]") -> None:
    """Wait until a place of a handler is free, if that is likely to be soon."""
    until = time.monotonic() + MOMENT
    while (now := time.monotonic()) < until and downstream.is_worth_waiting_for(now, len(waiting)):
        freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(freed)
        try:
            async with asyncio.timeout(until - now):
                await freed
        except TimeoutError:
            return
        finally:
            waiting.remove(freed)
