"""Structured logs: one line per event on standard output, JSON or for people.

An event has a constant name in words and its data in fields: `log.info("message accepted", message_id=...)`. Nothing
secret is ever a field. Texts from strangers are bounded and escaped by the renderers.
"""

import logging
import sys
from typing import Any, cast

import structlog

from mailrail.kit.settings import BadSettings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_MAX_TEXT = 2000  # characters a field; a stranger's reply must not fill a disk


def _bounded(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            event[key] = value[:_MAX_TEXT] + "…"
    return event


def setup(service: str, node_id: str, log_format: str, log_level: str) -> None:
    """Configure structlog (and the standard library's logging, for libraries) for this process."""
    if log_level not in _LEVELS:
        raise BadSettings(f"log level {log_level!r}: takes {', '.join(_LEVELS)}")
    if log_format not in ("json", "console"):
        raise BadSettings(f"log format {log_format!r}: takes json or console")
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a log line must never fail for its characters
        reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if log_format == "json" else _keep,
            _bounded,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[log_level]),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service, node=node_id)
    logging.basicConfig(
        level=max(_LEVELS[log_level], logging.WARNING), format="%(name)s: %(message)s", stream=sys.stderr
    )


def _keep(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event


def get_logger(**fields: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger that adds `fields` to each event."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(**fields))
