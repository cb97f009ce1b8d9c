"""Dockerfile and compose.yaml: linted, in agreement with the program, and run as far as that goes without an
engine: what the image holds is put together here, and the services of the Compose file run from it."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints
from urllib.request import urlopen

import psutil
import pytest
from packaging.requirements import Requirement
from redis import Redis

from app.cli.root import cli
from app.core import notation
from app.core.findings import DURABLE
from app.core.handlers import MEMORY
from app.main import GRACE as RECEIVER_GRACE
from app.settings import VARIABLES, Settings
from app.up.lifeline import GRACE as WORKER_GRACE
from app.valkey.server import program
from tests import container
from tests.deployed import OURS, REQUIRED, SERVICES, Deployed

NOT_OURS = {"PATH", "HOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONSAFEPATH"}


def in_image(word: str) -> list[str]:
    last = container.dockerfile()[-1].stage
    return [one.argument for one in container.dockerfile() if one.word == word and one.stage == last]


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_hadolint_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    command = [str(linter), "Dockerfile"]
    answer = subprocess.run(command, cwd=container.PROJECT, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_every_package_of_the_image_is_installed_by_its_hash() -> None:
    runs = [one.argument for one in container.dockerfile() if one.word == "RUN"]
    installs = [
        command for run in runs for command in run.split("&&") if " install " in command and "pip " in command
    ]
    assert len(installs) == 3
    assert all("--require-hashes" in one or "--no-index --no-deps" in one for one in installs)


@pytest.mark.parametrize(
    ("version", "works"),
    [
        ("1.0.6", False),
        ("1.0.7", True),
        ("1.1.0", True),
        ("1.99", True),
        ("2.0.0", False),
        ("2.0.0b1", False),
    ],
)
def test_the_client_of_replicate_is_one_that_we_know(version: str, *, works: bool) -> None:
    """2.x has neither `replicate.client` nor a verifier."""
    stated = tomllib.loads((container.PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    [client] = [one for one in map(Requirement, stated) if one.name == "replicate"]
    assert client.specifier.contains(version, prereleases=True) is works


def test_the_build_backend_is_complete_in_the_pattern_that_picks_it() -> None:
    (pattern,) = re.findall(r"\^\(([a-z|-]+)\)==", (container.PROJECT / "Dockerfile").read_text())
    lock = (container.PROJECT / "requirements-dev.lock").read_text()
    needed = {
        "hatchling",
        *re.findall(r"^([a-z0-9-]+)==(?:(?!^[a-z]).)*?^    (?:# via|#  ) hatchling$", lock, re.M | re.S),
    }
    assert set(pattern.split("|")) == needed


def test_the_image_runs_as_a_number_in_exec_form_and_stops_by_sigterm() -> None:
    assert in_image("USER") == ["10001:10001"]
    assert in_image("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(in_image("CMD")[0]) == ["outkeep", "serve"]
    assert json.loads(in_image("HEALTHCHECK")[0].partition(" CMD ")[2]) == ["outkeep", "healthcheck"]


def test_the_build_context_is_exactly_what_is_copied() -> None:
    lines = (container.PROJECT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copies = [one.argument.split()[:-1] for one in container.dockerfile() if one.word == "COPY"]
    assert let_in == {name for names in copies for name in names if not name.startswith(("--", "/"))}


def test_image_and_compose_name_only_settings_that_exist() -> None:
    named = {name for service in OURS.values() for name in service["environment"]}
    assert named | set(container.image_environment()) - NOT_OURS <= set(VARIABLES)


def test_compose_reads_its_own_variables_under_names_that_no_setting_has() -> None:
    """A setting by that name would change what it is."""
    text = (container.PROJECT / "compose.yaml").read_text()
    passed_on = {name for service in OURS.values() for name in service["environment"]}
    assert {name for name, _, _ in container.variables(text)} - passed_on == {"PUBLISH"}
    assert not {"PUBLISH"} & set(VARIABLES)


def test_secrets_are_required_and_have_no_default() -> None:
    text = (container.PROJECT / "compose.yaml").read_text()
    assert {name for name, kind, _ in container.variables(text) if kind == "?"} == set(REQUIRED)


def test_image_and_compose_agree() -> None:
    environment = container.image_environment()
    assert json.loads(in_image("VOLUME")[0]) == [environment["OUTKEEP_DATA"]]
    assert in_image("EXPOSE") == [environment["PORT"]]
    assert [port.rpartition(":")[2] for port in SERVICES["receiver"]["ports"]] == [environment["PORT"]]
    version = tomllib.loads((container.PROJECT / "pyproject.toml").read_text())["project"]["version"]
    for service in OURS.values():
        assert service["volumes"] == [f"data:{environment['OUTKEEP_DATA']}"]
        assert service["environment"]["OUTKEEP_HANDLERS"] == service["configs"][0]["target"]
        assert service["image"] == f"outkeep:{version}"


def test_only_the_receiver_can_be_reached_and_nothing_shares_its_port() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["receiver"]
    assert SERVICES["valkey"]["networks"] == ["inner"]
    assert container.compose()["networks"]["inner"] == {"internal": True}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_locked_down_checked_and_restarted(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert "logging" not in service


READERS: dict[str, set[str]] = {
    # Configuration, its checks, and what hides secrets from the log, read whatever there is.
    "app/settings.py": set(),
    "app/deployment.py": set(),
    "app/telemetry/redaction.py": set(),
    # `docker compose exec receiver` runs the commands.
    "app/health/doctor.py": {"receiver"},
    "app/cli/*": {"receiver"},
    "app/main.py": {"receiver"},
    "app/web/service.py": {"receiver"},
    "app/web/outgoing.py": {"receiver"},
    # No service runs `outkeep up`.
    "app/up/everything.py": set(),
    "app/receive/keyring.py": {"receiver"},
    "app/reconcile/passes.py": {"worker"},
    "workers/repair/reconciler.py": {"worker"},
    "workers/services.py:_following": {"worker"},
    "workers/services.py:_fetching_inputs": {"worker"},
    "workers/services.py:_proxy": {"worker"},
}
"""Where the code reads a secret → the services that run that code."""

SECRETS = {
    "webhook_secret": "REPLICATE_WEBHOOK_SECRET",
    "webhook_keys": "REPLICATE_WEBHOOK_SECRET",
    "api_token": "REPLICATE_API_TOKEN",
    "admin_token": "OUTKEEP_ADMIN_TOKEN",
    "cog_token": "OUTKEEP_COG_TOKEN",
    "proxy": "OUTKEEP_PROXY",
}
"""Attribute of `Settings` → the variable. Redis and the key that signs links are everybody's."""


