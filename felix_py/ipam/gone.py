"""Which blocks may be freed, and which loans ended, since their nodes are gone. Pure: clock and answers are
arguments.

A block belongs to the node that it names, with the uid of its Node object. It is freed once nobody has seen that
Node, nor a pod that is bound to it, for :data:`GRACE`, and none of its addresses is lent to a node that may be
there. A loan of which the borrower is gone that long is ended, as the borrower would do it.
Calico's controller does the same by pods' addresses (kube-controllers, leakGracePeriod). A Node that was deleted
and comes back with another uid takes its blocks itself, which changes them, so that they are not freed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from msgspec import Struct

from felix_py.ipam.resources import BlockAffinity, IPAMBlock, Loan

GRACE = 900.0
"""Seconds (Calico's leakGracePeriod). The kubelet of a node whose object is gone may run its pods for a while."""

Owner = tuple[str, str]
"""Name and uid of a node; the uid is empty where it is not known."""


class Orphan(Struct, frozen=True):
    """What a node that is gone has left of one block: the block, its affinity, or both."""

    cidr: str
    block: IPAMBlock | None = None
    affinity: BlockAffinity | None = None

    @property
    def borrowers(self) -> tuple[Owner, ...]:
        """Nodes that have borrowed addresses of the block; they must be gone as well."""
        return _borrowers(self.block) if self.block else ()


class Gone:
    """The nodes that have left blocks, and since when each of them is certainly gone."""

    def __init__(self) -> None:
        self._since: dict[Owner, float] = {}
        self._orphans: dict[Owner, list[Orphan]] = {}
        self._lenders: tuple[IPAMBlock, ...] = ()

    def look(
        self,
        blocks: Iterable[IPAMBlock],
        affinities: Iterable[BlockAffinity],
        nodes: Mapping[str, str],
        now: float,
    ) -> tuple[Owner, ...]:
        """Take over what there is. ``nodes``: name -> uid. Returns whose pods are to be looked for now."""
        self._orphans = {}
        blocks = tuple(blocks)
        self._lenders = tuple(block for block in blocks if block.lent)
        lost = {one for block in self._lenders for one in _borrowers(block) if nodes.get(one[0]) != one[1]}
        # An affinity without block is of a node that wanted one, or has given one back.
        left = {(one.node, one.cidr): one for one in affinities}
        for block in blocks:
            affinity = left.pop((block.node, block.cidr), None)
            lent = any(nodes.get(name) == uid for name, uid in _borrowers(block))
            if nodes.get(block.node) != block.node_uid and not lent:
                orphan = Orphan(block.cidr, block, affinity)
                self._orphans.setdefault((block.node, block.node_uid), []).append(orphan)
        for (node, cidr), affinity in left.items():
            if node not in nodes:
                self._orphans.setdefault((node, ""), []).append(Orphan(cidr, None, affinity))
        orphans = [orphan for of_owner in self._orphans.values() for orphan in of_owner]
        owners = {*self._orphans, *lost, *(one for orphan in orphans for one in orphan.borrowers)}
        self._since = {owner: self._since.get(owner, now) for owner in owners}
        return tuple(sorted(owners))

    def seen(self, owner: Owner, now: float) -> None:
        """The node, or a pod of it, stands in the API; or it is not known."""
        if owner in self._since:
            self._since[owner] = now

    def due(self, now: float) -> dict[Owner, tuple[Orphan, ...]]:
        """What is to be freed now, by node."""
        certain = self._certain(now)
        found = {
            owner: tuple(one for one in left if certain.issuperset(one.borrowers))
            for owner, left in self._orphans.items()
            if owner in certain
        }
        return {owner: left for owner, left in found.items() if left}

    def ended(self, now: float) -> tuple[tuple[IPAMBlock, tuple[Loan, ...]], ...]:
        """Blocks out of which nodes that are gone have borrowed, each with the loans that stay."""
        certain = self._certain(now)
        found = ((block, _kept(block, certain)) for block in self._lenders)
        return tuple((block, kept) for block, kept in found if kept != block.lent)

    def _certain(self, now: float) -> frozenset[Owner]:
        return frozenset(owner for owner, since in self._since.items() if now - since >= GRACE)


def _borrowers(block: IPAMBlock) -> tuple[Owner, ...]:
    return tuple((loan.node, loan.node_uid) for loan in block.lent)


def _kept(block: IPAMBlock, certain: Container[Owner]) -> tuple[Loan, ...]:
    return tuple(loan for loan in block.lent if (loan.node, loan.node_uid) not in certain)
