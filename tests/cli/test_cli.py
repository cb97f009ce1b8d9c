"""The command, as people type it: processes, exit codes, and one clear line for each mistake."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from redis import Redis

from app.accept.records import Records
from app.cli.root import COMMANDS as LISTED
from app.cli.root import cli
from app.core.context import Lineage, followed
from app.core.manifest import KeptFile, Manifest, Receipt, format_time
from app.core.names import Kind, record_key
from app.core.prediction import parse
from app.receive.listening import free_port
from app.simulator.models import MODELS
from app.storage.store import Storage
from tests.forked import run_command
from tests.own_valkey import own_valkey
from tests.receive.web import (
    SECRET,
    SECRET_KEY,
    Web,
    clean_environment,
    environment,
    in_thread,
    prediction,
    wait_until,
)
from tests.wrong_clock import WrongClock

NOW = datetime(2026, 3, 16, tzinfo=UTC)
COMMANDS = sorted(cli.commands)
OTHER_SECRET = "whsec_b3RoZXIgc2VjcmV0IG9mIDI0IGJ5dGVz"


def outkeep(
    *arguments: str, settings: Mapping[str, str] | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run one command to its end, in an environment that holds `settings` and nothing else of ours."""
    return run_command(*arguments, env=clean_environment(settings or {}), **options)


def complaints(done: "subprocess.CompletedProcess[str]", code: int) -> list[str]:
    """The lines of a command that failed in a civil way."""
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert all(line.startswith("outkeep: ") for line in lines)
    return [line.removeprefix("outkeep: ") for line in lines]


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with in_thread(valkey_url, tmp_path_factory.mktemp("cli")) as running:
        yield running


@pytest.fixture
def settings(web: Web, redis: Redis, valkey_url: str) -> dict[str, str]:
    """The environment of the running receiver, on an empty database."""
    redis.flushall()
    return environment(valkey_url, web.folder, PORT=str(web.port))


def test_the_list_of_commands_says_what_each_says_itself() -> None:
    assert {name: line for name, (_, line) in LISTED.items()} == {
        name: command.get_short_help_str(200) for name, command in cli.commands.items()
    }
    assert all(command.name == name for name, command in cli.commands.items())


@pytest.mark.parametrize(("command", "more"), [("--help", {"redis"}), ("ls", set())])
def test_what_people_wait_for_most_often_loads_little(
    command: str, more: set[str], settings: dict[str, str]
) -> None:
    asked = f"import sys; from app.cli.root import cli; cli([{command!r}], standalone_mode=False)"
    program = [sys.executable, "-c", f"{asked}; print(*sys.modules)"]
    done = subprocess.run(
        program, capture_output=True, text=True, check=True, env=clean_environment(settings)
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    heavy = {"aiohttp", "httpx", "jinja2", "obstore", "pydantic", "replicate", "rq", "starlette", "structlog"}
    assert not loaded & (heavy | {"uvicorn", "app.storage.store", "app.core.handlers"} | more)


def test_every_command_shows_an_example() -> None:
    for name in COMMANDS:
        done = outkeep(name, "--help")
        assert done.returncode == 0
        assert "Example" in done.stdout
        assert f"outkeep {name}" in done.stdout, name
    shown = outkeep("--help").stdout
    assert "outkeep up" in shown
    assert "..." not in shown.partition("Commands:")[2]
    assert outkeep("--version").stdout.startswith("outkeep")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("serve", "--nonsense"),
        ("work",),
        ("work", "nonsense"),
        ("work", "handle", "--path", "/no/such/folder"),
        ("work", "handle", "--path", "/etc/passwd"),
        ("doctor", "--path", "/no/such/folder"),
        ("show",),
        ("ls", "--limit", "0"),
        ("ls", "--lost", "--failed"),
    ],
)
def test_misuse_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = outkeep(*arguments)
    assert done.returncode == 2
    assert "Usage: outkeep" in done.stderr
    assert "Traceback" not in done.stderr


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == {at!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize(
    ("arguments", "at"), [(("ls",), "redis"), (("work", "persist"), "workers.engine.async_worker")]
)
def test_ctrl_c_while_modules_are_imported_ends_it_without_a_word(
    tmp_path: Path, arguments: tuple[str, ...], at: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED.format(at=at))
    done = outkeep(*arguments, settings={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"REPLICATE_WEBHOOK_SECRET": "whsec_!"},
            "REPLICATE_WEBHOOK_SECRET: secret 1 of 1: what follows whsec_",
        ),
        ({"REPLICATE_WEBHOOK_SECRET": ""}, "REPLICATE_WEBHOOK_SECRET: no secret given"),
        ({"OUTKEEP_DATTA": "x"}, "OUTKEEP_DATTA: no such setting; is OUTKEEP_DATA meant?"),
        ({"OUTKEEP_HANDLERS": "/none.toml"}, "OUTKEEP_HANDLERS: cannot read /none.toml: No such file"),
        (
            {"OUTKEEP_STORAGE": "file:///proc/none"},
            "OUTKEEP_STORAGE: cannot write to /proc/none: No such file",
        ),
        ({"REDIS_URL": "http://u:hunter2@h"}, "REDIS_URL: it must start with redis://"),
    ],
)
def test_a_mistaken_setting_stops_the_start(tmp_path: Path, changes: dict[str, str], line: str) -> None:
    done = outkeep("serve", settings=environment("redis://localhost", tmp_path, **changes))

    (complaint,) = complaints(done, 2)
    assert complaint.startswith(line)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "up"])
