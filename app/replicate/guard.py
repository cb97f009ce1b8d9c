"""HTTP to addresses that others chose: each address is checked before it is connected to.

A name is looked up once; of its addresses only those that were checked and found good are connected to, so a
name that changes between check and connect gains nothing. aiohttp does not ask its resolver about literal
addresses: a middleware, which sees every request, judges those.
"""

import asyncio
import ssl
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from ipaddress import ip_address
from socket import AF_UNSPEC, AddressFamily
from typing import Any

import aiohttp
from aiohttp import ClientPayloadError
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from app.core.addresses import FAKE, Address, embedded, is_private, is_public
from app.core.errors import OutkeepError, Permanent, Transient
from app.core.heads import END, MAX_HEAD, for_file, for_status, is_answered, is_informational
from app.core.hosts import PORTS, Origin, is_certified
from app.core.notation import proxy_url
from app.replicate.lookups import Lookups

PATIENCE = 2.0
"""Seconds in which the rest of a head must come whose status is known, where that alone counts."""

_BEGINNING = b"HTTP/"


class LenientHandler(ResponseHandler):
    """Hands the parser a head only when that is whole, written anew by `app.core.heads` where it must be.

    With `statuses` the status of an answer alone counts: whatever else is wrong in it, there is an answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, statuses: bool) -> None:
        super().__init__(loop)
        self._statuses = statuses
        self._head: bytearray | None = None
        self._is_deaf = False
        self._giving_up: asyncio.TimerHandle | None = None

    def set_response_params(self, **params: Any) -> None:
        """Begin an answer: its head comes first."""
        self._head, self._is_deaf = bytearray(), False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Collect the head; what follows goes on as it comes."""
        if self._is_deaf and data:
            return
        if self._head is None or self._parser is None or not data:
            super().data_received(data)
            return
        searched = max(len(self._head) - 2, 0)
        self._head += data
        if self._head.startswith((b"\r", b"\n")):
            self._head, searched = self._head.lstrip(b"\r\n"), 0
        if self._head[:5] != _BEGINNING[: len(self._head)]:
            self._pass_on(bytes(self._head))  # for the parser to refuse
        elif END.search(self._head, searched):
            self._take(bytes(self._head))
        elif len(self._head) > MAX_HEAD:
            self._give_up("headers that do not end")
        elif self._statuses and self._giving_up is None and is_answered(self._head):
            self._giving_up = self._loop.call_later(PATIENCE, self._give_up, "headers that do not end")

    def _take(self, data: bytes) -> None:
        """Take the first whole head but those of interim answers, which mean nothing."""
        at = 0
        while found := END.search(data, at):
            head, at = data[at : found.end()], found.end()
            if not is_informational(head):
                self._answer(head, data[at:])
                return
        self._head = bytearray(data[at:])

    def _answer(self, head: bytes, rest: bytes) -> None:
        if not self._statuses:
            self._pass_on(for_file(head) + rest)
            return
        written = for_status(head)
        # Apart, since the parser forgets an answer in whose body it finds a fault at once.
        self._pass_on(written)
        if written != head:
            self._is_deaf = True
        elif rest:
            super().data_received(rest)

    def _give_up(self, fault: str) -> None:
        """Make do with as much of the head as there is."""
        if self._head is not None and self._parser is not None:
            self._pass_on((for_status if self._statuses else for_file)(bytes(self._head), fault))
            self._is_deaf = True

    def _pass_on(self, data: bytes) -> None:
        self._head = None
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell a body that ends with its connection from one that a broken connection has cut."""
        if self._statuses and self._head and is_answered(self._head):
            self._give_up("headers that were cut off")
        fault = exc or self.exception()
        if fault is not None and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(ClientPayloadError(f"it broke off: {type(fault).__name__}"))
        if self._giving_up is not None:
            self._giving_up.cancel()
        super().connection_lost(exc)


Endpoint = tuple[str, int]
"""Host (lower case) and port."""


def guarded_session(
    *,
    origins: Collection[Origin] = (),
    private: bool = False,
    proxy: str | None = None,
    tls: ssl.SSLContext | None = None,
    names: AbstractResolver | None = None,
    statuses: bool = False,
) -> aiohttp.ClientSession:
    """Open a session for requests to hosts that others name; needs a running loop.

    `origins` may have any address; all else must be public, or on one's own network with `private`.
    `proxy` is an egress proxy (`http://host:port`): it looks names up itself, so that it must guard them,
    and only literal addresses are judged here. One that cannot be read raises `Permanent` (`bad_url`): each
    request would fail as if its own URL were wrong. `tls` replaces the system's certificates, `names` the
    system's look-up. With `statuses` only the status of an answer counts, whatever else is wrong in it.

    Nothing is decoded, no cookie kept, no proxy or password read from the environment. Callers pass
    `allow_redirects=False`. Requests raise `Permanent` (`address_refused`), and aiohttp's errors unless they
    are made inside `network_errors`.
    """
    trusted = {(origin.host, origin.port) for origin in origins}
    if proxy is not None:
        trusted.add(_endpoint(URL(proxy_url(proxy))))
    connector = aiohttp.TCPConnector(
        resolver=GuardedResolver(names or Lookups(), trusted=trusted, private=private),
        ssl=tls or True,
        limit=0,
    )
    protocol: Callable[..., ResponseHandler] = LenientHandler
    connector._factory = partial(protocol, connector._loop, statuses=statuses)  # noqa: SLF001 - no other way
    return aiohttp.ClientSession(
        connector=connector,
        max_line_size=MAX_HEAD,
        max_field_size=MAX_HEAD,
        middlewares=(_literal_gate(frozenset(origins), private=private),),
        headers={"Accept-Encoding": "identity", "User-Agent": "outkeep"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        proxy=proxy,
    )


class _Named(ssl.SSLObject):
    """Sees to the name in a certificate by our own rules, as soon as its chain has been verified."""

    def do_handshake(self) -> None:
        """Raise `ssl.SSLCertVerificationError` when the certificate is another host's."""
        super().do_handshake()
        certificate: dict[str, Any] = self.getpeercert() or {}
        names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
        if not is_certified((self.server_hostname or "").lower(), names):
            raise ssl.SSLCertVerificationError(f"the certificate is not valid for {self.server_hostname!r}")


