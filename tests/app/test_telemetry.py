"""Logs of a real process, as an operator's collector reads them."""

import json
import os
import pty
import subprocess
import sys

_PROGRAM = """
import logging, sys
from app import telemetry
telemetry.configure(sys.argv[1], sys.argv[2] or None)
log = logging.getLogger("outkeep.test")
log.debug("quiet")
log.info("received %s", "abc", extra={"id": "abc", "count": 3, "odd": object, "color_message": "COLOUR"})
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
    child = subprocess.run(command, capture_output=True, check=True)
    assert child.stdout == b""
    return child.stderr.decode().splitlines()


def test_each_line_is_one_json_object_with_the_facts() -> None:
    lines = [json.loads(line) for line in logged("info", "json")]

    assert [line["event"] for line in lines] == [
        "received abc",
        "ünïcode \ud800 and\na new line",
        "it failed",
        "started",
        "of interest",
    ]
    first = lines[0]
    assert (first["id"], first["count"], first["level"]) == ("abc", 3, "info")
    assert first["logger"] == "outkeep.test"
    assert first["timestamp"].endswith("Z")
    assert all("color_message" not in line for line in lines)


def test_an_exception_is_part_of_its_line() -> None:
    (line,) = [json.loads(line) for line in logged("error", "json")]

    assert "ZeroDivisionError: division by zero" in line["exception"]
    assert "Traceback" in line["exception"]


def test_json_is_the_format_unless_there_is_a_terminal() -> None:
    assert all(json.loads(line) for line in logged("debug", ""))


def test_on_a_terminal_lines_are_for_people() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", _PROGRAM, "info", ""]
    with subprocess.Popen(command, stderr=theirs) as child:
        os.close(theirs)
        seen = b""
        while b"of interest" not in seen:
            seen += os.read(ours, 65536)
        assert child.wait() == 0
    os.close(ours)

    assert b"received abc" in seen
    assert b'{"' not in seen


def test_text_can_be_asked_for() -> None:
    assert any("received abc" in line and not line.startswith("{") for line in logged("info", "text"))
