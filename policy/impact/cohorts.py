"""*Cohorts*: the ends of connections (parties) that the policies at hand cannot tell apart.

They reduce a question about 10,000 pods to one about some hundred cohorts. A party is reduced to what the
policies match: labels that no selector names are left out, and all values that no selector names are one *other*
value. A set of cohorts is an integer with a bit for each (a *mask*).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TypeVar

from policy.impact.regions import Region, Regions
from policy.model import (
    ClusterPeer,
    ClusterPolicy,
    Direction,
    Family,
    IPBlock,
    Labels,
    NamedPort,
    NetworkPolicy,
    Node,
    NodePeer,
    Pod,
    PodPeer,
    Port,
    Selector,
)
from policy.oracle.evaluate import Snapshot
from policy.selectors import matches

_K = TypeVar("_K")

Policy = NetworkPolicy | ClusterPolicy
Mask = int

_OTHER = "\0"
"""Stands for every label value that no selector names. No label can have it."""


@dataclass(frozen=True, slots=True)
class World:
    """Addresses that are neither a pod's nor a node's. Only the rest of both families is two regions."""

    regions: tuple[Region, ...]

    def covers(self, address: str) -> bool:
        """Whether an address is in one of the regions."""
        return any(region.covers(address) for region in self.regions)


@dataclass(slots=True, eq=False)
class Party:
    """One end of connections. ``addresses``: its address in each family; of the world, one of many."""

    what: Pod | Node | World
    addresses: Mapping[Family, str]
    nodes: frozenset[str] = frozenset()
    """The nodes with these addresses, which reach their own pods whatever policy says."""

    @property
    def pod(self) -> Pod | None:
        """The pod, if it is one."""
        return self.what if isinstance(self.what, Pod) else None


def judged(source: Party, destination: Party) -> bool:
    """Whether policy judges traffic between two parties: not within one pod, nor from a node to its own pods."""
    local = destination.pod is not None and destination.pod.node in source.nodes
    return source.what is not destination.what and not local


def bits(mask: Mask) -> Iterator[int]:
    """The numbers of a mask's cohorts, ascending."""
    text = bin(mask)[:1:-1]
    place = text.find("1")
    while place >= 0:
        yield place
        place = text.find("1", place + 1)


def ports_of(policies: Iterable[Policy], direction: Direction) -> list[Port]:
    """Every port that rules of one direction name."""
    return [port for policy in policies for rule in policy.rules(direction) or () for port in rule.ports or ()]


def port_names(policies: Iterable[Policy], direction: Direction) -> frozenset[str]:
    """The named ports among them."""
    return frozenset(p.port for p in ports_of(policies, direction) if isinstance(p.port, str))


def peers_of(policies: Iterable[Policy], direction: Direction) -> list[tuple[str | None, ClusterPeer]]:
    """Every peer that rules of one direction name, with the namespace that "own namespace" means."""
    found: dict[tuple[str | None, ClusterPeer], None] = {}
    for policy in policies:
        own = policy.namespace if isinstance(policy, NetworkPolicy) else None
        for rule in policy.rules(direction) or ():
            for peer in rule.peers or ():
                bound = isinstance(peer, PodPeer) and peer.namespaces is None
                found[own if bound else None, peer] = None
    return list(found)


class _Words:
    """The label keys in some selectors, each with the values in them."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}
        self._reduced: dict[Labels, Labels] = {}

    def learn(self, selector: Selector | None) -> None:
        for requirement in selector.requirements if selector else ():
            self._values.setdefault(requirement.key, set()).update(requirement.values)

    def reduce(self, labels: Labels) -> Labels:
        """An object's labels, reduced to what these selectors can tell apart."""
        found = self._reduced.get(labels)
        if found is None:
            known = self._values
            found = tuple((key, v if v in known[key] else _OTHER) for key, v in labels if key in known)
            self._reduced[labels] = found
        return found


@dataclass(frozen=True, slots=True)
class _Place:
    """What policies can match of an address: its ipBlocks, and its nodes by their labels."""

    blocks: frozenset[IPBlock]
    nodes: frozenset[Labels]


@dataclass(frozen=True, slots=True)
class _Identity:
    """What policies can match of a pod. ``namespace``: empty without policies; ``its_labels`` None: unknown."""

    namespace: str
    its_labels: Labels | None
    labels: Labels
    ports: tuple[NamedPort, ...]


@dataclass(slots=True)
class Cohort:
    """Parties that policies cannot tell apart. ``identity`` None: no pods."""

    identity: _Identity | None
    places: Mapping[Family, _Place]
    parties: list[Party] = field(default_factory=list)


