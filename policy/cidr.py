"""Prefix arithmetic on integers: the addresses of ipBlocks as plain disjoint CIDRs.

An exception in an IP set (``nomatch``) would apply to the whole set, whereas in the API one ipBlock may allow
what another one excepts. So exceptions are subtracted here, exactly.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from policy.model import Family, IPBlock

Span = tuple[int, int]
"""First and last address of a range, inclusive, as integers."""


def nets(blocks: Iterable[IPBlock], family: Family) -> tuple[Span, ...]:
    """The addresses of one family in the blocks: sorted, disjoint, not adjacent."""
    spans: list[Span] = []
    for block in blocks:
        network = ipaddress.ip_network(block.cidr)
        if network.version == int(family):
            spans += _subtract(_span(network), sorted(_span(ipaddress.ip_network(e)) for e in block.excepts))
    return merge(spans)


def _span(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Span:
    return int(network.network_address), int(network.broadcast_address)


def _subtract(span: Span, holes: list[Span]) -> list[Span]:
    first, last = span
    left: list[Span] = []
    for hole_first, hole_last in holes:
        if first < hole_first:
            left.append((first, min(last, hole_first - 1)))
        first = max(first, hole_last + 1)
    if first <= last:
        left.append((first, last))
    return left


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same numbers as sorted spans that neither overlap nor touch."""
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def covers(spans: tuple[Span, ...], address: str) -> bool:
    """Whether an address of the same family, in canonical text, lies in one of the spans."""
    if ":" in address:
        number = int(ipaddress.IPv6Address(address))
    else:
        # Called for every pod of the cluster if a rule has a named port and an ipBlock; ipaddress is much slower.
        number = int.from_bytes(bytes(map(int, address.split("."))), "big")
    return any(first <= number <= last for first, last in spans)


def to_cidrs(spans: tuple[Span, ...], family: Family) -> tuple[str, ...]:
    """The fewest CIDRs that make up the spans, as members of hash:net sets, where /0 must be two halves.

    A single address has no prefix length. The kernel takes it with and without as one member, and a pod's address
    has none: a member under two texts would be lost when the first of them is removed.
    """
    make = ipaddress.IPv4Network if family is Family.V4 else ipaddress.IPv6Network
    cidrs: list[str] = []
    for begin, last in spans:
        first = begin
        while first <= last:
            aligned = (first & -first).bit_length() - 1 if first else family.bits
            size = min(aligned, (last - first + 1).bit_length() - 1, family.bits - 1)
            cidrs.append(str(make((first, family.bits - size))) if size else str(make(first).network_address))
            first += 1 << size
    return tuple(cidrs)
