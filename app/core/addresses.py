"""Which network addresses we connect to, and whom the address of a client stands for.

Our own tables: `ipaddress.is_global` of Python 3.11 calls NAT64 and 6to4 forms of 127.0.0.1, `::127.0.0.1`,
multicast and Azure's 168.63.129.16 global. IPv6 is an allow-list, because each of its transition schemes
is a way to spell an IPv4 address. Sources: IANA's special-purpose registries for both families, and the
metadata addresses that cloud vendors document.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

_SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata 100.100.100.200
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's host agent
            "169.254.0.0/16",  # link-local; the metadata address of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments; Oracle's metadata 192.0.0.192
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)

_GLOBAL_V6 = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: the next 32 bits are an IPv4 address
            "3ffe::/16",  # the former 6bone, given back
            "3fff::/20",  # documentation
        ),
    )
)

_NAT64 = IPv6Network("64:ff9b::/96")
FAKE = IPv4Network("198.18.0.0/15")
"""What proxies that answer for the name server (fake IP) give instead of an address."""

_PRIVATE_V4 = tuple(
    map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
)
_PRIVATE_V6 = tuple(map(IPv6Network, ("::1/128", "fc00::/7")))

_METADATA = frozenset(
    {
        IPv4Address("100.100.100.200"),  # Alibaba
        IPv6Address("fd00:ec2::253"),  # Amazon's resolver
        IPv6Address("fd00:ec2::254"),  # Amazon
        IPv6Address("fd20:ce::254"),  # Google
    }
)


def embedded(address: Address) -> Address:
    """The IPv4 address in one that DNS64 has made (RFC 6147), else `address` itself.

    For what a name server gives, where an IPv6-only network reaches IPv4 in no other way. In a URL such an
    address stays what it is: special.
    """
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address


def is_public(address: Address) -> bool:
    """True for an ordinary address of the public Internet; false for every special form."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if address.scope_id is not None or address not in _GLOBAL_V6:
        return False
    return not any(address in network for network in _SPECIAL_V6)


def is_private(address: Address) -> bool:
    """True for an address of one's own machine or network: loopback, private, ULA, carrier-grade NAT.

    This is what `OUTKEEP_NOTIFY_PRIVATE` opens. Link-local and metadata addresses stay closed: they hand
    out the credentials of the machine, and no handler lives there.
    """
    if address in _METADATA:
        return False
    if isinstance(address, IPv4Address):
        return any(address in network for network in _PRIVATE_V4)
    return address.scope_id is None and any(address in network for network in _PRIVATE_V6)


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is reached from this host alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def sender(address: str) -> str:
    """Whom an address stands for: all of a network of 64 bits in IPv6, where each host has as many."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv4Address):
        return address
    return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))


class Proxies:
    """The proxies that are trusted: what comes from them comes from many senders."""

    def __init__(self, listed: str) -> None:
        """Take addresses and networks with commas between, or `*` for all; raises ValueError."""
        entries = [entry.strip() for entry in listed.split(",")]
        self._all = "*" in entries
        self._networks = [ip_network(entry) for entry in entries if entry != "*"]

    def stranger(self, address: str | None) -> str | None:
        """Who has to bear what comes from `address`; None for a proxy, and where there is no address."""
        if self._all or not address:
            return None
        try:
            parsed = ip_address(address)
        except ValueError:
            return sender(address)
        if isinstance(parsed, IPv6Address):
            parsed = parsed.ipv4_mapped or parsed
        return None if any(parsed in network for network in self._networks) else sender(address)
