"""Running the simulator: in a background thread for tests and the demo, or in the foreground."""

import asyncio
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import uvicorn
from starlette.applications import Starlette

from app.core.names import Kind
from app.simulator import state
from app.simulator.api import Backend, create_app
from app.simulator.files import FileHost, Inputs, Uploads
from app.simulator.ledger import Ledger
from app.simulator.orders import Traffic
from app.simulator.webhooks import (
    EVENT_INTERVAL,
    RETRY_DELAYS,
    Attempt,
    Attempts,
    Sender,
    new_secret,
    signing_key,
)

_Result = TypeVar("_Result")

_START_TIMEOUT = 10.0
_CALL_TIMEOUT = 10.0
_GRACE = 1
_BACKLOG = 1024


class Simulator:
    """A local Replicate on one port; `with Simulator() as replicate:` runs it in a thread.

    Reads: `url` (`http://HOST:PORT`), `token` (bearer), `secret` (`whsec_…`), both made at start unless
    given. `public_url` stands in URLs instead of `url`. In seconds: `pace`, what a model takes; `keep`,
    how long data stays after the end; `retry_delays`, before each retry of a terminal webhook;
    `event_interval`, between two `output` or `logs` events. With `certificate`, a PEM file with its key, it
    speaks https, without which the official client makes no `FileOutput`. A `reticent` one leaves out of
    the API's answers what many recorded ones lack. Making one raises `ValueError` for
    a bad secret and `OSError` for a taken port; the methods raise `TimeoutError` after their time-out and
    `Rejected` for what is not there.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        public_url: str | None = None,
        token: str | None = None,
        secret: str | None = None,
        pace: float = 0.05,
        keep: float = 3600.0,
        retry_delays: Sequence[float] = RETRY_DELAYS,
        watch: Callable[[Attempt], None] = lambda _: None,
        event_interval: float = EVENT_INTERVAL,
        certificate: Path | None = None,
        reticent: bool = False,
    ) -> None:
        self.token = token or f"r8_{secrets.token_hex(18)}"
        self.secret = secret or new_secret()
        signing_key(self.secret)
        self._pace = pace
        self._keep = keep
        self._retry_delays = tuple(retry_delays)
        self._event_interval = event_interval
        self._reticent = reticent
        self._attempts = Attempts(watch)
        self._traffic = Traffic()
        self._started: Future[tuple[Backend, asyncio.AbstractEventLoop]] = Future()
        self._socket = socket.create_server((host, port), backlog=_BACKLOG)
        scheme = "https" if certificate else "http"
        self.url = public_url or f"{scheme}://{host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            create_app(self.token, self._traffic, self._lifespan),
            access_log=False,
            lifespan="on",
            log_level="error",
            timeout_graceful_shutdown=_GRACE,
            ssl_certfile=certificate,
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.serve, name="simulator", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(_START_TIMEOUT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()

    def serve(self) -> None:
        """Serve in the calling thread until SIGINT or SIGTERM."""
        with self._socket:
            self._server.run(sockets=[self._socket])

    def add_file(self, name: str, content: bytes, *, content_type: str | None = None) -> str:
        """Put a file on the file host and return its URL; the type is guessed from the name."""
        return self._do(lambda backend: backend.files.add(name, content, content_type))

    def remove_file(self, url: str) -> None:
        """Make the URL answer 404."""
        self._do(lambda backend: backend.files.remove(url))

    def downloads(self, url: str) -> int:
        """How often a hosted file was asked for with GET."""
        return self._do(lambda backend: backend.files.downloads(url))

    def finish(
        self,
        kind: Kind,
        prediction: Mapping[str, Any],
        webhook: str | None = None,
        *,
        event: str = "completed",
        webhook_id: str | None = None,
    ) -> str | None:
        """Keep an object of your making, so that the API shows it, and send it to `webhook` if given.

        The object goes out as it is, whatever `event` you call it; a terminal one is retried. Returns the
        `webhook-id`; give one to repeat a delivery.
        """

        def act(backend: Backend) -> str | None:
            entry = backend.ledger.keep_object(kind, dict(prediction))
            if webhook is None:
                return None
            return backend.ledger.announce(entry, event, webhook=webhook, webhook_id=webhook_id)

        return self._do(act)

    def object(self, kind: Kind, identity: str) -> state.Object:
        """A prediction or training as it is now."""
        return self._do(lambda backend: backend.ledger.find(kind, identity).object)

    def remove_data(self, kind: Kind, identity: str) -> state.Object:
        """Let the hour of this prediction pass now: its input, output, logs and files are gone."""
        return self._do(lambda backend: backend.ledger.remove_data(kind, identity).object)

    def wait_for_end(self, kind: Kind, identity: str, timeout: float = 10.0) -> state.Object:
        """The object once it is terminal (or the script put it in so)."""

        async def wait(backend: Backend) -> state.Object:
            entry = backend.ledger.find(kind, identity)
            async with asyncio.timeout(timeout):
                await entry.ended.wait()
            return entry.object

        return self._run(wait, timeout + _CALL_TIMEOUT)

    def rotate_secret(self) -> str:
        """Sign with a new secret from now on, and return it."""

        def act(backend: Backend) -> str:
            self.secret = backend.sender.secret = new_secret()
            return self.secret

        return self._do(act)

    def requests(self, path: str) -> int:
        """How many requests there were of paths that match an expression, such as `/v1/predictions/.*`."""
        return self._traffic.count(path)

    def refuse(self, times: int, *, status: int = 429, retry_after: int | None = None) -> None:
        """Answer the next requests of the API with an error; `retry_after` (seconds) stands in its body."""
        self._traffic.refuse(times, status, retry_after)

    def attempts(self, identity: str) -> list[Attempt]:
        """All webhook attempts about a prediction so far, in the order in which they ended."""
        return self._attempts.of(identity)

    def wait_for_attempts(self, identity: str, count: int, timeout: float = 10.0) -> list[Attempt]:
        """The attempts about a prediction, once there are `count`."""
        return self._attempts.wait(identity, lambda them: len(them) >= count, timeout)

    def wait_for_delivery(self, identity: str, timeout: float = 10.0) -> Attempt:
        """The last attempt at the terminal event, once delivered or given up (`status` tells)."""
        them = self._attempts.wait(identity, lambda attempts: _settled(attempts) is not None, timeout)
        settled = _settled(them)
        assert settled is not None
        return settled

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        files, uploads = FileHost(self.url), Uploads(self.url)
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            sender = Sender(session, self._attempts, secret=self.secret, retry_delays=self._retry_delays)
            ledger = Ledger(
                self.url,
                files,
                Inputs(files, uploads, session),
                sender,
                pace=self._pace,
                keep=self._keep,
                event_interval=self._event_interval,
            )
            app.state.backend = Backend(self.url, sender, ledger, files, uploads, self._reticent)
            self._started.set_result((app.state.backend, asyncio.get_running_loop()))
            yield
            await ledger.close()

    def _do(self, act: Callable[[Backend], _Result]) -> _Result:
        async def run(backend: Backend) -> _Result:
            return act(backend)

        return self._run(run, _CALL_TIMEOUT)

    def _run(self, act: Callable[[Backend], Coroutine[Any, Any, _Result]], timeout: float) -> _Result:
        backend, loop = self._started.result(_START_TIMEOUT)
        return asyncio.run_coroutine_threadsafe(act(backend), loop).result(timeout)


def _settled(attempts: list[Attempt]) -> Attempt | None:
    return next((one for one in attempts if one.event == "completed" and one.settled), None)


def run(
    host: str,
    port: int,
    *,
    announce: Callable[[Simulator], None],
    watch: Callable[[Attempt], None] = lambda _: None,
    token: str | None = None,
    secret: str | None = None,
    pace: float = 3.0,
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM; `announce` is called once the port is bound.

    `watch` is called with each attempt at a webhook, on the simulator's own thread.

    Raises `OSError` when the port is taken.
    """
    simulator = Simulator(host=host, port=port, token=token, secret=secret, pace=pace, watch=watch)
    announce(simulator)
    # uvicorn raises SIGINT again after a clean shutdown.
    with suppress(KeyboardInterrupt):
        simulator.serve()
