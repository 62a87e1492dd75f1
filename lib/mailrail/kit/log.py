"""Structured logs: one line per event on standard output, JSON or for people.

An event has a constant name in words and its data in fields: `log.info("message accepted", message_id=...)`. Nothing
secret is ever a field. Texts from strangers are bounded and escaped by the renderers.

Each message leaves a line or two, so a line must cost little: one step completes it, one renders it, and the lines of
one turn of the event loop are one write. That takes 6 µs a line (CPython 3.11, ten lines a turn); structlog's own steps
for level, time and JSON, with a write for each line, take 9 µs, and 12 µs into a pipe, as containers have it.
"""

import asyncio
import atexit
import json
import logging
import sys
import threading
import time
from typing import Any, TextIO, cast

from mailrail.kit.absent import absent
from mailrail.kit.settings import BadSettings

with absent("rich"):  # it is there for the command line; structlog would take it into every service, for tracebacks
    import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_MAX_TEXT = 2000  # characters a field; a stranger's reply must not fill a disk


_SHOWN_BY_REPR = frozenset(" \t=\r\n\"'")


def _bounded(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            event[key] = value[:_MAX_TEXT] + "…"
    return event


def _for_terminals(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Bounded texts without control characters: what a stranger wrote must not repaint an administrator's screen.

    Which process a line is from, local mode writes before it and `kubectl logs` was told: twice more would be noise.
    """
    for known in ("service", "node"):
        event.pop(known, None)
    for key, value in event.items():
        if isinstance(value, str):
            shown = value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…"
            # The renderer shows a field with one of these by its repr(), which escapes; all others it prints raw.
            if not shown.isprintable() and (key == "event" or _SHOWN_BY_REPR.isdisjoint(shown)):
                shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
            event[key] = shown
    return event


class _Complete:
    """Adds what every event has: the process it comes from, its level, its time (UTC)."""

    def __init__(self, service: str, node_id: str) -> None:
        self._service = service
        self._node_id = node_id
        self._second = -1
        self._shown = ""  # the second, as it is written

    def __call__(self, _: Any, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        now = time.time_ns()
        second = now // 1_000_000_000
        if second != self._second:
            self._second = second
            self._shown = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        event["service"] = self._service
        event["node"] = self._node_id
        event["level"] = "error" if level == "exception" else level
        event["timestamp"] = f"{self._shown}.{now // 1000 % 1_000_000:06d}Z"
        return event


class _Json:
    """The event as one line of JSON."""

    def __init__(self) -> None:
        self._encode = json.JSONEncoder(ensure_ascii=False, default=repr).encode

    def __call__(self, logger: Any, level: str, event: structlog.typing.EventDict) -> str:
        line = self._encode(event)
        # A line this short has no field that is longer.
        return line if len(line) <= _MAX_TEXT else self._encode(_bounded(logger, level, event))


class _Output:
    """Where lines go. Those of one turn of the event loop leave together, at its end; all others at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # which has been asked to flush
        self._lock = threading.Lock()
        atexit.register(self._flush)

    def msg(self, line: str) -> None:
        """Write a line."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write(line + "\n")
            return
        self._held.append(line)
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._flush)

    debug = info = warning = error = exception = critical = log = msg

    def _flush(self) -> None:
        self._loop = None
        if self._held:
            held, self._held = self._held, []
            self._write("\n".join(held) + "\n")

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(text)
            self._stream.flush()


class LibraryLog(logging.Handler):
    """What libraries log by the standard library, as events like ours: no plain text between lines of JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand it to structlog; what cannot be shown is not worth an exception."""
        try:
            level = "error" if record.levelno >= logging.ERROR else "warning"
            fields = {"exc_info": record.exc_info} if record.exc_info else {}
            getattr(structlog.get_logger(), level)(record.getMessage(), library=record.name, **fields)
        except Exception:
            self.handleError(record)


def setup(service: str, node_id: str, log_format: str, log_level: str) -> None:
    """Configure structlog (and the standard library's logging, for libraries) for this process."""
    if log_level not in _LEVELS:
        raise BadSettings(f"log level {log_level!r}: must be one of {', '.join(_LEVELS)}")
    if log_format not in ("json", "console"):
        raise BadSettings(f"log format {log_format!r}: must be json or console")
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a log line must never fail for its characters
        reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    rendering: list[structlog.typing.Processor]
    if log_format == "json":
        rendering = [structlog.processors.format_exc_info, _Json()]
    else:
        # Where `rich` is installed the default shows local variables with a traceback: mail, addresses, configuration.
        plain = structlog.dev.plain_traceback
        rendering = [
            _for_terminals,
            structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=plain),
        ]
    output = _Output(sys.stdout)
    structlog.configure(
        processors=[_Complete(service, node_id), *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[log_level]),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(_LEVELS[log_level], logging.WARNING), handlers=[LibraryLog()])


def get_logger(**fields: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger that adds `fields` to each event."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(**fields))
