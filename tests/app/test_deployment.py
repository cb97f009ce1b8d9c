"""What a process starts with, proven at once."""

import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.errors import ConfigurationError
from app.core.handlers import Webhook
from app.deployment import connect, own_keys, prepare
from app.disk import owner_problems
from app.settings import load
from app.storage.store import Storage
from app.valkey.client import find_redis
from tests import forked
from tests.receive.web import SECRET, SECRET_KEY, clean_environment

HANDLER = '[[handler]]\nname = "gallery"\nurl = "https://example.com/x"\nsecret = "{secret}"\n'


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {"OUTKEEP_DATA": str(folder), "REPLICATE_WEBHOOK_SECRET": SECRET, **more}


def problems(settings: dict[str, str], *, receives: bool = True) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        prepare(settings, receives=receives)
    return list(error.value.problems)


def test_a_right_configuration_gives_settings_and_handlers(tmp_path: Path) -> None:
    file = tmp_path / "handlers.toml"
    file.write_text(HANDLER.format(secret=SECRET))

    settings, handlers = prepare(environment(tmp_path, OUTKEEP_HANDLERS=str(file)), receives=True)

    assert settings.handlers == file
    assert [handler.name for handler in handlers] == ["gallery"]
    assert list(tmp_path.iterdir()) == [file]


def test_a_receiver_needs_a_secret_and_a_worker_does_not(tmp_path: Path) -> None:
    without = {"OUTKEEP_DATA": str(tmp_path)}

    (problem,) = problems(without)
    assert problem.startswith("REPLICATE_WEBHOOK_SECRET: not set")
    prepare(without)


def test_a_redis_of_ones_own_needs_a_key(tmp_path: Path) -> None:
    (problem,) = problems(environment(tmp_path, REDIS_URL="redis://localhost"))
    assert problem.startswith("OUTKEEP_SECRET_KEY: needed together with REDIS_URL")


@pytest.mark.parametrize("mode", ["all", "known"])
def test_looking_at_replicate_needs_a_token(tmp_path: Path, mode: str) -> None:
    settings = environment(tmp_path, OUTKEEP_RECONCILE=mode)

    (problem,) = problems(settings, receives=False)

    assert problem.startswith(f"OUTKEEP_RECONCILE: {mode!r} needs REPLICATE_API_TOKEN, which is not set")
    prepare(settings | {"REPLICATE_API_TOKEN": "r8_x"})
    prepare(settings | {"OUTKEEP_RECONCILE": "off"})


def test_a_worker_that_runs_functions_needs_no_token_whatever_others_do(tmp_path: Path) -> None:
    file = tmp_path / "handlers.toml"
    file.write_text('[[handler]]\nname = "upscale"\npredict = "nightmareai/real-esrgan"\ninput = {}\n')
    settings = environment(tmp_path, OUTKEEP_HANDLERS=str(file), OUTKEEP_RECONCILE="all")

    assert len(problems(settings, receives=False)) == 2
    prepare(settings, forks=True)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "handlers.toml"
    file.write_text('[[handler]]\nname = "a b"\nurl = "x"\nsecret = "env:NOT_THERE"\n')
    (tmp_path / "file").write_text("")
    wrong = {
        "OUTKEEP_DATA": str(tmp_path),
        "OUTKEEP_NONE": "1",
        "REPLICATE_WEBHOOK_SECRET": "whsec_!",
        "REDIS_URL": "redis://localhost",
        "OUTKEEP_HANDLERS": str(file),
        "OUTKEEP_STORAGE": (tmp_path / "file").as_uri(),
    }

    told = problems(wrong)

    assert sorted({problem.partition(":")[0] for problem in told}) == [
        "OUTKEEP_HANDLERS",
        "OUTKEEP_NONE",
        "OUTKEEP_SECRET_KEY",
        "OUTKEEP_STORAGE",
        "REPLICATE_WEBHOOK_SECRET",
    ]
    assert sum(problem.startswith("OUTKEEP_HANDLERS") for problem in told) == 3


