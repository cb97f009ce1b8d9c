import pytest

from app.core.errors import Permanent
from app.core.hosts import AllowedHosts

RULES = AllowedHosts.parse("Outkeep.Example.com *.lan 127.0.0.1 [::1] localhost")


@pytest.mark.parametrize(
    "host",
    ["outkeep.example.com", "OUTKEEP.example.com:8000", "outkeep.example.com.", "a.lan", "a.b.lan:80",
     "127.0.0.1:8000", "[::1]:8000", "[::1]", "localhost"],
)  # fmt: skip
def test_a_listed_host_is_allowed_on_any_port(host: str) -> None:
    assert RULES.allows([host])


@pytest.mark.parametrize(
    "hosts",
    [[], [""], ["example.com"], ["x.outkeep.example.com"], ["outkeep.example.com.evil.com"], ["lan"],
     [".lan"], ["evillan"], ["127.0.0.1.evil.com"], ["outkeep.example.com", "outkeep.example.com"],
     ["outkeep.example.com, a.lan"], ["user@outkeep.example.com"], ["outkeep.example.com:x"], ["::1"],
     ["outkeep.example.com/"], ["outkeep.example.com\x00.lan"], ["outkeep.example.com:80:80"]],
)  # fmt: skip
def test_everything_else_is_not(hosts: list[str]) -> None:
    assert not RULES.allows(hosts)


@pytest.mark.parametrize(
    "text", ["", " ", "https://example.com", "example.com:80", "*", "*.*.com", "a/b", "a..b", "-a", "ä.com"]
)
def test_a_bad_entry_is_refused(text: str) -> None:
    with pytest.raises(Permanent) as caught:
        AllowedHosts.parse(text)
    assert caught.value.code == "bad_hosts"