def test_all_mistakes_are_told_in_one_start(tmp_path: Path, command: str) -> None:
    handlers = tmp_path / "outkeep.toml"
    handlers.write_text('[[handler]]\nname = "x"\n')
    wrong = {
        "REPLICATE_WEBHOOK_SECRET": "x",
        "OUTKEEP_NONE": "1",
        "OUTKEEP_STORAGE": "file:///proc/none",
        "OUTKEEP_HANDLERS": str(handlers),
        "PORT": "-1",
    }

    told = complaints(outkeep(command, settings=environment("redis://localhost", tmp_path, **wrong)), 2)

    assert {line.partition(":")[0] for line in told} == wrong.keys()


@pytest.mark.parametrize("command", [("serve",), ("work", "persist"), ("work", "notify"), ("ls",)])
def test_without_a_redis_the_start_ends_with_2(tmp_path: Path, command: tuple[str, ...]) -> None:
    settings = {"OUTKEEP_DATA": str(tmp_path), "REPLICATE_WEBHOOK_SECRET": SECRET}

    (complaint,) = complaints(outkeep(*command, settings=settings), 2)

    assert complaint.startswith(f"REDIS_URL: not set, and no embedded server answers on {tmp_path}")


@pytest.mark.parametrize("command", [("up",), ("serve",), ("work", "persist"), ("work", "notify")])
def test_a_data_folder_that_cannot_be_written_ends_with_2(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    settings = {"OUTKEEP_DATA": str(tmp_path / "file" / "data"), "REPLICATE_WEBHOOK_SECRET": SECRET}

    (complaint,) = complaints(outkeep(*command, settings=settings), 2)

    assert complaint.startswith(f"OUTKEEP_DATA: cannot write to {tmp_path}/file/data: Not a directory")


def test_a_start_in_a_folder_that_was_removed_is_told_in_one_line(tmp_path: Path) -> None:
    code = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    for command in (("app.cli", "up"), ("workers", "persist")):
        (tmp_path / "gone").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, "-P", "-m", *command],
            cwd=tmp_path / "gone",
            env=clean_environment({"REPLICATE_WEBHOOK_SECRET": SECRET}),
            capture_output=True,
            text=True,
            check=False,
        )
        (complaint,) = complaints(done, 2)
        assert complaint.startswith("OUTKEEP_DATA: cannot write to data: No such file or directory")


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = outkeep("serve", settings=environment("redis://localhost", tmp_path, PORT=str(port)))
        simulated = outkeep("simulate", "--port", str(port))

    beginning = f"cannot listen on 127.0.0.1:{port}: another program listens there; stop it, or set"
    assert complaints(served, 1) == [f"{beginning} PORT"]
    assert complaints(simulated, 1) == [f"{beginning} --port"]


@pytest.mark.parametrize(
    ("host", "complaint"),
    [
        ("203.0.113.1", "203.0.113.1:8000: Cannot assign requested address; set HOST or PORT"),
        ("2001:db8::1", "[2001:db8::1]:8000: Cannot assign requested address; set HOST or PORT"),
        ("nowhere.invalid", "nowhere.invalid:8000: no address is found for this name; set HOST"),
    ],
)
def test_a_host_that_is_not_ours_is_named(tmp_path: Path, host: str, complaint: str) -> None:
    done = outkeep("serve", settings=environment("redis://localhost", tmp_path, HOST=host))

    assert complaints(done, 1) == [f"cannot listen on {complaint}"]