def _tls_for_underscores() -> ssl.SSLContext:
    """What verifies hosts with underscores in their names, such as buckets, as strictly as any other."""
    context = ssl.create_default_context()
    context.check_hostname = False  # OpenSSL's check, in the place of which comes that of `_Named`
    context.sslobject_class = _Named
    return context


class GuardedResolver(AbstractResolver):
    """Hands on, of what `names` finds, the addresses that may be connected to."""

    def __init__(self, names: AbstractResolver, *, trusted: Collection[Endpoint], private: bool) -> None:
        self._names = names
        self._trusted = frozenset(trusted)
        self._private = private

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look `host` up; raise `Permanent` (`address_refused`) when no address of it may be reached."""
        found = await self._names.resolve(host, port, family)
        if (host.lower(), port) in self._trusted:
            return found
        reachable = [
            result for result in found if _is_reachable(result["host"], _from_dns, private=self._private)
        ]
        if found and not reachable:
            raise _refusal(host, found[0]["host"])
        return reachable

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._names.close()


@contextmanager
def network_errors(host: str) -> Iterator[None]:
    """Turn what aiohttp and sockets raise into `Transient` with a code of ours; `host` is for the message.

    A `TimeoutError` is taken for silence (`stalled`): keep a total deadline outside of this.
    """
    try:
        yield
    except TimeoutError:
        raise Transient("stalled", f"{host} sent nothing, or almost nothing, for too long") from None
    except UnicodeError:
        # An empty or overlong label in a name: the look-up says so by an error of its own.
        raise Transient("dns_failed", f"{host}: the name cannot be looked up") from None
    except aiohttp.InvalidURL:
        raise Permanent("url_malformed", f"the URL on {host} cannot be requested") from None
    except (aiohttp.ClientError, OSError) as error:
        code, phrase = _name(error)
        if isinstance(error, aiohttp.ClientResponseError):
            # The parser's own word for it; behind a colon comes what was sent.
            phrase += f": {error.message.partition(':')[0]}"
        raise Transient(code, f"{host}: {phrase} ({type(error).__name__})") from error


_NAMES: tuple[tuple[type[Exception], str, str], ...] = (
    (aiohttp.ClientHttpProxyError, "proxy_failed", "the egress proxy refused the connection"),
    (aiohttp.ClientProxyConnectionError, "proxy_failed", "the egress proxy cannot be reached"),
    (aiohttp.ClientConnectorDNSError, "dns_failed", "the name cannot be looked up"),
    (aiohttp.ClientSSLError, "tls_failed", "no secure connection could be made"),
    (ssl.SSLError, "tls_failed", "the secure connection failed"),
    (aiohttp.ClientConnectorError, "connect_failed", "no connection could be made"),
    (aiohttp.ClientResponseError, "answer_malformed", "the answer is not proper HTTP"),
    (aiohttp.ClientPayloadError, "body_incomplete", "the body ended before it was complete"),
)
"""The first row that fits counts."""


def _name(error: Exception) -> tuple[str, str]:
    for kind, code, phrase in _NAMES:
        if isinstance(error, kind):
            return code, phrase
    return "connection_reset", "the connection broke"


def _literal_gate(origins: frozenset[Origin], *, private: bool) -> aiohttp.ClientMiddlewareType:
    underscored = cache(_tls_for_underscores)  # made where it is needed: it reads all CAs

    async def gate(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        host, port = _endpoint(request.url)
        if "_" in host and request.is_ssl():
            request._ssl = underscored()  # noqa: SLF001 - no other way
        trusted = Origin(request.url.scheme, host, port) in origins
        is_literal = ":" in host or host.replace(".", "").isdigit()  # aiohttp asks no resolver about it
        if is_literal and not trusted and not _is_reachable(host, ip_address, private=private):
            raise _refusal(host, host)
        return await handler(request)

    return gate


def _endpoint(url: URL) -> Endpoint:
    host = (url.raw_host or "").lower()
    with suppress(ValueError):
        host = str(ip_address(host))
    return host, url.port or PORTS.get(url.scheme, 0)


def _is_reachable(text: str, read: Callable[[str], Address], *, private: bool) -> bool:
    try:
        address = read(text)
    except ValueError:
        return False
    return is_public(address) or (private and is_private(address))


def _from_dns(text: str) -> Address:
    return embedded(ip_address(text))


def _refusal(host: str, address: str) -> OutkeepError:
    where = host if host == address else f"{host} leads to {address}, which"
    cure = (
        "An output host on a private network must stand in OUTKEEP_OUTPUT_HOSTS with its scheme and port; for"
        " handlers set OUTKEEP_NOTIFY_PRIVATE=true"
    )
    with suppress(ValueError):
        if _from_dns(address) in FAKE:
            cure = (
                "fake-IP proxies (Clash, Surge, sing-box, …) answer such addresses: set OUTKEEP_PROXY to the"
                " proxy's HTTP port, or except the host from its fake-IP mode"
            )
    return Permanent("address_refused", f"{where} is not a public address. {cure}")