def _readers() -> Iterator[tuple[str, str]]:
    """Each place in the code that reads a secret of the settings, and the variable."""
    for path in sorted([*container.PROJECT.glob("app/**/*.py"), *container.PROJECT.glob("workers/**/*.py")]):
        name = path.relative_to(container.PROJECT).as_posix()
        name = "app/cli/*" if name.startswith("app/cli/") else name
        for statement in ast.parse(path.read_text()).body:
            place = f"{name}:{getattr(statement, 'name', '')}"
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute) and node.attr in SECRETS and _is_settings(node.value):
                    yield (place if place in READERS else name), SECRETS[node.attr]


def _is_settings(node: ast.expr) -> bool:
    return (node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")) == "settings"


def test_a_service_is_given_the_secrets_that_it_reads_and_no_others() -> None:
    hints = get_type_hints(Settings)
    secrets = {name for name, attribute in VARIABLES.items() if "SecretStr" in str(hints[attribute])}
    assert secrets == set(SECRETS.values())
    found = set(_readers())
    assert {place for place, _ in found} <= set(READERS), "which services run this code? say it in READERS"
    needed = {name: {variable for place, variable in found if name in READERS[place]} for name in OURS}
    given = {name: {*service["environment"]} & {*SECRETS.values()} for name, service in OURS.items()}
    assert given == needed
    assert needed["receiver"] == set(SECRETS.values())
    assert needed["handle"] == set()


def test_every_service_is_given_all_settings_that_are_no_secrets() -> None:
    of_the_image = {"HOST", "PORT", "OUTKEEP_DATA"}
    for service in OURS.values():
        assert {*VARIABLES} - {*SECRETS.values()} - of_the_image <= {*service["environment"]}


def test_files_with_secrets_go_only_where_they_are_read() -> None:
    """`.env` goes nowhere: it holds what all services need together."""
    for name, service in OURS.items():
        files = [file["path"] for file in service["env_file"]]
        assert files == ["storage.env", "handlers.env", *(["functions.env"] if name == "handle" else [])]
        assert not any(file["required"] for file in service["env_file"])
    assert {"environment", "env_file"} & {*SERVICES["valkey"]} == set()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_limits_of_memory_and_processes(name: str) -> None:
    service = SERVICES[name]
    assert 0 < service["pids_limit"] <= 1024
    assert notation.size(_size(service["mem_limit"])) <= 3 << 30
    if name == "handle":  # a run of a function, and the worker that forks it
        assert notation.size(_size(service["mem_limit"])) >= MEMORY + (512 << 20)
    if name == "valkey":  # while it rewrites its log it may take twice its data
        room = service["command"][service["command"].index("--maxmemory") + 1]
        assert notation.size(_size(service["mem_limit"])) >= 2 * notation.size(_size(room.removesuffix("b")))


def _size(text: str) -> str:
    """A size as Docker writes it, as we do."""
    return f"{text[:-1]}{ {'m': 'MiB', 'g': 'GiB'}[text[-1]] }"


@pytest.mark.parametrize("name", OURS)
def test_a_service_and_its_health_check_are_commands_that_exist(name: str) -> None:
    for command in (OURS[name]["command"], OURS[name]["healthcheck"]["test"][1:]):
        assert command[0] == "outkeep"
        cli.commands[command[1]].make_context(command[1], list(command[2:]))
    assert OURS[name]["depends_on"] == {"valkey": {"condition": "service_healthy"}}


def test_a_service_may_take_longer_to_stop_than_its_program_does() -> None:
    assert seconds(SERVICES["receiver"]["stop_grace_period"]) > RECEIVER_GRACE
    for name in ("worker", "handle"):
        assert seconds(SERVICES[name]["stop_grace_period"]) > WORKER_GRACE


def test_valkey_of_the_compose_file_is_of_the_embedded_version() -> None:
    answer = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True)
    tag, _, digest = SERVICES["valkey"]["image"].partition("@")
    assert tag == f"valkey/valkey:{answer.stdout.split('v=')[1].split()[0]}"
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    deployed = Deployed(tmp_path_factory.mktemp("deployed"))
    try:
        for name in ("valkey", *OURS):
            deployed.start(name)
        yield deployed
    finally:
        deployed.stop()


