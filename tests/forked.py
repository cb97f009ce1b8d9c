"""Python in tests, without the second of imports each time: processes forked from one that has done them.

`Popen` and `run` are those of `subprocess`. What they fork is a process of its own, with its own signals,
streams and end; only `/proc/<pid>/cmdline` and `environ` are not its own. Tests that look there, and those of
what Python does when it starts, call `subprocess` itself; so do these for other programs.
"""

import atexit
import ctypes
import gc
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.root import COMMANDS

__all__ = ("Popen", "run", "run_command")

ROOT = Path(__file__).parent.parent
INHERITED = 3
"""Standard input, output and errors."""
START_ONLY = ("PYTHON", "LC_", "LANG", "LD_")
"""What Python, or the system, reads only when it starts."""
STOOD_FOR = ("PYTHONIOENCODING", "PYTHONUTF8", "LD_PRELOAD")
"""What of that a fork stands for: the encoding of the standard streams, and the clock of a host."""
SCRIPTS = {
    str(Path(sys.executable).with_name(name)): module
    for name, module in {"outkeep": "app.cli", "rq": "rq.cli"}.items()
}
"""What stands beside Python, and what it runs."""
LOADED = (
    *(
        "app.main",
        "app.up.everything",
        "app.simulator",
        "workers.process",
        "workers.services",
        "workers.jobs",
    ),
    *("encodings.idna", "logging.config", "uvicorn.lifespan.on", "uvicorn.loops.auto"),
    *("uvicorn.protocols.http.auto", "uvicorn.protocols.websockets.auto"),
)


class _Forked(subprocess.Popen[Any]):
    """`subprocess.Popen`, which asks for a fork where that will do. Its end is told on `_told`."""

    _told: socket.socket | None = None

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        _, preexec, _, passed, folder, environment, _, _, shell, *pipes = rest[:15]
        given, _, _, out, _, err = pipes
        wanted = _wanted(args, environment)
        if wanted is None or preexec or passed or shell:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        umask = os.umask(0)
        os.umask(umask)
        asked = {
            "wanted": wanted,
            "env": dict(os.environ if environment is None else environment),
            "cwd": os.fspath(folder or Path.cwd()),
            "umask": umask,
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "session": rest[20],
            "group": rest[21],
        }
        self._told = socket.socket(socket.AF_UNIX)
        self._told.connect(_server(asked["env"].get("LD_PRELOAD", "")))
        streams = [own if pipe == -1 else pipe for own, pipe in enumerate((given, out, err))]
        socket.send_fds(self._told, [b"\0"], streams)
        self._told.sendall(json.dumps(asked).encode() + b"\n")
        self.pid = int(self._line())
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _line(self) -> bytes:
        assert self._told is not None
        line = b""
        while not line.endswith(b"\n"):
            more = self._told.recv(1)
            assert more, "the process that forks has ended"
            line += more
        return line

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._told is None:
            found: tuple[int, int] = super()._try_wait(flags)  # type: ignore[misc]
            return found
        if flags and not select.select([self._told], [], [], 0)[0]:
            return 0, 0
        status = int(self._line())
        self._told.close()
        return self.pid, status

    def _internal_poll(self, *rest: Any, **more: Any) -> int | None:
        if self._told is None:
            code: int | None = super()._internal_poll(*rest, **more)  # type: ignore[misc]
            return code
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None and self._told.fileno() != -1:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self.returncode = os.waitstatus_to_exitcode(status)
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def _wanted(args: Sequence[str], environment: Mapping[str, str] | None) -> dict[str, Any] | None:
    """What a command of Python is to run: `{"safe", "module" or "code", "arguments"}`; None for all else."""
    if isinstance(args, str):
        return None
    program, *given = [os.fspath(one) for one in args]
    if program in SCRIPTS:
        given = ["-P", "-m", SCRIPTS[program], *given]
    elif program != sys.executable:
        return None
    changed = environment or {}
    early = [name for name in changed if name.startswith(START_ONLY) and name not in STOOD_FOR]
    if any(changed[name] != os.environ.get(name) for name in early):
        return None
    safe = given[0] == "-P"
    option, what, *arguments = given[safe:]
    names = {"-m": "module", "-c": "code"}
    return {"safe": safe, names[option]: what, "arguments": arguments} if option in names else None


