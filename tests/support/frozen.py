"""Processor time of one turn, as an agent takes it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_in_an_agent() -> Iterator[None]:
    """The garbage collector does not look through what was loaded before (``felix_py.cli.agent`` has it so).

    Of a process of tests that is much.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
