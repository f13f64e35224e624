"""Addresses that pods of other nodes have and the kubelet does not report, or not yet, as their annotation says.

The kubelet writes ``status.podIPs`` a second or so after the pod is connected, and the addresses of further
interfaces never; the pod's agent writes the annotation ``felixpy.io/pod-ips`` at once. Whoever may change a pod
may write it, too, so it is believed only where a lie is of no use:

- for pods of other nodes: this node's own leases say what its pods have;
- for addresses of the blocks, loans or podCIDRs of the node that the pod is on: nobody can give an address
  outside of the cluster, a node's, or another node's pod the rights of a pod of theirs;
- and only as long as nobody else claims the address: against any pod that has it in its status such a claim
  is none (:meth:`policy.model.Pod.claim`), so no pod loses its address to a lie.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace

from bgp.prefixes import version
from felix_py.agent.pooled import Pooled
from felix_py.records import NodeRecord
from policy.change import Change
from policy.model import ObjectKey, Pod


class Announced:
    """Adds believed addresses to those of the status. On the event loop only."""

    def __init__(self, node_name: str, nodes: Mapping[ObjectKey, NodeRecord]) -> None:
        """``node_name``: this node's; ``nodes``: all nodes, as they are now."""
        self._node_name = node_name
        self._nodes = nodes
        self._believed: dict[ObjectKey, Pod] = {}
        """Pods as their followers have them, where that is not as the store has them."""
        self._doubted: dict[ObjectKey, Pod] = {}
        """Pods whose annotation is not believed; they may have been listed before their Nodes or the pools."""

    def believe(self, change: Change[Pod], pooled: Pooled) -> Change[Pod]:
        """Returns the change for those who follow the cluster; give it each change of a pod, in order.

        ``pooled``: pools as they are now.
        """
        key = change.newest.key
        self._doubted.pop(key, None)
        return Change(self._believed.pop(key, change.before), self._judged(change.after, pooled))

    def review(self, pooled: Pooled) -> list[Change[Pod]]:
        """Returns the changes of pods that are believed by now, because Nodes or pools have changed."""
        doubted, self._doubted = self._doubted, {}
        judged = ((pod, self._judged(pod, pooled)) for pod in doubted.values())
        return [Change(pod, now) for pod, now in judged if now is not pod]

    def told(self, pod: Pod | None) -> Pod | None:
        """A pod of the store as its followers have it."""
        return None if pod is None else self._believed.get(pod.key, pod)

    def _judged(self, pod: Pod | None, pooled: Pooled) -> Pod | None:
        """The pod with the addresses that are believed."""
        if pod is None or not pod.announced or pod.node == self._node_name:
            return pod
        node = self._nodes.get(("", pod.node))
        if node is None or not all(_is_of(address, node, pooled) for address in pod.announced):
            self._doubted[pod.key] = pod
            return pod
        believed = self._believed[pod.key] = replace(pod, addresses=(*pod.addresses, *pod.announced))
        return believed


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
