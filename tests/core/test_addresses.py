from ipaddress import IPv6Address, ip_address

import pytest

from app.core.addresses import Proxies, embedded, is_private, is_public, sender

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "34.102.136.180", "100.63.255.255", "100.128.0.0",
    "126.255.255.255", "128.0.0.1", "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0",
    "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0", "192.167.255.255", "192.169.0.0",
    "198.17.255.255", "198.20.0.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
    "2001:200::1", "2001:4860:4860::8888", "2001:db7::1", "2001:db9::1", "2003::1", "2606:4700:4700::1111",
    "2a00:1450:4001:82f::201b", "3ffd:ffff::1", "3fff:1000::1",
]  # fmt: skip

PRIVATE = [
    "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1", "127.255.255.255",
    "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255", "::1", "fc00::1", "fd12:3456::1",
]  # fmt: skip

CLOSED = [
    # metadata, and addresses inside a host
    "169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192",
    "fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe",
    # special blocks, family 4
    "0.0.0.0", "0.1.2.3", "192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.7", "203.0.113.255", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    # other spellings of 127.0.0.1, 10.0.0.1 and 169.254.169.254
    "::", "::127.0.0.1", "::a00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::10.0.0.1", "2002:7f00:1::1", "2002:a00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::1",
    # special blocks, family 6
    "100::1", "1fff::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff:ffff::1", "2001:db8::1",
    "3ffe::1", "3fff::1", "3fff:fff::1", "4000::1", "5f00::1", "fe80::1", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip


def test_an_ordinary_internet_address_is_public_and_not_private() -> None:
    for text in PUBLIC:
        assert is_public(ip_address(text)), text
        assert not is_private(ip_address(text)), text


def test_an_address_of_ones_own_network_is_private_and_not_public() -> None:
    for text in PRIVATE:
        assert is_private(ip_address(text)), text
        assert not is_public(ip_address(text)), text


def test_special_forms_are_neither() -> None:
    for text in CLOSED:
        assert not is_public(ip_address(text)), text
        assert not is_private(ip_address(text)), text


@pytest.mark.parametrize("text", ["2606:4700::1%eth0", "::1%lo", "fd00::1%1"])
def test_an_address_with_a_scope_is_neither(text: str) -> None:
    assert not is_public(IPv6Address(text))
    assert not is_private(IPv6Address(text))


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("64:ff9b::8.8.8.8", "8.8.8.8"),
        ("64:ff9b::7f00:1", "127.0.0.1"),
        ("64:ff9b::", "0.0.0.0"),
        ("64:ff9b::ffff:ffff", "255.255.255.255"),
        ("64:ff9b::1:808:808", "64:ff9b::1:808:808"),
        ("64:ff9b:1::8.8.8.8", "64:ff9b:1::8.8.8.8"),
        ("2606:4700::1111", "2606:4700::1111"),
        ("::ffff:8.8.8.8", "::ffff:8.8.8.8"),
        ("8.8.8.8", "8.8.8.8"),
    ],
)
def test_dns64_hides_an_ipv4_address_in_its_own_prefix_only(text: str, inside: str) -> None:
    assert embedded(ip_address(text)) == ip_address(inside)


@pytest.mark.parametrize(
    ("address", "stands_for"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("", ""),
        ("unknown", "unknown"),
        ("x" * 100, "x" * 64),
    ],
)
def test_an_address_stands_for_who_has_it(address: str, stands_for: str) -> None:
    assert sender(address) == stands_for


@pytest.mark.parametrize(
    ("listed", "address", "stranger"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.1", "::ffff:127.0.0.1", None),
        ("127.0.0.1", "127.0.0.2", "127.0.0.2"),
        ("10.0.0.0/8, fd00::/8", "10.1.2.3", None),
        ("10.0.0.0/8, fd00::/8", "fd00::7", None),
        ("10.0.0.0/8, fd00::/8", "2001:db8::7", "2001:db8::"),
        ("*", "203.0.113.7", None),
        ("127.0.0.1", "unknown", "unknown"),
        ("127.0.0.1", None, None),
    ],
)
def test_a_proxy_that_is_trusted_is_no_stranger(
    listed: str, address: str | None, stranger: str | None
) -> None:
    assert Proxies(listed).stranger(address) == stranger
