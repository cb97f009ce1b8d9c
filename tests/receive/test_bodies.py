"""A large body is worked on beside the event loop, so that others get their answers meanwhile."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FrameType

import pytest
from redis import Redis

from app.accept.quarantine import Quarantine
from app.core.prediction import parse
from app.core.signature import verify
from app.receive.bodies import apart
from tests.receive.web import WEBHOOK, Web, in_thread, prediction

WORK = (verify, parse, Quarantine.put)
"""What reads all of a body."""

_threads: dict[CodeType, set[int]] = defaultdict(set)
"""Which threads have run what."""


def note(frame: FrameType, event: str, _: object) -> None:
    if event == "call" and frame.f_code in _noted:
        _threads[frame.f_code].add(threading.get_ident())


_noted = {function.__code__ for function in (apart, *WORK)}


@pytest.fixture(scope="module")
def web(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    threading.setprofile(note)
    try:
        with in_thread(valkey_url, tmp_path_factory.mktemp("bodies")) as running:
            yield running
    finally:
        threading.setprofile(None)


LARGE = 1 << 20
LONG = "x" * (LARGE + 1)
BODIES = [
    (prediction("a", logs=LONG), "accepted"),
    (prediction("b", output=[1.5] * (LARGE // 4)), "accepted"),
    (prediction("c", input={LONG: None}), "accepted"),
    (prediction("d", status="processing", output=["word"] * (LARGE // 8)), "progress"),
    (prediction("e", status="succeeded", error=[[0]] * (LARGE // 4)), "accepted"),
    (b"\xff" * (LARGE + 1), "quarantined"),
    (b"[" * (LARGE + 1), "quarantined"),
    (b'{"id":"' + b"\\u0061" * LARGE + b'"}', "quarantined"),
    (b" " * (LARGE + 1) + prediction("f"), "accepted"),
]


@pytest.mark.parametrize(("body", "outcome"), BODIES)
@pytest.mark.parametrize("path", [WEBHOOK, f"{WEBHOOK}/trainings"])
def test_a_large_body_is_verified_parsed_and_set_aside_in_threads(
    web: Web, redis: Redis, body: bytes, outcome: str, path: str
) -> None:
    _threads.clear()
    assert web.outcome(body, path) == outcome

    (loop,) = _threads[apart.__code__]
    done = [function for function in WORK if _threads[function.__code__]]
    assert done == ([verify, parse, Quarantine.put] if outcome == "quarantined" else [verify, parse])
    assert not any(loop in _threads[function.__code__] for function in done)
