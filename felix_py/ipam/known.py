"""What one node has seen of blocks, of its affinities, and of its own leases: the input of :mod:`blocks`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from felix_py.ipam.blocks import REST, Taken, block_at
from felix_py.ipam.loans import KnownLoans
from felix_py.ipam.names import affinity_name
from felix_py.ipam.pool import Pool, address_text
from felix_py.ipam.pools import pool_of
from felix_py.ipam.resources import BlockAffinity, IPAMBlock, IPPool
from policy.model import Family


class Known:
    """All blocks, and this node's own objects, folded from changes as they are told."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.taken = Taken()
        self.own: dict[str, IPAMBlock] = {}
        """By CIDR."""
        self.affinities: dict[str, BlockAffinity] = {}
        """By CIDR."""
        self.astray: dict[str, BlockAffinity] = {}
        """Affinities by CIDR that are named as this node's, and name another node: somebody has made them."""
        self.loans = KnownLoans(node)

    def fold_block(self, before: IPAMBlock | None, after: IPAMBlock | None) -> None:
        if before is not None:
            self.taken.remove(before.cidr)
            if self.own.get(before.cidr) == before:
                del self.own[before.cidr]
        if after is not None:
            self.taken.add(after.cidr)
            if after.node == self._node:
                self.own[after.cidr] = after
        self.loans.fold(before, after)

    def fold_affinity(self, before: BlockAffinity | None, after: BlockAffinity | None) -> None:
        for found in (self.affinities, self.astray):
            if before is not None and found.get(before.cidr) == before:
                del found[before.cidr]
        if after is not None and after.node == self._node:
            self.affinities[after.cidr] = after
        elif after is not None and after.name == affinity_name(self._node, after.cidr):
            self.astray[after.cidr] = after


class Idle:
    """Since when each of the node's blocks and borrowed addresses has been empty. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def note(self, blocks: Iterable[str], leases: Mapping[str, int], now: float) -> None:
        """Take down which blocks are empty now."""
        empty = {cidr for cidr in blocks if not leases.get(cidr)}
        self._since = {cidr: self._since.get(cidr, now) for cidr in empty}

    def rested(self, now: float, rest: float | None = None) -> frozenset[str]:
        """Those that have been empty for a rest: REST, or another one."""
        rest = REST if rest is None else rest
        return frozenset(cidr for cidr, since in self._since.items() if now - since >= rest)


def leases_by_block(
    numbers: Mapping[Family, Collection[int]], own: Iterable[str], pools: Iterable[IPPool]
) -> dict[str, int]:
    """How many of these addresses lie in each block: in the node's ``own``, or borrowed host prefixes among
    these; else where a pool has its blocks."""
    found: dict[str, int] = {}
    blocks = sorted(map(Pool.of, own), key=lambda pool: pool.first)
    candidates = tuple(pools)
    for family, addresses in numbers.items():
        of_family = [block for block in blocks if block.family is family]
        for number in addresses:
            block = next((block.cidr for block in of_family if number in block), None)
            if block is None:
                pool = pool_of(candidates, f"{address_text(family, number)}/{int(family.bits)}")
                block = block_at(pool, number) if pool is not None else None
            if block is not None:
                found[block] = found.get(block, 0) + 1
    return found
