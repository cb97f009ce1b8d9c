"""Logs of a real process, as an operator's collector reads them."""

import json
import os
import pty
import socket
import sys

import pytest

from tests import forked

_PROGRAM = """
import logging, sys
from app.telemetry import logs as telemetry
telemetry.configure(sys.argv[1], sys.argv[2] or None, role="persist")
log = logging.getLogger("outkeep.test")
log.debug("quiet")
log.info("received %s", "abc", extra={"id": "abc", "count": 3, "odd": object, "color_message": "COLOUR"})
log.info("handler told", extra={"handler": "gallery"})
log.warning("ünïcode \\ud800 and\\na new line")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it failed")
logging.getLogger("uvicorn.error").info("started", extra={"color_message": "\\x1b[1mstarted"})
logging.getLogger("rq.worker").info("of no interest")
logging.getLogger("rq.worker").warning("of interest")
"""


def logged(level: str, log_format: str) -> list[str]:
    command = [sys.executable, "-c", _PROGRAM, level, log_format]
    child = forked.run(command, capture_output=True, check=True)
    assert child.stdout == b""
    return child.stderr.decode().splitlines()


def test_each_line_is_one_json_object_with_the_facts() -> None:
    lines = [json.loads(line) for line in logged("info", "json")]

    assert [(line["event"], line["message"]) for line in lines] == [
        ("unlisted", "received abc"),
        ("handler_told", "handler told"),
        ("unlisted", "ünïcode \ud800 and\na new line"),
        ("unlisted", "it failed"),
        ("library", "started"),
        ("library", "of interest"),
    ]
    first = lines[0]
    assert (first["id"], first["count"], first["level"]) == ("abc", 3, "info")
    assert first["logger"] == "outkeep.test"
    assert first["timestamp"].endswith("Z")
    assert all("color_message" not in line for line in lines)


def test_each_line_says_which_process_it_is_of() -> None:
    lines = [json.loads(line) for line in logged("info", "json")]
    assert {(line["role"], line["host"]) for line in lines} == {("persist", socket.gethostname())}
    [pid] = {line["pid"] for line in lines}
    assert isinstance(pid, int)
    assert "role=persist" in logged("info", "text")[0]


def test_an_exception_is_part_of_its_line() -> None:
    (line,) = [json.loads(line) for line in logged("error", "json")]

    assert "ZeroDivisionError: division by zero" in line["exception"]
    assert "Traceback" in line["exception"]


_OF_REDIS = """
import logging, sys
from redis import exceptions
from app.telemetry import logs as telemetry
telemetry.configure("info", sys.argv[1], role="persist")
log = logging.getLogger("outkeep.test")
for name in sys.argv[2:]:
    try:
        raise getattr(exceptions, name)("it is away")
    except exceptions.RedisError:
        log.warning("it failed", exc_info=True)
        log.exception("it failed")
"""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_error_of_redis_is_one_line_without_a_trace(log_format: str) -> None:
    """It strikes all that is under way at once."""
    names = ["ConnectionError", "TimeoutError", "OutOfMemoryError", "ReadOnlyError", "BusyLoadingError"]
    command = [sys.executable, "-c", _OF_REDIS, log_format, *names]
    lines = forked.run(command, capture_output=True, check=True, text=True).stderr.splitlines()
    assert len(lines) == 2 * len(names)
    for line, name in zip(lines[::2], names, strict=True):
        assert f"{name}: it is away" in line
        assert "Traceback" not in line


def test_json_is_the_format_unless_there_is_a_terminal() -> None:
    assert all(json.loads(line) for line in logged("debug", ""))


def test_on_a_terminal_lines_are_for_people() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", _PROGRAM, "info", ""]
    with forked.Popen(command, stderr=theirs) as child:
        os.close(theirs)
        seen = b""
        while b"of interest" not in seen:
            seen += os.read(ours, 65536)
        assert child.wait() == 0
    os.close(ours)

    assert b"received abc" in seen
    assert b'{"' not in seen
    assert b"\x1b[" in seen


def test_text_can_be_asked_for_and_has_no_colours_outside_of_a_terminal() -> None:
    lines = logged("info", "text")
    assert any("received abc" in line and not line.startswith("{") for line in lines)
    assert not any("\x1b" in line for line in lines)


_HOSTILE = """
import logging, sys, threading
from app.telemetry import logs as telemetry
telemetry.configure("info", "json", secrets=["correct horse battery", "short", 'a "quoted" one'])
log = logging.getLogger("outkeep.test")
class Odd:
    def __repr__(self):
        raise ValueError("no")
class Telling:
    def __repr__(self):
        return "correct horse battery"
deep = [1]
deep.append(deep)
log.warning("alone", extra={"quoted": 'a "quoted" one'})
log.warning("%s", '"}\\n{"', extra={"odd": Odd(), "quoted": 'a "quoted" one',
    "telling": Telling(), "bytes": b"\\xff", "deep": deep,
    "nan": float("nan"), "infinite": float("-inf"), "half": 0.5, "huge": 10 ** 400, "none": None,
    "keys": {1: "a", ("b",): "correct horse battery", None: "c"}, "set": {1}, "\\udfff": "\\ud800"})
telemetry.bind(job="persist-prediction-abc")
log.warning("a short word", extra={"url": "redis://:pa%20ss@host:1/0", "link": "/a?x=1&signature=abc-_"})
log.warning("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw and r8_abcdefgh, Authorization: Bearer abc.def")
try:
    raise ValueError("correct horse battery")
except ValueError:
    log.exception("it failed")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("correct horse battery")
"""


def test_any_content_is_valid_json_without_secrets_and_so_is_a_crash() -> None:
    child = forked.run([sys.executable, "-c", _HOSTILE], capture_output=True, check=False)
    lines = [json.loads(line, parse_constant=refuse_constant) for line in child.stderr.splitlines()]

    assert child.returncode == 1
    assert b"correct horse" not in child.stderr
    assert [line["level"] for line in lines] == ["warning"] * 4 + ["error"] + ["critical"] * 2
    alone, first, second, third, fourth, in_thread, last = lines
    assert first["message"] == '"}\n{"'
    assert (first["telling"], first["half"], first["nan"]) == ("[hidden]", 0.5, "nan")
    assert alone["quoted"] == first["quoted"] == "[hidden]"
    assert first["keys"] == {"1": "a", "('b',)": "[hidden]", "None": "c"}
    assert second["message"] == "a short word"
    assert (second["job"], second["url"]) == ("persist-prediction-abc", "redis://:[hidden]@host:1/0")
    assert second["link"] == "/a?x=1&signature=[hidden]"
    assert third["message"] == "whsec_[hidden] and r8_[hidden], Authorization: Bearer [hidden]"
    assert "ValueError: [hidden]" in fourth["exception"]
    assert "ZeroDivisionError" in in_thread["exception"]
    assert (last["event"], "RuntimeError" in last["exception"]) == ("process_crashed", True)


def refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


_JOB = """
import logging
from app.telemetry import logs as telemetry

telemetry.configure("info", "{}")
event = {{"data": {{"input": {{"prompt": "a private prompt"}}}}}}
facts = {{"func": "f", "arguments": [event], "kwargs": event}}
logging.getLogger("rq.worker").error("job raised", extra=facts)
"""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_arguments_of_a_job_that_failed_are_not_logged(log_format: str) -> None:
    command = [sys.executable, "-c", _JOB.format(log_format)]
    done = forked.run(command, capture_output=True, text=True, check=True)
    assert "job raised" in done.stderr
    assert "private" not in done.stderr
