"""IP sets as the simulator looks them up. No I/O."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from policy.model import Family


class IPSet(Protocol):
    """The content of one set."""

    @property
    def type(self) -> str:
        """As ``ipset create`` spells it."""

    def get(self, member: str) -> int | None:
        """``mark << 32 | mask`` of a member (0 if it carries none); None: not in the set.

        Members are texts as in :class:`felix_py.records.Update`: ``10.0.0.1``, ``10.0.0.0/24``,
        ``10.0.0.1,tcp:80``, ``10.0.0.1,eth0``; a full-length network is an address.

        Raises:
            LookupError: the set's content cannot be interpreted.
        """


@dataclass(frozen=True, slots=True)
class TextSet:
    """A set of texts, for tests and for planned sets."""

    type: str
    members: Mapping[str, int] = field(default_factory=dict)

    def get(self, member: str) -> int | None:
        """See :class:`IPSet`."""
        return self.members.get(member)


_DIMENSIONS = {"hash:ip": 1, "hash:net": 1, "hash:ip,port": 2, "hash:net,iface": 2}


@dataclass(frozen=True, slots=True)
class Ends:
    """The parts of a packet that sets match; ``protocol`` as in ``tcp:80``, empty: it has no ports."""

    source: str
    destination: str
    protocol: str
    source_port: int | None
    destination_port: int | None
    in_interface: str
    out_interface: str


def find(ipset: IPSet, flags: tuple[str, ...], ends: Ends, family: Family) -> int | None:
    """Returns the value of the member that matches a packet (see :meth:`IPSet.get`), or None.

    Raises:
        LookupError: the set's type, or the part of the packet that it matches, is unknown.
    """
    if ipset.type not in _DIMENSIONS:
        raise LookupError(f"sets of type {ipset.type} are not understood")
    if len(flags) < _DIMENSIONS[ipset.type]:
        return None  # the kernel then never finds a member (ip_set_test)
    address = ends.source if flags[0] == "src" else ends.destination
    second = flags[1] if len(flags) > 1 else ""
    match ipset.type:
        case "hash:ip":
            return ipset.get(address)
        case "hash:net":
            return _longest(ipset, family, address, "")
        case "hash:ip,port":
            port = ends.source_port if second == "src" else ends.destination_port
            if not ends.protocol:
                return None
            if port is None:
                raise LookupError("the packet's source port is not known")
            return ipset.get(f"{address},{ends.protocol}:{port}")
        case "hash:net,iface":
            interface = ends.in_interface if second == "src" else ends.out_interface
            return _longest(ipset, family, address, f",{interface}") if interface else None
    raise AssertionError(ipset.type)


def _longest(ipset: IPSet, family: Family, address: str, rest: str) -> int | None:
    """The most specific network of the set that covers an address."""
    kind = socket.AF_INET if family is Family.V4 else socket.AF_INET6
    number = int.from_bytes(socket.inet_pton(kind, address), "big")
    for length in range(family.bits, 0, -1):
        number &= -1 << family.bits - length
        text = socket.inet_ntop(kind, number.to_bytes(family.bits // 8, "big"))
        suffix = "" if length == family.bits else f"/{length}"
        value = ipset.get(f"{text}{suffix}{rest}")
        if value is not None:
            return value
    return None