@pytest.mark.parametrize("name", ["OUTKEEP_DATA", "OUTKEEP_STORAGE"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "below"
    value = folder.as_uri() if name == "OUTKEEP_STORAGE" else str(folder)

    (problem,) = problems({**environment(tmp_path), name: value})

    assert problem == f"{name}: cannot write to {folder}: Not a directory; check its owner and mode"


def test_the_home_of_a_path_is_found_for_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "my.toml").write_text(HANDLER.format(secret="file:~/secret"))

    settings, handlers = prepare({"OUTKEEP_DATA": "~/data", "OUTKEEP_HANDLERS": "~/my.toml"})

    assert settings.data == tmp_path / "data"
    assert settings.storage_url == (tmp_path / "data" / "outputs").as_uri()
    assert len(handlers) == 1


def test_a_mistaken_storage_does_not_leave_a_default_one_behind(tmp_path: Path) -> None:
    (problem,) = problems(environment(tmp_path, OUTKEEP_STORAGE="outputs"))

    assert problem.startswith("OUTKEEP_STORAGE: it must start with")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"\xff", "is not UTF-8 text"),
        (b"[[handler", "not TOML"),
        (HANDLER.format(secret="hunter2").encode(), "does not start with"),
        (HANDLER.format(secret="env:NOT_THERE").encode(), "the environment variable NOT_THERE is not set"),
        (HANDLER.format(secret="file:/none").encode(), "cannot read /none"),
        (HANDLER.format(secret="file:a\\u0000b").encode(), "no file has such a name"),
        (HANDLER.format(secret="env:whsec_hunter2").encode(), "is a secret itself; write it without env:"),
        (HANDLER.format(secret="file:whsk_hunter2").encode(), "is a secret itself; write it without file:"),
    ],
)
def test_a_handlers_file_with_a_mistake_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "handlers.toml"
    if content is not None:
        file.write_bytes(content)

    (problem,) = problems(environment(tmp_path, OUTKEEP_HANDLERS=str(file)))

    assert problem.startswith("OUTKEEP_HANDLERS: ")
    assert str(file) in problem
    assert reason in problem
    assert "hunter2" not in problem


def test_the_secret_of_a_handler_is_read_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    for reference in (SECRET, "env:GALLERY", f"file:{tmp_path}/secret"):
        file = tmp_path / "handlers.toml"
        file.write_text(HANDLER.format(secret=reference))
        settings = environment(tmp_path, OUTKEEP_HANDLERS=f"{file}\r", GALLERY=f"{SECRET}\r\n")
        (handler,) = prepare(settings)[1]
        assert isinstance(handler.target, Webhook)
        assert len(handler.target.keys) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-sig", "crlf"])
def test_a_key_that_was_restored_by_an_editor_is_still_the_key(tmp_path: Path, encoding: str) -> None:
    [key] = own_keys(tmp_path)
    text = key.decode()
    (tmp_path / "secret.key").write_bytes(
        {
            "utf-16-le-sig": b"\xff\xfe" + text.encode("utf-16-le"),
            "crlf": f"{text}\r\n".encode(),
        }.get(encoding)
        or text.encode(encoding)
    )
    assert own_keys(tmp_path) == (key,)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_handlers_file_and_secrets_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(f"{SECRET}\r\n".encode(encoding))
    file = tmp_path / "handlers.toml"
    file.write_bytes(HANDLER.format(secret=f"file:{secret}").replace("\n", "\r\n").encode(encoding))
    (handler,) = prepare(environment(tmp_path, OUTKEEP_HANDLERS=str(file)))[1]
    assert isinstance(handler.target, Webhook)
    assert len(handler.target.keys) == 1


def test_without_any_redis_the_way_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL: not set, and no embedded server answers on"):
        find_redis(load({"OUTKEEP_DATA": str(tmp_path)}))


def test_no_secret_shows_in_a_deployment(tmp_path: Path) -> None:
    url = "redis://:hunter2@localhost"
    settings = environment(tmp_path, REDIS_URL=url, OUTKEEP_SECRET_KEY=SECRET_KEY)

    shown = repr(connect(*prepare(settings, receives=True)))

    assert "hunter2" not in shown
    assert SECRET_KEY not in shown
    assert SECRET not in shown


