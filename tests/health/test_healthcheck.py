"""`outkeep healthcheck`, as a container runs it."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from rq import Worker
from rq.serializers import JSONSerializer

from app.core.errors import Permanent
from app.health.checks import check
from app.receive.listening import free_port
from app.settings import Settings, load
from tests.own_valkey import OwnValkey
from tests.receive.web import environment, in_process, in_thread


def settings(valkey: OwnValkey, folder: Path, **more: str) -> Settings:
    return load(environment(valkey.url, folder, **more))


def test_a_receiver_that_answers_lives(valkey: OwnValkey, tmp_path: Path) -> None:
    with in_thread(valkey.url, tmp_path) as web:
        check("receiver", settings(valkey, tmp_path, PORT=str(web.port)))
        check("receiver", settings(valkey, tmp_path, PORT=str(web.port), HOST="0.0.0.0"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::0", "localhost"])
def test_a_receiver_on_all_addresses_answers_ipv4_and_lives(
    valkey: OwnValkey, tmp_path: Path, host: str
) -> None:
    with in_process(valkey.url, tmp_path, HOST=host) as (web, process):
        assert process.poll() is None
        assert web.ask("GET", "/healthz").status == 200
        check("receiver", settings(valkey, tmp_path, PORT=str(web.port), HOST=host))


def test_a_port_without_a_receiver_is_dead(valkey: OwnValkey, tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(Permanent, match=f"no receiver answers on 127.0.0.1:{port}"):
        check("receiver", settings(valkey, tmp_path, PORT=str(port)))


def test_a_receiver_that_hangs_is_dead(valkey: OwnValkey, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(Permanent, match="no receiver answers"):
            check("receiver", settings(valkey, tmp_path, PORT=str(port)))


def worker(valkey: OwnValkey, queue: str) -> Worker:
    """What a worker does when it starts."""
    born = Worker([queue], connection=valkey.redis, name=f"of-{queue}", serializer=JSONSerializer)
    born.register_birth()  # type: ignore[no-untyped-call]
    return born


def test_a_worker_of_this_host_and_queue_lives(valkey: OwnValkey, tmp_path: Path) -> None:
    worker(valkey, "persist")

    check("persist", settings(valkey, tmp_path))
    with pytest.raises(Permanent, match="no worker of the queue notify lives on this host"):
        check("notify", settings(valkey, tmp_path))


def test_a_worker_that_is_stopped_is_dead_unless_another_one_lives(valkey: OwnValkey, tmp_path: Path) -> None:
    born = worker(valkey, "persist")
    asleep = subprocess.Popen(["sleep", "600"])
    try:
        valkey.redis.hset(born.key, "pid", asleep.pid)
        check("persist", settings(valkey, tmp_path))
        asleep.send_signal(signal.SIGSTOP)
        os.waitpid(asleep.pid, os.WUNTRACED)  # until it stands
        with pytest.raises(Permanent, match=rf"\(pid {asleep.pid}\) is stopped"):
            check("persist", settings(valkey, tmp_path))
        another = Worker(["persist"], connection=valkey.redis, name="another", serializer=JSONSerializer)
        another.register_birth()  # type: ignore[no-untyped-call]
        check("persist", settings(valkey, tmp_path))
    finally:
        asleep.kill()
        asleep.wait()


def test_a_worker_of_another_host_does_not_count(valkey: OwnValkey, tmp_path: Path) -> None:
    born = worker(valkey, "persist")
    valkey.redis.hset(born.key, "hostname", "another")

    with pytest.raises(Permanent, match="no worker"):
        check("persist", settings(valkey, tmp_path))


def test_a_worker_that_fell_silent_is_dead(valkey: OwnValkey, tmp_path: Path) -> None:
    born = worker(valkey, "persist")
    valkey.redis.hset(born.key, "last_heartbeat", "2026-01-01T00:00:00.000000Z")

    with pytest.raises(Permanent, match="no worker"):
        check("persist", settings(valkey, tmp_path))
