"""How much is tried: little for a change (``make test``), much for a release (``make test-all``)."""

from __future__ import annotations

import os

ALL = os.environ.get("FELIX_PY_TESTS") == "all"
"""Whether tests marked ``heavy`` run, and everything that searches searches for long."""

_FRACTION, _FEWEST = 8, 10

FUZZ_SECONDS = float(os.environ.get("FELIX_PY_FUZZ_SECONDS", "60" if ALL else "10"))
"""Seconds that a test which makes up broken input goes on."""


def examples(most: int) -> int:
    """Examples for hypothesis: ``most`` for a release, an eighth of them (ten at least) for a change."""
    return most if ALL else max(min(most, _FEWEST), most // _FRACTION)
