"""Logs: JSON lines, or readable ones on a terminal, on standard error.

A JSON line holds `event` (a stable name from `app.core.vocabulary`), `message` (the sentence), `level`,
`logger`, `timestamp`, `role`, `host` and `pid` of the process, and facts: `kind` and `id` of a prediction,
`delivery`, `job`, `handler`, `code`.
"""

import logging
import socket
import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO

import structlog
from redis.exceptions import RedisError

from app.core.vocabulary import EVENTS, LIBRARY, UNLISTED
from app.telemetry.redaction import Redactor

OURS = "outkeep"
"""The root of the names of our loggers."""

log = logging.getLogger("outkeep.process")

_QUIET = (
    "aiohttp.access",
    "asyncio",
    "httpx",
    "rq.worker",
    "rq.job",
    "rq.queue",
    "rq.scheduler",
    "uvicorn.access",
)
"""Libraries that would log every job or request; their warnings still come through."""

_NO_FACTS = frozenset({"_record", "_from_structlog", "color_message", "arguments", "kwargs"})
"""What structlog adds for itself, what uvicorn says a second time, with colours, and what RQ says of a job
that failed: its arguments, which can be an event with prompts and links."""


def configure(
    level: str, log_format: str | None, *, role: str = "command", secrets: Iterable[str] = ()
) -> None:
    """Send all logging of this process to standard error, once; also what ends it unexpectedly.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        log_format: `json`, `text`, or None: text on a terminal, JSON otherwise.
        role: what this process is: `receiver`, `up`, or the queue of a worker.
        secrets: what must not be in any line; see `app.telemetry.redaction.secrets_of`.
    """
    terminal = sys.stderr.isatty()
    as_text = log_format == "text" or (log_format is None and terminal)
    handler = _Hiding(Redactor(secrets), role, as_text=as_text, colours=terminal)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash


def hide(secrets: Iterable[str]) -> None:
    """Keep these out of all that is logged from now on: what became known after `configure`."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Hiding):
            handler.redactor.learn(secrets)


def cleaned(text: str) -> str:
    """`text` as it would stand in the log: without secrets."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Hiding):
            return handler.redactor.text(text)
    return Redactor().text(text)


class _Hiding(logging.StreamHandler[TextIO]):
    """Writes to standard error what its redactor lets through."""

    def __init__(self, redactor: Redactor, role: str, *, as_text: bool, colours: bool) -> None:
        super().__init__(sys.stderr)
        self.redactor = redactor
        self.setFormatter(_formatter(redactor, role, as_text=as_text, colours=colours))


def _formatter(redactor: Redactor, role: str, *, as_text: bool, colours: bool) -> logging.Formatter:
    host = socket.gethostname()

    def name_process(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        # A child that was forked has another pid.
        return {**event, "role": role, "host": host, "pid": event["_record"].process}

    def redact(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        clean: dict[str, Any] = redactor.value(event)
        return clean

    end: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=colours)]
        if as_text
        else [structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _briefly,
            structlog.processors.format_exc_info,
        ],
        processors=[name_process, _plain if as_text else _named, redact, *end],
    )


def _briefly(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """One line for an error of Redis: it strikes everything that is under way, and a trace tells nothing."""
    found = event.get("exc_info")
    if isinstance(found, tuple) and isinstance(found[1], RedisError):
        del event["exc_info"]
        event["error"] = f"{type(found[1]).__name__}: {found[1]}"
    return event


def _plain(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Drop what is no fact."""
    return {name: value for name, value in event.items() if name not in _NO_FACTS}


def _named(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The name of the event where collectors look for it, the sentence beside it."""
    name = event_name(event["_record"])
    return {**_plain(_, __, event), "event": name, "message": event["event"]}


def event_name(record: logging.LogRecord) -> str:
    """The stable name of what a line tells."""
    if record.name.partition(".")[0] != OURS:
        return LIBRARY
    return EVENTS.get(str(record.msg), UNLISTED)


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the process crashed", exc_info=(kind, error, trace))


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None:
        _log_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)
