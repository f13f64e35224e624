"""Prefix arithmetic on integers: what an ipBlock allows, as plain disjoint CIDRs.

IP sets can hold exceptions (``nomatch``), but an exception then counts for everything in the set; in the API one
rule may allow again what another one excepts. So exceptions are subtracted here, exactly.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from policy.model import Family, IPBlock

Span = tuple[int, int]
"""First and last address of a range, inclusive, as integers."""


def nets(blocks: Iterable[IPBlock], family: Family) -> tuple[Span, ...]:
    """The addresses of one family that the blocks allow: sorted, disjoint, not adjacent."""
    spans: list[Span] = []
    for block in blocks:
        network = ipaddress.ip_network(block.cidr)
        if network.version == int(family):
            spans += _subtract(_span(network), sorted(_span(ipaddress.ip_network(e)) for e in block.excepts))
    return _merge(sorted(spans))


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


def _merge(spans: list[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for first, last in spans:
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
        # Asked of every pod of the cluster when a named port meets an ipBlock; ipaddress is several times slower.
        number = int.from_bytes(bytes(map(int, address.split("."))), "big")
    return any(first <= number <= last for first, last in spans)


def to_cidrs(spans: tuple[Span, ...], family: Family) -> tuple[str, ...]:
    """The fewest CIDRs that make up the spans, as members of hash:net sets. Those take no /0: it comes in halves.

    A single address has no prefix length. To the kernel it is the same member with and without, and a pod in the
    set would be it without: one member under two texts is lost when the first of them goes.
    """
    make = ipaddress.IPv4Network if family is Family.V4 else ipaddress.IPv6Network
    cidrs: list[str] = []
    for begin, last in spans:
        first = begin
        while first <= last:
            size = min(
                (first & -first).bit_length() - 1 if first else family.bits, (last - first + 1).bit_length() - 1
            )
            size = min(size, family.bits - 1)
            cidrs.append(str(make((first, family.bits - size))) if size else str(make(first).network_address))
            first += 1 << size
    return tuple(cidrs)
