"""README and docs/: each command and program in them is run as it stands, tables agree with the source."""

import ast
import configparser
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.accept.queues import queue
from app.cli.root import cli
from app.core import event as events
from app.core import handlers
from app.core.names import NOTIFY_QUEUE, Kind
from app.maintain.backlog import backlog, hasten
from app.settings import VARIABLES
from app.storage.store import Storage
from app.up.lifeline import GRACE
from app.valkey.server import running_url
from tests.container import compose
from tests.reader import FENCES, PAGES, PROJECT, README, Fence, Reader, command_with, fences


def table_names(table: str) -> list[str]:
    """The names in the first column of a Markdown table."""
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader who has done everything that the pages say, in their order."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    try:
        for fence in FENCES:
            if fence.is_file:
                reader.write(fence)
            elif fence.language != "sh":
                continue
            elif fence.note.startswith("serves="):
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
    said = "".join(reader.said)
    listed = re.findall(r"^(\w+) +prediction +succeeded +(?:stored|dispatched) +1 +0 ", said, re.M)
    assert listed[0] != reader.id, "the first is that of the README"
    assert reader.id in listed
    assert f"data/outputs/predictions/{listed[0]}/output-0.png\n" in said
    told = (reader.folder / "terminal-9000.log").read_text()
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


def make_scheduled_attempts_now(data: Path) -> None:
    """The second waits for seconds, the third for minutes; which is next depends on the machine.

    Each has waited for half an hour already, if it is for a handler that no process knows.
    """
    url = running_url(data)
    assert url is not None
    with Redis.from_url(url) as redis:
        for job_id in backlog(NOTIFY_QUEUE, redis).scheduled:
            job = queue(NOTIFY_QUEUE, redis).fetch_job(job_id)
            assert job is not None
            job.meta["unknown_since"] = "2026-01-01T00:00:00Z"
            job.save_meta()  # type: ignore[no-untyped-call]
            hasten(redis, job_id)


@pytest.mark.slow
def test_a_dead_letter_is_told_after_the_command_that_tries_it_once_more(tmp_path: Path) -> None:
    """The handler is down first, then gone from the handlers file; at last both are back."""
    reader = Reader(tmp_path)
    for fence in FENCES:
        if fence.is_file:
            reader.write(fence)
    handlers_file = tmp_path / "outkeep.toml"
    wanted = handlers_file.read_text()

    def outcomes() -> list[str]:
        return [json.loads(path.read_bytes())["outcome"] for path in tmp_path.glob("data/outputs/*/*/told-*")]

    def has_become_dead() -> bool:
        # Its next attempt may run at any moment, and is scheduled again then.
        make_scheduled_attempts_now(tmp_path / "data")
        return outcomes() == ["dead"]

    try:
        reader.serve(command_with("outkeep up"))
        reader.type(Fence("sh", "", ". ./local.env\noutkeep send"))
        log = tmp_path / "terminal-8000.log"
        reader.wait(lambda: "not told, again in" in log.read_text(), "the handler's absence is not noticed")
        reader.stop("8000")
        handlers_file.write_text("")
        reader.serve(command_with("outkeep up"))
        reader.wait(has_become_dead, "the delivery does not become a dead letter")
        reader.stop("8000")
        handlers_file.write_text(wanted)
        reader.serve(command_with("python downstream.py"))
        reader.serve(command_with("outkeep up"))
        assert "\noutkeep replay --failed " in command_with("outkeep replay").text
        said = reader.type(Fence("sh", "", ". ./local.env\noutkeep replay --failed"))
        assert said.startswith("enqueued: tell gallery about prediction ")
        reader.wait(lambda: outcomes() == ["delivered"], "the dead letter is not told")
    finally:
        reader.leave()


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
    chapter = PAGES["docs/configure"]
    assert sorted(table_names(chapter)) == sorted(VARIABLES)


def has_effect(field: str) -> bool:
    """Whether a module reads a setting, itself or through a property; `config` and `doctor` only show it."""
    own = PROJECT / "app" / "settings.py"
    shown = {PROJECT / "app" / "cli" / "config.py", PROJECT / "app" / "health" / "doctor.py"}
    modules = (
        {path for folder in ("app", "workers") for path in (PROJECT / folder).rglob("*.py")} - shown - {own}
    )
    source = "".join(path.read_text() for path in modules)
    methods = [node for node in ast.walk(ast.parse(own.read_text())) if isinstance(node, ast.FunctionDef)]
    through = [
        method.name for method in methods if f"self.{field}" in re.findall(r"self\.\w+", ast.unparse(method))
    ]
    return re.search(rf"\bsettings\.({'|'.join([field, *through])})\b", source) is not None


def test_the_settings_marked_as_without_effect_are_those_that_nothing_reads() -> None:
    marked = table_names(PAGES["docs/configure"].partition("have no effect in Outkeep yet")[2])
    unread = [name for name, field in VARIABLES.items() if not has_effect(field)]
    assert sorted(marked) == sorted(unread)


def test_each_handlers_file_in_it_is_accepted() -> None:
    files = [
        handlers.parse(fence.text, lambda _: "whsec_Z2FsbGVyeS1nYWxsZXJ5LWdhbGxlcnkh")
        for fence in fences(README)
        if fence.language == "toml"
    ]
    assert [[handler.name for handler in file] for file in files] == [
        ["gallery"],
        ["gallery", "thumbnail", "upscale"],
        ["upscale", "caption"],
    ]


def test_every_link_leads_to_a_page_and_its_heading() -> None:
    pages = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    inside = [(page, *link.partition("#")) for page, link in links if "://" not in link]
    assert len(inside) > 20
    for page, name, _, heading in inside:
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page}: {name}"
        assert not heading or heading in anchors(target.read_text()), f"{page}: {name}#{heading}"


def anchors(page: str) -> list[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_a_newcomer_reads_the_first_page_in_minutes() -> None:
    assert len(PAGES["README"].splitlines()) <= 150


def test_what_needs_more_than_a_test_has_at_least_exists() -> None:
    """`make`, `docker compose` and the command with an account: their targets, services and commands."""
    lines = [
        line
        for fence in fences(README)
        if fence.language == "console"
        for line in fence.text.replace("\\\n", "").splitlines()
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
