import pytest

from app.core.errors import Permanent
from app.core.hosts import HostRules, Origin, Target, is_certified

DEFAULT = "replicate.delivery *.replicate.delivery storage.googleapis.com"
RULES = HostRules.parse(DEFAULT)
ORIGINS = HostRules.parse(
    "replicate.delivery http://127.0.0.1:9000 https://minio.lan:9443 http://[::1]:9000"
    " http://project_minio_1:9000 https://files_1.lan:443"
)


def refusal(rules: HostRules, url: str) -> Permanent:
    with pytest.raises(Permanent) as caught:
        rules.check(url)
    return caught.value


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://replicate.delivery/a/b.png", "replicate.delivery"),
        ("https://Replicate.Delivery:443/a/b.png", "replicate.delivery"),
        ("https://pbxt.replicate.delivery/x", "pbxt.replicate.delivery"),
        ("https://a.b.replicate.delivery/x", "a.b.replicate.delivery"),
        ("https://storage.googleapis.com/bucket/%28x%29?sig=%2F#part", "storage.googleapis.com"),
        ("https://replicate.delivery/é/名.png", "replicate.delivery"),
        ("https://replicate.delivery", "replicate.delivery"),
        ("https://a_b.replicate.delivery/x", "a_b.replicate.delivery"),
        ("https://_a_.b_.replicate.delivery/x", "_a_.b_.replicate.delivery"),
    ],
)
def test_a_listed_host_is_a_target_that_is_not_trusted(url: str, host: str) -> None:
    assert RULES.check(url) == Target("https", host, 443, trusted=False)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://127.0.0.1:9000/a", "127.0.0.1", 9000),
        ("https://minio.lan:9443/a", "minio.lan", 9443),
        ("http://[::1]:9000/a", "::1", 9000),
        ("http://project_minio_1:9000/a", "project_minio_1", 9000),
        ("https://Files_1.lan:443/a", "files_1.lan", 443),
    ],
)
def test_a_trusted_origin_may_be_an_address_a_port_and_plain_http(url: str, host: str, port: int) -> None:
    assert ORIGINS.check(url) == Target(url.partition(":")[0], host, port, trusted=True)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:9001/a", "host_refused"),
        ("http://127.0.0.1/a", "host_refused"),
        ("https://127.0.0.1:9000/a", "host_refused"),
        ("http://minio.lan:9443/a", "scheme_refused"),
        ("https://minio.lan/a", "host_refused"),
        ("https://minio.lan:9444/a", "host_refused"),
        ("http://127.1:9000/a", "host_refused"),
        ("http://2130706433:9000/a", "host_refused"),
        ("http://[::ffff:127.0.0.1]:9000/a", "host_refused"),
    ],
)
def test_trust_covers_exactly_one_origin(url: str, code: str) -> None:
    assert refusal(ORIGINS, url).code == code


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.com/x", "host_refused"),
        ("https://evilreplicate.delivery/x", "host_refused"),
        ("https://replicate.delivery.evil.com/x", "host_refused"),
        ("https://storage.googleapis.com.evil.com/x", "host_refused"),
        ("https://x.storage.googleapis.com/x", "host_refused"),
        ("https://.replicate.delivery/x", "host_refused"),
        ("https://-a.replicate.delivery/x", "host_refused"),
        ("https://replicate.delivery./x", "host_refused"),
        ("https://rеplicate.delivery/x", "host_refused"),  # a Cyrillic letter  # noqa: RUF001
        ("https://replicate%2Edelivery/x", "host_refused"),
        ("https://replicate.delivery%00.evil.com/x", "host_refused"),
        ("https://evil.com\\@replicate.delivery/x", "userinfo_refused"),
        ("https://replicate.delivery\\.evil.com/x", "host_refused"),
        ("https://user@replicate.delivery/x", "userinfo_refused"),
        ("https://user:password@replicate.delivery/x", "userinfo_refused"),
        ("https://@replicate.delivery/x", "userinfo_refused"),
        ("http://replicate.delivery/x", "scheme_refused"),
        ("file:///etc/passwd", "scheme_refused"),
        ("ftp://replicate.delivery/x", "scheme_refused"),
        ("gopher://replicate.delivery/x", "scheme_refused"),
        ("//replicate.delivery/x", "scheme_refused"),
        ("replicate.delivery/x", "scheme_refused"),
        ("", "scheme_refused"),
        ("https://replicate.delivery:22/x", "port_refused"),
        ("https://replicate.delivery:80/x", "port_refused"),
        ("https://replicate.delivery/" + "a" * (64 << 10), "url_malformed"),
        ("https://replicate.delivery/?" + "%41" * (30 << 10), "url_malformed"),
        ("https://" + "a." * (40 << 10) + "delivery/x", "url_malformed"),
        ("https://replicate.delivery:0/x", "url_malformed"),
        ("https://replicate.delivery:65536/x", "url_malformed"),
        ("https://replicate.delivery:/x", "url_malformed"),
        ("https://replicate.delivery:٤٤٣/x", "url_malformed"),
        ("https://replicate.delivery:443:443/x", "url_malformed"),
        ("https:///x", "url_malformed"),
        ("https://[::1/x", "url_malformed"),
        ("https://[::1]x/x", "url_malformed"),
        ("https://replicate.delivery/a b", "url_malformed"),
        ("https://replicate.delivery/a\r\nhost: x", "url_malformed"),
        ("https://replicate.delivery/\x00", "url_malformed"),
        ("https://replicate.delivery/\ud800", "url_malformed"),
        (" https://replicate.delivery/x", "url_malformed"),
        ("https://" + "a." * 130 + "replicate.delivery/x", "host_refused"),
    ],
)
def test_everything_else_is_refused(url: str, code: str) -> None:
    assert refusal(RULES, url).code == code


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "8.8.8.8", "0177.0.0.1", "2130706433", "127.1", "0x7f.0.0.1", "0x7f000001",
        "127.0.0.0x1",
        "①②⑦.⓪.⓪.①", "127。0。0。1", "127.0.0.1.", "[::1]", "[::1%lo]", "[::1%25lo]",
        "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[v1.x]", "%31%32%37.0.0.1",
        "1.2.3.4.5",
    ],
)  # fmt: skip
def test_no_address_passes_in_any_spelling_even_where_any_host_does(host: str) -> None:
    assert refusal(HostRules.parse("*"), f"https://{host}/x").code in {"host_refused", "url_malformed"}


