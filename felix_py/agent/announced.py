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
from collections.abc import Callable, Mapping
from dataclasses import replace

from bgp.prefixes import version
from felix_py.agent.pooled import NO_POOLS, Pooled
from felix_py.records import NodeRecord
from policy.change import Change
from policy.model import ObjectKey, Pod


class Announced:
    """Adds believed addresses to those of the status. On the event loop only."""

    def __init__(
        self,
        node_name: str,
        nodes: Mapping[ObjectKey, NodeRecord],
        pooled: Callable[[], Pooled] = lambda: NO_POOLS,
    ) -> None:
        """``node_name``: this node's; ``nodes``, ``pooled``: all nodes, and pools, as they are now."""
        self._node_name = node_name
        self._nodes = nodes
        self._pooled = pooled
        self._believed: dict[ObjectKey, Pod] = {}
        """Pods as their followers have them, where that is not as the store has them."""

    def believe(self, change: Change[Pod]) -> Change[Pod]:
        """Returns the change for those who follow the cluster; give it each change of a pod, in order."""
        before, after = self._believed.pop(change.newest.key, change.before), change.after
        if after is not None and after.announced and after.node != self._node_name:
            node = self._nodes.get(("", after.node))
            if node is not None and all(self._is_of(address, node) for address in after.announced):
                addresses = (*after.addresses, *after.announced)
                after = self._believed[after.key] = replace(after, addresses=addresses)
        return Change(before, after)

    def _is_of(self, address: str, node: NodeRecord) -> bool:
        """Whether another node's pods have addresses there: podCIDRs only of families without pools."""
        pooled = self._pooled()
        if pooled.block_of(address):
            return False  # of this node
        if borrower := pooled.borrower_of(address):
            return borrower == node.name
        own = (cidr for cidr in node.pod_cidrs if version(cidr) not in pooled.families)
        return _inside(address, (*pooled.others.get(node.name, ()), *own))


def _inside(address: str, cidrs: tuple[str, ...]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(cidr) for cidr in cidrs)
