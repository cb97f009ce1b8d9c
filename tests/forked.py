"""`outkeep` in tests, without the second of imports each time: a process forked from one that has done them.

`python -m app.cli` is what it stands for. Tests of signals, terminals and encodings start that itself.
"""

import atexit
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from app.cli import main
from app.cli.root import COMMANDS

ROOT = Path(__file__).parent.parent
INHERITED = 3
"""Standard input, output and errors."""
START_ONLY = ("PYTHON", "LC_", "LANG", "LD_")
"""What Python, or the system, reads only when it starts."""


def run_command(
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path | None = None,
    input: str | None = None,  # noqa: A002  # as subprocess.run
    encoding: str = "utf-8",
    timeout: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Run one command to its end, as `subprocess.run` does."""
    if any(env.get(name) != os.environ.get(name) for name in env if name.startswith(START_ONLY)):
        return subprocess.run(
            [sys.executable, "-m", "app.cli", *arguments],
            env=env, cwd=cwd, input=input, encoding=encoding,
            capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX) as asked,
    ):
        given.write((input or "").encode())
        given.seek(0)
        umask = os.umask(0)
        os.umask(umask)
        request = {"arguments": arguments, "env": dict(env), "cwd": str(cwd or Path.cwd()), "umask": umask}
        asked.settimeout(timeout)
        asked.connect(_server())
        socket.send_fds(asked, [b"\0"], [given.fileno(), out.fileno(), err.fileno()])
        asked.sendall(json.dumps(request).encode() + b"\n")
        with asked.makefile() as answer:
            child = int(answer.readline())
            try:
                code = int(answer.readline())
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(arguments), timeout, _text(out), _text(err)) from None
        return subprocess.CompletedProcess(arguments, code, _text(out), _text(err))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@cache
def _server() -> str:
    """Start the process from which all are forked; the socket on which it listens until this process ends."""
    folder = tempfile.mkdtemp(prefix="command-")
    path = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno())],
            stdin=subprocess.PIPE, pass_fds=[listener.fileno()], cwd=ROOT,
        )  # fmt: skip

    def end() -> None:
        process.communicate()
        shutil.rmtree(folder)

    atexit.register(end)
    return path


def serve(listener: socket.socket) -> None:
    """Fork for each request, and return in the child, ready to be the command; until standard input ends."""
    for name in {where.partition(":")[0] for where, _ in COMMANDS.values()}:
        import_module(f"app.cli.{name}")
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


def become(connection: socket.socket) -> None:
    """Be the command that is asked for, in a child; this process waits for it and reports its end."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, INHERITED)
    with connection.makefile() as lines:
        request = json.loads(lines.readline())
    child = os.fork()
    if child:
        connection.sendall(f"{child}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(f"{code}\n".encode())
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8")  # noqa: SIM115
    sys.stdout = TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8")  # noqa: SIM115
    sys.stderr = TextIOWrapper(open(2, "wb", closefd=False), encoding="utf-8", line_buffering=True)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["env"])
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    sys.argv = ["outkeep", *request["arguments"]]


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    main()
