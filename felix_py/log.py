"""Logging: readable lines on a terminal, one JSON object a line everywhere else."""

from __future__ import annotations

import contextlib
import enum
import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog


class LogFormat(enum.StrEnum):
    """How log lines look. AUTO: text when stderr is a terminal."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """Least important lines shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure(level: LogLevel, form: LogFormat, **bound: str) -> None:
    """Send all log lines to stderr, each with the ``bound`` values (``node=…``), from whichever thread."""
    text = form is LogFormat.TEXT or (form is LogFormat.AUTO and sys.stderr.isatty())

    def add_bound(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**event, **bound}

    ending: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if text
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            add_bound,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *ending,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def get(component: str) -> structlog.typing.FilteringBoundLogger:
    """A logger for one part of the agent."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(component=component)
    return logger


def flush() -> None:
    """Have what was logged written, for a process that is about to end."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
