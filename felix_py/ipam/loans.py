"""What one node has seen of loans: the input of :mod:`felix_py.ipam.lending`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from felix_py.ipam.pool import Pool, address_number
from felix_py.ipam.resources import IPAMBlock, Loan

PATIENCE = 5.0
"""Seconds that a request may stay without an answer; then another node is asked."""

AGAIN = 60.0
"""Seconds until a node is asked again that has lent nothing."""


@dataclass(frozen=True, slots=True)
class Borrowed:
    """A loan to this node, and the block that it is out of."""

    block: IPAMBlock
    loan: Loan


class Unmet(NamedTuple):
    """A request for a loan that has brought none. ``ago``: seconds since it was made; ``refused``: else it is
    without an answer."""

    block: IPAMBlock
    ago: float
    refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Loans:
    """What a node knows of loans.

    ``strict``: nothing is lent nor borrowed any more (strictAffinity). ``others``: other nodes' blocks by CIDR;
    ``requested``: those with a request of this node. ``borrowed``: by host prefix. ``set_aside``: what this node
    has noted on disk as lent, or about to be, by its block's CIDR; of a block that it does not have, by an empty
    text. ``noted``: by the uid of such a loan, the resourceVersion that its block had then. ``returned``: uids of
    loans of which it has seen the end. ``asking``: blocks (CIDRs) whose owners may yet answer; ``asked``: those
    that were asked lately. ``rested``: host prefixes that have been empty for a short rest. ``present``: whether
    the Node of a name and uid is there; ``users``: how many addresses of a CIDR pods are known to have;
    ``in_use``: whether a pod of the borrower is known to have the loan's.
    """

    strict: bool = True
    others: Mapping[str, IPAMBlock] = field(default_factory=dict)
    requested: Mapping[str, IPAMBlock] = field(default_factory=dict)
    borrowed: Mapping[str, Borrowed] = field(default_factory=dict)
    set_aside: Mapping[str, tuple[Loan, ...]] = field(default_factory=dict)
    noted: Mapping[str, str] = field(default_factory=dict)
    returned: frozenset[str] = frozenset()
    asking: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    rested: frozenset[str] = frozenset()
    present: Callable[[str, str], bool] = lambda _node, _uid: True
    users: Callable[[str], int] = lambda _cidr: 0
    in_use: Callable[[Loan], bool] = lambda _loan: False


NO_LOANS = Loans()


class KnownLoans:
    """Loans and requests, folded from changes of blocks as they are told. Times are monotonic seconds."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.others: dict[str, IPAMBlock] = {}
        """Other nodes' blocks by CIDR."""
        self.requested: dict[str, IPAMBlock] = {}
        """Those of them with a request of this node."""
        self.borrowed: dict[str, Borrowed] = {}
        """By host prefix."""
        self.returned: set[str] = set()
        """Uids of this node's loans to others that were seen, and then were seen to be gone."""
        self._asked: dict[str, float] = {}
        self._open: set[str] = set()
        self._silent: set[str] = set()
        """Blocks whose owners have not answered in time."""

    def fold(self, before: IPAMBlock | None, after: IPAMBlock | None) -> None:
        """A block has changed."""
        if before is not None and before.node != self._node:
            self._remove(before)
        if after is not None and after.node != self._node:
            self._add(after)
        if before is not None and after is not None and before.uid == after.uid and after.node == self._node:
            # Of a block that was deleted, and made anew, nothing is known to have been returned.
            self.returned |= {loan.uid for loan in before.lent} - {loan.uid for loan in after.lent}
        if after is not None and after.node == self._node:
            self.returned -= {loan.uid for loan in after.lent}
        self._see_answer(before, after)

    def _remove(self, block: IPAMBlock) -> None:
        for table in (self.others, self.requested):
            if table.get(block.cidr) == block:
                del table[block.cidr]
        for loan in self._mine(block):
            if self.borrowed.get(loan.host) == Borrowed(block, loan):
                del self.borrowed[loan.host]

    def _add(self, block: IPAMBlock) -> None:
        self.others[block.cidr] = block
        if self._requests(block):
            self.requested[block.cidr] = block
        for loan in self._mine(block):
            self.borrowed[loan.host] = Borrowed(block, loan)

    def _see_answer(self, before: IPAMBlock | None, after: IPAMBlock | None) -> None:
        if before is not None and self._requests(before) and (after is None or not self._requests(after)):
            self._open.discard(before.cidr)
            if after is not None and {*self._mine(after)} - {*self._mine(before)}:
                self._asked.pop(before.cidr, None)

    def _mine(self, block: IPAMBlock) -> Iterable[Loan]:
        return (loan for loan in block.lent if loan.node == self._node)

    def _requests(self, block: IPAMBlock) -> bool:
        return any(request.node == self._node for request in block.requests)

    # --- what was asked --------------------------------------------------------------------------------

    def ask(self, cidr: str, now: float) -> None:
        """The owner of a block is asked now."""
        self._asked[cidr] = now
        self._open.add(cidr)
        self._silent.discard(cidr)

    def forget(self, cidr: str) -> None:
        """It was not asked after all."""
        self._asked.pop(cidr, None)
        self._open.discard(cidr)
        self._silent.discard(cidr)

    def asking(self, now: float) -> frozenset[str]:
        """Blocks whose owners may yet answer. A request of an earlier life counts as made now."""
        for cidr in self.requested.keys() - self._asked.keys():
            self.ask(cidr, now)
        late = {cidr for cidr in self._open if now - self._asked[cidr] >= PATIENCE}
        self._silent |= late
        return frozenset(self._open - late)

    def asked(self, now: float) -> frozenset[str]:
        """Blocks whose owners were asked lately, and have lent nothing yet."""
        for cidr in [one for one, at in self._asked.items() if now - at >= AGAIN]:
            self.forget(cidr)
        return frozenset(self._asked)

    def in_vain(self, now: float) -> list[Unmet]:
        """The requests of late that have brought no loan, as far as the blocks are still there; oldest first."""
        over = (self._asked.keys() & self.others.keys()) - self.asking(now)
        oldest = sorted(over, key=lambda cidr: self._asked[cidr])
        return [Unmet(self.others[cidr], now - self._asked[cidr], cidr not in self._silent) for cidr in oldest]


def by_block(loans: Iterable[Loan], own: Iterable[str]) -> dict[str, tuple[Loan, ...]]:
    """Loans by the block, of a node's ``own``, that has their address; else by an empty text."""
    found: dict[str, tuple[Loan, ...]] = {}
    blocks = [Pool.of(cidr) for cidr in own]
    for loan in loans:
        family, number = address_number(loan.address)
        cidr = next((one.cidr for one in blocks if one.family is family and number in one), "")
        found[cidr] = (*found.get(cidr, ()), loan)
    return found
