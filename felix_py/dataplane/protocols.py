"""Interfaces of the dataplane to the rest of the agent."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from felix_py.records import Drift, Flow, Report, Update
from felix_py.refs import Ref


class Look(enum.Flag):
    """Kinds of kernel objects that can be read back separately."""

    SETS = enum.auto()
    RULES = enum.auto()
    ROUTES = enum.auto()
    LINKS = enum.auto()
    """The host's ends of pod interfaces."""

    SETTINGS = enum.auto()
    """The host's own sysctls."""


EVERYTHING = Look.SETS | Look.RULES | Look.ROUTES | Look.LINKS | Look.SETTINGS


class RulesSnapshot:
    """All rules as read, opaque to all but the dataplane that made it."""


class Dataplane(Protocol):
    """Writes the wanted state to the kernel. For one thread only, except ``read_rules``.

    ``update`` notes what is wanted and does no I/O. ``apply`` writes the difference in the order of
    :mod:`felix_py.dataplane.order`; failed writes stay pending for the next ``apply``. Only objects that are
    recognisably ours are ever written or removed.
    """

    def load(self, look: Look = EVERYTHING, rules: RulesSnapshot | None = None) -> None:
        """Read back our objects in the kernel. Call before the first ``apply``, and to find drift.

        ``rules``: the result of :meth:`read_rules`; after a write since then, the rules are read again.
        """

    def read_rules(self) -> RulesSnapshot:
        """Read the rules, which takes longest, for a following ``load``. Any thread may call this."""

    def miscounted(self) -> Look:
        """Parts of which the kernel has another number of objects than was last read or written.

        It costs little, and is for those of which the kernel sends no events: IP sets and their members.

        Raises:
            OSError: the kernel does not answer.
        """

    def hold(self, base: Update) -> list[Ref]:
        """Until :meth:`release`, want what the last ``load`` found. No I/O. Returns what is missing.

        ``base``: what is wanted independently of the cluster. It is wanted too, to repair what others have
        changed, if the rules found were made by this version and with these settings.
        """

    def release(self) -> None:
        """Want nothing and leave the kernel as it is; updates follow. No I/O."""

    def update(self, update: Update) -> None:
        """Note wanted objects. No I/O."""

    def differences(self) -> list[Ref]:
        """Read back, and return wanted objects that the kernel does not have. Writes nothing."""

    def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
        """Write the difference. ``sweep``: also remove unwanted objects of ours.

        ``keep_learned``: keep unwanted routes that were learned from BGP peers.
        """

    def sizes(self) -> Mapping[str, int]:
        """Number of wanted objects by kind: chain, set, member, route. Any thread may ask, and it is cheap."""

    def take_drift(self) -> list[Drift]:
        """Changes by others that loads since the last call have found, each once.

        Pending writes, also failed ones, are no drift, nor is what the first ``load`` finds. Routes and
        interfaces that an ``update`` has changed meanwhile are left out, so call this after an update.
        """


class FlowTable(Protocol):
    """The kernel's connection tracking table. One thread at a time; calls take long in a big table."""

    def flows(self, addresses: Collection[str]) -> list[Flow]:
        """Connections with one of the addresses as source or destination, as policy sees them.

        Raises:
            OSError: the kernel does not answer.
            ValueError: an address is invalid.
        """

    def delete(self, flows: Sequence[Flow]) -> tuple[list[Flow], OSError | None]:
        """Delete exactly these connections; missing ones are ignored.

        Returns the deleted ones, and the first error or None; all are tried.

        Raises:
            OSError: the kernel does not answer.
        """

    def forget(self, addresses: Collection[str]) -> int:
        """Delete connections with one of the addresses before or after NAT; returns their number.

        Raises:
            OSError: the kernel does not answer, or refused one.
            ValueError: an address is invalid.
        """

    def busy(self, networks: Collection[str]) -> set[str]:
        """Addresses inside the networks that are an end of a connection, before or after NAT.

        Raises:
            OSError: the kernel does not answer.
            ValueError: a network is invalid.
        """
