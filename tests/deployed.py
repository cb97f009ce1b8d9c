"""The services of the Compose file as processes of this machine, from what the image holds alone."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.receive.listening import free_port
from app.valkey.server import program
from tests import container

SERVICES: dict[str, dict[str, Any]] = container.compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if name != "valkey"}
REQUIRED = {
    "REPLICATE_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "OUTKEEP_SECRET_KEY": "0123456789abcdef0123456789abcdef",
    "OUTKEEP_PUBLIC_URL": "https://outkeep.example.com",
}
"""What stands in `.env`."""


class Deployed:
    """Starts, asks and stops them. What is read-only in the image cannot be written here either."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.ports = {"receiver": free_port(), "valkey": free_port()}
        self.programs = container.runtime(folder)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "outkeep.toml").write_text("")
        (folder / "valkey").mkdir()
        self.data.mkdir()

    def environment(self, name: str) -> dict[str, str]:
        """What the container of a service would have, with places of this machine."""
        given = {
            key: container.interpolate(value, REQUIRED)
            for key, value in OURS[name]["environment"].items()
            if value is not None
        }
        return {
            **container.image_environment(),
            **given,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PORT": str(self.ports["receiver"]),
            "REDIS_URL": f"redis://127.0.0.1:{self.ports['valkey']}/0",
            "OUTKEEP_DATA": str(self.data),
            "OUTKEEP_HANDLERS": str(self.folder / "outkeep.toml"),
            "OUTKEEP_DISK_FLOOR": "0",
        }

    def start(self, name: str) -> None:
        """Start one service; its output goes to a file of its name."""
        service = SERVICES[name]
        with (self.folder / f"{name}.log").open("wb") as log:
            if name == "valkey":
                local = ["--port", str(self.ports["valkey"]), "--bind", "127.0.0.1"]
                command = [str(program()), *service["command"][1:], *local]
                environment, cwd = dict(os.environ), self.folder / "valkey"
            else:
                command = container.unprivileged(*service["command"])
                environment, cwd = self.environment(name), self.data
            self.processes[name] = subprocess.Popen(command, env=environment, cwd=cwd, stdout=log, stderr=log)

    def run(
        self, *command: str, service: str = "receiver", **settings: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command as in the container of a service, with other `settings`."""
        return subprocess.run(
            container.unprivileged(*command),
            env=self.environment(service) | settings,
            cwd=self.data,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Return once `condition` holds; fails with `what` and the logs after a minute."""
        until = time.monotonic() + 60
        while not condition():
            logs = "".join(f"\n{path.name}: {path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))
            assert time.monotonic() < until, what + logs
            time.sleep(0.1)

    def is_healthy(self, name: str) -> bool:
        """What the health check of a service says."""
        return self.run(*OURS[name]["healthcheck"]["test"][1:], service=name).returncode == 0

    def stop(self) -> dict[str, int]:
        """Ask all to stop, Valkey last; their exit codes."""
        for group in ([name for name in self.processes if name != "valkey"], ["valkey"]):
            for name in group:
                self.processes[name].send_signal(signal.SIGTERM)
            for name in group:
                self.processes[name].wait(60)
        return {name: process.returncode for name, process in self.processes.items()}