def test_a_redis_that_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}"

    for command in (("ls",), ("healthcheck", "persist")):
        done = outkeep(*command, settings=environment(url, tmp_path))
        (complaint,) = complaints(done, 1)
        assert complaint == "Redis does not answer (ConnectionError); is REDIS_URL right?"
        assert "hunter2" not in done.stderr


def test_a_wrong_password_is_told_without_it(tmp_path: Path) -> None:
    with own_valkey() as valkey:
        valkey.start("--requirepass", "right")
        url = valkey.url.replace("unix://", "unix://:hunter2@")
        done = outkeep("ls", settings=environment(url, tmp_path))

    assert complaints(done, 1) == ["Redis refuses the user or password of REDIS_URL"]
    assert "hunter2" not in done.stderr


def test_send_shows_the_answer_for_people_and_programs(settings: dict[str, str], web: Web) -> None:
    done = outkeep("send", settings=settings)
    assert (done.returncode, done.stdout) == (0, '202 {"outcome":"accepted"}\n')

    answer = json.loads(outkeep("send", "--training", "--json", settings=settings).stdout)
    assert answer == {
        "url": f"http://127.0.0.1:{web.port}/webhooks/replicate/trainings",
        "status": 202,
        "answer": '{"outcome":"accepted"}',
    }


def test_send_takes_a_file_or_standard_input(settings: dict[str, str], tmp_path: Path, redis: Redis) -> None:
    file = tmp_path / "prediction.json"
    file.write_bytes(prediction("from-a-file"))
    assert outkeep("send", str(file), settings=settings).returncode == 0
    assert outkeep("send", "-", settings=settings, input=prediction("from-a-pipe").decode()).returncode == 0

    ids = {record.id for record in Records(redis, ttl=60).newest()}
    assert ids == {"from-a-file", "from-a-pipe"}


def test_send_sends_exactly_where_it_is_told(settings: dict[str, str], web: Web) -> None:
    """A slash too much loses every event at Replicate, which follows no redirect: here it must show."""
    url = f"http://127.0.0.1:{web.port}/webhooks/replicate/"

    done = outkeep("send", "--to", url, settings=settings)

    assert (done.returncode, done.stdout) == (1, '404 {"error":"not_found","message":"Not Found"}\n')


def test_send_that_is_refused_ends_with_1(settings: dict[str, str]) -> None:
    done = outkeep("send", "--secret", OTHER_SECRET, settings=settings)

    assert done.returncode == 1
    assert done.stdout.startswith('401 {"error":"signature_mismatch"')
    assert done.stderr.endswith("did not accept it\n")


def test_send_to_nobody_ends_with_1(settings: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/x"
    nowhere = "http://[fe80::1%25no-such-zone]/x"

    (complaint,) = complaints(outkeep("send", "--to", url, settings=settings), 1)
    (without_port,) = complaints(outkeep("send", "--to", nowhere, settings=settings), 1)

    assert complaint == f"{url} does not answer: [Errno 111] Connection refused"
    assert without_port.startswith(f"{nowhere} does not answer: ")


def test_send_encodes_what_a_request_line_cannot_hold(settings: dict[str, str], web: Web) -> None:
    url = f"http://127.0.0.1:{web.port}/webhooks/replicate?für=a b%20c"

    done = outkeep("send", "--to", url, settings=settings)

    assert (done.returncode, done.stdout) == (0, '202 {"outcome":"accepted"}\n')


@pytest.mark.parametrize("secret", ["hunter2", "whsec_!hunter2", "whsk_hunter2"])
def test_a_simulator_with_a_mistaken_secret_ends_with_2(secret: str) -> None:
    done = outkeep("simulate", "--port", "0", "--secret", secret)

    assert done.returncode == 2
    assert "Invalid value for '--secret'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("pace", ["-1", "nan", "inf", "3601", "slow"])
def test_a_simulator_with_a_mistaken_pace_ends_with_2(pace: str) -> None:
    done = outkeep("simulate", "--port", "0", "--pace", pace)

    assert done.returncode == 2
    assert "Invalid value for '--pace'" in done.stderr


def test_the_help_of_the_simulator_names_its_models() -> None:
    shown = outkeep("simulate", "--help").stdout
    assert [name for name in MODELS if name.partition("/")[2] not in shown] == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--to", "ftp://x"), "must start with"),
        (("--to", "http://[::1"), "cannot be read"),
        (("--to", "http://"), "names no host"),
        (("--to", "http://a..b/"), "neither an address nor a name"),
        (("--to", f"http://{'a' * 64}/"), "neither an address nor a name"),
        (("--secret", "hunter2"), "does not start with"),
        (("/none.json",), "cannot read /none.json"),
    ],
)
def test_send_misused_ends_with_2(settings: dict[str, str], arguments: tuple[str, ...], reason: str) -> None:
    done = outkeep("send", *arguments, settings=settings)

    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_send_without_a_secret_says_what_is_missing() -> None:
    done = outkeep("send")
    assert done.returncode == 2
    assert "give --secret, or set REPLICATE_WEBHOOK_SECRET" in done.stderr


