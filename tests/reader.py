"""A reader of the README and of docs/, who types what they say in a folder of its own.

A fence tells by its first line what it is: `sh` runs to its end, `sh serves=PORT` keeps running, a file name
makes a file, `console` needs what a test has not (an account, an engine, the package index). The
ports are replaced, since others may use them here, and its example id by the one of the prediction created.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from app.receive.listening import free_port
from app.settings import VARIABLES
from app.valkey.processes import members

PROJECT = Path(__file__).parent.parent
ORDER = "README docs/handlers docs/deploy docs/configure docs/storage docs/http docs/operate docs/api"
"""In which a new user reads the pages."""
PAGES = {name: (PROJECT / f"{name}.md").read_text() for name in ORDER.split()}
README = "".join(PAGES.values())
EXAMPLE_ID = "ype2b3w02xrme0cqadzrms82nm"
PORTS = ("8000", "8100", "9000")


@dataclass(frozen=True)
class Fence:
    """One block of code; `note` is what stands behind its language."""

    language: str
    note: str
    text: str

    @property
    def is_file(self) -> bool:
        return "." in self.note


def fences(text: str) -> list[Fence]:
    found = re.findall(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", text, re.M | re.S)
    return [Fence(*parts) for parts in found]


FENCES = fences(README)


def command_with(text: str) -> Fence:
    return next(one for one in FENCES if one.language == "sh" and not one.is_file and text in one.text)


class Reader:
    """A new user, who types what the pages say in a folder with the project's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        self.id = EXAMPLE_ID
        self.said: list[str] = []
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)

    def write(self, fence: Fence) -> None:
        (self.folder / fence.note).write_text(self.adapted(fence.text))

    def adapted(self, text: str) -> str:
        for port, other in self.ports.items():
            text = text.replace(f":{port}", f":{other}").replace(f"--port {port}", f"--port {other}")
            text = text.replace(f'"127.0.0.1", {port}', f'"127.0.0.1", {other}')
        return text.replace(EXAMPLE_ID, self.id)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in VARIABLES
        }
        ours = {"PORT": self.ports["8000"], "OUTKEEP_DISK_FLOOR": "0"}
        return inherited | ours | {"NO_PROXY": "127.0.0.1", "PYTHONUNBUFFERED": "1"}

    def serve(self, fence: Fence) -> None:
        """Start what serves a port in a terminal of its own, after what served it before."""
        said = fence.note.removeprefix("serves=")
        if said in self.running:
            self.stop(said)
        with (self.folder / f"terminal-{said}.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", self.adapted(fence.text)],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running[said] = process
        port = int(self.ports[said])
        self.wait(lambda: _listens(port), f"nothing listens on {port}")

    def type(self, fence: Fence) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.adapted(fence.text)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{fence.text}\n{done.stdout}\n{done.stderr}"
        self.said.append(done.stdout)
        return done.stdout

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + 60
        while not condition():
            logs = "".join(f"\n{path.name}: {path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))
            assert time.monotonic() < until, what + logs
            time.sleep(0.1)

    def stop(self, port: str) -> None:
        """End what serves that port of the pages."""
        process = self.running.pop(port)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        self.wait(lambda: not members(process.pid), "a program does not end")

    def leave(self) -> None:
        for port in reversed(list(self.running)):
            self.stop(port)


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
