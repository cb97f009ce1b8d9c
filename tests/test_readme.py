"""The README: every command and program in it is run as it stands, its tables are held against the source.

A fence tells by its first line what it is: `sh` runs to its end, `sh serves=PORT` keeps running, a file name
makes a file, `console` needs what a test has not (an account, an engine, the package index). The README's
ports are replaced, since others may use them here, and its example id by the one of the prediction created.
"""

import ast
import configparser
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.cli.root import cli
from app.core import event as events
from app.core import handlers
from app.core.names import Kind
from app.demo.stage import free_port
from app.lifeline import GRACE
from app.processes import members
from app.settings import VARIABLES
from app.storage import Storage
from tests.container import compose

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()
EXAMPLE_ID = "ype2b3w02xrme0cqadzrms82nm"
PORTS = ("8000", "8100", "9000")


@dataclass(frozen=True)
class Fence:
    """One block of code; `note` is what stands behind its language."""

    language: str
    note: str
    text: str


def fences(text: str) -> list[Fence]:
    found = re.findall(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", text, re.M | re.S)
    return [Fence(*parts) for parts in found]


def table_names(table: str) -> list[str]:
    """The names in the first column of a Markdown table."""
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


class Reader:
    """A new user with the README, who types what it says in a folder with the project's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        self.id = EXAMPLE_ID
        self.said: list[str] = []
        self.running: list[subprocess.Popen[bytes]] = []
        (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
        for fence in fences(README):
            if "." in fence.note:
                (folder / fence.note).write_text(self.adapted(fence.text))

    def adapted(self, text: str) -> str:
        for port, other in self.ports.items():
            text = text.replace(f":{port}", f":{other}").replace(f"--port {port}", f"--port {other}")
            text = text.replace(f'"127.0.0.1", {port}', f'"127.0.0.1", {other}')
        return text.replace(EXAMPLE_ID, self.id)

    @property
    def environment(self) -> dict[str, str]:
        ours = ("OUTKEEP_", "REPLICATE_", "REDIS_URL")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return inherited | {"PORT": self.ports["8000"], "OUTKEEP_DISK_FLOOR": "0", "PYTHONUNBUFFERED": "1"}

    def serve(self, fence: Fence) -> None:
        number = len(self.running)
        with (self.folder / f"terminal-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", self.adapted(fence.text)],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append(process)
        port = int(self.ports[fence.note.removeprefix("serves=")])
        self.wait(lambda: _listens(port), f"nothing listens on {port}")

    def type(self, fence: Fence) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.adapted(fence.text)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
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

    def leave(self) -> None:
        for process in reversed(self.running):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
            self.wait(lambda session=process.pid: not members(session), "a program does not end")  # type: ignore[misc]


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader who has done everything that the README says, in its order."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    try:
        for fence in fences(README):
            if fence.language != "sh" or "." in fence.note:
                continue
            if fence.note.startswith("serves="):
                reader.serve(fence)
            else:
                said = reader.type(fence)
                if "create.py" in fence.text:
                    reader.id = said.strip()
                    told = reader.folder / f"data/outputs/predictions/{reader.id}/told-gallery.json"
                    reader.wait(told.exists, "the handler is not told")
        yield reader
    finally:
        reader.leave()


def test_a_new_user_sees_a_picture_kept_and_the_handler_told(reader: Reader) -> None:
    listing, *_ = (said for said in reader.said if said.startswith("ID"))
    assert re.search(rf"^{reader.id} +prediction +succeeded +(stored|dispatched) +1 +0 ", listing, re.M)
    assert f"data/outputs/predictions/{reader.id}/output-0.png\n" in "".join(reader.said)
    told = (reader.folder / "terminal-1.log").read_text()
    size = (reader.folder / f"data/outputs/predictions/{reader.id}/output-0.png").stat().st_size
    assert f"prediction.succeeded output-0.png {size} bytes\n" in told


def test_the_commands_to_operate_answer_as_they_should(reader: Reader) -> None:
    said = "\n".join(reader.said)
    assert '202 {"outcome":"accepted"}' in said
    assert "\nok\n" in said
    assert re.search(r"^ok redis", said, re.M)
    assert re.search(r"^notify-\w+ .* 0 failed$", said, re.M)
    assert re.search(r"^persist +\| .* [1-9]\d* finished, 0 failed$", said, re.M)
    assert re.search(r"^REPLICATE_WEBHOOK_SECRET +\(set, not shown\)", said, re.M)
    assert "whsec_" not in said


def test_the_example_of_an_event_has_exactly_the_keys_of_a_real_one(reader: Reader) -> None:
    (example,) = (json.loads(fence.text) for fence in fences(README) if fence.language == "json")
    storage = Storage((reader.folder / "data" / "outputs").as_uri())
    manifest = storage.read_manifest(Kind.PREDICTION, reader.id)
    assert manifest is not None
    real = events.build(manifest, lambda name: name)
    assert shape(example) == shape(real)


def shape(event: dict[str, Any]) -> list[set[str]]:
    return [set(event), set(event["data"]), set(event["data"]["files"][0])]


def test_the_tables_name_every_setting_once_and_nothing_else() -> None:
    chapter = README.partition("## Configure")[2].partition("### The handlers file")[0]
    assert sorted(table_names(chapter)) == sorted(VARIABLES)


def has_effect(field: str) -> bool:
    """Whether a module reads a setting, itself or through a property; to show it (`config`) is no effect."""
    own = PROJECT / "app" / "settings.py"
    shown = PROJECT / "app" / "cli" / "look.py"
    modules = {path for folder in ("app", "workers") for path in (PROJECT / folder).rglob("*.py")} - {
        own,
        shown,
    }
    source = "".join(path.read_text() for path in modules)
    methods = [node for node in ast.walk(ast.parse(own.read_text())) if isinstance(node, ast.FunctionDef)]
    through = [
        method.name for method in methods if f"self.{field}" in re.findall(r"self\.\w+", ast.unparse(method))
    ]
    return re.search(rf"\bsettings\.({'|'.join([field, *through])})\b", source) is not None


def test_the_settings_marked_as_without_effect_are_those_that_nothing_reads() -> None:
    marked = table_names(
        README.partition("have no effect in Outkeep yet")[2].partition("### The handlers")[0]
    )
    unread = [name for name, field in VARIABLES.items() if not has_effect(field)]
    assert sorted(marked) == sorted(unread)


@pytest.mark.parametrize(
    "fence", [one for one in fences(README) if one.language == "toml"], ids=lambda one: one.note
)
def test_a_handlers_file_in_it_is_accepted(fence: Fence) -> None:
    (handler,) = handlers.parse(fence.text, lambda _: "whsec_Z2FsbGVyeS1nYWxsZXJ5LWdhbGxlcnkh")
    assert handler.name == "gallery"


def test_every_relative_link_leads_to_a_file() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (PROJECT / link).exists()] == []


def test_what_needs_more_than_a_test_has_at_least_exists() -> None:
    """`make`, `docker compose` and the command with an account: their targets, services and commands."""
    lines = [
        line for fence in fences(README) if fence.language == "console" for line in fence.text.splitlines()
    ]
    commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    for command in commands:
        if command[0] == "make":
            subprocess.run(["make", "-n", *command[1:]], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
        elif command[0].endswith("outkeep"):
            assert command[1] in cli.commands
    assert ["docker", "compose", "up", "--detach", "--build"] in commands
    services = re.findall(r"docker compose up --no-deps (\w+)", README)
    assert services
    assert set(services) <= set(compose()["services"])


def test_the_service_unit_gives_time_to_stop() -> None:
    (unit,) = (fence.text for fence in fences(README) if fence.language == "ini")
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    assert parser["Service"]["ExecStart"].endswith("/.venv/bin/outkeep up")
    assert int(parser["Service"]["TimeoutStopSec"]) > 2 * GRACE
