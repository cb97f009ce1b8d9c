"""`outkeep secret`, `url` and `reconcile`, as people type them."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from redis import Redis

from app.cli.reconcile import show
from app.core.context import context_keys, unseal
from app.core.prediction import from_object
from app.core.reconciling import Found
from app.core.signature import parse_signing_keys
from app.receive.listening import free_port
from app.reconcile.passes import Report
from app.simulator import Simulator
from tests.cli.test_cli import complaints, outkeep
from tests.raw_host import ok, raw_host
from tests.receive.web import SECRET_KEY, environment
from tests.reconcile.reconciliation import PREDICTION, TRAINING, Desk

KEYS = {"OUTKEEP_SECRET_KEY": SECRET_KEY, "OUTKEEP_PUBLIC_URL": "https://outkeep.example.com"}


def access(simulator: Simulator) -> dict[str, str]:
    return {"REPLICATE_API_TOKEN": simulator.token, "REPLICATE_BASE_URL": simulator.url}


def test_the_secret_of_the_account_is_printed(simulator: Simulator) -> None:
    assert outkeep("secret", settings=access(simulator)).stdout == f"{simulator.secret}\n"
    done = outkeep("secret", "--json", settings=access(simulator))
    assert json.loads(done.stdout) == {"secret": simulator.secret}


@pytest.mark.parametrize("key", ["", "canary", "whsec_canary", "whsk_" + "A" * 43 + "="])
def test_an_answer_that_is_no_usable_secret_is_refused_and_not_shown(key: str) -> None:
    async def ask() -> list[str]:
        async with raw_host(ok(json.dumps({"key": key}).encode())) as host:
            settings = {"REPLICATE_API_TOKEN": "t", "REPLICATE_BASE_URL": f"http://127.0.0.1:{host.port}"}
            return complaints(await asyncio.to_thread(outkeep, "secret", settings=settings), 1)

    [line] = asyncio.run(ask())
    assert line.startswith("the API's answer holds no usable webhook secret: ")
    assert "canary" not in line


def test_a_new_secret_needs_no_account_and_is_a_good_one() -> None:
    first, second = (outkeep("secret", "--new").stdout.strip() for _ in range(2))
    assert parse_signing_keys(first)
    assert first != second


def test_without_a_token_no_secret_can_be_fetched() -> None:
    [line] = complaints(outkeep("secret"), 2)
    assert line.startswith("REPLICATE_API_TOKEN: not set")


def test_a_refused_token_fails_in_one_line(simulator: Simulator) -> None:
    wrong = access(simulator) | {"REPLICATE_API_TOKEN": "r8_wrong_canary"}
    [line] = complaints(outkeep("secret", settings=wrong), 1)
    assert "REPLICATE_API_TOKEN is refused" in line
    assert "canary" not in line


def test_an_api_that_is_away_fails_in_one_line(simulator: Simulator) -> None:
    away = access(simulator) | {"REPLICATE_BASE_URL": f"http://127.0.0.1:{free_port()}"}
    assert len(complaints(outkeep("secret", settings=away), 1)) == 1


@pytest.mark.parametrize(
    ("arguments", "path"), [([], "/webhooks/replicate"), (["--training"], "/webhooks/replicate/trainings")]
)
def test_a_url_carries_a_signed_context(arguments: list[str], path: str) -> None:
    done = outkeep("url", *arguments, "--context", "order=42", "--context", "note=a=b é", settings=KEYS)

    parts = urlsplit(done.stdout.strip())
    [token] = parse_qs(parts.query)["outkeep_context"]
    assert (parts.netloc, parts.path) == ("outkeep.example.com", path)
    assert unseal(token, context_keys([SECRET_KEY.encode()])) == {"order": "42", "note": "a=b é"}
    assert done.stderr == ""


def test_a_url_without_a_context_is_bare_and_says_when_nobody_can_reach_it(tmp_path: Path) -> None:
    done = outkeep("url", "--json", settings={"OUTKEEP_DATA": str(tmp_path), "PORT": "8123"})
    assert json.loads(done.stdout) == {"url": "http://127.0.0.1:8123/webhooks/replicate"}
    assert "OUTKEEP_PUBLIC_URL is not set" in done.stderr


@pytest.mark.parametrize(
    ("context", "complaint"),
    [
        (["order"], "'order' is not key=value"),
        (["=42"], "is not key=value"),
        (["outkeep=1"], "outkeep is a name of ours"),
        (["a=1", "a=2"], "a is given twice"),
        ([f"a={'x' * 1024}"], "a context has 1024 bytes at most"),
    ],
)
def test_a_context_that_cannot_be_signed_is_refused(context: list[str], complaint: str) -> None:
    options = [option for pair in context for option in ("--context", pair)]
    [line] = complaints(outkeep("url", *options, settings=KEYS), 2)
    assert line.startswith("--context: ")
    assert complaint in line


def test_with_a_redis_of_ones_own_a_url_needs_the_key() -> None:
    [line] = complaints(outkeep("url", settings={"REDIS_URL": "redis://localhost"}), 2)
    assert line.startswith("OUTKEEP_SECRET_KEY: needed")


@pytest.fixture
def desk(valkey_url: str, redis: Redis, tmp_path: Path) -> Iterator[Desk]:
    with Simulator() as running:
        desk = Desk(valkey_url, redis, tmp_path, running)
        desk.now = datetime.now(UTC)
        yield desk


def settings_of(desk: Desk, valkey_url: str, folder: Path) -> dict[str, str]:
    return environment(valkey_url, folder, **access(desk.simulator))


def test_reconcile_says_what_it_found(desk: Desk, valkey_url: str, tmp_path: Path) -> None:
    settings = settings_of(desk, valkey_url, tmp_path)
    desk.finish("new")
    desk.finish("late", created_at=desk.ago(minutes=90), completed_at=desk.ago(minutes=61))
    desk.start("running", TRAINING)

    done = outkeep("reconcile", "--since", "2h", settings=settings)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    late = "1 taken in, but past the hour: what is gone will be listed as lost"
    assert done.stdout.splitlines() == [
        "new: prediction new succeeded",
        "late: prediction late succeeded",
        f"predictions: {late}; 1 taken in, to be kept now",
        "trainings: 1 running",
    ]
    assert desk.record("new").receipt.source == "reconcile"
    assert desk.memory.mark(PREDICTION) is None

    again = json.loads(outkeep("reconcile", "--json", settings=settings).stdout)
    assert again["since"] is None
    assert again["taken"] == []
    assert again["predictions"]["known"] == 2
    assert desk.memory.mark(PREDICTION) is not None


def test_reconcile_needs_a_token_and_says_when_it_is_refused(
    desk: Desk, valkey_url: str, tmp_path: Path
) -> None:
    without = environment(valkey_url, tmp_path)
    [line] = complaints(outkeep("reconcile", settings=without), 2)
    assert line.startswith("REPLICATE_API_TOKEN: not set")

    wrong = settings_of(desk, valkey_url, tmp_path) | {"REPLICATE_API_TOKEN": "r8_wrong"}
    for option in ((), ("--json",)):
        [line] = complaints(outkeep("reconcile", *option, settings=wrong), 1)
        assert line.startswith("REPLICATE_API_TOKEN is refused")


def test_of_a_pass_that_failed_only_what_it_had_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    found = from_object({"id": "a", "status": "succeeded"}, PREDICTION)
    report.add(PREDICTION, Found.NEW, found)
    show(report, None, as_json=False, complete=False)
    said = ["new: prediction a succeeded", "predictions: 1 taken in, to be kept now"]
    assert capsys.readouterr().out.splitlines() == said
    show(report, None, as_json=False, complete=True)
    assert capsys.readouterr().out.splitlines() == [*said, "trainings: none"]


def test_reconcile_waits_for_the_turn_of_another_process(desk: Desk, valkey_url: str, tmp_path: Path) -> None:
    settings = settings_of(desk, valkey_url, tmp_path)
    desk.redis.set("outkeep:reconcile-turn", "somebody", px=1500)
    assert outkeep("reconcile", settings=settings).returncode == 0
