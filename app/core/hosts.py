"""Host names: from where outputs may be downloaded, and under which names stored files are served.

Only the URL is judged here. That a permitted name does not lead to a private address is seen to by
`app.replicate.guard`, when the connection is made.

A page that answers to any name can be reached through a name that a stranger made lead to us (DNS rebinding).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Self
from urllib.parse import urlsplit

from app.core.errors import Permanent

SETTING = "OUTKEEP_OUTPUT_HOSTS"
PORTS = {"http": 80, "https": 443}
MAX_URL = 64 * 1024
"""Characters of a URL that is requested; no server reads more."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}", re.ASCII)
"""Names of containers and of buckets hold underscores, and are looked up like any other."""
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
"""A name whose last label looks like this is an IPv4 address to `inet_aton`."""
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_HOST = re.compile(r"https?://(?:[^/?#\\@]*@)?(?P<host>\[[^\[\]]*\]|[^:/?#\\]*)", re.IGNORECASE)
_PASSWORD = re.compile(r":(?!//)[^@]*@")
_UNSENDABLE = re.compile("[\x00-\x20\x7f\ud800-\udfff]")
"""What cannot stand in a request line."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port. `host` is a name in lower case or a canonical address without brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be fetched, as far as its text can tell. `trusted`: the operator named this origin."""

    scheme: str
    host: str
    port: int
    trusted: bool


