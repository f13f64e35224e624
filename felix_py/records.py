"""Records that cross layers inside the agent."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec import Struct

from felix_py.refs import ChainRef, HookRef, Ref, RouteRef
from felix_py.ruleset.model import Rules, RuleSpec
from policy.model import Family, Labels, LocalEndpoint, Node, ObjectKey, Protocol


class Backend(enum.StrEnum):
    """The iptables commands that write to this host's kernel."""

    LEGACY = "legacy"
    NFT = "nft"


class SetType(enum.StrEnum):
    """IP set types in use, in ``ipset create``'s spelling."""

    IP = "hash:ip"
    NET = "hash:net"
    IP_PORT = "hash:ip,port"
    NET_IFACE = "hash:net,iface"


class SetSpec(Struct, frozen=True):
    """A desired IP set. ``mark_mask`` non-zero: made with ``skbinfo``, each member has a mark under the mask."""

    name: str
    type: SetType
    family: Family
    mark_mask: int = 0


@dataclass(frozen=True, slots=True)
class Hook:
    """A rule of ours in a built-in chain, kept at its top (``first``) or its end, in the order of ``rank``."""

    family: Family
    table: str
    chain: str
    rule: RuleSpec
    first: bool
    rank: int = field(default=0, compare=False)

    @property
    def ref(self) -> HookRef:
        """Identity of all our rules in that chain, which are reported as one object."""
        return HookRef(self.family, self.table, self.chain)


class RouteKind(enum.StrEnum):
    """Route types in use (``ip route add TYPE …``)."""

    UNICAST = "unicast"
    BLACKHOLE = "blackhole"


class NextHop(Struct, frozen=True):
    """Gateway address (empty: on link) and interface name (empty: the kernel resolves it from the gateway)."""

    gateway: str = ""
    interface: str = ""


class Route(Struct, frozen=True):
    """A desired route. ``next_hops`` are sorted; several make one ECMP route; empty for a blackhole.

    ``source`` is the preferred source address text, or empty. ``link_scope`` is ``scope link``. ``metric`` 0: the
    kernel's default (RTA_PRIORITY: none in IPv4, 1024 in IPv6).
    """

    key: RouteRef
    kind: RouteKind = RouteKind.UNICAST
    next_hops: tuple[NextHop, ...] = ()
    link_scope: bool = False
    source: str = ""
    metric: int = 0


class Update(Struct):
    """A change of the desired kernel state, in which None means "must not exist".

    ``members``: set name -> member text -> its mark (0 in a set without marks), or None. Later entries win.
    ``emptied``: sets that must hold only the entries of ``members``; it is applied first.
    """

    emptied: set[str] = set()
    sets: dict[str, SetSpec | None] = {}
    members: dict[str, dict[str, int | None]] = {}
    chains: dict[ChainRef, Rules | None] = {}
    hooks: dict[Hook, bool] = {}
    routes: dict[RouteRef, Route | None] = {}

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
    """An object that could not be brought to its desired state, and the kernel's or tool's message.

    ``count``: the number of objects, where it stands for several (:func:`bounded`).
    """

    ref: Ref
    reason: str
    count: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return f"{self.ref}: {self.reason}"


def bounded(failures: Iterable[Failure], others: Ref, most: int = 100) -> list[Failure]:
    """Returns at most so many failures of one reason; the rest of a reason becomes one failure of ``others``."""
    kept: list[Failure] = []
    seen: dict[str, int] = {}
    for failure in failures:
        seen[failure.reason] = seen.get(failure.reason, 0) + 1
        if seen[failure.reason] <= most:
            kept.append(failure)
    return kept + [Failure(others, reason, number - most) for reason, number in seen.items() if number > most]


class Report(Struct, frozen=True):
    """The result of one apply. ``transactions`` counts iptables-restore runs, ``writes`` all objects written.

    ``lock_waits``: runs that found the xtables lock held by another program; ``lock_seconds``: their duration.
    """

    transactions: int = 0
    writes: int = 0
    failures: tuple[Failure, ...] = ()
    lock_waits: int = 0
    lock_seconds: float = 0.0

    def __add__(self, other: Report) -> Report:
        """The result of two steps together."""
        return Report(
            self.transactions + other.transactions,
            self.writes + other.writes,
            self.failures + other.failures,
            self.lock_waits + other.lock_waits,
            self.lock_seconds + other.lock_seconds,
        )


class Drift(Struct, frozen=True):
    """An object in the kernel that another program has changed, as ``how`` says; ``count``: how many objects."""

    ref: Ref
    how: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.ref}: {self.how}"


class Lease(Struct, frozen=True):
    """A durable claim of one pod interface on its addresses (one per family at most).

    ``created`` is seconds since the epoch. ``interface`` is the host end's name. ``namespace`` and ``pod`` are
    empty for a container that is no pod's.
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

    @property
    def owner(self) -> ObjectKey:
        """The pod; of a container that is no pod's, no namespace and the container's id."""
        return (self.namespace, self.pod or self.container)

    @property
    def owner_text(self) -> str:
        """The owner, for people."""
        return f"pod {self.namespace}/{self.pod}" if self.pod else f"container {self.container}"


def newest_sandbox(leases: Iterable[Lease]) -> tuple[Lease, ...]:
    """Of the leases of one owner those of the newest sandbox, one an interface, oldest first.

    A new sandbox may precede the DEL of the old one, and an old one may still get a further interface: the age of
    a sandbox is that of its oldest lease.
    """
    ordered = sorted(leases, key=lambda lease: lease.created)
    newest = list(dict.fromkeys(lease.container for lease in ordered))[-1:]
    return tuple(lease for lease in ordered if lease.container in newest)


def endpoints_of(leases: Iterable[Lease]) -> tuple[LocalEndpoint, ...]:
    """Returns the endpoints of leases: of several sandboxes of one pod, the newest one's."""
    of: dict[ObjectKey, list[Lease]] = {}
    for lease in leases:
        of.setdefault(lease.owner, []).append(lease)
    return tuple(endpoint_of(*newest_sandbox(its)) for its in of.values())


