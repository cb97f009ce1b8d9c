"""Carries out the build steps of the Dockerfile below a temporary folder, and tries the result.

Downloads what the lock files name, with their hashes. Only the base image is not the real one: this machine's
Python stands for it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.container import PROJECT, Instruction, dockerfile

_PLACES = re.compile(r"(?<![\w.])/(opt|src|data)\b")


def main() -> None:
    """Print what each step took; a step that fails ends it."""
    with tempfile.TemporaryDirectory(prefix="outkeep-image-") as folder:
        root = Path(folder)
        folders = {"src": root / "src", "opt": root / "opt"}
        for path in folders.values():
            path.mkdir()
        for instruction in dockerfile():
            began = time.monotonic()
            if instruction.word == "RUN":
                _run(instruction.argument, root)
            elif instruction.word == "COPY" and not instruction.argument.startswith("--from"):
                _copy(instruction, folders["src"])
            else:
                continue
            print(f"{time.monotonic() - began:6.1f} s  {instruction.word} {instruction.argument[:90]}")
        subprocess.run([root / "opt" / "outkeep" / "bin" / "outkeep", "--version"], check=True)
        size = sum(path.stat().st_size for path in (root / "opt" / "outkeep").rglob("*") if path.is_file())
        print(f"{size / 2**20:.0f} MiB lie in /opt/outkeep")


def _run(command: str, root: Path) -> None:
    command = _PLACES.sub(rf"{root}/\1", command)
    if os.geteuid() != 0:
        command = re.sub(r" -[og] \d+", "", command)  # only root gives files away
    # The base image's `python` and `pip` are of one version, as those beside this interpreter are.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    shell = ["bash", "-euo", "pipefail", "-c", command]
    subprocess.run(shell, check=True, cwd=root / "src", env=environment, stdout=subprocess.DEVNULL)


def _copy(instruction: Instruction, folder: Path) -> None:
    *sources, target = instruction.argument.split()
    for source in sources:
        if (PROJECT / source).is_dir():
            shutil.copytree(PROJECT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(PROJECT / source, folder / target)


if __name__ == "__main__":
    main()
