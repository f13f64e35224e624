"""The kernel's IP sets for the simulator: each is read once, when a rule asks for it."""

from __future__ import annotations

from felix_py.dataplane.ipset_commands import Commands
from felix_py.netlink import ipset_members
from felix_py.netlink.connection import Closing
from felix_py.records import SetType
from felix_py.ruleset.sets import IPSet
from policy.model import Family

_FAMILIES = {2: Family.V4, 10: Family.V6}
"""The kernel's NFPROTO numbers."""


class LiveSet:
    """One set as read. Implements :class:`felix_py.ruleset.sets.IPSet`."""

    def __init__(self, kind: str, family: Family, members: dict[bytes, int]) -> None:
        self._kind = kind
        self._family = family
        self._members = members
        # Exceptions by ``nomatch`` members are not evaluated.
        self._excepts = kind.startswith("hash:net") and any(map(ipset_members.has_flags, members))

    @property
    def type(self) -> str:
        return self._kind

    def get(self, member: str) -> int | None:
        if self._excepts:
            raise LookupError("the set has nomatch members")
        try:
            key = ipset_members.encode(SetType(self._kind), self._family, member)
        except ValueError:
            return None
        return self._members.get(key)


class LiveSets(Closing):
    """All sets of the network namespace in which this was made."""

    def __init__(self) -> None:
        """
        Raises:
            OSError: no netlink: not root, or a kernel without it.
        """
        self._commands = Commands()
        self._read: dict[str, LiveSet | None] = {}

    def close(self) -> None:
        self._commands.close()

    def __call__(self, name: str) -> IPSet | None:
        """The set with a name; None if it does not exist.

        Raises:
            OSError: the kernel does not answer.
        """
        if name not in self._read:
            self._read[name] = None
            if found := self._commands.read(name):
                shape, members = found
                self._read[name] = LiveSet(shape.type, _FAMILIES.get(shape.family, Family.V4), members)
        return self._read[name]
