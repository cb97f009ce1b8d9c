"""`GET /metrics`: what all processes have counted in Redis, and what stands where at this moment."""

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, product
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response

from app.accept.spool import Spool
from app.clock import clocks_off
from app.core import fleet
from app.core import vocabulary as words
from app.core.names import COUNTERS, HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE, RECORDS
from app.core.vocabulary import Counter, Gauge, Histogram
from app.health.checks import Recent
from app.health.presence import Presence, others
from app.telemetry.tally import Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OURS = (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE)

_SERIES = re.compile(r"([a-z_]+)(?:\{([^{}]*)\})?", re.ASCII)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"', re.ASCII)
_STATES: Final = {"running": "rq:wip", "scheduled": "rq:scheduled", "failed": "rq:failed"}
"""Where the jobs of a queue stand beside waiting, with RQ's sorted set."""

Samples = Mapping[Gauge, Mapping[tuple[str, ...], float]]
Counted = Sequence[tuple[str, Mapping[str, str], int]]
"""Name, labels and number of each series."""


@dataclass
class Metrics:
    """What the endpoint works with."""

    redis: Redis
    tally: Tally
    clock: Callable[[], datetime]
    spool: Spool
    here: Presence
    users: Sequence[str] = ()
    """Queues beside ours that hold jobs of the user's."""
    _seen: dict[str, int] = field(default_factory=dict)
    """The counts when Redis last answered."""
    _recent: Recent[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Nobody is told what is old, but many who ask while Redis hangs are told the same.
        self._recent = Recent(self.render, kept=0.0)

    async def serve(self, _: Request) -> Response:
        """Answer one request, also while Redis is away: then with the counts that this process knows."""
        text = await self._recent.get()
        return Response(text, media_type=None, headers={"content-type": CONTENT_TYPE})

    def render(self) -> bytes:
        """The text; blocks for a round trip or two."""
        self.tally.flush(self.redis)
        try:
            self._seen, gauges = _ask(self.redis, self.clock(), list(dict.fromkeys([*_OURS, *self.users])))
            own = self.here.process
            found = fleet.differing(own, others(self.redis, own))
            gauges[words.DIFFERING] = {(what,): len(found.get(what, ())) for what in fleet.COMPARED}
            counts = self._seen
        except RedisError:
            gauges = {words.REDIS_UP: {(): 0}}
            waiting = self.tally.waiting()
            counts = {
                name: self._seen.get(name, 0) + waiting.get(name, 0) for name in {*self._seen, *waiting}
            }
        registry = CollectorRegistry()
        known = {words.NOTIFIED: tuple(product(self.here.process.handlers, words.ATTEMPTED))}
        build: Samples = {words.BUILD: {(self.here.process.version, platform.python_version()): 1.0}}
        registry.register(_Families(counts, {**build, **gauges, **self._spooled()}, known))
        return generate_latest(registry)

    def _spooled(self) -> dict[Gauge, Mapping[tuple[str, ...], float]]:
        try:
            waiting = self.spool.waiting()
        except OSError:
            return {}  # unknown is not zero; readiness says why
        oldest = (self.clock() - waiting[0].received_at).total_seconds() if waiting else 0.0
        return {words.SPOOLED: {(): len(waiting)}, words.SPOOL_OLDEST: {(): max(0.0, oldest)}}


@dataclass(frozen=True, eq=False)
class _Families(Collector):
    """What prometheus-client asks for the families of metrics."""

    counts: Mapping[str, int]
    gauges: Samples
    known: Mapping[Counter, Sequence[tuple[str, ...]]]
    """Values of labels that are told from the start beside those that a counter knows itself."""

    def collect(self) -> Iterator[Metric]:
        """One family for each metric of the manifest that can be told now."""
        counted = list(_read(self.counts))
        for counter in words.COUNTERS:
            yield _counter(counter, counted, self.known.get(counter, counter.known))
        for histogram in words.HISTOGRAMS:
            yield _histogram(histogram, counted)
        for gauge, samples in self.gauges.items():
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
            for labels, value in samples.items():
                family.add_metric(labels, value)
            yield family


def _counter(counter: Counter, counted: Counted, known: Sequence[tuple[str, ...]]) -> Metric:
    family = CounterMetricFamily(counter.name, counter.help, labels=counter.labels)
    numbers = dict.fromkeys(known if counter.labels else ((),), 0)
    for name, labels, number in counted:
        if name == counter.name and tuple(labels) == counter.labels:
            numbers[tuple(labels.values())] = number
    for values, number in numbers.items():
        family.add_metric(list(values), number)
    return family


def _histogram(histogram: Histogram, counted: Counted) -> Metric:
    inside = {
        labels.get("le"): number for name, labels, number in counted if name == f"{histogram.name}_bucket"
    }
    bounds = [*map(str, histogram.buckets), "+Inf"]
    total = sum(number for name, _, number in counted if name == f"{histogram.name}_sum")
    buckets = list(zip(bounds, accumulate(inside.get(bound, 0) for bound in bounds), strict=True))
    family = HistogramMetricFamily(histogram.name, histogram.help)
    family.add_metric([], buckets=buckets, sum_value=total / histogram.parts)
    return family


def _read(counts: Mapping[str, int]) -> Iterator[tuple[str, dict[str, str], int]]:
    for field_name, number in counts.items():
        match = _SERIES.fullmatch(field_name)
        if match:
            yield match[1], dict(_LABEL.findall(match[2] or "")), number


def _ask(
    redis: Redis, now: datetime, queues: Sequence[str]
) -> tuple[dict[str, int], dict[Gauge, Mapping[tuple[str, ...], float]]]:
    """Counts and gauges out of Redis, in two round trips; raises redis' errors."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(COUNTERS)
        pipeline.zcard(RECORDS)
        for queue in queues:
            pipeline.lindex(f"rq:queue:{queue}", 0)
            pipeline.scard(f"rq:workers:{queue}")
            pipeline.llen(f"rq:queue:{queue}")
            for registry in _STATES.values():
                pipeline.zcard(f"{registry}:{queue}")
        counts, records, *rest = pipeline.execute()
    size = len(rest) // len(queues)
    facts = {queue: rest[number * size : (number + 1) * size] for number, queue in enumerate(queues)}
    oldest = _ages(redis, {queue: found[0] for queue, found in facts.items()}, now)
    stands = ("waiting", *_STATES)
    gauges: dict[Gauge, Mapping[tuple[str, ...], float]] = {
        words.REDIS_UP: {(): 1},
        words.QUEUED: {
            (queue, state): number
            for queue, found in facts.items()
            for state, number in zip(stands, found[2:], strict=True)
        },
        words.OLDEST: {(queue,): age for queue, age in oldest.items()},
        words.WORKERS: {(queue,): found[1] for queue, found in facts.items()},
        words.RECORDS: {(): records},
        words.SKEW: {(host,): skew for host, skew in clocks_off(redis).items()},
    }
    return {name.decode("utf-8", "replace"): _number(text) for name, text in counts.items()}, gauges


def _ages(redis: Redis, first: Mapping[str, bytes | None], now: datetime) -> dict[str, float]:
    """How many seconds the job at the head of each queue has waited there."""
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in first.values():
            pipeline.hget(b"rq:job:" + (job_id or b""), "enqueued_at")
        times = pipeline.execute()
    ages = dict.fromkeys(first, 0.0)
    for queue, at in zip(first, times, strict=True):
        with suppress(ValueError):  # whoever can write to Redis can write anything
            ages[queue] = max(0.0, (now - datetime.fromisoformat(at.decode())).total_seconds() if at else 0.0)
    return ages


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() else 0
