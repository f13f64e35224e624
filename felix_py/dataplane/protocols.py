"""What the rest of the agent asks of the kernel."""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from typing import Protocol

from felix_py.records import Drift, Flow, Report, Update
from felix_py.refs import Ref


class Look(enum.Flag):
    """What can be read back by itself."""

    SETS = enum.auto()
    RULES = enum.auto()
    ROUTES = enum.auto()
    LINKS = enum.auto()
    """The host's ends of pod interfaces."""

    SETTINGS = enum.auto()
    """The host's own sysctls."""


EVERYTHING = Look.SETS | Look.RULES | Look.ROUTES | Look.LINKS | Look.SETTINGS


class RulesSnapshot:
    """All rules as they were read. Only the dataplane that has made it looks into it."""


class Dataplane(Protocol):
    """Desired state in, writes out. One thread only calls it; nothing here is safe for two, but ``read_rules``.

    ``update`` only notes what is wanted and does no I/O. ``apply`` brings the kernel there in the order that
    :mod:`felix_py.dataplane.order` gives reasons for; what fails stays pending and is tried again by the next
    ``apply``. Only objects that are recognisably ours are ever written or removed.
    """

    def load(self, look: Look = EVERYTHING, rules: RulesSnapshot | None = None) -> None:
        """Read back what is ours in the kernel. Call before the first ``apply``, and to find drift.

        ``rules``: what :meth:`read_rules` returned; if something was written since, they are read again.
        """

    def read_rules(self) -> RulesSnapshot:
        """Read the rules, which takes longest, for a ``load`` that follows. Any thread may call this."""

    def hold(self, base: Update) -> list[Ref]:
        """Until :meth:`release`, want what the last ``load`` found: it was in force. No I/O.

        ``base``: what is wanted whatever the cluster has. Where it was spoilt it is wanted as well, if what is
        left of ours was made by the same rules. Returns what is missing.
        """

    def release(self) -> None:
        """Want nothing any more, and leave everything as it is: updates follow. No I/O."""

    def update(self, update: Update) -> None:
        """Note what is wanted. No I/O."""

    def differences(self) -> list[Ref]:
        """Read back, and return what is wanted but is not there. Writes nothing."""

    def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
        """Write the difference. ``sweep``: also remove objects of ours that nobody asked for.

        ``keep_learned``: but not routes that were learned from BGP peers.
        """

    def take_drift(self) -> list[Drift]:
        """What somebody else has changed, each change once, as all reading since the last call found it.

        Pending writes, also those that failed, are no drift; neither is what the first ``load`` finds. Routes and
        interfaces that an ``update`` has asked to change in the meantime are left out, so call it behind one.
        """


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
