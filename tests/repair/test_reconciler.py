"""The thread that reconciles in a persist worker: it begins soon, takes turns, says once what is wrong."""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.accept.spool import Spool, Spooled
from app.core.lifecycle import State
from app.core.manifest import Receipt
from app.core.names import COUNTERS, FIRST_START, NOTIFY_QUEUE, PERSIST_QUEUE, RECONCILE_TURN, RECONCILED
from app.maintain.lease import leased
from app.receive.listening import free_port
from app.simulator import Simulator
from tests.receive.web import in_thread, wait_until
from tests.reconcile.reconciliation import PREDICTION, Desk, create
from workers.repair.reconciler import reconciling


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as running:
        yield running


@pytest.fixture
def desk(valkey_url: str, redis: Redis, tmp_path: Path, simulator: Simulator) -> Desk:
    desk = Desk(valkey_url, redis, tmp_path, simulator)
    desk.now = datetime.now(UTC)
    return desk


def test_a_pass_begins_at_once_and_the_next_one_after_a_while(desk: Desk) -> None:
    desk.finish("a")
    with reconciling(PERSIST_QUEUE, desk.deployment, every=0.5):
        wait_until(lambda: desk.records.get(PREDICTION, "a") is not None)
        desk.finish("b")
        wait_until(lambda: desk.records.get(PREDICTION, "b") is not None)
    assert desk.fetched() == 2
    wait_until(lambda: desk.redis.hexists(COUNTERS, 'outkeep_reconciled_total{found="new"}'))


def spool(desk: Desk, given: dict[str, Any]) -> Path:
    """A delivery that waits on this host since Redis was away; its folder."""
    folder = desk.deployment.settings.data / "spool"
    receipt = Receipt(desk.now - timedelta(minutes=4), "msg_1", query={"order": "17"})
    with closing(Spool(folder, disk_floor=0)) as waiting:
        body = json.dumps(given).encode()
        asyncio.run(waiting.keep(given["id"], Spooled(PREDICTION, body, receipt)))
    return folder


def test_what_is_in_the_spool_comes_in_before_a_pass_finds_it_and_keeps_its_query(
    desk: Desk, valkey_url: str
) -> None:
    spool(desk, desk.finish("a"))
    folder = desk.deployment.settings.data
    with reconciling(PERSIST_QUEUE, desk.deployment), in_thread(valkey_url, folder):
        wait_until(lambda: desk.redis.exists(RECONCILED) == 1)

    receipt = desk.record("a").receipt
    assert (receipt.source, receipt.query) == ("webhook", {"order": "17"})


def test_a_spool_that_nobody_empties_does_not_end_reconciliation(desk: Desk) -> None:
    folder = spool(desk, desk.finish("a"))
    with reconciling(PERSIST_QUEUE, desk.deployment, patience=1):
        wait_until(lambda: desk.redis.exists(RECONCILED) == 1)

    assert desk.record("a").receipt.source == "reconcile"
    assert len(list(folder.iterdir())) == 1


def test_several_workers_make_one_pass_in_a_while(desk: Desk) -> None:
    desk.finish("a")
    with ExitStack() as workers:
        for _ in range(3):
            workers.enter_context(reconciling(PERSIST_QUEUE, desk.deployment))
        wait_until(lambda: desk.redis.exists(RECONCILED) == 1)
    assert (desk.listed(), desk.fetched()) == (1, 1)


def test_a_worker_that_ends_leaves_its_turn_to_others(desk: Desk) -> None:
    with reconciling(PERSIST_QUEUE, desk.deployment, every=0.01):
        wait_until(lambda: desk.redis.exists(RECONCILED) == 1)
    with leased(desk.redis, RECONCILE_TURN) as ours:
        assert ours


