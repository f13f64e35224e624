"""Logging: readable lines on a terminal, one JSON object a line elsewhere. A call that logs never blocks.

:mod:`felix_py.log_writer` writes the lines, :mod:`felix_py.log_limits` bounds their size and rate.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import logging
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

from felix_py.log_limits import RateLimit, shorten
from felix_py.log_writer import LineWriter
from felix_py.structured import structlog


class LogFormat(enum.StrEnum):
    """Format of log lines. AUTO: text when stderr is a terminal."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """Lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _Lines:
    """Logger factory and logger of structlog: it hands rendered lines to the writer."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def __call__(self, *_args: Any) -> _Lines:
        return self

    def msg(self, message: str) -> None:
        self._writer.write(message)

    log = debug = info = warning = error = critical = exception = msg


class _FromLibraries(logging.Handler):
    """Passes records of libraries (asyncio, aiohttp) through the same processors and limits."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            get(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


_Filtering: Any = type("_Filtering", (structlog.make_filtering_bound_logger(logging.DEBUG),), {})
"""structlog's wrapper class. Loggers are cached, so a new level changes the class (:func:`set_level`)."""

_writer: LineWriter | None = None
_limit = RateLimit()


def configure(level: LogLevel, form: LogFormat, **bound: str) -> None:
    """Send the log lines of all threads to stderr, each with the ``bound`` values (``node=…``)."""
    global _writer  # noqa: PLW0603 - a process has one standard error
    text = form is LogFormat.TEXT or (form is LogFormat.AUTO and sys.stderr.isatty())

    def add_bound(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**event, **bound}

    ending: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if text
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    set_level(level)
    _writer = LineWriter(sys.stderr.fileno(), _dropped)
    atexit.register(_writer.flush)
    structlog.configure(
        processors=[
            _limit,
            shorten,
            add_bound,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *ending,
        ],
        wrapper_class=_Filtering,
        logger_factory=_Lines(_writer),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_FromLibraries()], level=logging.WARNING, force=True)
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable


def set_level(level: LogLevel) -> None:
    """Set the lowest level that is logged, also for loggers that exist already. Any thread."""
    for name, method in vars(structlog.make_filtering_bound_logger(getattr(logging, level.upper()))).items():
        if not name.startswith("_"):
            setattr(_Filtering, name, method)


def get(component: str) -> structlog.typing.FilteringBoundLogger:
    """Returns the logger of one part of the agent."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(component=component)
    return logger


def flush() -> None:
    """Write out queued lines before the process ends; gives up when the reader takes nothing for a second."""
    if _writer is not None:
        _writer.flush()


def lost() -> dict[str, int]:
    """Numbers of dropped lines: above the rate of one kind, or not written in time."""
    return {"rate": _limit.left_out, "reader": _writer.lost if _writer is not None else 0}


def recent() -> bytes:
    """Returns the newest lines, as written to stderr, oldest first."""
    return _writer.recent() if _writer is not None else b""


def _dropped(lines: int) -> str:
    event = {"event": "log lines were dropped: their reader did not take them", "lines": lines}
    rendered: Any = {"component": "log", **event}
    for processor in structlog.get_config()["processors"][2:]:
        rendered = processor(None, "warning", rendered)
    return str(rendered)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    get("thread").error(
        "a thread failed",
        thread=args.thread.name if args.thread else "",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    get("python").error(
        "an error where none can be raised", what=repr(args.object)[:200], reason=repr(args.exc_value)
    )