def test_ls_lists_the_latest_change_first(settings: dict[str, str], web: Web) -> None:
    assert outkeep("ls", settings=settings).stderr == "nothing yet\n"
    web.outcome(prediction("first", model="owner/name"))
    web.outcome(prediction("second"), "/webhooks/replicate/trainings")

    lines = outkeep("ls", settings=settings).stdout.splitlines()

    assert lines[0].split() == ["ID", "KIND", "STATUS", "STATE", "FILES", "LOST", "AGE", "MODEL"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["second", "training", "succeeded", "received"],
        ["first", "prediction", "succeeded", "received"],
    ]
    assert lines[2].endswith("owner/name")


def test_ls_speaks_json(settings: dict[str, str], web: Web) -> None:
    web.outcome(prediction("first", model="owner/name"))

    (line,) = outkeep("ls", "--json", settings=settings).stdout.splitlines()

    found = json.loads(line)
    assert found.pop("received_at").endswith("Z")
    assert found.pop("updated_at").endswith("Z")
    assert found == {
        "id": "first",
        "kind": "prediction",
        "status": "succeeded",
        "state": "received",
        "model": "owner/name",
        "files": 0,
        "lost": 0,
        "source": "webhook",
        "error": None,
    }


def test_ls_finds_losses_beyond_its_limit(settings: dict[str, str], web: Web, redis: Redis) -> None:
    web.outcome(prediction("unlucky"))
    redis.hset("outkeep:record:prediction:unlucky", "lost", 1)
    for number in range(3):
        web.outcome(prediction(f"later{number}"))

    done = outkeep("ls", "--lost", "--limit", "2", "--json", settings=settings)

    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["unlucky"]


def test_ls_lists_what_is_in_quarantine(settings: dict[str, str], web: Web) -> None:
    assert web.outcome(b"[]") == "quarantined"

    (name,) = outkeep("ls", "--quarantine", settings=settings).stdout.splitlines()
    (line,) = outkeep("ls", "--quarantine", "--json", settings=settings).stdout.splitlines()

    assert json.loads(line) == {"object": name}
    assert (web.folder / "outputs" / name).is_file()


@pytest.fixture
def kept(web: Web) -> Manifest:
    """A stored prediction with a file, a loss, a handler that was told, and one before and one after it."""
    storage = Storage((web.folder / "outputs").as_uri())
    files = (
        KeptFile("/output/0", "https://x/a.png", "output-0.png", "image/png", 3, "0" * 64),
        KeptFile("/output/1", "https://x/b.png", error="not_found"),
        KeptFile("/input/image", "https://x/c.png", error="host_refused"),
    )
    parsed = parse(prediction("kept", model="owner/name"), Kind.PREDICTION)
    context = followed({"order": 42}, Lineage(Kind.PREDICTION, "before", "draw", 1))
    manifest = Manifest(parsed, files, None, Receipt(NOW, "msg_1", context=context, parent="before"), NOW)
    storage.commit(manifest)
    told = {"webhook_id": "msg_2", "outcome": "delivered", "attempts": 2}
    storage.put_bytes("predictions/kept/told-gallery.json", json.dumps(told).encode())
    storage.put_bytes("predictions/kept/told-upscale.json", json.dumps({**told, "child": "after"}).encode())
    dead = {**told, "outcome": "dead", "error": "status_500"}
    storage.put_bytes("predictions/kept/told-mail.json", json.dumps(dead).encode())
    return manifest


