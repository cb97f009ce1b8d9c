#!/usr/bin/env python
"""How long `outkeep verify --all` takes for 10,000 small files on a local disk, and what memory it takes.

They are made by our own code in the real format, one prediction each. Afterwards one is changed, and found.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.storage.store import Storage
from tests.maintain.test_verify import keep
from tests.receive.web import clean_environment

COUNT = int(os.environ.get("COUNT", "10000"))
SIZE = 4096
TARGET = 30.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(Path(folder).as_uri())
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: keep(storage, f"p{number:025d}", os.urandom(SIZE)), range(COUNT)))
        command = [sys.executable, "-m", "app.cli", "verify", "--all"]
        settings = clean_environment({"OUTKEEP_STORAGE": storage.url})
        began = time.monotonic()
        ended = subprocess.run(command, env=settings, check=True, capture_output=True, text=True)
        seconds = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
        storage.put_bytes(f"predictions/p{COUNT // 2:025d}/output-0.bin", bytes(SIZE))
        changed = subprocess.run(command, env=settings, check=False, capture_output=True, text=True)
        assert (changed.returncode, changed.stdout.count("\n")) == (1, 1), changed
        print(ended.stderr.strip())
        print(
            f"in {seconds:.1f} s, {COUNT / seconds:.0f} a second (target: {TARGET:.0f} s at most), {peak} MiB"
        )


if __name__ == "__main__":
    main()
