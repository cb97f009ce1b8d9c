#!/usr/bin/env python
"""How long `outkeep rebuild` takes to restore 10,000 predictions into an empty Valkey, from a local disk.

They are made by our own code in the real format, with a file, a manifest and two outcomes each; one in a
hundred is owed to a handler, one in a hundred a dead letter. `ls` and `show` must say the same as before.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from app.core.names import Kind
from app.core.outcomes import Told
from tests.kept import Deployment
from tests.own_valkey import own_valkey
from tests.receive.web import clean_environment, environment

COUNT = int(os.environ.get("COUNT", "10000"))
TARGET = 60.0
SHOWN = 10


def fill(deployment: Deployment) -> None:
    """Make the past of a deployment."""
    now = datetime.now(UTC)

    def keep(number: int) -> None:
        prediction_id = f"p{number:025d}"
        kind = Kind.TRAINING if number % 50 == 0 else Kind.PREDICTION
        deployment.keep(prediction_id, kind=kind, told=False, logs="a line of the log\n" * 20)
        if number % 100 != 1:
            dead = Told("dead", 10, now, "status_500") if number % 100 == 2 else None
            deployment.tell(prediction_id, "gallery", dead, kind=kind)
        deployment.tell(prediction_id, "mail", kind=kind)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(keep, range(COUNT)))


def outkeep(settings: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.run(command, env=settings, check=True, stdout=subprocess.PIPE, text=True).stdout


def picture(settings: dict[str, str]) -> list[str]:
    """What `ls` and some `show` say."""
    everything = outkeep(settings, "ls", "--json", "--limit", str(2 * COUNT))
    ids = [json.loads(line)["id"] for line in everything.splitlines()][:: max(COUNT // SHOWN, 1)]
    return [everything, *(outkeep(settings, "show", one, "--json") for one in ids)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, own_valkey() as valkey:
        valkey.start()
        deployment = Deployment(valkey.redis, Path(folder), datetime.now(UTC), ("gallery", "mail"))
        fill(deployment)
        settings = environment(valkey.url, Path(folder), OUTKEEP_HANDLERS=f"{folder}/handlers.toml")
        before = picture(clean_environment(settings))
        valkey.redis.flushall()
        began = time.monotonic()
        done = json.loads(outkeep(clean_environment(settings), "rebuild", "--json"))
        seconds = time.monotonic() - began
        assert picture(clean_environment(settings)) == before, "ls and show say the same as before"
        assert done["predictions"] + done["trainings"] == done["records"] == COUNT
        failed = outkeep(clean_environment(settings), "ls", "--failed", "--json", "--limit", str(COUNT))
        dead = len(failed.splitlines())
        assert dead == done["dead_letters"]
        print(f"{COUNT} predictions and trainings, {done['notifications']} owed, {dead} dead letters")
        print(f"rebuilt in {seconds:.1f} s, {COUNT / seconds:.0f} a second (target: {TARGET:.0f} s at most)")


if __name__ == "__main__":
    main()