def test_show_tells_all_that_is_known(settings: dict[str, str], web: Web, kept: Manifest) -> None:
    web.outcome(prediction("kept"))

    done = outkeep("show", "kept", settings=settings)

    assert done.returncode == 0
    for part in (
        "prediction kept",
        "status  succeeded",
        "state   received",
        "model   owner/name",
        "output-0.png  3 bytes  image/png",
        "LOST /output/1: not_found",
        "    not kept /input/image: host_refused",
        "told gallery: delivered, attempts: 2",
        "told mail: dead (status_500), attempts: 2",
        "follows before by draw",
        "followed by after (upscale)",
    ):
        assert part in done.stdout


def test_show_speaks_json(settings: dict[str, str], web: Web, kept: Manifest) -> None:
    web.outcome(prediction("kept"))

    shown = json.loads(outkeep("show", "kept", "--json", settings=settings).stdout)

    assert shown["manifest"] == json.loads(kept.to_json())
    assert shown["record"]["state"] == "received"
    assert shown["told"]["gallery"]["outcome"] == "delivered"
    assert shown["lineage"] == {"kind": "prediction", "parent": "before", "handler": "draw", "depth": 1}
    assert shown["children"] == {"upscale": "after"}


def test_what_others_wrote_cannot_steer_the_terminal(
    settings: dict[str, str], web: Web, kept: Manifest
) -> None:
    web.outcome(prediction("kept", model="a/\x1b[2J\u202eb\x9b31m"))
    prediction_of = parse(prediction("odd", model="\x1b]0;mine\x07"), Kind.PREDICTION)
    files = (KeptFile("/output/\r\x1b[1A", "https://x/a.png", error="not_found"),)
    Storage((web.folder / "outputs").as_uri()).commit(
        Manifest(prediction_of, files, None, Receipt(NOW, "msg_1"), NOW)
    )

    for command in (("ls",), ("show", "odd"), ("ls", "--json"), ("show", "odd", "--json")):
        done = outkeep(*command, settings=settings)
        assert done.returncode == 0
        assert all(line.isprintable() for line in done.stdout.split("\n"))
        for letter in "\x1b\x07\x9b\r\u202e":
            assert letter not in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8"])
def test_what_a_terminal_or_pipe_has_no_sign_for_is_escaped(
    settings: dict[str, str], web: Web, encoding: str
) -> None:
    model = "müller/кот-\u732b-\U0001f408"
    web.outcome(prediction("words", model=model, output="dé\u732b", error="e\u0301чto"))
    storage = Storage((web.folder / "outputs").as_uri())
    parsed = parse(prediction("words", model=model), Kind.PREDICTION)
    lost = (KeptFile("/output/\u732b", "https://x/é.png", error="not_found"),)
    storage.commit(Manifest(parsed, lost, None, Receipt(NOW, "msg_1", query={"é": "\u732b"}), NOW))
    expected = model.encode(encoding, "backslashreplace").decode(encoding)
    terminal = settings | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    if encoding == "ascii":  # what Python itself makes of the variable, once
        real = subprocess.run(
            [sys.executable, "-m", "app.cli", "ls"],
            env=clean_environment(terminal),
            capture_output=True,
            check=True,
        )
        assert expected in real.stdout.decode(encoding)
    for command in (("ls",), ("show", "words"), ("doctor",), ("run", "--help")):
        done = outkeep(*command, settings=terminal, encoding=encoding)
        assert "Traceback" not in done.stderr
        assert done.returncode == (command == ("doctor",))
        if command[0] in {"ls", "show"}:
            assert expected in done.stdout
    for shown in (("ls", "--json"), ("show", "words", "--json")):
        lines = outkeep(*shown, settings=terminal, encoding=encoding).stdout
        documents = [json.loads(line) for line in (lines.splitlines() if shown[0] == "ls" else [lines])]
        assert model in json.dumps(documents, ensure_ascii=False)


def test_link_gives_fresh_links_to_what_is_stored(settings: dict[str, str], web: Web, kept: Manifest) -> None:
    Storage((web.folder / "outputs").as_uri()).put_bytes("predictions/kept/output-0.png", b"png")
    public = settings | {"OUTKEEP_PUBLIC_URL": f"http://127.0.0.1:{web.port}"}
    done = outkeep("link", "kept", settings=public)
    [url] = done.stdout.splitlines()
    assert done.stderr == ""
    with urlopen(url) as answer:
        assert answer.read() == b"png"
    named = outkeep("link", "kept", "prediction.json", "--json", settings=public)
    found = json.loads(named.stdout)
    with urlopen(found["url"]) as answer:
        assert (found["name"], json.load(answer)["id"]) == ("prediction.json", "kept")
    assert complaints(outkeep("link", "kept", "output-1.png", settings=public), 1) == [
        "kept has no stored file output-1.png; there are: output-0.png"
    ]
    assert complaints(outkeep("link", "unknown", settings=public), 1) == ["nothing is stored of unknown"]
    assert outkeep("link", "../x", settings=public).returncode == 2
    assert "OUTKEEP_PUBLIC_URL is not set" in outkeep("link", "kept", settings=settings).stderr


