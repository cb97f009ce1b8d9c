"""A bucket at the start and while we run: mistakes stop the start, outages are shown and waited for."""

import os
import sys
from pathlib import Path

import pytest

from app.core.errors import ConfigurationError
from app.core.findings import Level
from app.core.names import CHECKS
from app.deployment import prepare
from app.health.doctor import diagnose
from app.receive.listening import free_port
from app.settings import load
from app.storage.store import Storage
from app.telemetry.redaction import Redactor, secrets_of
from tests import forked
from tests.bucket import KEY, S3, FaultyProxy, faulty_proxy
from tests.bucket import SECRET as S3_SECRET
from tests.receive.web import SECRET, environment, in_thread, wait_until
from tests.wrong_clock import WrongClock


def settings(folder: Path, **more: str) -> dict[str, str]:
    own = {"OUTKEEP_STORAGE": "s3://keep/x", "REPLICATE_WEBHOOK_SECRET": SECRET}
    return {"OUTKEEP_DATA": str(folder), **own, **more}


def problems(environment: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        prepare(environment, receives=True)
    return list(error.value.problems)


@pytest.mark.parametrize(
    ("status", "word", "variable"),
    [
        (404, "NoSuchBucket", "OUTKEEP_STORAGE"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (403, "ExpiredToken", "AWS_SESSION_TOKEN"),
        (403, "AccessDenied", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_bucket_that_refuses_us_stops_the_start_with_one_line(
    proxy: FaultyProxy, tmp_path: Path, status: int, word: str, variable: str
) -> None:
    proxy.refuse(status, word)

    (problem,) = problems(settings(tmp_path))

    assert problem.startswith("OUTKEEP_STORAGE: s3://keep/x: ")
    assert variable in problem
    assert "\n" not in problem
    assert KEY not in problem
    assert S3_SECRET not in problem


def test_an_outage_of_the_store_does_not_keep_us_from_starting(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.refuse(503, "SlowDown")
    prepare(settings(tmp_path), receives=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    prepare(settings(tmp_path), receives=True)


def test_a_cdn_before_a_local_folder_is_refused(tmp_path: Path) -> None:
    local = {
        "OUTKEEP_STORAGE": (tmp_path / "outputs").as_uri(),
        "OUTKEEP_STORAGE_PUBLIC_URL": "https://cdn.example.com",
    }
    (problem,) = problems(settings(tmp_path, **local))

    assert problem.startswith("OUTKEEP_STORAGE_PUBLIC_URL: ")


def test_readiness_shows_a_store_that_refuses_and_deliveries_go_on(
    s3_here: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valkey_url: str
) -> None:
    with faulty_proxy(s3_here) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.s3.endpoint)
        own = environment(valkey_url, tmp_path, OUTKEEP_STORAGE=s3_here.url)
        with in_thread(valkey_url, tmp_path, **own) as web:
            proxy.refuse(403, "ExpiredToken")
            ready = web.ask("GET", "/readyz")
            proxy.mend()
            # What was found is told again for a while.
            wait_until(lambda: b"ok storage" in web.ask("GET", "/readyz").body)

    line = next(line for line in ready.body.decode().splitlines() if " storage: " in line)
    assert ready.status == 200
    assert line.startswith("warn storage: s3://keep/")
    assert "AWS_SESSION_TOKEN" in line


def test_doctor_names_what_is_wrong_with_the_bucket_once(proxy: FaultyProxy, tmp_path: Path) -> None:
    for status, word, wanted in (
        (404, "NoSuchBucket", "there is no such bucket"),
        (500, "InternalError", "it answers 500"),
    ):
        proxy.refuse(status, word)
        findings = diagnose(settings(tmp_path), tmp_path)
        told = [finding for finding in findings if "s3://keep/x" in finding.detail]
        assert [(finding.level, finding.check) for finding in told] == [(Level.FAIL, "storage")]
        assert wanted in told[0].detail


def test_the_secrets_of_the_store_show_nowhere(tmp_path: Path) -> None:
    given = {"AWS_SECRET_ACCESS_KEY": S3_SECRET, "AZURE_STORAGE_ACCOUNT_KEY": "azure-account-key"}
    loaded = load(settings(tmp_path, **given))

    assert S3_SECRET not in repr(loaded)
    assert set(given.values()) <= secrets_of(loaded)
    assert S3_SECRET not in Redactor(secrets_of(loaded)).text(f"it said {S3_SECRET}!")


@pytest.mark.parametrize("seconds", [7200.0, 900.0, -7200.0])
def test_a_check_on_a_host_whose_clock_is_wrong_leaves_the_checks_of_others_alone(
    s3_here: S3, tmp_path: Path, seconds: float
) -> None:
    """It removes what a crash has left, and that is older by the clock of the store."""
    name = f"{CHECKS}/of-another-process"
    Storage(s3_here.url).put_bytes(name, b"it looks just now")
    host = WrongClock(tmp_path, seconds)
    code = "import sys; from app.storage.store import Storage; Storage(sys.argv[1]).prove()"
    command = [sys.executable, "-c", code, s3_here.url]
    forked.run(command, env=os.environ | host.environment, check=True, timeout=120)
    assert list(Storage(s3_here.url).names(CHECKS)) == [name]
