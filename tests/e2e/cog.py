"""A real Cog that serves a small model, and a host that it can upload to."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from app.receive.listening import free_port
from tests.e2e.running import PATIENCE, until
from tests.serving import PLAIN, Answering, serving

ROOT = Path(__file__).parents[2]

MODEL = """
import tempfile
import time
from typing import List

from cog import BasePredictor, ConcatenateIterator, Input, Path


def image(seed, number):
    folder = tempfile.mkdtemp()
    with open(folder + "/out.png", "wb") as file:
        file.write(b"\\x89PNG\\r\\n\\x1a\\n" + bytes([seed, number]) * 5000)
    return Path(folder + "/out.png")


class Several(BasePredictor):
    def predict(self, seed: int = Input(default=1)) -> List[Path]:
        print("drawing")
        return [image(seed, number) for number in range(3)]


class One(BasePredictor):
    def predict(self, seed: int = Input(default=1)) -> Path:
        if seed == 0:
            raise ValueError("no such seed")
        return image(seed, 0)


class Text(BasePredictor):
    def predict(self, words: str = Input(), pause: float = Input(default=0.0)) -> ConcatenateIterator[str]:
        for word in words.split(" "):
            yield word + " "
            time.sleep(pause)
"""


def image(seed: int, number: int) -> bytes:
    """What the model above draws."""
    return b"\x89PNG\r\n\x1a\n" + bytes([seed, number]) * 5000


@dataclass(frozen=True)
class Cog:
    """A running Cog; `log` is what it has printed."""

    url: str
    log: Path

    def create(self, prediction_id: str | None, webhook: str, **given: Any) -> str:
        """Start a prediction with a webhook; its id."""
        method, path = ("PUT", f"/predictions/{prediction_id}") if prediction_id else ("POST", "/predictions")
        events = ["start", "output", "logs", "completed"]
        answer = PLAIN.request(
            method,
            f"{self.url}{path}",
            json={"input": given, "webhook": webhook, "webhook_events_filter": events},
            headers={"prefer": "respond-async"},
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def cancel(self, prediction_id: str) -> None:
        """Ask it to stop a prediction."""
        url = f"{self.url}/predictions/{prediction_id}/cancel"
        PLAIN.post(url).raise_for_status()

    def is_ready(self) -> bool:
        """Whether it takes predictions."""
        with suppress(httpx.HTTPError):
            answer = PLAIN.get(f"{self.url}/health-check", timeout=5)
            return bool(answer.json()["status"] == "READY")
        return False


@contextmanager
def cog(folder: Path, model: str, token: str, *arguments: str) -> Iterator[Cog]:
    """Run one class of `MODEL` below `folder`; it shows `token` to the webhooks."""
    subprocess.run(["make", "--silent", "cog", f"PYTHON={sys.executable}"], cwd=ROOT, check=True)
    programs = ROOT / ".venv-cog" / "bin"
    folder.mkdir()
    (folder / "predict.py").write_text(MODEL)
    port = free_port()
    served = Cog(f"http://127.0.0.1:{port}", folder / "cog.log")
    with served.log.open("wb") as log:
        process = subprocess.Popen(
            [programs / "python", "-m", "cog.server.http", "--host", "127.0.0.1", *arguments],
            cwd=folder,
            env={
                # It looks for Python anew, to run the model apart.
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PORT": str(port),
                "COG_PREDICT_TYPE_STUB": f"predict.py:{model}",
                "WEBHOOK_AUTH_TOKEN": token,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    try:
        until(lambda: process.poll() is not None or served.is_ready(), f"Cog is ready: {served.log}")
        assert process.poll() is None, served.log.read_text()
        yield served
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


@dataclass
class UploadHost:
    """Takes files by PUT and serves them by GET, each under a path of its own."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def upload_host() -> Iterator[UploadHost]:
    """Run one on a free port of 127.0.0.1."""
    host, numbers = UploadHost(), count()  # files come at the same time

    class Handler(Answering):
        def do_PUT(self) -> None:
            path = f"/{next(numbers)}{self.path}"
            host.files[path] = self.body()
            self.answer(201, location=f"{host.url}{path}?signature=x")

        def do_GET(self) -> None:
            self.answer(200, host.files[self.path])

    with serving(Handler) as host.url:
        yield host
