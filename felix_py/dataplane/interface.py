"""What the rest of the agent asks of the kernel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from felix_py.records import Flow, Report, Update


class Dataplane(Protocol):
    """Desired state in, writes out. One thread only calls it; nothing here is safe for two.

    ``update`` only notes what is wanted and does no I/O. ``apply`` brings the kernel there in the order that
    :mod:`felix_py.dataplane.order` gives reasons for; what fails stays pending and is tried again by the next
    ``apply``. Only objects that are recognisably ours are ever written or removed.
    """

    def load(self) -> None:
        """Read back everything of ours from the kernel. Call before the first ``apply``, and to find drift."""

    def update(self, update: Update) -> None:
        """Note what is wanted. No I/O."""

    def differences(self) -> list[str]:
        """Read back, and name what is wanted but is not there, as a Failure's ``what`` does. Writes nothing."""

    def apply(self, *, sweep: bool = False) -> Report:
        """Write the difference. ``sweep``: also remove objects of ours that nobody asked for."""


class FlowTable(Protocol):
    """The connections that the kernel tracks. One thread at a time; every call may take long in a big table."""

    def flows(self, addresses: Collection[str]) -> list[Flow]:
        """Every connection with one of the addresses as its source or destination, as policy sees them.

        Raises:
            OSError: the kernel does not answer.
            ValueError: one of the addresses is none.
        """

    def delete(self, flows: Sequence[Flow]) -> tuple[list[Flow], OSError | None]:
        """Delete exactly these; those that are gone by themselves are fine.

        Returns those that were deleted, and the first refusal, if any; all are tried.

        Raises:
            OSError: the kernel does not answer.
        """

    def forget(self, addresses: Collection[str]) -> int:
        """Delete every connection with one of the addresses anywhere, before or after translation. How many.

        Raises:
            OSError: the kernel does not answer, or refused one.
            ValueError: one of the addresses is none.
        """
