"""The address space of one family, cut at the bounds of the CIDRs of ipBlocks.

CIDRs are nested or disjoint, so the pieces are the CIDRs themselves, each without those inside it. All addresses
of a piece lie in the same ipBlocks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable
from dataclasses import dataclass

from policy.cidr import covers, nets
from policy.model import Family, IPBlock


@dataclass(frozen=True, slots=True)
class Region:
    """``cidr`` without the CIDRs in ``holes``, which are regions of their own (canonical texts)."""

    family: Family
    cidr: str
    holes: tuple[str, ...]

    @property
    def is_rest(self) -> bool:
        """Whether no ipBlock but the whole family covers it."""
        return self.cidr.endswith("/0")

    def covers(self, address: str) -> bool:
        """Whether an address, in canonical text, lies in the region."""
        same = (":" in address) == (self.family is Family.V6)
        return same and covers(nets([IPBlock(self.cidr, self.holes)], self.family), address)

    def free(self, taken: Container[int]) -> str | None:
        """Its first address that is not taken, or None."""
        for first, last in nets([IPBlock(self.cidr, self.holes)], self.family):
            number = first
            while number <= last and number in taken:
                number += 1
            if number <= last:
                make = ipaddress.IPv4Address if self.family is Family.V4 else ipaddress.IPv6Address
                return str(make(number))
        return None


class Regions:
    """All regions of a family. Finding that of an address costs a lookup for each prefix length in use."""

    def __init__(self, family: Family, blocks: Iterable[IPBlock]) -> None:
        """Blocks of the other family are left out."""
        self._family = family
        self._by_cidr: dict[str, list[IPBlock]] = {}
        cidrs = {"0.0.0.0/0" if family is Family.V4 else "::/0"}
        for block in dict.fromkeys(blocks):
            if (":" in block.cidr) == (family is Family.V6):
                self._by_cidr.setdefault(block.cidr, []).append(block)
                cidrs |= {block.cidr, *block.excepts}
        self._by_length: dict[int, dict[int, str]] = {}
        for cidr in cidrs:
            network = ipaddress.ip_network(cidr)
            number = int(network.network_address) >> (family.bits - network.prefixlen)
            self._by_length.setdefault(network.prefixlen, {})[number] = cidr
        self._lengths = sorted(self._by_length, reverse=True)
        self._parent = {cidr: self._around(cidr) for cidr in cidrs}
        self._blocks = {cidr: self._holding(cidr) for cidr in cidrs}

    def _find(self, number: int, below: int) -> str:
        """The longest prefix, shorter than ``below``, that an address lies in; the whole family if none does."""
        for length in self._lengths:
            if length < below:
                cidr = self._by_length[length].get(number >> (self._family.bits - length))
                if cidr is not None:
                    return cidr
        return self._by_length[0][0]

    def _around(self, cidr: str) -> str | None:
        network = ipaddress.ip_network(cidr)
        return self._find(int(network.network_address), network.prefixlen) if network.prefixlen else None

    def _holding(self, cidr: str) -> frozenset[IPBlock]:
        around: dict[str, None] = {}
        step: str | None = cidr
        while step is not None:
            around[step] = None
            step = self._parent[step]
        candidates = (block for step in around for block in self._by_cidr.get(step, ()))
        return frozenset(block for block in candidates if not any(hole in around for hole in block.excepts))

    def blocks_at(self, address: int) -> frozenset[IPBlock]:
        """The blocks that an address, as an integer, lies in, their exceptions considered."""
        return self._blocks[self._find(address, self._family.bits + 1)]

    def all(self) -> list[tuple[Region, frozenset[IPBlock]]]:
        """Every region with the blocks that it lies in, by address."""
        holes: dict[str, list[str]] = {cidr: [] for cidr in self._parent}
        ordered = sorted(self._parent, key=_order)
        for cidr in ordered:
            parent = self._parent[cidr]
            if parent is not None:
                holes[parent].append(cidr)
        return [(Region(self._family, cidr, tuple(holes[cidr])), self._blocks[cidr]) for cidr in ordered]


def _order(cidr: str) -> tuple[int, int]:
    network = ipaddress.ip_network(cidr)
    return int(network.network_address), network.prefixlen
