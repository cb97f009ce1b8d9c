"""The configuration: every variable, every mistake, and no secret in any message."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import ConfigurationError, Permanent
from app.core.hosts import AllowedHosts
from app.core.notation import cancel_after, duration, in_words
from app.settings import VARIABLES, examine, load
from app.valkey.client import TIMEOUT, connect
from tests.receive.web import SECRET, SECRET_KEY

GOOD: dict[str, tuple[str, str, Any]] = {
    "REPLICATE_WEBHOOK_SECRET": ("webhook_secret", SECRET, SECRET),
    "REPLICATE_API_TOKEN": ("api_token", "r8_abc", "r8_abc"),
    "REPLICATE_BASE_URL": ("api_url", "http://localhost:8100/", "http://localhost:8100"),
    "REDIS_URL": ("redis_url", "rediss://u:p%40@host:1/2", "rediss://u:p%40@host:1/2"),
    "OUTKEEP_DATA": ("data", "/srv/data", Path("/srv/data")),
    "OUTKEEP_STORAGE": ("storage", "s3://bucket/prefix/", "s3://bucket/prefix"),
    "OUTKEEP_PUBLIC_URL": ("public_url", "https://example.com/keep/", "https://example.com/keep"),
    "OUTKEEP_ADMIN_TOKEN": ("admin_token", "token", "token"),
    "OUTKEEP_SECRET_KEY": ("secret_keys", SECRET_KEY, (SECRET_KEY.encode(),)),
    "OUTKEEP_HANDLERS": ("handlers", "my.toml", Path("my.toml")),
    "OUTKEEP_OUTPUT_HOSTS": ("output_hosts", "example.com", None),
    "OUTKEEP_NOTIFY_PRIVATE": ("notify_private", "true", True),
    "OUTKEEP_KEEP_INPUTS": ("keep_inputs", "yes", True),
    "OUTKEEP_RETENTION": ("retention", "30d", 30 * 86400),
    "OUTKEEP_MAX_BODY": ("max_body", "8MiB", 8 << 20),
    "OUTKEEP_MAX_FILE": ("max_file", "1GiB", 1 << 30),
    "OUTKEEP_RECONCILE": ("reconcile", "known", "known"),
    "OUTKEEP_RECONCILE_NOTIFY": ("reconcile_notify", "false", False),
    "OUTKEEP_SLOTS": ("slots", "8", 8),
    "OUTKEEP_MAX_FILES": ("max_files", "10", 10),
    "OUTKEEP_DISK_FLOOR": ("disk_floor", "0", 0),
    "OUTKEEP_RECORD_TTL": ("record_ttl", "3 h", 3 * 3600),
    "OUTKEEP_SPOOL": ("spool", "off", "off"),
    "OUTKEEP_SHARE_FILES": ("share_files", "group", "group"),
    "OUTKEEP_ALLOWED_HOSTS": ("allowed_hosts", "example.com *.lan", AllowedHosts.parse("example.com *.lan")),
    "OUTKEEP_STORAGE_PUBLIC_URL": (
        "storage_public_url",
        "https://cdn.example.com",
        "https://cdn.example.com",
    ),
    "OUTKEEP_PROXY": ("proxy", "http://u:p@proxy:3128", "http://u:p@proxy:3128"),
    "OUTKEEP_COG_TOKEN": ("cog_token", "token", "token"),
    "HOST": ("host", "0.0.0.0", "0.0.0.0"),
    "PORT": ("port", "80", 80),
    "LOG_LEVEL": ("log_level", "WARNING", "warning"),
    "LOG_FORMAT": ("log_format", "text", "text"),
    "FORWARDED_ALLOW_IPS": ("forwarded_allow_ips", "*", "*"),
}
SECRETS = ("REPLICATE_WEBHOOK_SECRET", "REPLICATE_API_TOKEN", "REDIS_URL", "OUTKEEP_ADMIN_TOKEN",
           "OUTKEEP_SECRET_KEY", "OUTKEEP_PROXY", "OUTKEEP_COG_TOKEN")  # fmt: skip
SPARE = ("REPLICATE_BASE_URL", "OUTKEEP_STORAGE")


def value_of(environment: dict[str, str], name: str) -> Any:
    value = getattr(load(environment), GOOD[name][0])
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def problems(environment: dict[str, str]) -> list[str]:
    return examine(environment)[1]


def test_this_table_knows_every_variable() -> None:
    assert {name: attribute for name, (attribute, _, _) in GOOD.items()} == VARIABLES


def test_a_variable_is_read_from_the_environment_or_a_file_but_not_from_both(tmp_path: Path) -> None:
    file = tmp_path / "value"
    for name, (_, text, expected) in GOOD.items():
        value = value_of({name: text}, name)
        assert value == expected if expected is not None else value.text == text, name
        # As a file of settings from Windows leaves it, when a shell or a container runtime reads that.
        for end in ("\r", "\n", "\r\n"):
            assert value_of({name: f"{text}{end}"}, name) == value, name
        file.write_text(f"{text}\n")
        assert value_of({f"{name}_FILE": str(file)}, name) == value, name
        assert problems({name: text, f"{name}_FILE": str(file)}) == [
            f"{name}: set both directly and by {name}_FILE; keep one of them"
        ]
        if name != "REPLICATE_WEBHOOK_SECRET":
            assert load({name: "", f"{name}_FILE": ""}) == load({}), f"an empty {name} is not set"


def test_a_variable_from_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in GOOD:
        for path, reason in (
            (tmp_path / "none", "No such file or directory"),
            (tmp_path, "Is a directory"),
            (tmp_path / "empty", "is empty"),
            (tmp_path / "binary", "is not UTF-8 text"),
        ):
            (problem,) = problems({f"{name}_FILE": str(path)})
            assert problem.startswith(f"{name}_FILE: ")
            assert problem.endswith(reason)
            assert str(path) in problem


@pytest.mark.parametrize("secret", ["hunter2hunter2", "whsec_/hunter2/", '{"key": "hunter2"}'])
def test_a_secret_that_stands_where_the_path_of_its_file_belongs_is_not_shown(secret: str) -> None:
    [problem] = problems({"REPLICATE_API_TOKEN_FILE": secret})
    assert (
        problem == "REPLICATE_API_TOKEN_FILE: cannot read the file that it names: No such file or directory"
    )


def test_an_empty_secret_is_a_mistake() -> None:
    assert problems({"REPLICATE_WEBHOOK_SECRET": ""}) == [
        "REPLICATE_WEBHOOK_SECRET: no secret given; expected whsec_… or whpk_…"
    ]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("REPLICATE_WEBHOOK_SECRET", "whsec_", "nothing follows"),
        ("REPLICATE_WEBHOOK_SECRET", "whsec_c2hvcnQ=", "24 to 64 bytes"),
        ("REPLICATE_WEBHOOK_SECRET", "hunter2", "does not start with"),
        ("REPLICATE_WEBHOOK_SECRET", f"{SECRET} whsec_!", "secret 2 of 2"),
        ("REPLICATE_BASE_URL", "ftp://x", "must start with https:// or http://"),
        ("REPLICATE_BASE_URL", "https://", "names no host"),
        ("REDIS_URL", "http://localhost", "must start with redis:// or rediss:// or unix://"),
        ("REDIS_URL", "localhost:6379", "must start with"),
        ("REDIS_URL", "redis://:hunter/2@host", "host or port cannot be read"),
        ("REDIS_URL", "redis://:hunter2@host:99999", "host or port cannot be read"),
        ("REDIS_URL", "redis://:hunter2@[::1", "host or port cannot be read"),
        ("REDIS_URL", "redis://:hunter2@host?db=x", "client cannot read it"),
        ("REDIS_URL", "redis://:hunter2@host?sokket_timeout=1", "client cannot read it"),
        *(
            ("REDIS_URL", f"redis://:hunter2@host?db=1&{name}={value}", f"{name} changes what the answers")
            for name, value in (
                ("decode_responses", "true"),
                ("decode_responses", "false"),
                ("encoding", "latin-1"),
                ("encoding_errors", "ignore"),
                ("protocol", "3"),
                ("legacy_responses", "false"),
                ("retry_on_error", "x"),
            )
        ),
        ("REDIS_URL", "redis://:hunter2@host?ssl_ocsp_context=x", "client cannot read it"),
        ("REDIS_URL", "redis://:hunter2@host/abc", "no number of a database"),
        ("REDIS_URL", "rediss://host/1/2", "no number of a database"),
        ("REDIS_URL", "unix://", "names no socket"),
        ("REDIS_URL", "redis://:hunter2@a..b", "neither an address nor a name"),
        ("REDIS_URL", f"redis://{'a' * 64}", "neither an address nor a name"),
        ("REPLICATE_BASE_URL", "https://a..b", "neither an address nor a name"),
        ("OUTKEEP_PUBLIC_URL", "https://u:hunter2@x.example", "user name or password"),
        ("OUTKEEP_PUBLIC_URL", "https://x.example/?token=hunter2", "without ? and #"),
        ("OUTKEEP_PUBLIC_URL", "https://x.example/#", "without ? and #"),
        ("OUTKEEP_STORAGE_PUBLIC_URL", "https://hunter2@x.example", "user name or password"),
        ("OUTKEEP_PROXY", "proxy.internal:3128", "must start with http://"),
        ("OUTKEEP_PROXY", "socks5://u:hunter2@proxy:1080", "must start with http://"),
        ("OUTKEEP_PROXY", "http://u:hunter2@proxy", "write http://host:port"),
        ("OUTKEEP_PROXY", "http://u:hunter2@proxy:3128/x", "write http://host:port"),
        ("OUTKEEP_PROXY", "http://:3128", "names no host"),
        ("OUTKEEP_PROXY", "http://a..b:3128", "neither an address nor a name"),
        ("OUTKEEP_ALLOWED_HOSTS", "!!", "is not a host name"),
        ("OUTKEEP_DATA", "~nobody-of-this-name/x", "the home that ~ stands for"),
        ("HOST", "a b", "neither an address nor a host name"),
        ("HOST", "[::1]", "without brackets"),
        ("FORWARDED_ALLOW_IPS", "banana", "addresses or networks"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8", "addresses or networks"),
        ("FORWARDED_ALLOW_IPS", "127.0.0.1,", "addresses or networks"),
        ("OUTKEEP_STORAGE", "outputs", "must start with file:// or s3:// or gs:// or az://"),
        ("OUTKEEP_STORAGE", "file://outputs/here", "three slashes"),
        ("OUTKEEP_STORAGE", "file://./outputs", "three slashes"),
        ("OUTKEEP_STORAGE", "file:///", "three slashes"),
        ("OUTKEEP_STORAGE", "s3://", "names no bucket"),
        ("OUTKEEP_STORAGE", "s3://key:hunter2@bucket", "must not hold credentials"),
        ("OUTKEEP_STORAGE", "s3://bucket?secret=hunter2", "must not hold ? or #"),
        ("OUTKEEP_STORAGE", "file:///a#b", "must not hold ? or #"),
        ("OUTKEEP_SECRET_KEY", "hunter2", "32 or more"),
        ("OUTKEEP_SECRET_KEY", " ", "it is empty"),
        *(
            ("REPLICATE_API_TOKEN", value, "a blank, a line end or a sign that no token has")
            for value in (" ", "hunter2 ", "hunter2\nhunter2", "hünter2", "hunter2\x7f")
        ),
        *(
            (name, value, "begins or ends with a blank, or holds a line end")
            for name in ("OUTKEEP_ADMIN_TOKEN", "OUTKEEP_COG_TOKEN")
            for value in (" ", "hunter2 ", "hunter2\nhunter2", "hunter2\x7f")
        ),
        ("OUTKEEP_OUTPUT_HOSTS", "*.*", "'*.*' is not a host name"),
        ("OUTKEEP_NOTIFY_PRIVATE", "maybe", "write true or false"),
        ("OUTKEEP_RETENTION", "0", "more than 0"),
        ("OUTKEEP_RETENTION", "soon", "whole number of s, m, h, d or w"),
        *(
            ("OUTKEEP_RETENTION", value, "a number alone would be seconds")
            for value in ("30", " 7", "365 ", "1")
        ),
        *(
            (name, f"{start}{value}{end}", "begins or ends with a blank, or holds a line end")
            for name, value in (
                ("OUTKEEP_DATA", "/srv/hunter2"),
                ("OUTKEEP_HANDLERS", "hunter2.toml"),
                ("OUTKEEP_STORAGE", "s3://hunter2/prefix"),
                ("OUTKEEP_STORAGE", "file:///srv/hunter2"),
                ("OUTKEEP_PUBLIC_URL", "https://hunter2.example"),
                ("OUTKEEP_STORAGE_PUBLIC_URL", "https://cdn.example/hunter2"),
                ("REPLICATE_BASE_URL", "https://gateway.example/hunter2"),
                ("REDIS_URL", "redis://:hunter2@host:6379/0"),
                ("OUTKEEP_PROXY", "http://u:hunter2@proxy:3128"),
            )
            for start, end in (("", " "), ("", "\r "), ("", "\nOUTKEEP_X=1"), ("", "\t"), (" ", ""))
            if not (start and "://" in value)  # that has no scheme of ours
        ),
        ("OUTKEEP_RETENTION", "9" * 5000, "whole number"),
        ("OUTKEEP_RETENTION", "99999999w", "a hundred years"),
        ("OUTKEEP_MAX_BODY", "0", "more than 0"),
        ("OUTKEEP_MAX_BODY", "lots", "write a number of B, KiB, MiB, GiB or TiB"),
        ("OUTKEEP_MAX_BODY", "-1", "write a number of"),
        ("OUTKEEP_MAX_FILE", "999999999999TiB", "no disk holds that much"),
        ("OUTKEEP_DISK_FLOOR", "5%", "write a number of"),
        ("OUTKEEP_DISK_FLOOR", "1GiB of it", "write a number of"),
        ("OUTKEEP_RECONCILE", "some", "'all', 'known' or 'off'"),
        ("OUTKEEP_SLOTS", "0", "1 or more"),
        ("OUTKEEP_SLOTS", "1001", "1000 or less"),
        ("OUTKEEP_RECORD_TTL", "1h", "2h or more"),
        ("OUTKEEP_SPOOL", "maybe", "'on' or 'off'"),
        ("PORT", "65536", "65535"),
        ("PORT", "http", "write a whole number"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "'json' or 'text'"),
    ],
)
def test_a_mistake_is_one_line_with_the_reason_and_without_the_value(
    name: str, value: str, reason: str
) -> None:
    (problem,) = problems({name: value})

    assert problem.startswith(f"{name}: ")
    assert reason in problem
    assert "hunter" not in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("1.5GiB", 3 << 29),
        ("2 tib", 2 << 40),
        ("0.5kb", 500),
        ("32.0MiB", 32 << 20),
        ("7B", 7),
    ],
)
def test_a_size_is_a_number_and_its_unit(text: str, size: int) -> None:
    assert load({"OUTKEEP_MAX_FILE": text}).max_file == size


@pytest.mark.parametrize(
    ("text", "header"),
    [("5s", "5s"), ("90", "1m30s"), ("1h30m45s", "1h30m45s"), ("1d", "24h"), ("2H 5M", "2h5m")],
)
def test_a_time_to_cancel_is_written_as_replicate_reads_it(text: str, header: str) -> None:
    assert cancel_after(text) == header


@pytest.mark.parametrize("text", ["4s", "24h1s", "0", "", "soon", "1h30", "-5m", "1.5h", "10m" * 30])
def test_a_time_to_cancel_that_replicate_refuses_is_a_mistake(text: str) -> None:
    with pytest.raises(Permanent):
        cancel_after(text)


@pytest.mark.parametrize("text", ["7d", "2h", "150m", "7201s", "8w"])
def test_a_duration_is_shown_as_it_can_be_given(text: str) -> None:
    seconds = load({"OUTKEEP_RECORD_TTL": text}).record_ttl
    assert duration(in_words(seconds)) == seconds
    assert in_words(seconds) == {"8w": "56d"}.get(text, text)


def test_an_unknown_name_is_a_mistake_and_the_right_one_is_proposed() -> None:
    assert problems({"OUTKEEP_RETENTOIN": "1d", "OUTKEEP_FRESH_BREAD": "1", "OUTKEEP_DATAS_FILE": "/x"}) == [
        "OUTKEEP_DATAS_FILE: no such setting; is OUTKEEP_DATA meant?",
        "OUTKEEP_FRESH_BREAD: no such setting",
        "OUTKEEP_RETENTOIN: no such setting; is OUTKEEP_RETENTION meant?",
    ]


@pytest.mark.parametrize("service", ["OUTKEEP", "OUTKEEP_WEB", "OUTKEEP_2", "OUTKEEP_DATA"])
def test_what_orchestrators_set_for_a_service_of_our_name_is_left_alone(service: str) -> None:
    kubernetes = {
        "SERVICE_HOST": "10.0.0.7",
        "SERVICE_PORT": "80",
        "SERVICE_PORT_HTTP": "80",
        "SERVICE_PORT_HTTP_ALT": "8080",
        "PORT": "tcp://10.0.0.7:80",
        "PORT_80_TCP": "tcp://10.0.0.7:80",
        "PORT_80_TCP_PROTO": "tcp",
        "PORT_80_TCP_PORT": "80",
        "PORT_80_TCP_ADDR": "fd00::7",
        "PORT_53_UDP": "udp://10.0.0.7:53",
        "PORT_9_SCTP_PORT": "9",
    }
    docker = {"NAME": "/web/outkeep", "ENV_PATH": "/usr/bin:/bin"}
    assert problems({f"{service}_{name}": value for name, value in (kubernetes | docker).items()}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OUTKEEP_PORT", "8000"),
        ("OUTKEEP_WEB_PORT", "8000"),
        ("OUTKEEP_NAME", "web"),
        ("OUTKEEP_SERVICE", "10.0.0.7"),
        ("OUTKEEP_SERVICE_PORT", "http"),
        ("OUTKEEP_PORT_80", "tcp://10.0.0.7:80"),
        ("OUTKEEPER_SERVICE_HOST_", "10.0.0.7"),
    ],
)
def test_what_only_looks_like_it_is_a_mistake(name: str, value: str) -> None:
    expected = [] if name.startswith("OUTKEEPER") else [name]
    assert [problem.partition(":")[0] for problem in problems({name: value})] == expected


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("https://api.replicate.com/v1", "https://api.replicate.com"),
        ("https://api.replicate.com/v1/", "https://api.replicate.com"),
        ("http://localhost:8100", "http://localhost:8100"),
        ("https://gateway.example/replicate/v1", "https://gateway.example/replicate"),
        (
            "https://gateway.example/v1/account/name/replicate",
            "https://gateway.example/v1/account/name/replicate",
        ),
        ("https://v1", "https://v1"),
    ],
)
def test_the_address_of_the_api_is_read_with_and_without_its_version(given: str, read: str) -> None:
    assert load({"REPLICATE_BASE_URL": given}).api_url == read


@pytest.mark.parametrize(
    "url",
    [
        "rediss://u:p%3F@host:1/2?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=none&ssl_check_hostname=false",
        "redis://host?db=3&client_name=outkeep",
        "redis://host?socket_timeout=5&socket_connect_timeout=2.5&retry_on_timeout=true",
        "redis://host?health_check_interval=30&socket_keepalive=true",
        "unix:///run/redis.sock?db=1&password=x",
    ],
)
def test_parameters_of_redis_that_harm_nobody_are_taken(url: str) -> None:
    assert load({"REDIS_URL": url}).redis_url == url


def test_time_outs_in_the_url_of_redis_do_not_make_the_receiver_wait_longer() -> None:
    redis = connect("redis://host?socket_timeout=60&socket_connect_timeout=60&retry_on_timeout=true")
    connection: Any = redis.connection_pool.make_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (TIMEOUT, TIMEOUT)
    assert connection.retry.get_retries() == 0


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]  # the last two begin with a byte order mark


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "value"
    for name in SECRETS:
        _, text, expected = GOOD[name]
        file.write_bytes(f"{text}\r\n".encode(encoding))
        assert value_of({f"{name}_FILE": str(file)}, name) == expected


def test_names_of_others_are_left_alone() -> None:
    assert problems({"REPLICATE_SOMETHING": "1", "PATH": "/bin", "outkeep_data": "x"}) == []


def test_all_mistakes_are_told_at_once() -> None:
    wrong = {
        "OUTKEEP_NONE": "1",
        "PORT": "x",
        "OUTKEEP_SLOTS": "0",
        "REDIS_URL": "x",
        "OUTKEEP_DATA_FILE": "/none",
    }

    with pytest.raises(ConfigurationError) as error:
        load(wrong)

    assert sorted(problem.partition(":")[0] for problem in error.value.problems) == sorted(wrong)


def test_no_secret_shows_in_the_settings_or_in_a_message(tmp_path: Path) -> None:
    canary = "canary-0123456789-0123456789-0123456789"
    good = {name: GOOD[name][1] for name in GOOD if name not in (*SECRETS, *SPARE)}
    for name in SECRETS:
        good[name] = canary
    good |= {"REDIS_URL": f"redis://:{canary}@host", "OUTKEEP_PROXY": f"http://u:{canary}@proxy:3128"}
    settings, told = examine(good)
    assert [problem.partition(":")[0] for problem in told] == ["REPLICATE_WEBHOOK_SECRET"]
    assert canary not in f"{settings!r} {settings} {told}"
    assert SECRET not in repr(load({"REPLICATE_WEBHOOK_SECRET": SECRET}))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        load({}).port = 1  # type: ignore[misc]


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    settings = load({"OUTKEEP_DATA": str(tmp_path)})

    assert settings.storage_url == (tmp_path / "outputs").as_uri()
    assert settings.base_url == "http://127.0.0.1:8000"
    assert settings.api_url == "https://api.replicate.com"
    assert (settings.max_body, settings.max_file) == (32 << 20, 10 << 30)
    assert (settings.slots, settings.max_files, settings.record_ttl) == (256, 1000, 7 * 86400)
    assert settings.output_hosts.text == "replicate.delivery *.replicate.delivery storage.googleapis.com"
    assert settings.reconciles == "off"
    assert load({"REPLICATE_API_TOKEN": "r8_x"}).reconciles == "all"
    assert load({"HOST": "::1", "PORT": "80"}).base_url == "http://[::1]:80"
    assert load({"OUTKEEP_PUBLIC_URL": "https://x.example/"}).base_url == "https://x.example"
