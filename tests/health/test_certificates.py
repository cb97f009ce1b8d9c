"""Stores, Redis and proxies behind certificates that are not trusted: it is said, and what heals it."""

import ssl
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from app.core.bucket_faults import redis_fault
from tests import forked
from tests.certificates import DAY, Authority, authority
from tests.receive.web import clean_environment, environment, in_thread, wait_until
from tests.small_s3 import small_s3

LONG = timedelta(days=30)


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return authority(tmp_path)


def doctor(folder: Path, check: str, **more: str) -> str:
    """What `outkeep doctor` says of one thing, in a process of its own, whose SSL_CERT_FILE counts."""
    settings = environment("redis://127.0.0.1:1", folder, **more)
    done = forked.run(
        [sys.executable, "-m", "app.cli", "doctor"],
        env=clean_environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line[5:].startswith(f"{check}: ")]
    return line


Server = Callable[[Authority], ssl.SSLContext | None]
SERVERS: dict[str, tuple[Server, str]] = {
    "unknown": (lambda ca: ca.server(), "is of a CA that is not known here; "),
    "expired": (lambda ca: ca.server(begins=-LONG, ends=-DAY), "has expired"),
    "too early": (lambda ca: ca.server(begins=DAY, ends=LONG), "is not valid yet"),
    "another name": (lambda ca: ca.server("127.0.0.9"), "is for another name"),
    "plain": (lambda ca: None, "it speaks no TLS there; "),
    "trusted": (lambda ca: ca.server(), ""),
}


@pytest.mark.parametrize("server", SERVERS)
def test_what_is_wrong_with_the_certificate_of_a_store_is_said(
    ca: Authority, tmp_path: Path, server: str
) -> None:
    context, words = SERVERS[server]
    trusted = {} if server == "unknown" else {"SSL_CERT_FILE": str(ca.file)}
    with small_s3(context(ca)) as store:
        own = store.s3.settings(**trusted) | {
            "AWS_ENDPOINT_URL": f"https://{store.s3.endpoint.partition('//')[2]}"
        }
        line = doctor(tmp_path, "storage", **own)

    assert words in line
    assert line.startswith("ok " if server == "trusted" else "fail")
    assert ("SSL_CERT_FILE" in line) is (server == "unknown")
    assert ("AWS_ALLOW_HTTP=true" in line) is (server == "plain")


@pytest.mark.parametrize("server", [name for name in SERVERS if name != "trusted"])
def test_what_is_wrong_with_the_certificate_of_redis_is_said(
    ca: Authority, tmp_path: Path, server: str
) -> None:
    # A handshake is all that is needed: who it is that fails in it does not matter.
    context, words = SERVERS[server]
    query = "" if server == "unknown" else f"?ssl_ca_certs={ca.file}"
    with small_s3(context(ca)) as listening:
        url = f"rediss://{listening.s3.endpoint.partition('//')[2]}/0{query}"
        line = doctor(tmp_path, "redis", REDIS_URL=url)

    assert line.startswith("fail")
    assert words in line
    assert ("ssl_ca_certs=" in line) is (server == "unknown")


@pytest.mark.parametrize("server", ["unknown", "plain"])
def test_readiness_names_the_certificate_of_redis_too(ca: Authority, tmp_path: Path, server: str) -> None:
    context, words = SERVERS[server]
    query = "" if server == "unknown" else f"?ssl_ca_certs={ca.file}"
    with small_s3(context(ca)) as listening:
        url = f"rediss://{listening.s3.endpoint.partition('//')[2]}/0{query}"
        with in_thread(url, tmp_path) as web:
            answer = web.ask("GET", "/readyz")
    assert answer.status == 200  # the spool takes deliveries
    [line] = [line for line in answer.body.decode().splitlines() if line.startswith("warn redis: ")]
    assert words in line
    assert ("ssl_ca_certs=" in line) is (server == "unknown")


@pytest.mark.parametrize("command", ["ls", "handlers", "replay --failed", "rebuild", "rm x --yes", "run a/b"])
def test_commands_name_the_certificate_of_redis_too(ca: Authority, tmp_path: Path, command: str) -> None:
    with small_s3(ca.server()) as listening:
        url = f"rediss://{listening.s3.endpoint.partition('//')[2]}/0"
        done = forked.run(
            [sys.executable, "-m", "app.cli", *command.split()],
            env=clean_environment(environment(url, tmp_path, REPLICATE_API_TOKEN="r8_x")),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode in {1, 2}
    [line] = done.stderr.splitlines()
    assert line.startswith("outkeep: Redis: its certificate is of a CA that is not known here; name its CA")


@pytest.mark.parametrize(("queue", "server"), [("persist", "unknown"), ("handle", "plain")])
def test_workers_that_wait_name_the_certificate_of_redis_too(
    ca: Authority, tmp_path: Path, server: str, queue: str
) -> None:
    context, words = SERVERS[server]
    query = "" if server == "unknown" else f"?ssl_ca_certs={ca.file}"
    said = tmp_path / "said"
    with small_s3(context(ca)) as listening, said.open("wb") as log:
        url = f"rediss://{listening.s3.endpoint.partition('//')[2]}/0{query}"
        worker = forked.Popen(
            [sys.executable, "-m", "app.cli", "work", queue],
            env=clean_environment(environment(url, tmp_path, LOG_FORMAT="json")),
            stdout=log,
            stderr=log,
        )
        with worker:
            try:
                wait_until(lambda: "waiting for Redis: " in said.read_text())
            finally:
                worker.kill()
    [line] = [line for line in said.read_text().splitlines() if "waiting for Redis: " in line]
    assert words in line
    assert ("ssl_ca_certs=" in line) is (server == "unknown")


def test_a_file_of_cas_that_cannot_be_read_is_named(ca: Authority, tmp_path: Path) -> None:
    with small_s3(ca.server()) as listening:
        place = listening.s3.endpoint.partition("//")[2]
        line = doctor(tmp_path, "redis", REDIS_URL=f"rediss://{place}/0?ssl_ca_certs={tmp_path}/none.pem")

    assert "a file that REDIS_URL names (ssl_ca_certs, " in line


@pytest.mark.parametrize("server", SERVERS)
def test_doctor_warns_of_a_public_url_that_replicate_would_not_trust(
    ca: Authority, tmp_path: Path, server: str
) -> None:
    context, _ = SERVERS[server]
    with small_s3(context(ca)) as proxy:
        url = f"https://{proxy.s3.endpoint.partition('//')[2]}"
        # What this host trusts is not what Replicate does.
        line = doctor(tmp_path, "public url", OUTKEEP_PUBLIC_URL=url, SSL_CERT_FILE=str(ca.file))

    assert line.startswith(f"warn public url: {url}: ")
    assert line.endswith("Replicate delivers nothing there")


def test_a_public_url_that_cannot_be_reached_from_here_is_no_trouble(tmp_path: Path) -> None:
    line = doctor(tmp_path, "public url", OUTKEEP_PUBLIC_URL="https://127.0.0.1:1")

    assert line.startswith("ok   public url: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Error 111 connecting to 127.0.0.1:1. Connection refused.", None),
        ("Error 2 connecting to unix socket: /run/x. No such file or directory.", None),
        ("Error 2 connecting to 127.0.0.1:1. No such file or directory.", "cannot be read"),
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required", "ssl_certfile"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate", "not known"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: EE key too small", "refused here"),
        ("Timeout connecting to server", None),
    ],
)
def test_errors_of_redis_are_told_apart(text: str, words: str | None) -> None:
    said = redis_fault(text)

    assert (said is None) if words is None else (said is not None and words in said)
