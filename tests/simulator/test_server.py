"""The simulator starts and stops as a thread and as a process."""

import signal
import socket
import subprocess
import sys
from threading import Thread

import httpx
import pytest

from app.receive.listening import free_port
from app.simulator import Simulator
from tests import forked

FOREGROUND = """
from app.simulator import run

run("127.0.0.1", 0, announce=lambda it: print(it.url, flush=True))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_in_the_foreground_it_serves_until_a_signal(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", FOREGROUND]
    with forked.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/v1/account", timeout=60).status_code == 401
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")


def test_it_stops_at_once_while_predictions_run_and_webhooks_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Simulator() as own:
        webhook = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        for model in ("outkeep/slow", "outkeep/caption"):
            answer = httpx.post(
                f"{own.url}/v1/models/{model}/predictions",
                json={"input": {}, "webhook": webhook},
                headers={"authorization": f"Bearer {own.token}"},
            )
            assert answer.status_code == 201
        silent.accept()[0].close()
        leaving = Thread(target=own.__exit__, args=(None, None, None))
        leaving.start()
        leaving.join(60)  # the model would run for ten minutes
        assert not leaving.is_alive()


def test_token_secret_port_and_public_url_can_be_given() -> None:
    port = free_port()
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    with Simulator(port=port, token="t", secret=secret, public_url="http://localhost:1") as own:
        answer = httpx.get(
            f"http://127.0.0.1:{port}/v1/webhooks/default/secret", headers={"authorization": "Bearer t"}
        )
        assert answer.json() == {"key": secret}
        assert own.add_file("a.png", b"a").startswith("http://localhost:1/xezq/")


@pytest.mark.parametrize("secret", ["whsec_!", "whsec_abc", "c2VjcmV0"])
def test_a_bad_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match=r"whsec_|base64|padding"):
        Simulator(secret=secret)


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Simulator(port=taken.getsockname()[1])
