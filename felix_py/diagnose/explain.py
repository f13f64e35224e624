"""Explains a connection: its packets, policy's verdict on each, and their fate in this node's kernel."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from felix_py.datastore.fetch import Fetched
from felix_py.diagnose.ends import Place, Port, WrongEnd
from felix_py.diagnose.explain_report import Explained
from felix_py.diagnose.live import Live, Way
from felix_py.diagnose.packets import look, nodes_on_the_way
from policy.model import Family, Packet
from policy.oracle.explain import explain


class Connection:
    """A connection from one place to some ports of another."""

    def __init__(
        self,
        cluster: Fetched,
        source: Place,
        destination: Place,
        ports: Sequence[Port],
        families: Collection[Family],
    ) -> None:
        """``families``: those to look at, if both ends have them. Raises WrongEnd if they share none."""
        self._source, self._destination = source, destination
        self._snapshot = cluster.snapshot()
        shared = [f for f in Family if f in families and f in source.addresses and f in destination.addresses]
        if not shared:
            versions = " or ".join(f"IPv{int(family)}" for family in families)
            raise WrongEnd(f"{source.name} and {destination.name} do not both have an {versions} address")
        self._packets = [
            Packet(source.addresses[family], destination.addresses[family], protocol, number)
            for family in shared
            for protocol, number in ports
        ]
        nodes = [node for node in cluster.nodes if destination.pod and node.name == destination.node]
        self._own_node = frozenset(address for node in nodes for address in node.addresses)
        self._explanations = [explain(self._snapshot, packet, self._own_node) for packet in self._packets]

    def passes(self, node: str) -> bool:
        """Whether an end is a pod of ``node``, so that its kernel judges the packets."""
        return any(
            name == node
            for explanation in self._explanations
            for name, _ in nodes_on_the_way(explanation, self._source, self._destination)
        )

    def explained(self, node: str, live: Live | None) -> list[Explained]:
        """Every packet; ``live`` None: the kernel is not read. Raises ToolError, OSError if it cannot be read."""
        ends = self._source, self._destination
        found = self._explanations
        if live is not None and self._is_own(node, live):
            found = [explain(self._snapshot, one, self._own_node | {one.source}) for one in self._packets]
        return [Explained(*ends, one, tuple(look(one, *ends, node, live))) for one in found]

    def _is_own(self, node: str, live: Live) -> bool:
        """Whether the source is this node, by an address that its Node object need not have."""
        if self._source.pod is not None or self._destination.node != node:
            return False
        return all(live.route(packet.source).way is Way.HERE for packet in self._packets)
