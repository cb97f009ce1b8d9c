"""What Dockerfile and compose.yaml say, as data, and as much of it as can be done without an engine."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

PROJECT = Path(__file__).parent.parent
_VARIABLE = re.compile(r"\$\{(?P<name>\w+):(?P<kind>[?-])(?P<rest>[^}]*)\}")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile; stages count from 0."""

    stage: int
    word: str
    argument: str


def dockerfile() -> list[Instruction]:
    """The instructions, continued lines joined and comments left out."""
    lines = (PROJECT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    found: list[Instruction] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            word, argument = line.split(None, 1)
            stage = sum(one.word == "FROM" for one in found) - (word != "FROM")
            found.append(Instruction(stage, word, " ".join(argument.split())))
    return found


def image_environment() -> dict[str, str]:
    """What ENV sets in the final stage."""
    last = dockerfile()[-1].stage
    words = [one.argument.split() for one in dockerfile() if one.word == "ENV" and one.stage == last]
    return dict(word.split("=", 1) for group in words for word in group)


def compose() -> dict[str, Any]:
    """The Compose file, anchors resolved and variables as they are written."""
    document: dict[str, Any] = yaml.safe_load((PROJECT / "compose.yaml").read_text())
    return document


def variables(text: str) -> list[tuple[str, str, str]]:
    """Name, kind (`?`: required, `-`: with a default) and message or default of each variable."""
    return [(match["name"], match["kind"], match["rest"]) for match in _VARIABLE.finditer(text)]


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Put in the variables as Compose does; a required one that is missing raises KeyError."""

    def value(match: re.Match[str]) -> str:
        default = {match["name"]: match["rest"]} if match["kind"] == "-" else {}
        return {**default, **values}[match["name"]]

    return _VARIABLE.sub(value, text)


def context(folder: Path) -> Path:
    """Copy what the Dockerfile copies from the project, and nothing else."""
    folder.mkdir()
    for one in dockerfile():
        if one.word == "COPY" and not one.argument.startswith("--from"):
            *sources, _ = one.argument.split()
            for source in sources:
                path = PROJECT / source
                ignored = shutil.ignore_patterns("__pycache__")
                if path.is_dir():
                    shutil.copytree(path, folder / source, ignore=ignored)
                else:
                    shutil.copy2(path, folder)
    return folder


def locked_distributions(lock: Path) -> list[str]:
    """The distributions of a lock file that belong on this machine."""
    lines = [line.removesuffix("\\") for line in lock.read_text().splitlines() if line[:1].isalnum()]
    wanted = [Requirement(line) for line in lines]
    return [one.name for one in wanted if one.marker is None or one.marker.evaluate()]


def runtime(folder: Path) -> Path:
    """A read-only environment with our wheel and what `requirements.lock` names: what the image holds.

    The packages are copied from the environment that runs the tests, so that no index is asked. Gives the
    folder of programs.
    """
    environment = folder / "environment"
    python = environment / "bin" / "python"
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in locked_distributions(PROJECT / "requirements.lock"):
        _copy_distribution(name, packages)
    source = context(folder / "source")
    wheel = str(folder / "wheel")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheel, cwd=source)
    _run(
        *(
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
        ),
        *(str(path) for path in (folder / "wheel").glob("*.whl")),
    )
    for path in [source, environment]:
        _run("chmod", "-R", "a-w", str(path))
    return python.parent


def unprivileged(*command: str) -> list[str]:
    """A command that even root runs without the right to write to what is read-only."""
    return (
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command] if os.geteuid() == 0 else [*command]
    )


def _copy_distribution(name: str, packages: Path) -> None:
    found = distribution(name)
    tops = {path.parts[0] for path in found.files or () if path.parts[0] not in {"..", "__pycache__"}}
    for top in tops:
        path = Path(str(found.locate_file(top)))
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, packages / top, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(path, packages)


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.DEVNULL, timeout=120)
