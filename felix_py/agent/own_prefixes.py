"""This node's pod prefixes: its podCIDRs or blocks of pools, and the addresses of running pods outside of them.

A node's podCIDRs cannot be edited, but a Node object can be deleted and created anew with others. Pods keep
running with addresses of the old ones, which may be another node's by then. So a running pod's lease decides: its
address stays known, routed and announced as a host prefix until the pod ends. So it is with borrowed addresses,
and with those of a block that is lost.

While a family has pools, its podCIDRs count only as long as pods have addresses of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache

from msgspec import Struct

from bgp.prefixes import PrefixSet, parse
from felix_py.agent.pooled import NO_POOLS, Pooled
from felix_py.records import Lease, NodeRecord
from policy.model import Family

_MOST_NAMED = 5
_parsed = lru_cache(maxsize=1 << 14)(parse)
"""Cached, since each event of a Node compares all nodes' podCIDRs."""


class OwnPrefixes(Struct, frozen=True):
    """``cidrs``: the node's podCIDRs as last known. ``strays``: host prefixes (/32, /128) outside of all others.

    ``blocks``: its blocks of more than one address. ``left``: those of ``cidrs`` whose family has pools;
    ``deserted``: those of them that no pod has an address of.
    """

    cidrs: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    deserted: tuple[str, ...] = ()

    @property
    def aggregates(self) -> tuple[str, ...]:
        """The node's CIDRs: no packet to their addresses may leave it again."""
        return (*(cidr for cidr in self.cidrs if cidr not in self.deserted), *self.blocks)

    @property
    def lasting(self) -> tuple[str, ...]:
        """Those that are the node's whether or not pods have addresses of them."""
        return (*(cidr for cidr in self.cidrs if cidr not in self.left), *self.blocks)

    @property
    def all(self) -> tuple[str, ...]:
        """All prefixes of this node's pods."""
        return (*self.aggregates, *self.strays)

    def dead_ends(self, pooled: Pooled) -> tuple[str, ...]:
        """What ends here unless a pod has it: the node's CIDRs, and borrowed addresses that no pod has. Others
        may route these here, whose block is routed back."""
        return (*self.aggregates, *(host for host in pooled.borrowed if host not in self.strays))

    def following(
        self,
        node: NodeRecord | None,
        others: Iterable[NodeRecord],
        leases: Iterable[Lease],
        families: Collection[Family] = tuple(Family),
        pooled: Pooled = NO_POOLS,
    ) -> OwnPrefixes:
        """Returns the node's current prefixes. Addresses of other families are ignored.

        Without podCIDRs in its Node object (it may be gone for a moment) the node keeps its previous ones, unless
        another node has them by now.
        """
        cidrs = node.pod_cidrs if node else ()
        if not cidrs and self.cidrs:
            taken = {cidr for other in others for cidr in other.pod_cidrs}
            cidrs = tuple(cidr for cidr in self.cidrs if not any(_overlap(cidr, other) for other in taken))
        hosts = {host for lease in leases for host in hosts_of(lease, families)}
        blocks = tuple(cidr for cidr in pooled.aggregates if _family(cidr) in families)
        of_blocks = PrefixSet(blocks)
        left = tuple(cidr for cidr in cidrs if _family(cidr) in pooled.families)
        apart = {host for host in hosts if not of_blocks.covers(host)}
        kept = apart.difference(pooled.borrowed)
        deserted = tuple(cidr for cidr in left if not any(_overlap(cidr, host) for host in kept))
        inside = PrefixSet(cidr for cidr in cidrs if cidr not in deserted)
        # A podCIDR may have blocks of other nodes in it, which are the longer prefixes.
        theirs = PrefixSet(pooled.blocks_of_others() if apart else ())
        strays = tuple(sorted(host for host in apart if theirs.covers(host) or not inside.covers(host)))
        return OwnPrefixes(cidrs, strays, blocks, left, deserted)


def hosts_of(lease: Lease, families: Collection[Family] = tuple(Family)) -> Iterator[str]:
    """The addresses of a lease as prefixes."""
    for family, address in lease.addresses.items():
        if family in families:
            yield f"{address}/{family.bits}"


def told(
    own: OwnPrefixes,
    node: NodeRecord | None,
    others: Iterable[NodeRecord],
    leases: Iterable[Lease],
    pooled: Pooled = NO_POOLS,
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the notices of pods outside the podCIDRs, and of podCIDRs that two nodes have: subject -> text."""
    rivals = sorted((cidr, other.name) for other in others for cidr in other.pod_cidrs)
    shared: dict[str, str] = {}
    for cidr in node.pod_cidrs if node else ():
        for other, name in rivals:
            if _overlap(cidr, other):
                shared[cidr] = (
                    f"{cidr} is a podCIDR of this node, and {other} one of node {name}: packets for pods of one "
                    "may go to the other. Drain one of the two and delete its Node object: it gets another then"
                )
                break
    versions = {parse(cidr)[0] for cidr in own.aggregates}
    strays = {stray for stray in own.strays if parse(stray)[0] in versions}
    strays.difference_update(pooled.borrowed, pooled.blocks)
    outside = sorted({held.owner_text for held in leases if not strays.isdisjoint(hosts_of(held))})
    if not outside:
        return {}, shared
    what = "podCIDRs and blocks" if own.blocks else "podCIDRs"
    text = (
        f"the {what} of this node are {', '.join(own.aggregates)}, and {_listed(outside)} have addresses "
        "outside of these. They are announced one by one until the pods end. Drain the node, or delete the "
        "pods, so that they get others"
    )
    takers = sorted({name for cidr, name in rivals if any(_overlap(cidr, stray) for stray in strays)})
    if takers:
        text += f"; at once, because {_listed(takers)} may give the same addresses to other pods"
    return {"podCIDRs": text}, shared


def _family(cidr: str) -> Family:
    return Family.V6 if ":" in cidr else Family.V4


def _overlap(one: str, other: str) -> bool:
    (version, bits, length, value), (other_version, _, other_length, other_value) = _parsed(one), _parsed(other)
    shift = bits - min(length, other_length)
    return version == other_version and value >> shift == other_value >> shift


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
