"""Names looked up in threads of their own, each with a time limit; what failed is remembered for a while."""

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from app.core.errors import Transient
from app.core.shares import Shares
from app.replicate.places import Places
from app.storage.threads import Threads

LIMIT = 5.0
"""Seconds that a name server gets. The call itself cannot be ended: it goes on in its thread."""

THREADS = 64

FRESH, FAILED, SILENT = 30.0, 5.0, 20.0
"""Seconds for which addresses, a refusal and the silence of a name server are remembered. What comes too late
for those who have asked is still there when they ask again."""

MOST_KNOWN = 1000

Found = list[tuple[Any, Any, int, str, tuple[Any, ...]]]
"""As `socket.getaddrinfo` gives them."""


class Lookups(AbstractResolver):
    """Asks the system, for one name once at a time and for those of one domain in a quarter of the threads.

    So a silent name server leaves threads to other domains, by however many names it is asked for.
    """

    def __init__(self, ask: Callable[..., Found] = socket.getaddrinfo, *, limit: float = LIMIT) -> None:
        self._ask = ask
        self._limit = limit
        self._threads = Threads("names", THREADS)
        self._places = Places("the look-ups of names", Shares.of(THREADS))
        self._asking: dict[str, asyncio.Task[Found]] = {}
        self._known: dict[str, tuple[float, Found | str]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises `Transient` (`dns_failed`), `Crowded` when too many names of its domain are asked for, and
        UnicodeError for what is no name.
        """
        until, found = self._known.get(host, (0.0, ""))
        if time.monotonic() >= until:
            until, found = await self._look_up(host)
        if isinstance(found, str):
            wait = max(0.0, until - time.monotonic())
            raise Transient("dns_failed", f"{host}: {found}", retry_after=wait)
        return [
            ResolveResult(
                hostname=host,
                # Of IPv6 there are also a flow and a scope; one with a scope is not public.
                host=f"{address[0]}%{address[3]}" if address[3:] and address[3] else address[0],
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, address in found
            if family in {socket.AF_UNSPEC, kind}
        ]

    async def _look_up(self, host: str) -> tuple[float, Found | str]:
        asking = self._asking.get(host)
        if asking is None:
            asking = self._asking[host] = asyncio.create_task(self._call(host))
            asking.add_done_callback(partial(self._learn, host))
        done, _ = await asyncio.wait([asking], timeout=self._limit)
        if not done:
            self._remember(host, f"its name server did not answer within {self._limit:.0f} s", SILENT)
        elif not isinstance(asking.exception(), socket.gaierror):
            asking.result()  # or what it raises
        return self._known[host]

    async def _call(self, host: str) -> Found:
        domain = ".".join(host.lower().rstrip(".").split(".")[-2:])
        async with self._places.take(domain):
            ask = partial(self._ask, host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            return await self._threads.run(ask)

    def _learn(self, host: str, asking: "asyncio.Task[Found]") -> None:
        self._asking.pop(host, None)
        error = None if asking.cancelled() else asking.exception()
        if isinstance(error, socket.gaierror):
            self._remember(host, f"the name cannot be looked up ({error.strerror})", FAILED)
        elif error is None and not asking.cancelled():
            self._remember(host, asking.result(), FRESH)

    def _remember(self, host: str, found: Found | str, seconds: float) -> None:
        self._known.pop(host, None)
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[host] = (time.monotonic() + seconds, found)

    async def close(self) -> None:
        """Leave what still hangs to its threads."""
        for asking in list(self._asking.values()):
            asking.cancel()
