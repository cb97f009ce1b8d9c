"""`outkeep up` as its owner meets it: stopping, refusing, odd folders, a Redis of one's own."""

import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from app.receive.listening import free_port
from tests import forked
from tests.e2e.recorder import recorder
from tests.e2e.running import OUTKEEP, Up, processes_of, running_up, until

pytestmark = pytest.mark.slow

EVERYTHING = {"up", "valkey", "receiver", "worker"}
SECRET_KEY = "0123456789abcdef0123456789abcdef"


def refusal(up: Up, changes: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
    """Start `up` once more, with other settings; its exit code and all that it says."""
    ended = forked.run(
        [OUTKEEP, "up"],
        cwd=up.folder,
        env={**up.environment, **(changes or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr.splitlines()


def stop(up: Up, number: signal.Signals) -> None:
    """Stop it by a signal; by SIGINT as a terminal sends it, to all processes."""
    assert up.process is not None
    send_it = os.killpg if number == signal.SIGINT else os.kill
    send_it(up.process.pid, number)
    assert up.process.wait(60) == 0
    assert up.processes() == []
    assert "Traceback" not in up.text()


def send(up: Up) -> None:
    """Deliver a sample with `outkeep send`."""
    forked.run([OUTKEEP, "send"], cwd=up.folder, env=up.environment, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "Cannot assign requested address; set HOST or PORT"),
        ("nowhere.invalid", "no address is found for this name; set HOST"),
    ],
)
def test_a_host_that_is_not_ours_is_named(tmp_path: Path, host: str, reason: str) -> None:
    up = Up(tmp_path, settings={"HOST": host})
    code, (line,) = refusal(up)
    assert code == 1
    assert line.startswith(f"outkeep: cannot listen on {host}:{up.environment['PORT']}: {reason}")


def test_all_mistakes_are_told_at_once_and_nothing_is_started(tmp_path: Path) -> None:
    up = Up(
        tmp_path, handlers='[[handler]]\nname = "a b"\nurl = "http://127.0.0.1:1/"\nsecret = "env:NONE"\n'
    )
    (tmp_path / "file").touch()
    mistakes = {
        "OUTKEEP_SLOTS": "many",
        "OUTKEEP_SLOTZ": "1",
        "OUTKEEP_STORAGE": (tmp_path / "file").as_uri(),
        "PORT": "70000",
        "REPLICATE_WEBHOOK_SECRET": "whsec_c2hvcnQ=",
    }
    code, lines = refusal(up, mistakes)
    assert code == 2
    for name in (*mistakes, "OUTKEEP_HANDLERS"):
        assert any(line.startswith(f"outkeep: {name}: ") for line in lines), name
    assert all(line.startswith("outkeep: ") for line in lines)
    assert not any("c2hvcnQ" in line for line in lines), "the secret itself is not shown"
    assert not (up.data / "valkey").exists()
    assert up.processes() == []


@pytest.mark.parametrize(
    "handlers",
    ["this is [ not TOML", '[[handler]]\nname = "x"\n', '[[handler]]\nurl = "ftp://example.com"\n'],
)
def test_a_bad_handlers_file_is_refused_with_its_name(tmp_path: Path, handlers: str) -> None:
    up = Up(tmp_path, handlers=handlers)
    code, lines = refusal(up)
    assert code == 2
    assert lines
    assert all(line.startswith("outkeep: OUTKEEP_HANDLERS: outkeep.toml: ") for line in lines)


def test_a_handlers_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    code, lines = refusal(Up(tmp_path), {"OUTKEEP_HANDLERS": "missing.toml"})
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("outkeep: OUTKEEP_HANDLERS: ")
    assert "missing.toml" in lines[0]


def test_a_missing_secret_is_refused(tmp_path: Path) -> None:
    code, lines = refusal(Up(tmp_path), {"REPLICATE_WEBHOOK_SECRET": ""})
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("outkeep: REPLICATE_WEBHOOK_SECRET: ")


NAMES = ("a folder, with 'quotes' and ünïcode #1 %20", "long/" + "x" * 120 + "/y")


@pytest.mark.parametrize(
    ("name", "numbers"), [(NAMES[0], (signal.SIGHUP, signal.SIGTERM)), (NAMES[1], (signal.SIGINT,))]
)
def test_any_data_folder_works_again_and_again_until_a_signal_whatever_modules_lie_in_it(
    tmp_path: Path, name: str, numbers: Sequence[signal.Signals]
) -> None:
    folder = tmp_path / name
    for module in ("app", "workers", "redis"):
        (folder / module).mkdir(parents=True)
        (folder / module / "__init__.py").write_text(f"raise SystemExit('the {module} of someone else')")
    with recorder() as downstream, running_up(folder, handlers=downstream.handler()) as up:
        assert up.pids().keys() == EVERYTHING
        for start, number in enumerate(numbers):
            if start:
                up.start()
            with up.redis() as redis:
                assert redis.zcard("outkeep:records") == start, "it remembers"
            send(up)
            downstream.wait_for(lambda them: len(them.ids()) == start + 1, "the handler is told")  # noqa: B023
            for identity in downstream.ids():
                assert (up.outputs / "predictions" / identity / "output-0.png").is_file()
            stop(up, number)


def test_without_its_redis_it_starts_and_all_agree_on_a_port(tmp_path: Path) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}"
    up = Up(tmp_path, settings={"REDIS_URL": nobody, "OUTKEEP_SECRET_KEY": SECRET_KEY, "PORT": "0"})
    try:
        up.launch()
        until(lambda: "receiving on" in up.text(), "the receiver runs")
        until(lambda: "waiting for Redis" in up.text(), "the worker waits")
        [port] = set(re.findall(r"receiving on http://127\.0\.0\.1:(\d+)/", up.text()))
        assert int(port) in range(20_000, 32_000), "no other program is given it before the receiver has it"
        stop(up, signal.SIGTERM)
    finally:
        up.clear()


def test_a_valkey_that_hangs_at_the_start_is_waited_for(tmp_path: Path) -> None:
    """And who starts another one beside it is told what is in the way."""
    with recorder() as downstream:
        up = Up(tmp_path, handlers=downstream.handler())
        try:
            up.launch()
            until(lambda: "valkey" in up.pids(), "Valkey runs")
            valkey = up.pids()["valkey"]
            os.kill(valkey, signal.SIGSTOP)
            until(lambda: "receiving on" in up.text(), "the receiver runs without it")
            until(lambda: "waiting for Redis" in up.text(), "the worker waits for it")
            os.kill(valkey, signal.SIGCONT)
            until(up.is_ready, "all serve")
            send(up)
            downstream.wait_for(lambda them: bool(them.received), "the handler is told")
            before = up.pids()
            assert before["valkey"] == valkey

            code, [line] = refusal(up, {"PORT": str(free_port())})
            assert code == 1
            assert line.startswith(f"outkeep: outkeep up already runs on {up.data} (pid {before['up']})")
            code, [line] = refusal(up, {"OUTKEEP_DATA": str(tmp_path / "other")})
            assert code == 1
            where = f"127.0.0.1:{up.environment['PORT']}"
            assert line == (
                f"outkeep: cannot listen on {where}: another program listens there; stop it, or set PORT"
            )
            assert processes_of(tmp_path / "other") == []
            assert up.pids() == before
            assert up.stop() == 0
        finally:
            up.clear()
