"""The count of bad signatures by address."""

from app.receive.rate_limit import LIMIT, MAX_ADDRESSES, WINDOW, Floods


def flooded(floods: Floods, address: str = "192.0.2.1", *, count: int = LIMIT + 1, now: float = 0.0) -> bool:
    return [floods.count(address, now) for _ in range(count)][-1]


def test_only_more_than_the_limit_is_a_flood() -> None:
    assert not flooded(Floods(), count=LIMIT)
    assert flooded(Floods(), count=LIMIT + 1)


def test_a_flood_is_over_when_its_window_has_passed() -> None:
    floods = Floods()
    assert flooded(floods, now=0.0)
    assert floods.count("192.0.2.1", WINDOW - 1)
    assert flooded(floods, now=WINDOW, count=1) is False
    assert not floods.count("192.0.2.1", 3 * WINDOW)


def test_addresses_are_counted_apart_and_networks_of_ipv6_together() -> None:
    floods = Floods()
    assert flooded(floods, "192.0.2.1")
    assert not floods.count("192.0.2.2", 0)
    assert flooded(floods, "2001:db8::1")
    assert floods.count("2001:db8::ffff:1", 0)
    assert not floods.count("2001:db8:0:1::1", 0)
    assert flooded(floods, "::ffff:192.0.2.9")
    assert not floods.count("::ffff:192.0.2.8", 0)
    assert not floods.count("no address", 0)


def test_a_limited_number_of_addresses_is_remembered() -> None:
    floods = Floods()
    flooded(floods, "192.0.2.1")
    for number in range(MAX_ADDRESSES):
        floods.count(f"10.0.{number // 256}.{number % 256}", 0)
    assert not floods.count("192.0.2.1", 0)
