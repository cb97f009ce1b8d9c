"""Where the receiver listens, and where this host reaches it."""

import socket
from ipaddress import IPv6Address, ip_address


def open_listener(host: str, port: int, *, backlog: int | None = None) -> socket.socket:
    """A listening socket; that of `::` takes IPv4 as well, as people expect. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog, dualstack_ipv6=_is_dual(host))


def reached_at(host: str) -> str:
    """The address at which this host reaches what listens on `host`."""
    if not _is_unspecified(host):
        return host
    # A container often has no address of IPv6, not even `::1`, although `::` can be listened on.
    return "127.0.0.1" if _is_dual(host) or ":" not in host else str(IPv6Address(1))


def _is_dual(host: str) -> bool:
    return ":" in host and _is_unspecified(host) and socket.has_dualstack_ipv6()


def _is_unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
