"""Whether one part of this host lives, asked from beside it."""

import http.client
import socket
from datetime import timedelta

from rq.worker.base import BaseWorker

from app.accept import queues
from app.accept.inbox import connect
from app.clock import clock_of
from app.core.errors import Permanent
from app.deployment import find_redis
from app.receive.listening import reached_at
from app.settings import Settings
from app.valkey.processes import is_stopped

TIMEOUT = 3.0
SILENCE = timedelta(seconds=90)
"""A worker that has not been heard of for this long is taken for dead."""

_OK = 200


def check(part: str, settings: Settings) -> None:
    """Raise `Permanent` unless `receiver`, or a worker of this host on the queue `part`, lives."""
    if part == "receiver":
        _check_receiver(reached_at(settings.host), settings.port)
    else:
        _check_worker(part, find_redis(settings))


def _check_receiver(host: str, port: int) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise Permanent("dead", f"no receiver answers on {host}:{port} ({type(error).__name__})") from None
    finally:
        connection.close()
    if status != _OK:
        raise Permanent("dead", f"the receiver on {host}:{port} answers {status}")


def _check_worker(queue: str, url: str) -> None:
    redis = connect(url, timeout=TIMEOUT)
    here, earliest = socket.gethostname(), clock_of(redis)() - SILENCE
    stopped = None
    for worker in BaseWorker.all(queue=queues.queue(queue, redis)):
        heard = worker.last_heartbeat
        if worker.hostname == here and heard is not None and heard > earliest:
            if not is_stopped(worker.pid or 0):
                return
            stopped = worker.pid
    if stopped is not None:
        raise Permanent("dead", f"the worker of the queue {queue} (pid {stopped}) is stopped by a signal")
    raise Permanent("dead", f"no worker of the queue {queue} lives on this host")
