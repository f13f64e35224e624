"""Texts for sets of pods, nodes, networks, ports and rules, summarized by what they have in common."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from policy.impact.answers import LAST_PORT, Decision
from policy.impact.cohorts import Party, World
from policy.impact.compare import ProtocolPorts, Turn
from policy.impact.regions import Region
from policy.impact.workloads import Workload, workloads
from policy.model import Direction, Node, ObjectKey, Pod, Protocol

_MOST_NAMES = 4
"""Greatest number of pods, workloads, nodes, CIDRs or policies named in a line; the rest is counted."""

# --- names ----------------------------------------------------------------------------------------------------


class Names:
    """Names sets of parties by what they have in common."""

    def __init__(self, parties: Sequence[Party]) -> None:
        pods = {party.pod.key: party.pod for party in parties if party.pod}
        self._pods = set(pods)
        self._families = {family for party in parties if party.pod for family in party.addresses}
        self._nodes = {party.what.name for party in parties if isinstance(party.what, Node)}
        met = [party.what for party in parties if not self._families.isdisjoint(party.addresses)]
        self._world = {what for what in met if isinstance(what, World)}
        self._in_namespace = Counter(namespace for namespace, _ in pods)
        self._workloads: dict[str, list[Workload]] = {}
        for workload in workloads(pods.values()):
            self._workloads.setdefault(workload.namespace, []).append(workload)
        self._at = {address: party for party in parties for address in party.addresses.values()}

    def at(self, address: str) -> str:
        """The pod or node of an address, or the address."""
        party = self._at.get(address)
        match party.what if party else None:
            case Pod() as pod:
                return f"{pod.namespace}/{pod.name}"
            case Node(name):
                return f"node {name}"
        return address

    def side(self, parties: Sequence[Party]) -> str:
        """One side of a group."""
        pods = {party.pod.key for party in parties if party.pod}
        nodes = {party.what.name for party in parties if isinstance(party.what, Node)}
        world = {party.what for party in parties if isinstance(party.what, World)}
        texts = [self._pods_text(pods)] if pods else []
        if nodes:
            texts.append(self._nodes_text(nodes))
        if world:
            texts.append(self._world_text(world))
        return ", ".join(texts)

    def _pods_text(self, keys: set[ObjectKey]) -> str:
        if keys == self._pods and len(self._in_namespace) > 1:
            return f"every pod ({count(len(keys), 'pod')})"
        direct = self._items(keys)
        but = self._items(self._pods - keys)
        if 0 < len(but) < len(direct) and 2 * len(keys) > len(self._pods):
            names = _listed([(item.text, item.pods) for item in but], "pod")
            return f"every pod but {names} ({len(keys):,} of {len(self._pods):,})"
        return _listed([(item.with_number, item.pods) for item in direct], "pod")

    def _items(self, keys: set[ObjectKey]) -> list[_Item]:
        """The namespaces and workloads that the pods make up."""
        found: list[_Item] = []
        for namespace, size in sorted(Counter(namespace for namespace, _ in keys).items()):
            here = self._workloads[namespace]
            if size == self._in_namespace[namespace] and len(here) > 1:
                found.append(_Item(f"{namespace}/*", size, size))
                continue
            for workload in here:
                names = [pod.name for pod in workload.pods if pod.key in keys]
                if names:
                    text = str(workload) if len(names) > 1 else f"{namespace}/{names[0]}"
                    found.append(_Item(text, len(names), len(workload.pods), tuple(names)))
        return found

    def _nodes_text(self, names: set[str]) -> str:
        if names == self._nodes:
            return f"every node ({len(names)})" if len(names) > 1 else f"node {min(names)}"
        return f"{_plural(len(names), 'node')} {_listed([(name, 1) for name in sorted(names)], 'node')}"

    def _world_text(self, worlds: set[World]) -> str:
        if self._world <= worlds:
            return "the world"
        if any(region.is_rest for world in worlds for region in world.regions):
            return f"the world but {self._regions_text(self._world - worlds)}"
        return f"world {self._regions_text(worlds)}"

    def _regions_text(self, worlds: set[World]) -> str:
        regions = [region for world in worlds for region in world.regions if region.family in self._families]
        return _listed([(_region_text(region), 1) for region in sorted(regions, key=_region_order)], "block")


@dataclass(frozen=True, slots=True)
class _Item:
    """Some of the ``of`` pods of a namespace or a workload; with their ``names`` if it is a workload."""

    text: str
    pods: int
    of: int
    names: tuple[str, ...] = ()

    @property
    def with_number(self) -> str:
        """The text with the number of pods."""
        if len(self.names) == 1:
            return self.text
        if self.pods == self.of:
            return f"{self.text} ({count(self.pods, 'pod')})"
        which = f": {', '.join(self.names)}" if len(self.names) <= _MOST_NAMES else ""
        return f"{self.text} ({self.pods:,} of {count(self.of, 'pod')}{which})"


def _region_text(region: Region) -> str:
    holes = _listed([(hole, 1) for hole in region.holes], "block")
    return f"{region.cidr} (except {holes})" if holes else region.cidr


def _region_order(region: Region) -> tuple[int, int]:
    network = ipaddress.ip_network(region.cidr)
    return network.version, int(network.network_address)


def count(number: int, what: str) -> str:
    """A number of things: ``1 pod``, ``2,000 pods``."""
    return f"{number:,} {_plural(number, what)}"


def _plural(number: int, what: str) -> str:
    if number == 1:
        return what
    return f"{what.removesuffix('y')}ies" if what.endswith("y") else f"{what}s"


def _listed(items: Sequence[tuple[str, int]], what: str) -> str:
    """The texts, each for a number of things; of a long list the first ones and the number of the rest."""
    if len(items) <= _MOST_NAMES:
        return ", ".join(text for text, _ in items)
    shown = items[: _MOST_NAMES - 1]
    more = sum(number for _, number in items[_MOST_NAMES - 1 :])
    return f"{', '.join(text for text, _ in shown)} and {more:,} more {_plural(more, what)}"


# --- ports ----------------------------------------------------------------------------------------------------


def ports_text(ranges: Sequence[ProtocolPorts]) -> str:
    """Ports in short: ``80/TCP``, ``every TCP port but 8000-8999``, ``every port``."""
    missing = _missing(ranges)
    if not missing:
        return "every port"
    some = [text for protocol in Protocol for text in _of(protocol, ranges)]
    but = [text for protocol in Protocol for text in _of(protocol, missing)]
    return ", ".join(some) if len(some) <= len(but) else f"every port but {', '.join(but)}"


def _of(protocol: Protocol, ranges: Sequence[ProtocolPorts]) -> list[str]:
    own = [one for one in ranges if one.protocol is protocol]
    missing = [one for one in _missing(own) if one.protocol is protocol]
    if own and not missing:
        return [f"every {protocol} port"]
    if len(own) > len(missing):
        return [f"every {protocol} port but {', '.join(map(_range_text, missing))}"]
    return [f"{_range_text(one)}/{protocol}" for one in own]


def _missing(ranges: Sequence[ProtocolPorts]) -> list[ProtocolPorts]:
    """The complement of port ranges, per protocol."""
    found: list[ProtocolPorts] = []
    for protocol in Protocol:
        start = 1
        for one in sorted(one for one in ranges if one.protocol is protocol):
            if one.first > start:
                found.append(ProtocolPorts(protocol, start, one.first - 1))
            start = one.last + 1
        if start <= LAST_PORT:
            found.append(ProtocolPorts(protocol, start, LAST_PORT))
    return found


def _range_text(one: ProtocolPorts) -> str:
    return str(one.first) if one.first == one.last else f"{one.first}-{one.last}"


# --- reasons --------------------------------------------------------------------------------------------------


def turn_text(turn: Turn) -> str:
    """The rule that decides after the change, and the one before."""
    after = _cause(turn.direction, turn.after)
    by = f"by {after}" if turn.after.tier else f"since {after}"
    return f"{by}; before: {_cause(turn.direction, turn.before)}"


def _cause(direction: Direction, found: Decision) -> str:
    word = direction.lower()
    if found.rule is not None:
        return found.rule.policy.rule(direction, found.rule.index, found.rule.name)
    if found.isolated_by:
        return f"{word} of {_listed([(str(ref), 1) for ref in found.isolated_by], 'policy')}: no rule allows it"
    return f"no policy decides {word}"
