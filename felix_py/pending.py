"""Requests to the reconciler from parts that are constructed before it: the facts and the kernel's monitor."""

from __future__ import annotations

import asyncio
import time

from felix_py.dataplane.protocols import Look
from felix_py.pace import Pace, Paced

_PROMPTLY = (0.0, 0.0, 0.2)
"""Pace of reading back routes, links and sysctls: at once, but not in a tight loop against another writer."""

_SOON = (0.5, 5.0, 3.0)
"""Pace of reading back rules: a change to one is likely to be followed by more."""


class Pending:
    """Requested applies and comparisons with the kernel. On the event loop only."""

    def __init__(self) -> None:
        self.due = asyncio.Event()
        """Set when an apply is to begin."""
        self.held = False
        """While true, :meth:`note` requests no apply."""
        self.rules = Paced(Pace(*_SOON))
        self.prompt = Paced(Pace(*_PROMPTLY))
        self._look = Look(0)
        self._failed = False
        self._noted_at: float | None = None

    def note(self) -> None:
        """Request an apply because the desired state has changed."""
        if self._noted_at is None:
            self._noted_at = time.monotonic()
        if not self.held:
            self.due.set()

    def look(self, look: Look) -> None:
        """Request a comparison of parts of the kernel that others may have changed, and the repair of drift.

        Rules are read back a moment after the last such call, everything else at once.
        """
        if Look.RULES in look:
            self.rules.ask()
        if prompt := look & ~Look.RULES:
            self._look |= prompt
            self.prompt.ask()

    def retry(self) -> None:
        """Request an apply if the last one had failures, since they may succeed now."""
        if self._failed:
            self.due.set()

    def hold(self, *, held: bool) -> None:
        """Begin or end holding; both request an apply."""
        self.held = held
        self._noted_at = None  # how long the API server was away before is no latency
        self.due.set()

    def applied(self, *, failed: bool) -> None:
        """Note whether the apply that has ended had failures."""
        self._failed = failed

    def take_noted(self) -> float | None:
        """Returns when the oldest change since the last call was noted, by time.monotonic(); None: no change."""
        noted, self._noted_at = self._noted_at, None
        return noted

    def give_back_noted(self, noted: float | None) -> None:
        """What :meth:`take_noted` returned was not written after all."""
        if noted is not None:
            self._noted_at = noted

    def take_look(self) -> Look:
        """Returns the parts to compare promptly, and forgets them."""
        look, self._look = self._look, Look(0)
        return look