class Cohorts:
    """All cohorts of a cluster under some policies, and those that a peer, a subject or a port name selects."""

    def __init__(self, cluster: Snapshot, policies: Iterable[Policy]) -> None:
        """``policies``: all policies to ask about. Those of ``cluster`` itself are not read."""
        self._cluster = cluster
        self._pods, self._namespaces, self._nodes = _Words(), _Words(), _Words()
        self._own: set[str] = set()
        self._port_names: set[str] = set()
        blocks: dict[IPBlock, None] = {}
        for policy in policies:
            self._learn(policy, blocks)
        self._regions = {family: Regions(family, blocks) for family in Family}
        self._node_of: dict[str, list[Node]] = {}
        for node in cluster.nodes():
            for address in node.addresses:
                self._node_of.setdefault(address, []).append(node)
        self.all: list[Cohort] = []
        self._by_key: dict[object, Cohort] = {}
        self._fill()
        self._index()

    # --- what policies ask for ------------------------------------------------------------------------

    def _learn(self, policy: Policy, blocks: dict[IPBlock, None]) -> None:
        if isinstance(policy, NetworkPolicy):
            self._own.add(policy.namespace)
            self._pods.learn(policy.selector)
        else:
            self._namespaces.learn(policy.subject.namespaces)
            self._pods.learn(policy.subject.pods)
        for direction in Direction:
            self._port_names |= port_names((policy,), direction)
            for _, peer in peers_of((policy,), direction):
                match peer:
                    case IPBlock():
                        blocks[peer] = None
                    case NodePeer():
                        self._nodes.learn(peer.nodes)
                    case PodPeer():
                        self._namespaces.learn(peer.namespaces)
                        self._pods.learn(peer.pods)

    # --- who there is ---------------------------------------------------------------------------------

    def _fill(self) -> None:
        for pod in self._cluster.pods.values():
            own = [a for a in pod.addresses if self._cluster.pod_at(a) is pod]
            self._enter(pod, own, self._identity(pod) if own else None)
        for node in self._cluster.nodes():
            self._enter(node, [a for a in node.addresses if self._cluster.pod_at(a) is None], None)
        self._fill_world()

    def _identity(self, pod: Pod) -> _Identity:
        namespace = self._cluster.namespace(pod.namespace)
        ports = {port for port in pod.ports if port.name in self._port_names}
        return _Identity(
            pod.namespace if pod.namespace in self._own else "",
            None if namespace is None else self._namespaces.reduce(namespace.labels),
            self._pods.reduce(pod.labels),
            tuple(sorted(ports, key=lambda port: (port.name, port.protocol, port.port))),
        )

    def _enter(self, what: Pod | Node, addresses: list[str], identity: _Identity | None) -> None:
        """Add a party for each pair of an IPv4 and an IPv6 address."""
        sixes = [a for a in addresses if ":" in a]
        for pair in zip_longest((a for a in addresses if ":" not in a), sixes):
            mine = {family: address for family, address in zip(Family, pair, strict=True) if address is not None}
            places = {family: self._place(family, address) for family, address in mine.items()}
            names = frozenset(node.name for a in mine.values() for node in self._node_of.get(a, ()))
            nodes = frozenset() if isinstance(what, Pod) else names
            self._cohort(identity, places).parties.append(Party(what, mine, nodes))

    def _place(self, family: Family, address: str) -> _Place:
        number = int(ipaddress.ip_address(address))
        nodes = frozenset(self._nodes.reduce(node.labels) for node in self._node_of.get(address, ()))
        return _Place(self._regions[family].blocks_at(number), nodes)

    def _fill_world(self) -> None:
        rest: list[tuple[Region, str, _Place]] = []
        for family in Family:
            taken = {
                int(ipaddress.ip_address(a))
                for cohort in self.all
                for party in cohort.parties
                if (a := party.addresses.get(family)) is not None
            }
            for region, blocks in self._regions[family].all():
                address = region.free(taken)
                if address is not None:
                    found = (region, address, _Place(blocks, frozenset()))
                    if region.is_rest:
                        rest.append(found)
                    else:
                        self._enter_world([found])
        self._enter_world(rest)

    def _enter_world(self, parts: list[tuple[Region, str, _Place]]) -> None:
        places = {region.family: place for region, _, place in parts}
        addresses = {region.family: address for region, address, _ in parts}
        world = World(tuple(region for region, _, _ in parts))
        self._cohort(None, places).parties.append(Party(world, addresses))

    def _cohort(self, identity: _Identity | None, places: Mapping[Family, _Place]) -> Cohort:
        key = (identity, tuple(places.items()))
        cohort = self._by_key.get(key)
        if cohort is None:
            cohort = self._by_key[key] = Cohort(identity, places)
            self.all.append(cohort)
        return cohort

    # --- whom something means -------------------------------------------------------------------------

    def _index(self) -> None:
        self.everybody: Mask = (1 << len(self.all)) - 1
        self.pods: Mask = 0
        self.having: dict[Family, Mask] = dict.fromkeys(Family, 0)
        self._in_namespace: dict[str, Mask] = {}
        self._by_its_labels: dict[Labels, Mask] = {}
        self._by_labels: dict[Labels, Mask] = {}
        self._by_ports: dict[tuple[NamedPort, ...], Mask] = {}
        self._by_blocks: dict[tuple[Family, frozenset[IPBlock]], Mask] = {}
        self._by_nodes: dict[tuple[Family, frozenset[Labels]], Mask] = {}
        for number, cohort in enumerate(self.all):
            bit = 1 << number
            for family, place in cohort.places.items():
                self.having[family] |= bit
                _add(self._by_blocks, (family, place.blocks), bit)
                _add(self._by_nodes, (family, place.nodes), bit)
            if cohort.identity is not None:
                self.pods |= bit
                _add(self._in_namespace, cohort.identity.namespace, bit)
                _add(self._by_labels, cohort.identity.labels, bit)
                _add(self._by_ports, cohort.identity.ports, bit)
                if cohort.identity.its_labels is not None:
                    _add(self._by_its_labels, cohort.identity.its_labels, bit)
        self._labelled: dict[Selector, Mask] = {}
        self._in_labelled: dict[Selector, Mask] = {}

    def _with_labels(self, selector: Selector | None) -> Mask:
        if selector is None:
            return self.pods
        if selector not in self._labelled:
            self._labelled[selector] = _matching(selector, self._by_labels)
        return self._labelled[selector]

    def _meant(self, peer: PodPeer, own_namespace: str | None) -> Mask:
        if peer.namespaces is None:
            there = self._in_namespace.get(own_namespace or "", 0)
        else:
            if peer.namespaces not in self._in_labelled:
                self._in_labelled[peer.namespaces] = _matching(peer.namespaces, self._by_its_labels)
            there = self._in_labelled[peer.namespaces]
        return there & self._with_labels(peer.pods)

    def subjects(self, policy: Policy) -> Mask:
        """The pods that a policy selects."""
        if isinstance(policy, NetworkPolicy):
            return self._in_namespace.get(policy.namespace, 0) & self._with_labels(policy.selector)
        return self._meant(policy.subject, None)

    def peers(self, peer: ClusterPeer, own_namespace: str | None, family: Family) -> Mask:
        """The cohorts that a peer selects by their addresses of one family."""
        match peer:
            case PodPeer():
                return self._meant(peer, own_namespace)
            case IPBlock():
                places = self._by_blocks.items()
                return _union(mask for (of, blocks), mask in places if of is family and peer in blocks)
            case NodePeer():
                held = ((nodes, mask) for (of, nodes), mask in self._by_nodes.items() if of is family)
                return _union(mask for nodes, mask in held if any(matches(peer.nodes, some) for some in nodes))

    def named_ports(self, number: int, names: frozenset[str]) -> tuple[NamedPort, ...]:
        """The ports with some names on the pods of a cohort."""
        identity = self.all[number].identity
        return tuple(port for port in identity.ports if port.name in names) if identity else ()

    def by_named_ports(self, names: frozenset[str]) -> Mapping[tuple[NamedPort, ...], Mask]:
        """All cohorts, split by their ports with some names; () for those that are no pods."""
        found: dict[tuple[NamedPort, ...], Mask] = {(): self.everybody & ~self.pods}
        for ports, mask in self._by_ports.items():
            _add(found, tuple(port for port in ports if port.name in names), mask)
        return found

    def parties(self, mask: Mask) -> list[Party]:
        """All parties of some cohorts."""
        return [party for number in bits(mask) for party in self.all[number].parties]

    def first(self, mask: Mask, other_than: Party | None = None) -> Party | None:
        """A party of these cohorts, of another pod or node than ``other_than``."""
        for number in bits(mask):
            for party in self.all[number].parties:
                if other_than is None or party.what is not other_than.what:
                    return party
        return None


def _add(masks: dict[_K, Mask], key: _K, bit: Mask) -> None:
    masks[key] = masks.get(key, 0) | bit


def _union(masks: Iterable[Mask]) -> Mask:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _matching(selector: Selector, by_labels: Mapping[Labels, Mask]) -> Mask:
    return _union(mask for labels, mask in by_labels.items() if matches(selector, labels))