def test_a_star_permits_any_name_over_https() -> None:
    rules = HostRules.parse("*")
    assert rules.check("https://cdn.example.com/x").trusted is False
    assert refusal(rules, "http://cdn.example.com/x").code == "scheme_refused"
    assert refusal(rules, "https://cdn.example.com:8443/x").code == "port_refused"


def test_a_wildcard_means_subdomains_only() -> None:
    assert refusal(HostRules.parse("*.example.com"), "https://example.com/x").code == "host_refused"


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://cdn.example.com/x", "cdn.example.com"),
        ("https://cdn.example.com:8443/x", "https://cdn.example.com:8443"),
        ("http://cdn.example.com/x", "http://cdn.example.com:80"),
        ("http://10.0.0.5:9000/x", "http://10.0.0.5:9000"),
        ("http://[fd00::5]:9000/x", "http://[fd00::5]:9000"),
        ("http://project_minio_1:9000/x", "http://project_minio_1:9000"),
        ("https://my_bucket.storage.googleapis.com/x", "my_bucket.storage.googleapis.com"),
    ],
)
def test_a_refusal_holds_the_setting_line_that_would_permit_the_url(url: str, entry: str) -> None:
    message = refusal(RULES, url).message
    assert f'OUTKEEP_OUTPUT_HOSTS="{DEFAULT} {entry}"' in message
    assert HostRules.parse(f"{DEFAULT} {entry}").check(url)


def test_a_refusal_shows_no_path_query_or_password() -> None:
    for url in ("https://user:hunter2@x.example/hunter2", "https://x.example/hunter2?k=hunter2"):
        assert "hunter2" not in refusal(RULES, url).message


@pytest.mark.parametrize(
    "entry",
    [
        "127.0.0.1", "exa-_.-mple.com", "example.com/path", "example.com:443", "*.", "*.*.com", "a*.com",
        "-x.com", "x.com.", "http://x.com", "http://x.com:80/", "http://x.com:80/p", "http://x.com:80?q",
        "ftp://x.com:21", "http://user@x.com:80", "http://127.1:80", "http://x.com:99999",
        "https://*.x.com:443", "[::1]",
        "ex\u00e4mple.com",
    ],
)  # fmt: skip
def test_a_bad_entry_is_named(entry: str) -> None:
    with pytest.raises(Permanent) as caught:
        HostRules.parse(f"replicate.delivery {entry}")
    assert caught.value.code == "bad_hosts"
    assert ascii(entry) in caught.value.message


@pytest.mark.parametrize(
    "entry", ["https://user:hunter2@x.example:443", "user:hunter2@x.example", "u:hunter2@"]
)
def test_a_bad_entry_is_named_without_its_password(entry: str) -> None:
    with pytest.raises(Permanent) as caught:
        HostRules.parse(entry)
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_list_is_refused(text: str) -> None:
    with pytest.raises(Permanent, match="no host"):
        HostRules.parse(text)


def test_origins_are_kept_for_the_guard() -> None:
    assert ORIGINS.origins == {
        Origin("http", "127.0.0.1", 9000),
        Origin("https", "minio.lan", 9443),
        Origin("http", "::1", 9000),
        Origin("http", "project_minio_1", 9000),
        Origin("https", "files_1.lan", 443),
    }


@pytest.mark.parametrize(
    ("host", "names", "certified"),
    [
        ("my_bucket.storage.test", ["*.storage.test"], True),
        ("my_bucket.storage.test", ["other.test", "*.STORAGE.test"], True),
        ("my_bucket.storage.test", ["my_bucket.storage.test"], True),
        ("my_bucket.storage.test", ["my-bucket.storage.test"], False),
        ("my_bucket.storage.test", ["storage.test"], False),
        ("my_bucket.storage.test", ["*.test"], False),
        ("a.my_bucket.storage.test", ["*.storage.test"], False),
        ("my_bucket.storage.test", ["my*.storage.test", "*bucket.storage.test", "*_*.storage.test"], False),
        ("my_bucket.storage.test", ["*.*.test", "*"], False),
        ("my_bucket.test", ["*.test"], False),
        ("my_bucket", ["*."], False),
        ("my_bucket.storage.test", [], False),
    ],
)
def test_a_wildcard_in_a_certificate_covers_one_label(
    host: str, names: list[str], *, certified: bool
) -> None:
    assert is_certified(host, names) == certified
