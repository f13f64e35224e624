"""Compiled policy: chains, rules and IP sets, independent of the backend.

The rules of a chain are tried in order. ``Allow`` and ``Deny`` end the evaluation of the direction; ``Jump``
tries another chain and continues with the next rule if that ends without a verdict; ``Pass`` leaves its chain and
the one that jumped there, without a verdict: the chain of a policy, and so the chain of its tier. The evaluation
of an endpoint's direction starts at its class chain. Without a class, or if the class chain ends without a
verdict, the direction is not restricted.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from policy.model import Direction, Family, PolicyKind, PolicyRef, Protocol

SetId = NewType("SetId", str)
"""A set of one family's program: a digest of its content (:func:`policy.names.set_id`)."""


class ChainKind(enum.StrEnum):
    """Kind of a compiled chain."""

    CLASS = "Class"
    """All policies of an endpoint."""
    POLICY = "Policy"
    TIER = "Tier"
    """The policies of one tier, in order."""


@dataclass(frozen=True, slots=True)
class ChainId:
    """A compiled chain; ``digest``: 16 hex digits of its content (:mod:`policy.names`)."""

    kind: ChainKind
    direction: Direction
    digest: str


class SetKind(enum.StrEnum):
    """Kind of a set's members."""

    ADDRESSES = "addresses"
    NETWORKS = "networks"
    ADDRESS_PORTS = "address-ports"


class Side(enum.StrEnum):
    """End of the packet that a set matches."""

    SOURCE = "source"
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class SetMatch:
    """The packet's ``side`` is in the set; ADDRESS_PORTS sets match (address, protocol:destination port)."""

    id: SetId
    kind: SetKind
    side: Side


@dataclass(frozen=True, slots=True)
class PortRange:
    """Destination ports first..last, inclusive."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Match:
    """All parts must hold; an empty Match is every packet. ``ports`` needs a protocol; () is every port.

    ``itself``: a packet of a pod to itself.
    """

    protocol: Protocol | None = None
    ports: tuple[PortRange, ...] = ()
    sets: tuple[SetMatch, ...] = ()
    itself: bool = False


@dataclass(frozen=True, slots=True)
class Allow:
    """End: the direction is allowed."""


@dataclass(frozen=True, slots=True)
class Deny:
    """End: the packet is dropped."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave this chain and the one that jumped here."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Try ``chain``, then go on."""

    chain: ChainId


Action = Allow | Deny | Pass | Jump


@dataclass(frozen=True, slots=True)
class Origin:
    """The policy rule of a compiled rule; ``index`` counts from 0 in the direction's list.

    ``name``: that of a cluster-scoped policy's rule. Backends must escape it.
    """

    policy: PolicyRef
    direction: Direction
    index: int
    name: str = ""

    def __str__(self) -> str:
        """For people, and for comments of kernel rules."""
        name = f" {self.name}" if self.name else ""
        return f"{self.policy} {self.direction.lower()}[{self.index}]{name}"

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Reverse of :meth:`__str__`; None for other texts."""
        found = _ORIGIN.fullmatch(text)
        if found is None:
            return None
        kind, namespace, policy, direction, index, name = found.groups(default="")
        ref = PolicyRef(PolicyKind(kind), namespace, policy)
        return cls(ref, Direction(direction.capitalize()), int(index), name)


_ORIGIN = re.compile(
    rf"({'|'.join(PolicyKind)}) (?:([^\s/]+)/)?(\S+) (ingress|egress)\[(\d+)\](?: (.*))?", re.DOTALL | re.ASCII
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule. ``origin`` None: it was made from no policy rule."""

    action: Action
    match: Match = Match()
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """An ordered list of rules. Only chains that a tier's chain jumps to may Pass."""

    id: ChainId
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Everything compiled for one family; equal programs are the same state.

    ``members`` are texts: an address, a CIDR, or ``address,tcp:80``. ``classes`` maps, per direction, a local
    endpoint's address to its class chain.
    """

    family: Family
    chains: Mapping[ChainId, Chain]
    sets: Mapping[SetId, SetKind]
    members: Mapping[SetId, frozenset[str]]
    classes: Mapping[Direction, Mapping[str, ChainId]]


@dataclass(slots=True)
class Tightened:
    """What a delta may newly deny: to endpoints that use some ``chains`` (and sets of networks), to those with
    ``addresses`` in another class, and between endpoints and ``members``."""

    chains: set[ChainId | SetId] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Delta:
    """Changes of one family's Program since the last delta. None: removed.

    ``members``: set -> member -> present. Members of new sets are listed, those of removed sets are not.
    """

    family: Family
    chains: dict[ChainId, Chain | None] = field(default_factory=dict)
    sets: dict[SetId, SetKind | None] = field(default_factory=dict)
    members: dict[SetId, dict[str, bool]] = field(default_factory=dict)
    classes: dict[tuple[Direction, str], ChainId | None] = field(default_factory=dict)
    tightened: Tightened = field(default_factory=Tightened)

    def __bool__(self) -> bool:
        return bool(self.chains or self.sets or self.members or self.classes)
