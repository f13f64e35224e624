"""What a kind of kernel objects is to :class:`felix_py.dataplane.kernel.Kernel`.

A new kind (WireGuard, nftables) is a part of its own, and a line in Kernel.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from felix_py.dataplane.order import Step
from felix_py.dataplane.protocols import Look
from felix_py.records import Drift, Report, Update
from felix_py.refs import Ref


class Sweep(enum.IntEnum):
    """Which objects of ours that nobody has asked for an apply removes."""

    NOTHING = 0
    ALL_BUT_LEARNED = 1
    """Not routes that were learned from BGP peers."""

    ALL = 2


class Part(Protocol):
    """Wants what :meth:`update` has noted, sees what :meth:`load` finds, and writes the difference in its steps.

    What fails stays pending. A step may raise OSError or ToolError where the kernel does not answer at all.
    """

    looks: Look
    """When it is to be loaded: for any of these."""

    steps: Mapping[Step, Callable[[Sweep], Report]]
    _drift: list[Drift]

    def load(self) -> None:
        """Read back what is ours.

        Raises:
            OSError, ToolError: it cannot be read.
        """

    def update(self, update: Update) -> None:
        """Note what is wanted of an update. No I/O."""
        return

    def hold(self, base: Update) -> Update:
        """Want what was found, until :meth:`release`; what all parts are to want besides. See Dataplane.hold."""
        return Update()

    def release(self) -> None:
        """Want nothing; what there is stays."""
        return

    def take_drift(self) -> list[Drift]:
        """What somebody else has changed, as found since the last call."""
        taken, self._drift = self._drift, []
        return taken

    def differences(self) -> Iterable[Ref]:
        """What is wanted that the kernel, as last seen, does not have."""
        return ()

    def owned(self) -> list[str]:
        """A line for each object of ours in the kernel."""
        return []
