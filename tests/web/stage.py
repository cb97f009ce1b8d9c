"""A whole deployment with something worth looking at, for tests in a browser and for screenshots."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, sync_playwright
from replicate.client import Client

from app.accept.records import Records
from app.core.lifecycle import State
from app.core.names import Kind
from app.simulator import Simulator
from tests.e2e.recorder import Recorder, recorder
from tests.e2e.running import Up, running_up, until

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

ORDERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("outkeep/image", {"prompt": "a lighthouse at dusk, long exposure", "seed": 7, "width": 1024}),
    ("outkeep/llama", {"prompt": "a haiku about keeping things", "temperature": 0.7}),
    ("outkeep/images", {"prompt": "the four seasons in one valley", "num_outputs": 4}),
    ("outkeep/music", {"prompt": "slow piano over rain, in a minor key"}),
    ("outkeep/video", {"prompt": "waves rolling in under a low sun"}),
    ("outkeep/files", {"prompt": "two studies of a red bridge"}),
    ("outkeep/animation", {"prompt": "a spinning compass rose"}),
    ("outkeep/fails", {"prompt": "a cathedral of glass, 8k, volumetric light"}),
    ("outkeep/image", {"prompt": "fog between pines, early morning"}),
    ("outkeep/separate", {"prompt": "vocals and drums of a street recording"}),
    ("outkeep/image", {"prompt": "paper boats on a flooded street"}),
    ("outkeep/caption", {"prompt": "what is written on the sign?"}),
    ("outkeep/image", {"prompt": "an orchard seen from above"}),
)
RUNNING = ("outkeep/slow", {"prompt": "a very slow landscape in oil, with every leaf"})


@dataclass
class Stage:
    """A running deployment, a simulated Replicate, the server of two handlers, and a client."""

    up: Up
    simulator: Simulator
    handlers: Recorder
    client: Client
    ids: list[str]

    def create(self, model: str, given: dict[str, Any]) -> str:
        """Ask for a prediction, as anyone would."""
        made = self.client.models.predictions.create(
            model, given, webhook=self.up.hook, webhook_events_filter=["start", "output", "logs", "completed"]
        )
        return str(made.id)

    def until_handed_on(self, *ids: str) -> None:
        """Wait until these are kept and handlers are being told."""
        with self.up.redis() as redis:
            records = Records(redis, ttl=3600)

            def done() -> bool:
                found = [records.get(Kind.PREDICTION, one) for one in ids]
                return all(record and record.state is State.DISPATCHED for record in found)

            until(done, "all are kept")

    def link(self) -> str:
        """The link that `up` has printed."""
        return str(re.findall(r"http://127\.0\.0\.1:\d+/sign-in\?link=\S+", self.up.text())[-1])


@contextmanager
def stage(folder: Path, *, pace: float = 0.3) -> Iterator[Stage]:
    """Run it, with all of `ORDERS` kept and told; `gallery` takes them, `archive` says that it is gone."""
    with Simulator(pace=pace) as simulator, recorder() as handlers:
        handlers.answer = lambda request: 204 if request.path == "/gallery" else 410
        only = 'on = ["succeeded"]\nmodel = "outkeep/llama"'
        written = handlers.handler("gallery") + handlers.handler("archive", extra=only)
        settings = {
            "OUTKEEP_OUTPUT_HOSTS": simulator.url,
            "REPLICATE_API_TOKEN": simulator.token,
            "REPLICATE_BASE_URL": simulator.url,
            "REPLICATE_WEBHOOK_SECRET": simulator.secret,
            "OUTKEEP_RECONCILE": "off",
        }
        with running_up(folder, handlers=written, settings=settings) as up:
            client = Client(api_token=simulator.token, base_url=simulator.url, trust_env=False)
            made = Stage(up, simulator, handlers, client, [])
            with client._client:
                for order in ORDERS:
                    made.ids.append(made.create(*order))
                made.until_handed_on(*made.ids)
                yield made


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, without any traffic of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def signed_in(browser: Browser, stage: Stage, link: str | None = None, **how: Any) -> BrowserContext:
    """A new profile of the browser in which somebody has signed in."""
    context = browser.new_context(**how)
    page = context.new_page()
    page.goto(link or stage.link())
    page.wait_for_url(f"{stage.up.url}/")
    page.close()
    return context
