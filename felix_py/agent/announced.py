"""Addresses that pods of other nodes have and the kubelet does not report, or not yet, as their annotation says.

The kubelet writes ``status.podIPs`` a second or so after the pod is connected, and the addresses of further
interfaces never; the pod's agent writes the annotation ``felixpy.io/pod-ips`` at once. Whoever may change a pod
may write it, too, so it is believed only where a lie is of no use:

- for pods of other nodes: this node's own leases say what its pods have;
- for addresses of the blocks, loans or podCIDRs of the node that the pod is on: nobody can give an address
  outside of the cluster, a node's, or another node's pod the rights of a pod of theirs;
- only as long as Nodes and pools say so;
- and only as long as nobody else claims the address: against any pod that has it in its status such a claim
  is none (:meth:`policy.model.Pod.claim`), so no pod loses its address to a lie.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from msgspec import Struct

from bgp.prefixes import version
from felix_py.agent.pooled import Pooled
from felix_py.records import NodeRecord
from policy.change import Change
from policy.model import ObjectKey, Pod


class _Claim(Struct):
    """A pod with an annotation. ``shown``: as followers have it. ``ground``: what decided that."""

    pod: Pod
    shown: Pod
    ground: _Ground


class _Ground(NamedTuple):
    """What of Nodes and pools decides about a claim of a pod of one node; ``pools`` is of all nodes."""

    pools: object
    pod_cidrs: tuple[str, ...] | None
    blocks: tuple[str, ...]

    def is_still(self, other: _Ground) -> bool:
        """Whether the other one decides alike, for certain."""
        return self.pools is other.pools and self[1:] == other[1:]


class Announced:
    """Adds believed addresses to those of the status. On the event loop only."""

    def __init__(self, node_name: str, nodes: Mapping[ObjectKey, NodeRecord]) -> None:
        """``node_name``: this node's; ``nodes``: all nodes, as they are now."""
        self._node_name = node_name
        self._nodes = nodes
        self._claims: dict[ObjectKey, _Claim] = {}
        self._pooled: Pooled | None = None
        self._pools: object = None

    def believe(self, change: Change[Pod], pooled: Pooled) -> Change[Pod]:
        """Returns the change for those who follow the cluster; give it each change of a pod, in order.

        ``pooled``: pools as they are now.
        """
        known = self._claims.pop(change.newest.key, None)
        pod = change.after
        if pod is not None and pod.announced and pod.node != self._node_name:
            ground = self._ground(pod.node, pooled)
            claim = self._claims[pod.key] = _Claim(pod, self._judged(pod, pooled), ground)
            pod = claim.shown
        return Change(known.shown if known else change.before, pod)

    def review(self, pooled: Pooled) -> list[Change[Pod]]:
        """Returns the changes of pods that are believed by now, or no longer: Nodes or pools have changed.

        A pod may have been listed before its Node or the pools, and a block may have come to another node.
        """
        changes = []
        for claim in self._claims.values():
            ground = self._ground(claim.pod.node, pooled)
            if ground.is_still(claim.ground):
                continue
            before, claim.ground = claim.shown, ground
            claim.shown = self._judged(claim.pod, pooled)
            if claim.shown != before:
                changes.append(Change(before, claim.shown))
        return changes

    def told(self, pod: Pod | None) -> Pod | None:
        """A pod of the store as its followers have it."""
        claim = None if pod is None else self._claims.get(pod.key)
        return claim.shown if claim else pod

    def _judged(self, pod: Pod, pooled: Pooled) -> Pod:
        """The pod with the addresses that are believed."""
        node = self._nodes.get(("", pod.node))
        if node is None or not all(_is_of(address, node, pooled) for address in pod.announced):
            return pod
        return replace(pod, addresses=(*pod.addresses, *pod.announced))

    def _ground(self, node_name: str, pooled: Pooled) -> _Ground:
        if pooled is not self._pooled:
            # What is of all nodes is compared once, and not for each of thousands of pods.
            self._pooled = pooled
            pools = pooled.families, pooled.blocks, pooled.borrowed, pooled.lent, pooled.loans
            self._pools = self._pools if self._pools == pools else pools
        node = self._nodes.get(("", node_name))
        return _Ground(self._pools, node.pod_cidrs if node else None, pooled.others.get(node_name, ()))


def _is_of(address: str, node: NodeRecord, pooled: Pooled) -> bool:
    """Whether another node's pods have addresses there: podCIDRs only of families without pools."""
    if pooled.block_of(address):
        return False  # of this node
    if borrower := pooled.borrower_of(address):
        return borrower == node.name
    own = (cidr for cidr in node.pod_cidrs if version(cidr) not in pooled.families)
    return _inside(address, (*pooled.others.get(node.name, ()), *own))


def _inside(address: str, cidrs: tuple[str, ...]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(cidr) for cidr in cidrs)
