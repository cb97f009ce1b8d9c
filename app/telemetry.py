"""Logs: JSON lines, or readable ones on a terminal, on standard error."""

import logging
import sys
from typing import Any

import structlog

_SHARED: list[structlog.typing.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]
_QUIET = ("aiohttp.access", "asyncio", "rq.worker", "rq.job", "rq.queue", "rq.scheduler", "uvicorn.access")
"""Libraries that would log every job or request; their warnings still come through."""


def configure(level: str, log_format: str | None) -> None:
    """Send all logging of this process to standard error, once.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        log_format: `json`, `text`, or None: text on a terminal, JSON otherwise.
    """
    as_text = log_format == "text" or (log_format is None and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _plain, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def _plain(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # uvicorn says everything a second time, with colours.
    event.pop("color_message", None)
    return event
