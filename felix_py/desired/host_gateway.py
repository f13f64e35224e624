"""Routes to other nodes' pods from Node objects (``routeSource: kubernetes``), as by flannel's host-gw backend.

A node of the same segment is the gateway to its own podCIDRs. What BGP may teach is limited by an import filter;
the same limits hold here, and what two nodes claim is no node's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct, field

from bgp.prefixes import PrefixSet, parse, version
from bgp.rib import Reach, problem
from felix_py.layout import ROUTE_PROTOCOL_LEARNED
from felix_py.records import NextHop, NodeRecord, Route
from felix_py.refs import RouteRef


class Claim(NamedTuple):
    """A podCIDR of a node, as in its Node object."""

    node: str
    cidr: str


class NodeRoutes(Struct, frozen=True):
    """``refused``: podCIDRs that are not routed, and why.

    ``apart``: those of nodes that are not on a link of this one, and why: BGP may teach these.
    """

    routes: dict[RouteRef, Route] = field(default_factory=dict)
    refused: dict[Claim, str] = field(default_factory=dict)
    apart: dict[Claim, str] = field(default_factory=dict)


def node_routes(
    here: str,
    nodes: Collection[NodeRecord],
    reach: Reach,
    *,
    own: Collection[str],
    within: PrefixSet,
    never: PrefixSet,
    blocks: Mapping[str, Collection[str]] | None = None,
) -> NodeRoutes:
    """Returns the routes of node ``here`` to the podCIDRs of all others of ``nodes``, and to their ``blocks``.

    ``reach`` knows the links of this node. ``own``: its podCIDRs, which may differ from those in its Node object.
    Only podCIDRs inside ``within`` (the cluster's CIDRs) and inside none of ``never`` (Service CIDRs, addresses
    of running pods of this node) are routed. Blocks and borrowed addresses are one node's only; they may lie in
    a podCIDR of another, of which they are the longer prefix.
    """
    found = NodeRoutes()
    others = [node for node in nodes if node.name != here]
    claims = [Claim(node.name, cidr) for node in others for cidr in node.pod_cidrs]
    rival_of = _rivals([*claims, *(Claim(here, cidr) for cidr in own)])
    address_in = _address_finder(nodes)
    for node in others:
        for cidr in dict.fromkeys((*node.pod_cidrs, *(blocks or {}).get(node.name, ()))):
            claim = Claim(node.name, cidr)
            if rival := rival_of.get(claim):
                found.refused[claim] = f"it overlaps {rival.cidr}, a podCIDR of node {rival.node}"
            elif not within.covers(cidr):
                found.refused[claim] = "it is in none of the cluster's CIDRs"
            elif never.covers(cidr):
                found.refused[claim] = "it is in a range of Services, or an address of a pod of this node"
            elif address := address_in(cidr):
                found.refused[claim] = f"it covers {address}, which is a node's own address"
            else:
                hop = _next_hop(cidr, node.internal_addresses, reach)
                if isinstance(hop, NextHop):
                    key = RouteRef(cidr, ROUTE_PROTOCOL_LEARNED)
                    found.routes[key] = Route(key, next_hops=(hop,))
                else:
                    found.apart[claim] = hop
    return found


def _next_hop(cidr: str, addresses: Iterable[str], reach: Reach) -> NextHop | str:
    """The first usable address of the CIDR's family, or why there is none."""
    why = ""
    for address in addresses:
        if version(address) == version(cidr):
            reached = reach(address)
            trouble = problem(cidr, address, reached)
            if not trouble:
                return NextHop(address, reached.interface)
            why = why or f"its address {address} is no next hop: {trouble}"
    return why or "its Node object has no InternalIP of that family"


def _rivals(claims: Iterable[Claim]) -> dict[Claim, Claim]:
    """Each claim that overlaps one of another node, with one such.

    Two CIDRs overlap only if one has the other in it. So in the order of first address and length, those that a
    claim is in are a stack.
    """
    found: dict[Claim, Claim] = {}
    around: list[Claim] = []
    for claim in sorted(claims, key=_place):
        while around and not _holds(around[-1].cidr, claim.cidr):
            around.pop()
        for outer in around:
            if outer.node != claim.node:
                found.setdefault(outer, claim)
                found.setdefault(claim, outer)
        around.append(claim)
    return found


def _place(claim: Claim) -> tuple[int, int, int, str]:
    family, _, length, first = parse(claim.cidr)
    return family, first, length, claim.node


def _holds(outer: str, inner: str) -> bool:
    """Whether a CIDR has another in it, or is it."""
    family, bits, length, first = parse(outer)
    other, _, longer, begin = parse(inner)
    return family == other and length <= longer and first >> (bits - length) == begin >> (bits - length)


def _address_finder(nodes: Iterable[NodeRecord]) -> Callable[[str], str]:
    """Returns a function that names a node's address inside a CIDR, or nothing."""
    known: dict[int, dict[int, str]] = {}
    for node in nodes:
        for address in node.addresses:
            family, _, _, number = parse(address)
            known.setdefault(family, {})[number] = address
    in_order = {family: sorted(numbers) for family, numbers in known.items()}

    def find(cidr: str) -> str:
        family, bits, length, first = parse(cidr)
        numbers = in_order.get(family, [])
        at = bisect_left(numbers, first)
        inside = at < len(numbers) and numbers[at] >> (bits - length) == first >> (bits - length)
        return known[family][numbers[at]] if inside else ""

    return find