def test_valkey_of_the_compose_file_is_durable(deployed: Deployed) -> None:
    with Redis(port=deployed.ports["valkey"]) as redis:
        assert {name: redis.config_get(name)[name] for name in DURABLE} == DURABLE
        assert redis.config_get("save") == {"save": ""}


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_from_the_packages_of_the_image_alone_and_is_found_healthy(
    deployed: Deployed, name: str
) -> None:
    deployed.wait(lambda: deployed.is_healthy(name), f"{name} does not become healthy")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_takes_a_small_part_of_its_limits(deployed: Deployed, name: str) -> None:
    if name in OURS:
        deployed.wait(lambda: deployed.is_healthy(name), f"{name} does not become healthy")
    process = psutil.Process(deployed.processes[name].pid)
    family = [process, *process.children(recursive=True)]
    assert sum(each.num_threads() for each in family) < SERVICES[name]["pids_limit"] / 2
    memory = sum(each.memory_info().rss for each in family)
    assert memory < notation.size(_size(SERVICES[name]["mem_limit"])) / 2


def test_the_health_check_of_a_worker_fails_where_none_runs(deployed: Deployed) -> None:
    elsewhere = deployed.run("outkeep", "healthcheck", "persist", PORT="1", REDIS_URL="redis://127.0.0.1:1")
    assert elsewhere.returncode == 1
    assert deployed.run("outkeep", "healthcheck", PORT="1").returncode == 1


def test_a_delivery_is_kept_and_only_the_data_folder_is_written(deployed: Deployed) -> None:
    deployed.wait(lambda: deployed.is_healthy("receiver"), "the receiver does not become healthy")
    url = f"http://127.0.0.1:{deployed.ports['receiver']}/webhooks/replicate"
    sent = deployed.run("outkeep", "send", "--to", url)
    assert sent.stdout == '202 {"outcome":"accepted"}\n'
    deployed.wait(lambda: '"dispatched"' in deployed.run("outkeep", "ls", "--json").stdout, "nothing is kept")
    (picture,) = deployed.data.glob("outputs/predictions/*/output-0.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_receiver_finds_everything_in_order(deployed: Deployed) -> None:
    for name in ("receiver", "worker"):
        deployed.wait(lambda name=name: deployed.is_healthy(name), f"{name} does not become healthy")  # type: ignore[misc]
    deployed.wait(lambda: _warnings(deployed) == ["warn token"], "more than the missing token is warned of")


def _warnings(deployed: Deployed) -> list[str]:
    with urlopen(f"http://127.0.0.1:{deployed.ports['receiver']}/readyz", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return [line.partition(":")[0] for line in lines if not line.startswith("ok ")]


def test_every_service_stops_by_sigterm_in_good_order(deployed: Deployed) -> None:
    for name in OURS:
        deployed.wait(lambda name=name: deployed.is_healthy(name), f"{name} does not become healthy")  # type: ignore[misc]
    assert deployed.stop() == dict.fromkeys(SERVICES, 0)
