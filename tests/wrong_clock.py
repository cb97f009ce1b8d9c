"""Hosts whose clocks are wrong: real processes with another time of day, which may step while they run."""

import atexit
import functools
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "clock_shim.c"


@functools.cache
def _library() -> Path:
    """The shim, compiled once for this run of the tests; needs a C compiler."""
    folder = tempfile.mkdtemp(prefix="clock-shim-")
    atexit.register(shutil.rmtree, folder)
    built = Path(folder) / "clock_shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE)], check=True)
    return built


class WrongClock:
    """The clock of one host; `environment` gives it to the processes that are started with it."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._file = folder / f"clock-{id(self)}"
        self.step_to(seconds)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(_library()), "CLOCK_SHIM": str(self._file)}

    def step_to(self, seconds: float) -> None:
        """Let it be ahead by so much, or behind, from now on; also in processes that run."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))