@dataclass(frozen=True, slots=True)
class HostRules:
    """The parsed setting: `text` is the line itself, `origins` are trusted as they stand."""

    text: str
    names: frozenset[str]
    suffixes: tuple[str, ...]
    any_public: bool
    origins: frozenset[Origin]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name`, `*.suffix` (subdomains only), `*` and `scheme://host:port`, separated by spaces.

        Raises `Permanent` (`bad_hosts`), which names the bad entry.
        """
        entries = text.lower().split()
        if not entries:
            raise Permanent("bad_hosts", "it names no host: nothing could be downloaded")
        urls = [entry for entry in entries if "://" in entry]
        wildcards = [entry for entry in entries if entry.startswith("*.")]
        names = [entry for entry in entries if entry not in {"*", *urls, *wildcards}]
        for entry in [*names, *wildcards]:
            _require_name(entry)
        return cls(
            text=" ".join(entries),
            names=frozenset(names),
            suffixes=tuple(wildcard[1:] for wildcard in wildcards),
            any_public="*" in entries,
            origins=frozenset(map(_trusted_origin, urls)),
        )

    def check(self, url: str) -> Target:
        """Judge one URL before it is requested, and each redirect again.

        Raises `Permanent`: `url_malformed`, `userinfo_refused`, `scheme_refused`, `host_refused` (the message
        holds the setting line to paste), `port_refused`.
        """
        origin = parse_origin(url)
        trusted = origin in self.origins
        if not trusted:
            self._require_permitted(origin)
        return Target(origin.scheme, origin.host, origin.port, trusted)

    def lists(self, url: str) -> bool:
        """Whether a URL lies on a host of the list, though it may yet be refused, for its port perhaps."""
        match = _HOST.match(url)
        host = match["host"].lower().rstrip(".") if match else ""
        if host in self.names or host.endswith(self.suffixes):
            return True
        if self.any_public and url[:6].lower() == "https:" and _is_name(host):
            return True
        if not any(origin.host == host.strip("[]") for origin in self.origins):
            return False
        try:
            return parse_origin(url) in self.origins
        except Permanent:
            return False

    def permits(self, url: str) -> bool:
        """Whether `check` raises nothing."""
        try:
            self.check(url)
        except Permanent:
            return False
        return True

    def _require_permitted(self, origin: Origin) -> None:
        if not _is_name(origin.host):
            raise Permanent(
                "host_refused",
                f"{origin.host} is an address, not a name; {self._line_with(origin)} would trust it",
            )
        if origin.scheme != "https":
            raise Permanent(
                "scheme_refused",
                f"only https is fetched, not {origin}; {self._line_with(origin)} would trust it",
            )
        host = origin.host
        if not (self.any_public or host in self.names or host.endswith(self.suffixes)):
            entry = origin.host if origin.port == PORTS["https"] else origin
            raise Permanent(
                "host_refused",
                f"{origin.host} is not an output host; to download from it set {self._line_with(entry)}",
            )
        if origin.port != PORTS["https"]:
            raise Permanent(
                "port_refused",
                f"{origin} is not on port 443; to download from it set {self._line_with(origin)}",
            )

    def _line_with(self, entry: str | Origin) -> str:
        return f'{SETTING}="{self.text} {entry}"'


def parse_origin(url: str) -> Origin:
    """Give the origin of an absolute http or https URL whose host is a plain name or a canonical address.

    Raises `Permanent`: `url_malformed`, `userinfo_refused`, `scheme_refused`, or `host_refused` for every
    odd spelling of a host.
    """
    if len(url) > MAX_URL:
        raise Permanent("url_malformed", f"the URL has more than {MAX_URL >> 10} KiB")
    if _UNSENDABLE.search(url):
        raise Permanent("url_malformed", "the URL contains a space, a control character or broken text")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Permanent("url_malformed", "the URL cannot be split into host and path") from None
    if parts.scheme not in PORTS:
        raise Permanent(
            "scheme_refused", f"{parts.scheme or 'no scheme'} is not https, which alone is fetched"
        )
    if "@" in parts.netloc:
        raise Permanent("userinfo_refused", "the URL carries a user name before its host")
    match = _AUTHORITY.fullmatch(parts.netloc)
    port = int(match["port"] or PORTS[parts.scheme]) if match else 0
    if not match or not 0 < port < 1 << 16:
        raise Permanent("url_malformed", "the URL has no sensible host and port")
    return Origin(parts.scheme, _canonical_host(match["host"]), port)


def is_host(text: str) -> bool:
    """Whether the host of a URL, without brackets, is an address or a name that can be looked up at all.

    For hosts that the operator names: names that are not ASCII are fine.
    """
    try:
        ip_address(text)
    except ValueError:
        pass
    else:
        return True
    try:
        name = text.lower().removesuffix(".").encode("idna").decode()
    except UnicodeError:  # an empty label, or one of more than 63 characters
        return False
    return _is_name(name)


def is_certified(host: str, names: Iterable[str]) -> bool:
    """Whether a certificate for `names` (DNS names of its subject) is one for `host`, in lower case.

    A wildcard is the whole first label. OpenSSL lets it cover no label with an underscore.
    """
    parent = host.partition(".")[2]
    return any(name.lower() == host or ("." in parent and name.lower() == f"*.{parent}") for name in names)


def _canonical_host(text: str) -> str:
    host = text.lower()
    if text.isascii() and _is_name(host):
        return host
    try:
        if text.startswith("[") and "%" not in text:
            return str(IPv6Address(text[1:-1]))
        return str(IPv4Address(text))
    except AddressValueError:
        pass
    raise Permanent("host_refused", f"{text[:100]!a} is neither a plain host name nor a plain address")


def _is_name(host: str) -> bool:
    return bool(_NAME.fullmatch(host)) and not _NUMBER.fullmatch(host.rpartition(".")[2])


def _shown(entry: str) -> str:
    return ascii(_PASSWORD.sub(":[hidden]@", entry))


def _require_name(entry: str) -> None:
    if not _is_name(entry.removeprefix("*.")):
        raise Permanent(
            "bad_hosts",
            f"{_shown(entry)} is not a host name; write name.example, *.name.example, *,"
            " or scheme://host:port for an address, a port or plain http",
        )


def _trusted_origin(entry: str) -> Origin:
    try:
        origin = parse_origin(entry)
    except Permanent as error:
        raise Permanent("bad_hosts", f"{_shown(entry)}: {error.message}") from None
    if not re.fullmatch(r"https?://[^/?#]+:[0-9]+", entry):
        raise Permanent(
            "bad_hosts",
            f"{_shown(entry)} must be scheme://host:port, with the port and without a path",
        )
    return origin


_OWN_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_OWN_NAME = re.compile(rf"(?:\*\.)?(?:{_OWN_LABEL}\.)*{_OWN_LABEL}|\[[0-9a-f:.]+\]", re.ASCII)
_HEADER = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_][a-z0-9._-]*)(?::[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """Names in lower case, and `suffixes` that begin with a dot."""

    names: frozenset[str]
    suffixes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name`, `*.suffix` (subdomains only) and addresses, separated by spaces; ports do not count.

        Raises `Permanent` (`bad_hosts`), which names the bad entry.
        """
        entries = text.lower().split()
        for entry in entries:
            if not _OWN_NAME.fullmatch(entry):
                message = (
                    f"{entry!a} is not a host name; write names without scheme and port, such as example.com"
                )
                raise Permanent("bad_hosts", message)
        if not entries:
            raise Permanent("bad_hosts", "it names no host; leave it unset to allow any")
        wildcards = [entry for entry in entries if entry.startswith("*.")]
        return cls(frozenset(entries) - {*wildcards}, tuple(wildcard[1:] for wildcard in wildcards))

    @property
    def text(self) -> str:
        """The rules as one writes them."""
        return " ".join([*sorted(self.names), *(f"*{suffix}" for suffix in self.suffixes)])

    def allows(self, headers: Sequence[str]) -> bool:
        """Whether a request with these `Host` headers, all that came, may be answered."""
        match = _HEADER.fullmatch(headers[0].lower()) if len(headers) == 1 else None
        if match is None:
            return False
        host = match["host"].removesuffix(".")
        return host in self.names or host.endswith(self.suffixes)
