"""What the reconciler is asked for, by parts that are made before it: the facts and the kernel's monitor."""

from __future__ import annotations

import asyncio

from felix_py.dataplane.protocols import Look
from felix_py.pace import Pace, Paced

_PROMPTLY = (0.0, 0.0, 0.2)
"""The pace at which routes, links and settings are looked at: at once, but not in a tight fight with others."""

_SOON = (0.5, 5.0, 3.0)
"""The pace at which rules are read back: somebody who changes some is likely to change more."""


class Pending:
    """An apply that is due, and looks at what the kernel has. On the event loop only."""

    def __init__(self) -> None:
        self.due = asyncio.Event()
        """An apply is to begin."""
        self.held = False
        """Changes ask for no apply; whoever knows better sets ``due``."""
        self.rules = Paced(Pace(*_SOON))
        self.prompt = Paced(Pace(*_PROMPTLY))
        self._look = Look(0)
        self._failed = False

    def note(self) -> None:
        """Something has changed; an apply follows soon."""
        if not self.held:
            self.due.set()

    def look(self, look: Look) -> None:
        """Others may have changed these parts of the kernel: compare, and mend what differs.

        Rules are read back a moment after the last such call, everything else at once.
        """
        if Look.RULES in look:
            self.rules.ask()
        if prompt := look & ~Look.RULES:
            self._look |= prompt
            self.prompt.ask()

    def retry(self) -> None:
        """What could not be written may work now."""
        if self._failed:
            self.due.set()

    # --- the reconciler's --------------------------------------------------------------------------------

    def hold(self, *, held: bool) -> None:
        """Begin or end to hold; an apply is due for either."""
        self.held = held
        self.due.set()

    def applied(self, *, failed: bool) -> None:
        """An apply is done, and could not write something."""
        self._failed = failed

    def take_look(self) -> Look:
        """What is to be looked at promptly."""
        look, self._look = self._look, Look(0)
        return look
