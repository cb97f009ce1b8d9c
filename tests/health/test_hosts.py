"""What a deployment of several hosts, and the server that they share, is told about itself."""

import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from redis import Redis

from app.core.links import file_path, link_keys, parse_secret_keys, sign_path
from app.core.names import Kind, object_name
from app.health.checks import default_user
from app.receive.listening import free_port
from app.storage.store import Storage
from tests import forked
from tests.own_valkey import OwnValkey, own_valkey
from tests.receive.web import Web, clean_environment, environment, in_thread, wait_until

OLD, NEW = "old-key-" * 4, "new-key-" * 4


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


def ready(web: Web) -> tuple[int, list[str]]:
    answer = web.ask("GET", "/readyz")
    return answer.status, answer.body.decode().splitlines()


def doctor(url: str, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "app.cli", "doctor"]
    given = clean_environment(environment(url, folder))
    return forked.run(
        command, env=given, capture_output=True, text=True, check=False, timeout=60
    ).stdout.splitlines()


def test_secret_keys_are_rotated_host_by_host_in_three_steps_while_all_stay_ready_and_links_work(
    valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey.start()
    outputs = (tmp_path / "outputs").as_uri()
    Storage(outputs).put_bytes(object_name(Kind.PREDICTION, "p1", "output-0.png"), b"\x89PNG")
    steps = [OLD, f"{OLD} {NEW}", f"{NEW} {OLD}", NEW]
    pairs = [pair for old, new in pairwise(steps) for pair in ((new, old), (new, new))]
    for one, other in [(OLD, OLD), *pairs]:
        with (
            in_thread(valkey.url, tmp_path / "a", OUTKEEP_STORAGE=outputs, OUTKEEP_SECRET_KEY=one) as first,
            in_thread(
                valkey.url, tmp_path / "b", OUTKEEP_STORAGE=outputs, OUTKEEP_SECRET_KEY=other
            ) as second,
        ):
            for web in (first, second):
                status, lines = ready(web)
                assert status == 200
                assert [line[:2] for line in lines if "secret key" in line] == ["ok"]
            for keys, web in ((one, second), (other, first)):
                path = file_path(Kind.PREDICTION, "p1", "output-0.png")
                link = sign_path(path, int(time.time()) + 60, link_keys(parse_secret_keys(keys)))
                assert web.ask("GET", link).status == 200


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (("reset",), True),
        (("reset", "off"), True),
        (("reset", "~*", "+@read"), True),
        (("reset", "+@all", "~other:*"), True),
        (("off", "resetpass", "~*", "&*", "+@all"), False),
    ],
)
def test_a_default_user_that_may_not_replay_the_log_is_named_with_the_cure(
    valkey: OwnValkey, tmp_path: Path, rules: tuple[str, ...], *, named: bool
) -> None:
    valkey.start()
    url = valkey.narrow()
    Redis.from_url(url).execute_command("ACL", "SETUSER", "default", *rules)  # type: ignore[no-untyped-call]
    said = [line for line in doctor(url, tmp_path) if "redis default user" in line]
    with in_thread(url, tmp_path) as web:
        status, lines = ready(web)
    assert status == 200
    shown = [line for line in lines if "redis default user" in line]
    assert (len(said), len(shown)) == ((1, 1) if named else (0, 0))
    if named:
        assert said[0].startswith("fail")
        assert "`user default off resetpass ~* &* +@all`" in said[0]
        assert shown[0].startswith("warn")


SEEN_IN_A_LOG = {
    "del", "hdel", "hincrby", "hset", "lmove", "lpop", "lpush", "lrem", "persist", "pexpireat", "rpush",
    "sadd", "set", "srem", "xadd", "zadd", "zrem", "zremrangebyscore",
}  # fmt: skip
"""Within transactions, of a server that has served for an hour."""


def test_each_command_of_our_log_is_one_that_the_default_user_must_run(valkey: OwnValkey) -> None:
    valkey.start()
    redis = Redis.from_url(valkey.narrow())
    denied = [*SEEN_IN_A_LOG, "@stream", "@hash", "@write"]
    harmless = ["@dangerous", "@connection", "@pubsub", "@scripting", "get", "expire"]
    found = {}
    for one in (*denied, *harmless):
        rules = ("reset", "off", "~*", "&*", "+@all", f"-{one}")
        redis.execute_command("ACL", "SETUSER", "default", *rules)  # type: ignore[no-untyped-call]
        found[one] = bool(default_user(redis))
    assert found == dict.fromkeys(denied, True) | dict.fromkeys(harmless, False)


def test_replicas_are_warned_of_on_both_sides(valkey: OwnValkey, tmp_path: Path) -> None:
    port = free_port()
    valkey.start("--port", str(port), "--bind", "127.0.0.1")
    with own_valkey() as copy:
        copy.start("--replicaof", f"127.0.0.1 {port}")
        wait_until(lambda: valkey.redis.info("replication")["connected_slaves"] == 1)
        [said] = [line for line in doctor(valkey.url, tmp_path / "a") if "redis replicas" in line]
        assert said.startswith("warn redis replicas: 1 replica is connected")
        with in_thread(valkey.url, tmp_path / "a") as web:
            status, lines = ready(web)
            assert status == 200
            assert any(line.startswith("warn redis replicas") for line in lines)
        assert any("this is a replica" in line for line in doctor(copy.url, tmp_path / "b"))
        with in_thread(copy.url, tmp_path / "b") as web:
            assert any("takes no writes" in line for line in ready(web)[1])
