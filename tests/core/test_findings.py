"""Where a check turns from ok to a warning, and from a warning to a failure."""

import pytest

from app.core import findings
from app.core.findings import Level

GOOD = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
LEVELS = {"ok": Level.OK, "warn": Level.WARN, "fail": Level.FAIL}


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("appendonly", "no", Level.FAIL),
        ("appendfsync", "everysec", Level.WARN),
        ("appendfsync", "no", Level.WARN),
        ("no-appendfsync-on-rewrite", "yes", Level.WARN),
        ("maxmemory-policy", "allkeys-lru", Level.FAIL),
    ],
)
def test_each_way_to_lose_is_named(name: str, value: str, level: Level) -> None:
    [found] = findings.durability({**GOOD, name: value})
    assert found.level is level
    assert f"{name} is {value}, not {GOOD[name]}: " in found.detail


def test_a_durable_redis_is_ok() -> None:
    [found] = findings.durability(GOOD)
    assert found.level is Level.OK


@pytest.mark.parametrize(
    ("version", "bad"),
    [("6.2.14", True), ("7.0.0", False), ("7.2.4", False), ("10.1", False), ("unknown", True)],
)
def test_an_old_redis_fails(version: str, *, bad: bool) -> None:
    assert bool(findings.server({"redis_version": version})) is bad


@pytest.mark.parametrize(
    ("fact", "word"),
    [
        ({"cluster_enabled": 1}, "cluster"),
        ({"role": "slave"}, "replica"),
        ({"aof_last_write_status": "err"}, "write to disk"),
    ],
)
def test_what_info_says_against_redis_fails(fact: dict[str, object], word: str) -> None:
    [found] = findings.server({"redis_version": "8.0.0", **fact})
    assert found.level is Level.FAIL
    assert word in found.detail


@pytest.mark.parametrize(
    ("skew", "level"),
    [(0.0, "ok"), (4.9, "ok"), (-5.0, "warn"), (59.0, "warn"), (-60.0, "fail"), (1e9, "fail")],
)
def test_a_clock_may_be_a_little_off(skew: float, level: str) -> None:
    assert findings.clock(skew).level == level


@pytest.mark.parametrize(("age", "level"), [(None, "warn"), (-3.0, "ok"), (299.0, "ok"), (301.0, "warn")])
def test_a_sweep_is_missed_after_five_minutes(age: float | None, level: str) -> None:
    assert findings.sweep(age).level == level


@pytest.mark.parametrize(("free", "level"), [(99, "fail"), (100, "warn"), (199, "warn"), (200, "ok")])
def test_a_disk_is_warned_of_before_its_floor(free: int, level: str) -> None:
    assert findings.disk("/data", free << 20, 100 << 20).level == level


@pytest.mark.parametrize(
    ("mode", "age", "level"),
    [
        ("all", 0.0, Level.OK),
        ("known", 600.0, Level.OK),
        ("all", 601.0, Level.WARN),
        ("all", None, Level.WARN),
        ("off", 1.0, Level.WARN),
    ],
)
def test_a_pass_of_reconciliation_may_not_be_long_ago(mode: str, age: float | None, level: Level) -> None:
    assert findings.reconciled(mode, age).level is level