def _run(
    args: Sequence[Any],
    *,
    input: Any = None,  # noqa: A002  # as subprocess.run
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> "subprocess.CompletedProcess[Any]":
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with _Forked(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, args, out, err)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


if TYPE_CHECKING:
    from subprocess import Popen, run
else:
    Popen, run = _Forked, _run


def run_command(
    *arguments: str, env: Mapping[str, str], timeout: float = 60, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run one command of `outkeep` to its end."""
    options = {"input": "", "encoding": "utf-8", "capture_output": True, "timeout": timeout, **options}
    done: subprocess.CompletedProcess[str] = _run(
        [sys.executable, "-m", "app.cli", *arguments], env=env, **options
    )
    return done


@cache
def _server(preload: str) -> str:
    """Start the process from which all are forked; the socket on which it listens until this process ends.

    One library may be preloaded: the one that moves the clock of a host.
    """
    folder = tempfile.mkdtemp(prefix="command-")
    path = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno())],
            stdin=subprocess.PIPE, pass_fds=[listener.fileno()], cwd=ROOT,
            env=os.environ | ({"LD_PRELOAD": preload} if preload else {}),
        )  # fmt: skip

    def end() -> None:
        process.communicate()
        shutil.rmtree(folder)

    atexit.register(end)
    return path


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for each request; what is asked for, in the child, ready to be it. It ends with standard input."""
    for name in (*{f"app.cli.{where.partition(':')[0]}" for where, _ in COMMANDS.values()}, *LOADED):
        import_module(name)
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a thread is lost in a fork"  # noqa: PTH208
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return become(connection)
        connection.close()
    os._exit(0)


def become(connection: socket.socket) -> dict[str, Any]:
    """Be what is asked for, in a child; this process waits for it and tells its end."""
    _, streams, _, _ = socket.recv_fds(connection, 1, INHERITED)
    with connection.makefile() as lines:
        asked: dict[str, Any] = json.loads(lines.readline())
    child = os.fork()
    if child:
        for stream in (*streams, *range(INHERITED)):
            os.close(stream)
        for heard in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(heard, signal.SIG_IGN)  # a group of processes may be meant
        connection.sendall(f"{child}\n".encode())
        status = os.waitpid(child, 0)[1]
        connection.sendall(f"{status}\n".encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    standard_streams(asked["env"].get("PYTHONIOENCODING") or "utf-8")
    os.environ.clear()
    os.environ.update(asked["env"])
    if "CLOCK_SHIM" in os.environ:
        ctypes.CDLL(os.environ["LD_PRELOAD"]).open_offset()
    os.umask(asked["umask"])
    resource.setrlimit(resource.RLIMIT_NOFILE, asked["files"])
    if asked["session"]:
        os.setsid()
    if asked["group"] not in {None, -1}:
        os.setpgid(0, asked["group"])
    os.chdir(asked["cwd"])
    return asked


def standard_streams(encoding: str) -> None:
    """Make those of Python anew, as when it starts."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        file = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115
        errors = "backslashreplace" if name == "stderr" else "strict"
        setattr(sys, name, TextIOWrapper(file, encoding, errors, line_buffering=name == "stderr"))


def main() -> None:
    """What Python does with its arguments."""
    wanted = serve(socket.socket(fileno=int(sys.argv[1])))["wanted"]
    sys.argv[1:] = wanted["arguments"]
    if "code" in wanted:
        sys.path[:1] = [] if wanted["safe"] else [""]
        sys.argv[0] = "-c"
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        exec(compile(wanted["code"], "<string>", "exec"), module.__dict__)
    else:
        sys.path[:1] = [] if wanted["safe"] else [str(Path.cwd())]
        runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