def endpoint_of(*leases: Lease) -> LocalEndpoint:
    """Returns the endpoint of the leases of one sandbox, as policy knows it."""
    addresses = tuple(address for lease in leases for address in lease.addresses.values())
    return LocalEndpoint(*leases[0].owner, addresses, next((lease.uid for lease in leases if lease.uid), ""))


class Elsewhere(NamedTuple):
    """An address or CIDR that is in use, but not by a pod of this agent.

    ``how`` completes "it is …"; ``last`` is the last address concerned, as an integer. ``reserved``: it is in use
    by nobody, but only for a pod that asks for it. ``lent``: this agent itself has lent it to another node.
    """

    what: str
    how: str
    last: int
    reserved: bool = False
    lent: bool = False


class NodeRecord(Struct, frozen=True):
    """A Node (core/v1): its addresses and its pod CIDRs.

    ``addresses`` are canonical texts, the InternalIPs first, then the ExternalIPs, in the API's order;
    ``internal_addresses`` are the InternalIPs alone. ``pod_cidrs`` are canonical CIDR texts, at most one of a
    family. ``annotations``: those of :data:`bgp.node.KEYS` alone, since others change all the time. ``drain``:
    why BGP is to lead traffic away from the node: the annotation's value, ``taint``, or empty.
    """

    name: str
    uid: str = ""
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    labels: Labels = ()
    unschedulable: bool = False
    annotations: Labels = ()
    drain: str = ""
    internal_addresses: tuple[str, ...] = ()

    def as_peer(self) -> Node:
        """Returns the node as policy knows it."""
        return Node(self.name, self.labels, self.addresses)


class ConfigurationRecord(Struct, frozen=True):
    """An object of a kind of ours (felixpy.io/v1alpha1): its spec as it came, not judged yet.

    ``problem``: why the object cannot be read at all, or empty; ``spec`` is then empty.
    """

    name: str
    uid: str = ""
    spec: Mapping[str, Any] = {}
    problem: str = ""
    created: str = ""
    """``creationTimestamp``, which sorts as text."""


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A Secret: its values as text, without a newline at the end; those that are no UTF-8 are empty."""

    name: str
    uid: str = ""
    data: Mapping[str, str] = field(default_factory=dict, repr=False)


class LeaderLease(Struct, frozen=True):
    """A Lease (coordination.k8s.io/v1) by which one of several programs leads.

    ``holder``: ``holderIdentity``; empty: nobody. ``duration``: seconds. ``acquired`` and ``renewed`` are the
    holder's times of day, as texts. ``version``: ``resourceVersion``.
    """

    holder: str
    duration: float
    acquired: str
    renewed: str
    transitions: int = 0
    version: str = ""
    uid: str = ""


class Ingress(NamedTuple):
    """An entry of a Service's ``status.loadBalancer.ingress``: its canonical address, empty for a host name, and
    all of it as JSON."""

    address: str
    raw: bytes


class LoadBalancer(Struct, frozen=True, kw_only=True):
    """A Service (core/v1), as far as the addresses of its load balancer go.

    ``created``: ``creationTimestamp``, which sorts as text. ``wanted``: its type is LoadBalancer.
    ``load_balancer_class``: empty where none is asked for. ``families``: ``ipFamilies``, as IP versions.
    ``asked``: ``spec.loadBalancerIP``. ``annotations``: those that ask for addresses. ``other_addresses``: its
    clusterIPs and externalIPs.
    """

    namespace: str
    name: str
    uid: str = ""
    resource_version: str = ""
    created: str = ""
    wanted: bool = False
    load_balancer_class: str = ""
    families: tuple[int, ...] = ()
    asked: str = ""
    annotations: Labels = ()
    ingress: tuple[Ingress, ...] = ()
    other_addresses: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def age(self) -> tuple[str, str, str]:
        """Sorts the oldest first."""
        return self.created, self.namespace, self.name


class Flow(NamedTuple):
    """A conntrack entry, as policy saw its first packet: with the addresses after service translation (DNAT).

    ``protocol`` None: one that policy does not know, such as ICMP; ``port`` is then 0. ``replied``: packets were
    seen both ways (IPS_SEEN_REPLY); ``assured``: it is also not evicted early (IPS_ASSURED). ``expires``: seconds
    until it times out if no packet comes; of two of one protocol and state, the larger was used later. ``entry``
    deletes it; ``original`` is its own tuple, ``parent`` that of the connection it is RELATED to, or empty: these
    three are the kernel's bytes.
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
        to = f"[{self.destination}]" if ":" in self.destination else self.destination
        return f"{self.source} -> {to}:{self.port}/{self.protocol}" if self.protocol else f"{self.source} -> {to}"
