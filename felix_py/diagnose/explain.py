"""Explain a connection: which packets it is, what policy says of each, and what this node's kernel does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from felix_py.datastore.fetch import Fetched
from felix_py.diagnose.ends import Place, Port, WrongEnd
from felix_py.diagnose.explain_report import Explained
from felix_py.diagnose.live import Live
from felix_py.diagnose.packets import look, nodes_on_the_way
from policy.evaluate import Snapshot
from policy.explain import Explanation, explain
from policy.model import Family, Packet


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
        """``families``: those to look at; of them, the ones that both ends have.

        Raises:
            WrongEnd: the two ends have no such family in common.
        """
        self._source = source
        self._destination = destination
        snapshot = cluster.snapshot()
        shared = [f for f in Family if f in families and f in source.addresses and f in destination.addresses]
        if not shared:
            versions = " or ".join(f"IPv{int(family)}" for family in families)
            raise WrongEnd(f"{source.name} and {destination.name} do not both have an {versions} address")
        packets = [
            Packet(source.addresses[family], destination.addresses[family], protocol, number)
            for family in shared
            for protocol, number in ports
        ]
        own_node = _node_addresses(cluster, destination) if destination.pod else frozenset()
        self._explanations = list(_explain(snapshot, packets, own_node))

    def passes(self, node: str) -> bool:
        """Whether an end is a pod of this node, so that its kernel has a say."""
        return any(
            name == node
            for explanation in self._explanations
            for name, _ in nodes_on_the_way(explanation, self._source, self._destination)
        )

    def explained(self, node: str, live: Live | None) -> list[Explained]:
        """Every packet; ``live`` None: this node's kernel is not asked.

        Raises:
            ToolError, OSError: the kernel cannot be read.
        """
        return [
            Explained(
                self._source,
                self._destination,
                explanation,
                tuple(look(explanation, self._source, self._destination, node, live)),
            )
            for explanation in self._explanations
        ]


def _explain(snapshot: Snapshot, packets: Iterable[Packet], own_node: frozenset[str]) -> Iterator[Explanation]:
    for packet in packets:
        yield explain(snapshot, packet, own_node)


def _node_addresses(cluster: Fetched, place: Place) -> frozenset[str]:
    return frozenset(a for node in cluster.nodes if node.name == place.node for a in node.addresses)
