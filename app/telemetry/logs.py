"""Logs: JSON lines, or readable ones on a terminal, on standard error.

A JSON line holds `event` (a stable name from `app.core.vocabulary`), `message` (the sentence), `level`,
`logger`, `timestamp`, `role`, `host` and `pid` of the process, and facts: `kind` and `id` of a prediction,
`delivery`, `job`, `handler`, `code`.
"""

import json
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, TextIO

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

_NO_FACTS = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime", "message", "taskName", "color_message", "arguments", "kwargs"
}  # fmt: skip
"""What every record has, what uvicorn says a second time, with colours, and what RQ says of a job that
failed: its arguments, which can be an event with prompts and links."""

_FACTS: ContextVar[Mapping[str, object]] = ContextVar("facts", default=MappingProxyType({}))

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


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
    # Who looks for these pays a third of what a line costs, and no line of ours shows them.
    logging._srcfile = None  # noqa: SLF001  # as the documentation of `logging` says
    logging.logThreads = logging.logMultiprocessing = False
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash


def bind(**facts: object) -> None:
    """Let these facts stand on each line that this task, or thread, logs from now on."""
    _FACTS.set({**_FACTS.get(), **facts})


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
        self.setFormatter(_Line(redactor, role, as_text=as_text, colours=colours))


class _Line(logging.Formatter):
    """One line, of JSON or readable. By hand, since each delivery that is accepted costs one."""

    def __init__(self, redactor: Redactor, role: str, *, as_text: bool, colours: bool) -> None:
        super().__init__()
        self._redactor = redactor
        self._process = {"role": role, "host": socket.gethostname()}
        self._as_text = as_text
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Without secrets, whatever the record holds."""
        event = self._event(record)
        if self._as_text:
            return self._readable(event)
        try:
            line = _ENCODER.encode(event)
        except (TypeError, ValueError, RecursionError):  # what JSON does not know, and what holds itself
            line = None
        if line is None or not self._redactor.is_clean(line):
            line = json.dumps(self._redactor.value(event), ensure_ascii=False)
        return line

    def _event(self, record: logging.LogRecord) -> dict[str, Any]:
        message = record.getMessage()
        event = {
            **_FACTS.get(),
            **{name: value for name, value in vars(record).items() if name not in _NO_FACTS},
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            **self._process,
            "pid": os.getpid(),  # a child that was forked has another one
            **({"event": message} if self._as_text else {"event": event_name(record), "message": message}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error, redis = record.exc_info[1], sys.modules.get("redis.exceptions")
            if redis and isinstance(error, redis.RedisError):
                # It strikes everything that is under way, and a trace tells nothing.
                event["error"] = f"{type(error).__name__}: {error}"
            else:
                event["exception"] = "".join(traceback.format_exception(error)).rstrip("\n")
        return event

    def _readable(self, event: dict[str, Any]) -> str:
        from structlog.dev import ConsoleRenderer  # noqa: PLC0415  # heavy, and for terminals only

        clean: dict[str, Any] = self._redactor.value(event)
        return ConsoleRenderer(colors=self._colours)(None, "", clean)


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
