"""The fate of a packet in the kernels on its way, compared with policy."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace

from felix_py.dataplane.uplink import carries
from felix_py.diagnose.ends import Place
from felix_py.diagnose.live import Live, Routed, Way
from felix_py.layout import INTERFACE_PREFIX
from felix_py.ruleset.run import Outcome, Path, Result, Transit, simulate
from policy.model import Packet
from policy.oracle.explain import Explanation, Free

_UPLINK = "uplink"
"""Stands for the unknown interface of packets without a route there or back."""


class Agreement(enum.StrEnum):
    """Whether a node's kernel agrees with policy."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    UNKNOWN = "unknown"
    """An unknown rule decides."""
    ELSEWHERE = "elsewhere"
    """The end is on another node."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node on the packet's way. ``expected``: whether policy lets the packet pass there.

    ``problem``: why the packet is lost whatever the rules are. ``note``: an oddity that is not our doing.
    """

    node: str
    agreement: Agreement
    expected: bool = True
    result: Result | None = None
    flow: Transit | None = None
    problem: str = ""
    note: str = ""

    @property
    def outcome(self) -> Outcome | None:
        """The packet's fate on the node; None: not simulated."""
        if self.problem:
            return Outcome.DROP
        return self.result.outcome if self.result else None


def nodes_on_the_way(explanation: Explanation, source: Place, destination: Place) -> list[tuple[str, bool]]:
    """Returns (node, whether policy lets the packet pass there) for the nodes of its pods."""
    if explanation.egress.free is Free.SELF:
        return []  # it never leaves the pod
    found: dict[str, bool] = {}
    for place, end in ((source, explanation.egress), (destination, explanation.ingress)):
        if place.pod is not None and place.node:
            found[place.node] = found.get(place.node, True) and end.allowed
    return list(found.items())


def look(
    explanation: Explanation, source: Place, destination: Place, node: str, live: Live | None
) -> Iterator[NodeView]:
    """Simulate the packet on ``node`` (``live`` None: do not). Raises ToolError or OSError if unreadable."""
    for name, expected in nodes_on_the_way(explanation, source, destination):
        if name != node:
            yield NodeView(name, Agreement.ELSEWHERE, expected)
        elif live is not None:
            yield _local(explanation, source, destination, name, expected, live)


def _local(
    explanation: Explanation, source: Place, destination: Place, node: str, expected: bool, live: Live
) -> NodeView:
    packet = explanation.packet
    back = live.route(packet.source)
    towards = _towards(packet, back, live)
    problem, note = _lost(packet, source, destination, node, back, towards)
    if problem:
        return NodeView(node, _agreement(expected, Outcome.DROP), expected, problem=problem)
    path, flow = _way(packet, back, towards)
    result = simulate(live.rules(flow.family), live.sets, flow, path)
    if result.outcome is Outcome.ACCEPT:
        # The kernel runs both backends' tables; their order does not change whether one drops.
        other = simulate(live.other_rules(flow.family), live.sets, replace(flow, mark=result.mark), path)
        if other.outcome is not Outcome.ACCEPT:
            result = replace(other, trace=(*result.trace, *other.trace))
            note = "by rules of the other iptables backend than the one that this node uses:"
        elif unread := live.unread_chains(flow.family, {hook for _, hook in path.value}):
            unlooked = f"rules of nftables were not looked at: {', '.join(map(str, unread))}"
            note = "; ".join(filter(None, (note, unlooked)))
    return NodeView(node, _agreement(expected, result.outcome), expected, result, flow, note=note)


def _towards(packet: Packet, back: Routed, live: Live) -> Routed:
    """The packet's route, by its own source and interface where they are known."""
    if back.way is Way.NOWHERE:
        return live.route(packet.destination)
    return live.route(packet.destination, packet.source, back.interface)


def _lost(
    packet: Packet, source: Place, destination: Place, node: str, back: Routed, towards: Routed
) -> tuple[str, str]:
    """Why packet or replies are lost whatever the rules are, or empty; and what is not this node's doing."""
    if towards.way is Way.REFUSED:
        return f"{packet.destination}: {towards.reason}", ""
    notes = []
    for place, address, way in ((source, packet.source, back), (destination, packet.destination, towards)):
        if place.pod is not None and place.node == node and not way.interface.startswith(INTERFACE_PREFIX):
            return f"{address} of {place.name} has no route to an interface of a pod here", ""
        if way.way is Way.AWAY and not carries(way.interface):
            return f"{address}: {way.interface} is down, or has no carrier (the other end is down)", ""
        if way.way is Way.NOWHERE:
            replies = " (where replies go)" if place is source else ""
            notes.append(f"{address}{replies}: {way.reason}")
            if place.node:  # routes to pods and nodes are what this node should have
                return notes[-1], ""
    return "", "; ".join(notes)


def _way(packet: Packet, back: Routed, towards: Routed) -> tuple[Path, Transit]:
    """Packets are assumed to arrive by the interface by which replies would leave."""
    came_from, leaves = back.interface or _UPLINK, towards.interface or _UPLINK
    if back.way is Way.HERE:
        return Path.OUTPUT, Transit(packet, "", leaves)
    if towards.way is Way.HERE:
        return Path.INPUT, Transit(packet, came_from, "")
    return Path.FORWARD, Transit(packet, came_from, leaves)


def _agreement(expected: bool, outcome: Outcome) -> Agreement:
    if outcome is Outcome.UNKNOWN:
        return Agreement.UNKNOWN
    return Agreement.AGREES if expected is (outcome is Outcome.ACCEPT) else Agreement.DISAGREES