@pytest.mark.parametrize("days", [-5.0, 10.0])
def test_ages_links_and_since_go_by_the_clock_of_redis(
    settings: dict[str, str], web: Web, redis: Redis, tmp_path: Path, days: float
) -> None:
    host = WrongClock(tmp_path, days * 86400)
    wrong = settings | host.environment | {"OUTKEEP_PUBLIC_URL": f"http://127.0.0.1:{web.port}"}
    now, storage = datetime.now(UTC), Storage((web.folder / "outputs").as_uri())
    web.outcome(prediction("old"))
    before = now - timedelta(minutes=150)
    redis.hset(record_key(Kind.PREDICTION, "old"), "received_at", format_time(before))
    assert " 2 h\n" in outkeep("ls", settings=wrong).stdout

    for name, ago in (("old", 4 * 86400), ("young", 0)):
        parsed = parse(prediction(name), Kind.PREDICTION)
        file = KeptFile("/output", "https://x/a.png", "output-0.png", "image/png", 3, "0" * 64)
        at = now - timedelta(seconds=ago)
        storage.put_bytes(f"predictions/{name}/output-0.png", b"png")
        storage.commit(Manifest(parsed, (file,), None, Receipt(at, "msg_1"), at))
        path = web.folder / f"outputs/predictions/{name}/prediction.json"
        os.utime(path, (at.timestamp(), at.timestamp()))
    since = outkeep("verify", "--since", "2d", "--json", settings=wrong).stdout.splitlines()[-1]
    assert json.loads(since)["predictions"] == 1
    with urlopen(outkeep("link", "young", settings=wrong).stdout.strip()) as answer:
        assert answer.read() == b"png"


def test_a_simulator_says_when_a_webhook_fails(tmp_path: Path) -> None:
    port = free_port()
    options = ["--token", "t", "--pace", "0", "--port", str(port)]
    command = [sys.executable, "-m", "app.cli", "simulate", *options]
    said = tmp_path / "said"
    with (
        said.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as running,
    ):
        try:
            assert running.stdout is not None
            while not running.stdout.readline().startswith("OUTKEEP_OUTPUT_HOSTS"):
                pass
            hook = f"http://127.0.0.1:{free_port()}/webhooks/replicate?outkeep_context=canary"
            request = Request(
                f"http://127.0.0.1:{port}/v1/models/outkeep/image/predictions",
                json.dumps({"input": {}, "webhook": hook, "webhook_events_filter": ["completed"]}).encode(),
                {"authorization": "Bearer t", "content-type": "application/json"},
            )
            with urlopen(request) as answer:
                identity = json.load(answer)["id"]
            wait_until(lambda: "; tried again\n" in said.read_text())
            line = next(line for line in said.read_text().splitlines() if line.startswith("webhook "))
            assert f"webhook 'completed' of {identity} to {hook.partition('?')[0]}: " in line
            assert "ClientConnectorError" in line
            assert line.endswith("; tried again")
        finally:
            running.kill()


def test_what_is_set_wrong_is_not_called_not_set(tmp_path: Path) -> None:
    wrong = {
        "OUTKEEP_DATA": str(tmp_path),
        "REDIS_URL": "http://x",
        "REPLICATE_WEBHOOK_SECRET": "whsec_",
        "REPLICATE_API_TOKEN": "a b",
        "OUTKEEP_SECRET_KEY": "short",
    }
    for command in ("doctor", "config", "serve", "ls", "url"):
        done = outkeep(command, settings=wrong)
        said = done.stdout + done.stderr
        assert "not set" not in said
        assert all(name in said for name in wrong if name != "OUTKEEP_DATA")
        assert "(embedded)" not in said


