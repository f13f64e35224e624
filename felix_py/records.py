"""Frozen records that cross layers inside the agent."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from felix_py.refs import ChainRef, HookRef, Ref, RouteRef
from felix_py.ruleset.model import Rules, RuleSpec
from policy.model import Family, Labels, LocalEndpoint, Node, Protocol


class Backend(enum.StrEnum):
    """Which iptables commands write to this host's kernel."""

    LEGACY = "legacy"
    NFT = "nft"


class SetType(enum.StrEnum):
    """IP set types in use, as ``ipset create`` spells them."""

    IP = "hash:ip"
    NET = "hash:net"
    IP_PORT = "hash:ip,port"
    NET_IFACE = "hash:net,iface"


@dataclass(frozen=True, slots=True)
class SetSpec:
    """An IP set to exist. ``mark_mask`` non-zero: made with ``skbinfo``, each member carries a mark under it."""

    name: str
    type: SetType
    family: Family
    mark_mask: int = 0


@dataclass(frozen=True, slots=True)
class Hook:
    """A rule of ours in a built-in chain. ``first``: kept at the top of it; otherwise kept at its end.

    Those of one chain stand in the order of ``rank``.
    """

    family: Family
    table: str
    chain: str
    rule: RuleSpec
    first: bool
    rank: int = field(default=0, compare=False)

    @property
    def ref(self) -> HookRef:
        """All that is ours in that chain is one object to whoever reads of it."""
        return HookRef(self.family, self.table, self.chain)


class RouteKind(enum.StrEnum):
    """Route types in use (``ip route add TYPE …``)."""

    UNICAST = "unicast"
    BLACKHOLE = "blackhole"


@dataclass(frozen=True, slots=True)
class NextHop:
    """Gateway text (empty: on link) and interface name (empty: the kernel resolves it from the gateway)."""

    gateway: str = ""
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A route to exist. ``next_hops`` sorted; several make one ECMP route; empty for a blackhole.

    ``source`` is the preferred source address text, or empty. ``link_scope`` is ``scope link``.
    """

    key: RouteRef
    kind: RouteKind = RouteKind.UNICAST
    next_hops: tuple[NextHop, ...] = ()
    link_scope: bool = False
    source: str = ""


@dataclass(slots=True)
class Update:
    """A change of the desired kernel state: None means "must not exist". Cheap to make, merge and hold.

    ``members``: set name -> member text -> its mark (0 in a set without marks), or None. Later entries win.
    ``emptied``: sets that must hold nothing but what ``members`` names; it counts before all else.
    """

    emptied: set[str] = field(default_factory=set)

    sets: dict[str, SetSpec | None] = field(default_factory=dict)
    members: dict[str, dict[str, int | None]] = field(default_factory=dict)
    chains: dict[ChainRef, Rules | None] = field(default_factory=dict)
    hooks: dict[Hook, bool] = field(default_factory=dict)
    routes: dict[RouteRef, Route | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sets or self.members or self.chains or self.hooks or self.routes)

    def merge(self, later: Update) -> None:
        """Fold a later update into this one."""
        for name in later.emptied:
            self.emptied.add(name)
            self.members.pop(name, None)
        for name, spec in later.sets.items():
            if spec is None:
                self.members.pop(name, None)
            elif name in self.sets and self.sets[name] is None:
                self.emptied.add(name)
            self.sets[name] = spec
        for name, members in later.members.items():
            self.members.setdefault(name, {}).update(members)
        self.chains.update(later.chains)
        self.hooks.update(later.hooks)
        self.routes.update(later.routes)


@dataclass(frozen=True, slots=True)
class Failure:
    """One object that could not be brought to its desired state, and the kernel's or tool's words.

    ``count``: how many, where it stands for several (:func:`bounded`).
    """

    ref: Ref
    reason: str
    count: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return f"{self.ref}: {self.reason}"


def bounded(failures: Iterable[Failure], others: Ref, most: int = 100) -> list[Failure]:
    """At most so many failures of one reason as they are; the rest of it is one, ``others``, that counts them."""
    kept: list[Failure] = []
    seen: dict[str, int] = {}
    for failure in failures:
        seen[failure.reason] = seen.get(failure.reason, 0) + 1
        if seen[failure.reason] <= most:
            kept.append(failure)
    return kept + [Failure(others, reason, number - most) for reason, number in seen.items() if number > most]


@dataclass(frozen=True, slots=True)
class Report:
    """What one apply did. ``transactions`` counts iptables-restore runs, ``writes`` all objects written."""

    transactions: int = 0
    writes: int = 0
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: Report) -> Report:
        """What two steps did together."""
        return Report(
            self.transactions + other.transactions, self.writes + other.writes, self.failures + other.failures
        )


@dataclass(frozen=True, slots=True)
class Drift:
    """Something that was right in the kernel and is not any more, although nobody of ours asked for a change.

    ``how`` says in which way it differs. ``count``: how many objects.
    """

    ref: Ref
    how: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.ref}: {self.how}"


@dataclass(frozen=True, slots=True)
class Lease:
    """A durable claim of one pod interface on its addresses (one per family at most).

    ``created`` is seconds since the epoch. ``interface`` is the host end's name.
    """

    container: str
    ifname: str
    network: str
    namespace: str
    pod: str
    uid: str
    interface: str
    addresses: Mapping[Family, str]
    created: float


def endpoints_of(leases: Iterable[Lease]) -> tuple[LocalEndpoint, ...]:
    """The pod interfaces that leases stand for: of several of one pod, the newest."""
    newest = {(lease.namespace, lease.pod): lease for lease in sorted(leases, key=lambda lease: lease.created)}
    return tuple(endpoint_of(lease) for lease in newest.values())


def endpoint_of(lease: Lease) -> LocalEndpoint:
    """What policy needs to know of a lease."""
    return LocalEndpoint(lease.namespace, lease.pod, tuple(lease.addresses.values()), lease.uid)


class Elsewhere(NamedTuple):
    """An address, or a whole CIDR, that something else than a pod of ours uses.

    ``how`` completes "it is …"; ``last`` is the last address concerned, as an integer.
    """

    what: str
    how: str
    last: int


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A Node (core/v1): where it is reached, and which pod addresses are its own.

    ``addresses`` are canonical texts, the InternalIPs first, then the ExternalIPs, in the API's order.
    ``pod_cidrs`` are canonical CIDR texts, at most one of a family.
    """

    name: str
    uid: str = ""
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    labels: Labels = ()
    unschedulable: bool = False

    def as_peer(self) -> Node:
        """What policy needs of it."""
        return Node(self.name, self.labels, self.addresses)


class Flow(NamedTuple):
    """A connection that the kernel tracks, as policy saw its first packet: addresses after service translation.

    ``protocol`` None: another than policy knows (ICMP, say); ``port`` is then 0. ``replied``: packets were seen
    both ways; ``assured``: and it is not given up early. ``expires``: seconds until the kernel forgets it if no
    packet comes; of two connections of one protocol and state, the one with more was used later. ``entry`` is
    what deletes it; ``original`` is its own tuple, ``parent`` that of the connection it is RELATED to, or empty:
    these three are the kernel's bytes.
    """

    source: str
    destination: str
    protocol: Protocol | None
    port: int
    replied: bool = True
    assured: bool = True
    expires: int = 0
    entry: bytes = b""
    original: bytes = b""
    parent: bytes = b""

    def __str__(self) -> str:
        """For people."""
        to = f"[{self.destination}]" if ":" in self.destination else self.destination
        return f"{self.source} -> {to}:{self.port}/{self.protocol}" if self.protocol else f"{self.source} -> {to}"