SIGNED = {"REPLICATE_WEBHOOK_SECRET": SECRET}
PREDICTS = '[[handler]]\nname = "x"\npredict = "owner/model"\n'


@pytest.mark.parametrize(
    ("wrong", "more"),
    [
        ({"OUTKEEP_SECRET_KEY": "short"}, SIGNED | {"REDIS_URL": "redis://localhost"}),
        ({"OUTKEEP_SECRET_KEY_FILE": "/none"}, SIGNED | {"REDIS_URL": "redis://localhost"}),
        ({"REDIS_URL": "localhost"}, SIGNED),
        ({"REPLICATE_WEBHOOK_SECRET": "whsec_!"}, {}),
        ({"REPLICATE_WEBHOOK_SECRET_FILE": "/none"}, {}),
        ({"OUTKEEP_COG_TOKEN": " x"}, {}),
        ({"REPLICATE_API_TOKEN": "r8 x"}, {"OUTKEEP_RECONCILE": "all"}),
        ({"REPLICATE_API_TOKEN_FILE": "/none"}, {"OUTKEEP_RECONCILE": "known"}),
        ({"REPLICATE_API_TOKEN": "r8_x "}, {"OUTKEEP_HANDLERS": "predicts.toml"}),
        ({"REPLICATE_API_TOKEN": "r8\tx"}, {}),
        ({"OUTKEEP_STORAGE": "s3:/bucket"}, SIGNED | {"OUTKEEP_STORAGE_PUBLIC_URL": "https://cdn.example"}),
    ],
)
def test_what_is_set_wrong_is_complained_of_once_and_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], more: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "predicts.toml").write_text(PREDICTS)
    [problem] = problems({"OUTKEEP_DATA": str(tmp_path)} | more | wrong)
    assert problem.startswith(f"{next(iter(wrong))}: ")
    assert not any(words in problem for words in ("not set", "needed together", "needs", "unset it"))


def test_who_moves_out_of_the_embedded_server_is_led_to_the_key_used_so_far(tmp_path: Path) -> None:
    own_keys(tmp_path)
    [problem] = problems(environment(tmp_path, REDIS_URL="redis://localhost"))
    assert f"set OUTKEEP_SECRET_KEY_FILE={tmp_path / 'secret.key'}" in problem
    assert "openssl" not in problem
    key = str(tmp_path / "secret.key")
    prepare(environment(tmp_path, REDIS_URL="redis://x", OUTKEEP_SECRET_KEY_FILE=key))


OURS = ("secret.key", "spool", "outputs", "predictions", "trainings", "up.lock", "valkey", "tmp")