@pytest.mark.parametrize(
    ("queue", "settings"),
    [(NOTIFY_QUEUE, {}), (PERSIST_QUEUE, {"OUTKEEP_RECONCILE": "off"})],
)
def test_nothing_is_asked_where_nothing_is_to_be_found(
    desk: Desk, queue: str, settings: dict[str, str]
) -> None:
    desk.settings |= settings
    with reconciling(queue, desk.deployment, every=0.01):
        pass
    assert desk.listed() == 0


@pytest.mark.parametrize("mode", ["all", "off"])
def test_what_was_created_here_is_asked_for_by_one_worker_whatever_else_is_off(desk: Desk, mode: str) -> None:
    desk.settings["OUTKEEP_RECONCILE"] = mode
    desk.finish("a", completed_at=desk.ago())
    with ExitStack() as workers:
        for _ in range(3):
            workers.enter_context(reconciling(PERSIST_QUEUE, desk.deployment))
        create(desk, "a")
        wait_until(lambda: desk.record("a").state is State.RECEIVED)
        wait_until(lambda: mode == "off" or desk.listed() > 0)
        # Whoever is stopped between the record and this counts it no more.
        wait_until(lambda: desk.redis.hexists(COUNTERS, 'outkeep_reconciled_total{found="new"}'))
    assert desk.fetched() == 1
    assert mode == "all" or desk.listed() == 0


def test_asking_goes_on_after_an_outage_of_the_api(
    desk: Desk, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    desk.settings |= {"OUTKEEP_RECONCILE": "off", "REPLICATE_BASE_URL": f"http://127.0.0.1:{port}"}
    caplog.set_level(logging.INFO, "outkeep.reconcile")
    create(desk, "a")
    with ExitStack() as api, reconciling(PERSIST_QUEUE, desk.deployment, again=0.05):
        wait_until(lambda: "asking for what was created here is put off" in caplog.text)
        back = api.enter_context(Simulator(port=port, token=simulator.token))  # until nobody asks any more
        back.finish(PREDICTION, desk.finish("a"))
        wait_until(lambda: desk.record("a").state is State.RECEIVED)
        # Whoever is stopped between the record and this does not say it any more.
        wait_until(lambda: "asking for what was created here goes on" in caplog.text)
    assert caplog.text.count("is put off") == 1


def test_the_first_start_is_noted_without_a_token_too(desk: Desk) -> None:
    desk.redis.delete(FIRST_START)
    desk.settings["OUTKEEP_RECONCILE"] = "off"
    with reconciling(PERSIST_QUEUE, desk.deployment):
        first = desk.redis.get(FIRST_START)
    assert first is not None
    with reconciling(PERSIST_QUEUE, desk.deployment):
        assert desk.redis.get(FIRST_START) == first


def test_a_long_outage_of_the_api_is_said_once_and_so_is_its_end(
    desk: Desk, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    desk.settings["REPLICATE_BASE_URL"] = f"http://127.0.0.1:{port}"

    def said(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    caplog.set_level(logging.INFO, "outkeep.reconcile")
    with ExitStack() as api, reconciling(PERSIST_QUEUE, desk.deployment, every=0.05):
        wait_until(lambda: said("reconciliation is put off") > 0)
        back = api.enter_context(Simulator(port=port, token=simulator.token))  # until nobody asks any more
        wait_until(lambda: said("reconciliation goes on") > 0)
        assert back.requests("/v1/predictions") > 0
    assert said("reconciliation is put off") == 1
    assert simulator.token not in caplog.text


def test_a_refused_token_is_an_error(
    desk: Desk, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    desk.settings["REPLICATE_API_TOKEN"] = "r8_wrong"
    with reconciling(PERSIST_QUEUE, desk.deployment, every=0.05):
        wait_until(lambda: simulator.requests("/v1/predictions") > 2)
    [record] = [record for record in caplog.records if record.name == "outkeep.reconcile"]
    assert record.levelno == logging.ERROR
    assert "REPLICATE_API_TOKEN is refused" in record.getMessage()
