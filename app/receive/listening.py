"""Where we listen, why that cannot be, and where this host reaches it."""

import errno
import os
import secrets
import socket
from ipaddress import IPv6Address, ip_address

from app.core.errors import Permanent

IN_USE = "port_in_use"
"""Code of the error when another program listens there; it may go away."""

PORTS = range(20_000, 32_000)
"""Below those that systems give away themselves."""

_BACKLOG = 2048
"""Connections that the system holds for us until we take them."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, on any free port for 0; that of `::` takes IPv4 as well, as people expect.

    Raises `Permanent` (`port_in_use`, `port_unusable`).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = _is_dual(host)
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        raise refusal(host, port, error, host_option="HOST", port_option="PORT") from None


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on, and that nobody gets who asks for any, as each connection does.

    Raises `Permanent` (`port_unusable`).
    """
    while True:
        port = secrets.choice(PORTS)
        try:
            listen(host, port).close()
        except Permanent as error:
            if error.code != IN_USE:
                raise
        else:
            return port


def refusal(host: str, port: int, error: OSError, *, host_option: str, port_option: str) -> Permanent:
    """What to tell a person of an `error` of listening; the options are what sets host and port."""
    code = IN_USE if error.errno == errno.EADDRINUSE else "port_unusable"
    if code == IN_USE:
        reason = f"another program listens there; stop it, or set {port_option}"
    elif error.errno is None or error.errno < 0:  # not of the system, but of the look-up of names
        reason = f"no address is found for this name; set {host_option}"
    else:
        # Python adds the address, which stands in the message already.
        reason = f"{os.strerror(error.errno)}; set {host_option} or {port_option}"
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Permanent(code, f"cannot listen on {where}: {reason}")


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