@pytest.mark.parametrize("name", OURS)
def test_what_another_user_has_made_is_left_to_that_user(tmp_path: Path, name: str) -> None:
    us = os.geteuid()
    assert owner_problems("OUTKEEP_DATA", tmp_path / "none", us) == []
    assert owner_problems("OUTKEEP_DATA", tmp_path, us + 1 if us else 1) == [], "nothing is there yet"
    (tmp_path / name).mkdir()
    assert owner_problems("OUTKEEP_DATA", tmp_path, us) == []
    [problem] = owner_problems("OUTKEEP_DATA", tmp_path, us + 1)
    who = pwd.getpwuid(us).pw_name
    assert problem == (
        f"OUTKEEP_DATA: {tmp_path} belongs to the user {who}; run this as that user: sudo -u {who} outkeep …"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_root_writes_nothing_where_another_user_serves(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 54321, 54321)
    assert problems(environment(data)) == [
        f"OUTKEEP_DATA: {data} belongs to the user with number 54321; run this as that user"
    ]
    for command in ("url", "serve", "up", "work persist", "rm abc", "rebuild", "doctor"):
        done = forked.run(
            [sys.executable, "-m", "app.cli", *command.split()],
            env=clean_environment(environment(data)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in {1, 2}
        assert "belongs to the user with number 54321" in done.stdout + done.stderr
    assert list(data.iterdir()) == []


AS_NOBODY = """
import encodings.idna, logging.config, os  # all is loaded while it may be read
import uvicorn
import app.up.everything, app.main, app.cli.running
from app.cli.root import cli, main
for name in cli.commands: cli.commands[name]
if os.getuid() == 0: os.setgid(65534); os.setuid(65534)
main()
"""


@pytest.fixture
def closed() -> Iterator[Path]:
    """The data of a service, as it is made, in a folder that other users reach."""
    with tempfile.TemporaryDirectory(prefix="outkeep-") as name:
        Path(name).chmod(0o755)
        data = Path(name) / "data"
        own_keys(data)
        (data / "spool").mkdir(mode=0o700)
        Storage((data / "outputs").as_uri()).put_bytes("predictions/x/output-0.png", b"png")
        data.chmod(0o700 if os.geteuid() == 0 else 0)
        yield data
        data.chmod(0o700)


REDIS = {"REDIS_URL": "redis://127.0.0.1:9", "OUTKEEP_SECRET_KEY": SECRET_KEY}


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("ls", {}),
        ("show x", {}),
        ("rm x --yes", {}),
        ("healthcheck persist", {}),
        ("replay --failed", {}),
        ("url", {}),
        ("up", {}),
        ("doctor", {}),
        ("doctor --json", REDIS),
        ("doctor", {"REDIS_URL": REDIS["REDIS_URL"]}),
        ("serve", REDIS),
        ("handlers", REDIS),
        ("config", REDIS),
    ],
)
def test_who_may_not_look_into_the_data_is_told_whose_it_is(
    closed: Path, command: str, settings: dict[str, str]
) -> None:
    """And neither that nothing runs there, nor that it should be opened."""
    done = forked.run(
        [sys.executable, "-c", AS_NOBODY, *command.split()],
        cwd=Path(__file__).parents[2],
        env=clean_environment(environment(closed, **settings) | {"HOME": "/nonexistent"}),
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode in {1, 2}
    root = os.geteuid() == 0
    assert ("belongs to the user root; run this as that user" if root else "Permission denied") in said
    assert "no embedded server" not in said
    assert "check its owner" not in said or not root
    assert "Traceback" not in said
    if "doctor" in command:
        assert "webhook secret" in done.stdout
        assert "spool" in done.stdout


def test_a_key_is_made_once_for_us_alone(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"

    first, second = own_keys(data), own_keys(data)

    assert first == second
    assert len(first[0]) == 64
    assert stat.S_IMODE((data / "secret.key").stat().st_mode) == 0o600
    assert [path.name for path in data.iterdir()] == ["secret.key"]


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = (
        "import sys; from pathlib import Path; from app.deployment import own_keys\n"
        "print('ready', flush=True)\n"
        "while not Path(sys.argv[1]).exists(): pass\n"
        "print(own_keys(Path(sys.argv[2]))[0].decode())"
    )
    command = [sys.executable, "-c", code, str(gate), str(tmp_path / "data")]
    children = [forked.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    gate.touch()

    keys = {child.communicate(timeout=60)[0] for child in children}

    assert len(keys) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["secret.key"]


def test_what_a_killed_start_left_behind_does_not_matter(tmp_path: Path) -> None:
    """A killed start leaves a draft of the key; in a container its number comes again."""
    (tmp_path / f"secret.key.{os.getpid()}").write_text("half a k")

    assert own_keys(tmp_path) == own_keys(tmp_path)


@pytest.mark.parametrize("content", ["", "short", "\x80" * 40])
def test_a_broken_key_is_not_replaced_in_silence(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret.key").write_text(content, encoding="latin-1")

    with pytest.raises(ConfigurationError, match="cannot be read as a key; restore it from a backup"):
        own_keys(tmp_path)
    assert (tmp_path / "secret.key").read_text(encoding="latin-1") == content


def test_a_data_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigurationError, match="OUTKEEP_DATA: cannot read or make"):
        own_keys(tmp_path / "file" / "data")