def test_an_id_that_two_share_gives_one_document_for_the_kind_that_is_named(
    settings: dict[str, str], web: Web
) -> None:
    web.outcome(prediction("shared"))
    web.outcome(prediction("shared"), "/webhooks/replicate/trainings")

    both = outkeep("show", "shared", settings=settings)
    assert "prediction shared\n" in both.stdout
    assert "training shared\n" in both.stdout
    unclear = outkeep("show", "shared", "--json", settings=settings)
    assert (unclear.returncode, unclear.stdout) == (2, "")
    assert "a prediction and a training have this id; add --kind" in unclear.stderr
    one = outkeep("show", "shared", "--json", "--kind", "training", settings=settings)
    assert json.loads(one.stdout)["record"]["kind"] == "training"


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_an_unreadable_manifest_does_not_hide_the_record(
    settings: dict[str, str], web: Web, option: tuple[str, ...]
) -> None:
    web.outcome(prediction("spoiled"))
    Storage((web.folder / "outputs").as_uri()).put_bytes("predictions/spoiled/prediction.json", b"[]")

    done = outkeep("show", "spoiled", *option, settings=settings)

    assert done.returncode == 1
    assert "received" in done.stdout
    assert done.stderr.startswith("outkeep: the manifest in storage cannot be used")


def test_a_torn_outcome_is_shown_as_one(settings: dict[str, str], web: Web, kept: Manifest) -> None:
    storage = Storage((web.folder / "outputs").as_uri())
    storage.put_bytes("predictions/kept/told-torn.json", b'{"outco')

    assert "told torn: unreadable" in outkeep("show", "kept", settings=settings).stdout


def test_show_needs_no_redis(settings: dict[str, str], kept: Manifest) -> None:
    away = {**settings, "REDIS_URL": f"redis://127.0.0.1:{free_port()}"}

    done = outkeep("show", "kept", settings=away)

    assert done.returncode == 0
    assert "output-0.png" in done.stdout
    assert done.stderr == "Redis does not answer (ConnectionError): shown from storage alone\n"


def test_show_says_that_it_saw_the_storage_alone(settings: dict[str, str], tmp_path: Path) -> None:
    """Somebody in the wrong folder must not believe that a prediction is lost."""
    elsewhere = {name: value for name, value in settings.items() if name != "REDIS_URL"}

    done = outkeep("show", "x", settings={**elsewhere, "OUTKEEP_DATA": str(tmp_path)})
    said = f"REDIS_URL: not set, and no embedded server answers on {tmp_path}"

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{said}; set it, or start `outkeep up`: shown from storage alone",
        "outkeep: nothing is known of x",
    ]


def test_show_of_an_unknown_id_ends_with_1(settings: dict[str, str]) -> None:
    assert complaints(outkeep("show", "nobody", settings=settings), 1) == ["nothing is known of nobody"]


def test_show_of_an_odd_id_is_misuse(settings: dict[str, str]) -> None:
    assert outkeep("show", "../x", settings=settings).returncode == 2


def test_looking_creates_nothing(settings: dict[str, str], tmp_path: Path) -> None:
    elsewhere = {**settings, "OUTKEEP_DATA": str(tmp_path / "none")}
    looks = ("ls", "ls --quarantine", "show x", "config", "healthcheck", "send")
    for command in (*looks, "doctor", "link x", "verify --all"):
        outkeep(*command.split(), settings=elsewhere, cwd=tmp_path)
        assert list(tmp_path.iterdir()) == [], command


def test_config_shows_what_holds_and_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "outkeep.toml").write_text("")
    (tmp_path / "token").write_text("r8_canary\n")
    settings = {
        "OUTKEEP_SLOTS": "7",
        "REPLICATE_API_TOKEN_FILE": str(tmp_path / "token"),
        "REPLICATE_WEBHOOK_SECRET": SECRET,
        "OUTKEEP_SECRET_KEY": SECRET_KEY,
        "REDIS_URL": "redis://:hunter2@localhost",
        "OUTKEEP_PROXY": "http://u:hunter2@proxy:3128",
        "OUTKEEP_ALLOWED_HOSTS": "outkeep.example.com *.lan",
        "OUTKEEP_RETENTION": "36h",
    }

    done = outkeep("config", settings=settings, cwd=tmp_path)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines()}

    assert done.returncode == 0
    assert rows["OUTKEEP_SLOTS"] == "7 environment"
    assert rows["OUTKEEP_STORAGE"] == f"{(tmp_path / 'data/outputs').as_uri()} default"
    assert rows["OUTKEEP_HANDLERS"] == "outkeep.toml default"
    assert rows["OUTKEEP_RECONCILE"] == "all default"
    assert rows["OUTKEEP_MAX_BODY"] == "32.0MiB default"
    assert rows["OUTKEEP_NOTIFY_PRIVATE"] == "false default"
    assert rows["OUTKEEP_ALLOWED_HOSTS"] == "outkeep.example.com *.lan environment"
    assert rows["OUTKEEP_RETENTION"] == "36h environment"
    assert rows["OUTKEEP_RECORD_TTL"] == "7d default"
    assert rows["REPLICATE_API_TOKEN"] == f"(set, not shown) file {tmp_path / 'token'}"
    for secret in ("canary", "hunter2", SECRET, SECRET_KEY):
        assert secret not in done.stdout + done.stderr


