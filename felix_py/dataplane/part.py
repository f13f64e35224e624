"""The interface of :class:`felix_py.dataplane.kernel.Kernel` to each kind of kernel objects.

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
    """Which unwanted objects of ours an apply removes."""

    NOTHING = 0
    ALL_BUT_LEARNED = 1
    """All but routes learned from BGP peers."""

    ALL = 2


class Part(Protocol):
    """Compares what :meth:`update` wants with what :meth:`load` found, and writes the difference in its steps.

    Failed writes stay pending. A step may raise OSError or ToolError if the kernel does not answer at all.
    """

    looks: Look
    """A load of any of these loads the part."""

    steps: Mapping[Step, Callable[[Sweep], Report]]
    _drift: list[Drift]

    def load(self) -> None:
        """Read back our objects.

        Raises:
            OSError, ToolError: they cannot be read.
        """

    def miscounted(self) -> bool:
        """Whether a look that costs little shows changes by others of which the kernel sends no events.

        Raises:
            OSError: the kernel does not answer.
        """
        return False

    def update(self, update: Update) -> None:
        """Note the wanted objects of an update. No I/O."""
        return

    def hold(self, base: Update) -> Update:
        """Want what was found, until :meth:`release`; returns what all parts must want besides."""
        return Update()

    def release(self) -> None:
        """Want nothing; existing objects stay."""
        return

    def take_drift(self) -> list[Drift]:
        """Changes by others, as found since the last call."""
        taken, self._drift = self._drift, []
        return taken

    def differences(self) -> Iterable[Ref]:
        """Wanted objects that the kernel, as last loaded, does not have."""
        return ()

    def sizes(self) -> Mapping[str, int]:
        """Number of wanted objects by kind, without a walk over their members. Any thread may ask."""
        return {}

    def owned(self) -> list[str]:
        """A line for each object of ours in the kernel."""
        return []
