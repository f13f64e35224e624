"""structlog, loaded without rich.

Where rich is installed, structlog loads it for tracebacks with all local variables, and with it pygments and
attrs: a fifth of what the start of an agent computes, and 4 MB. Its plain tracebacks are right for a log.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["structlog"]


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """An import of a module that is not yet loaded fails meanwhile."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _hidden("rich"):
    import structlog