def test_config_shows_no_secret_that_stands_where_a_path_belongs(tmp_path: Path) -> None:
    done = outkeep("config", settings={"REPLICATE_WEBHOOK_SECRET_FILE": SECRET}, cwd=tmp_path)
    assert done.returncode == 2
    assert "REPLICATE_WEBHOOK_SECRET_FILE" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_config_speaks_json_and_ends_with_2_when_something_is_wrong(tmp_path: Path) -> None:
    right = outkeep("config", "--json", settings={"REPLICATE_WEBHOOK_SECRET": SECRET}, cwd=tmp_path)
    assert right.returncode == 0
    document = json.loads(right.stdout)
    assert document["settings"]["OUTKEEP_RECONCILE"] == {"value": "off", "from": "default"}
    assert document["settings"]["REPLICATE_API_TOKEN"] == {"value": None, "from": "default"}
    assert document["problems"] == []

    mistakes = {
        "PORT": "x",
        "OUTKEEP_X": "",
        "OUTKEEP_HANDLERS": "/none.toml",
        "OUTKEEP_STORAGE": "file:///proc/none",
    }
    wrong = outkeep("config", "--json", settings=mistakes, cwd=tmp_path)
    assert wrong.returncode == 2
    told = {problem.partition(":")[0] for problem in json.loads(wrong.stdout)["problems"]}
    assert told == {*mistakes, "REPLICATE_WEBHOOK_SECRET"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "doubted"),
    [
        ("OUTKEEP_MAX_BODY", "32", True),
        ("OUTKEEP_MAX_FILE", "10", True),
        ("OUTKEEP_DISK_FLOOR", "5", True),
        ("OUTKEEP_MAX_BODY", " 1.5 ", True),
        ("OUTKEEP_MAX_FILE", "1000000", True),
        ("OUTKEEP_MAX_BODY", "1048576", False),
        ("OUTKEEP_MAX_BODY", "32B", False),
        ("OUTKEEP_MAX_FILE", "10 gb", False),
        ("OUTKEEP_DISK_FLOOR", "0", False),
        ("OUTKEEP_DISK_FLOOR", "5368709120", False),
    ],
)
def test_a_size_whose_unit_was_forgotten_is_warned_of(
    tmp_path: Path, name: str, text: str, *, doubted: bool
) -> None:
    (tmp_path / "size").write_text(f"{text}\n")
    said = f"{name}: a number alone is bytes, and {text.strip()} of them are hardly meant; "
    for setting in ({name: text}, {f"{name}_FILE": str(tmp_path / "size")}):
        settings = {"REPLICATE_WEBHOOK_SECRET": SECRET, **setting}
        shown = outkeep("config", settings=settings, cwd=tmp_path)
        assert (shown.returncode, said in shown.stderr) == (0, doubted)
        document = json.loads(outkeep("config", "--json", settings=settings, cwd=tmp_path).stdout)
        assert (document["problems"], len(document["doubts"])) == ([], doubted)
        examined = outkeep("doctor", settings=settings, cwd=tmp_path).stdout
        assert (f"warn sizes: {said}" in examined) is doubted


def test_healthcheck_tells_life_from_death(settings: dict[str, str]) -> None:
    alive = outkeep("healthcheck", settings=settings)
    assert (alive.returncode, alive.stdout) == (0, "receiver is alive\n")

    (complaint,) = complaints(outkeep("healthcheck", settings={**settings, "PORT": str(free_port())}), 1)
    assert complaint.startswith("no receiver answers on 127.0.0.1:")
    assert complaints(outkeep("healthcheck", "persist", settings=settings), 1) == [
        "no worker of the queue persist lives on this host"
    ]
