"""Single addresses that one node lends to another, when a pool has no block left: the next steps. Pure.

Calico's nodes take free addresses of each other's blocks themselves (strictAffinity: false). Here a block's owner
alone knows which are free, and gives them to pods without a word to the API server; so it is asked. All of it
stands in the IPAMBlock, and each write names the resourceVersion that it was decided on:

1. The borrower adds a request (ASK). It takes it back when there is no answer for a while (WITHDRAW), and asks
   another node.
2. The owner sets free addresses aside, so that no pod of its own gets them, and notes that on disk; then one
   write adds the loans and takes the request away (LEND). A request that is taken away without a loan was
   refused.
3. The borrower gives an address to a pod once it has *seen* the loan, which names the uid of its Node.
4. When no pod has it any more, and a rest has passed, the borrower closes the address and notes the loan's uid on
   disk (CLOSE), and then takes the loan away (RETURN).
5. The owner, who has seen the loan and then sees that it is gone, forgets it on disk; then its own pods may have
   the address again (RECLAIM). Not while a pod of the borrower is known to have it.

What is seen may be old, and either agent may end at any moment. What an owner has set aside and does not see in
the block, it writes again, with the same uid: a borrower that had closed it returns it once more, so both agree.
An old list shows a borrower no loan that it could use again, since it has the uid among those that it closed;
and an owner that the block is another node's, as it was before the loan, is none: the block's resourceVersion is
noted with a loan. A block out of which something is lent is not deleted, also where that was seen too late.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from heapq import nsmallest

from felix_py.ipam import blocks
from felix_py.ipam.blocks import Act, Demand, Plan, Step, View, free, usable
from felix_py.ipam.loans import Borrowed, by_block
from felix_py.ipam.pool import Pool
from felix_py.ipam.pools import pool_of
from felix_py.ipam.resources import IPAMBlock, IPPool, Loan, LoanRequest
from felix_py.resource_version import is_older

BATCH = 8
"""Addresses that are asked for at once, at most."""

REST = 60.0
"""Seconds without a pod after which a borrowed address goes back, while the node has free ones of its own."""

_MOST_ASKED = 8
"""Owners that may have refused, or not answered, lately; then the pool counts as used up."""

_MOST_COMPARED = 32


def plan(view: View) -> Plan:
    """The next steps, of blocks and of loans."""
    found = blocks.plan(view)
    if not view.node_uid:
        return found
    asks, hopeless = _borrow(view, found.exhausted)
    closing = {act.cidr for act in found.acts if act.step is Step.CLOSE}  # who asks can claim it then
    lend = [act for act in _lend(view) if act.cidr not in closing]
    acts = (*lend, *asks, *found.acts, *_withdraw(view), *_give_back(view))
    return Plan(acts, found.exhausted, hopeless)


def usable_loans(view: View) -> tuple[str, ...]:
    """The host prefixes of borrowed addresses that may be given out now."""
    return tuple(host for host, borrowed in view.loans.borrowed.items() if _is_usable(view, borrowed))


def _is_usable(view: View, borrowed: Borrowed) -> bool:
    return (
        not view.loans.strict
        and bool(view.node_uid)
        and borrowed.loan.node_uid == view.node_uid
        and borrowed.loan.uid not in view.closed
        and not view.taken.overlapping(borrowed.block.cidr, but=1)
    )


# --- the owner -------------------------------------------------------------------------------------------------


def _lend(view: View) -> Iterator[Act]:
    mine = {block.cidr for block in usable(view)}
    for cidr, block in view.own.items():
        apart = view.loans.set_aside.get(cidr, ())
        if ended := tuple(loan for loan in apart if _has_come_back(view, loan)):
            yield Act(Step.RECLAIM, cidr, block, loans=ended)
        elif cidr in mine and (block.requests or unwritten(block, apart)):
            yield Act(Step.LEND, cidr, block)
    for loan in view.loans.set_aside.get("", ()):
        if _has_another_owner(view, loan):
            yield Act(Step.RECLAIM, loan.host, loans=(loan,))


def _has_another_owner(view: View, loan: Loan) -> bool:
    """Whether another node has the address's block by now. An old list shows who had it before this one."""
    noted = view.loans.noted.get(loan.uid, "")
    since = (block.cidr for block in view.loans.others.values() if not is_older(block.resource_version, noted))
    return "" not in by_block([loan], since)


def _has_come_back(view: View, loan: Loan) -> bool:
    """Not while a pod of the borrower has the address: then it was not the borrower who took the loan away, but
    somebody else, or an API server whose definition of the kind is older than loans. It is written again."""
    return loan.uid in view.loans.returned and not view.loans.in_use(loan)


def may_lend(view: View, block: IPAMBlock) -> int:
    """How many addresses of an own block others may have now."""
    pool = pool_of(view.pools, block.cidr)
    return 0 if view.loans.strict or pool is None or pool.disabled else free(view, block)


def unwritten(block: IPAMBlock, apart: Iterable[Loan]) -> tuple[Loan, ...]:
    """What is set aside, and not lent as far as is seen."""
    lent = {loan.uid for loan in block.lent}
    return tuple(loan for loan in apart if loan.uid not in lent)


def unanswered(block: IPAMBlock, apart: Iterable[Loan]) -> tuple[LoanRequest, ...]:
    """The requests for which nothing is set aside yet."""
    served = {(loan.node, loan.node_uid) for loan in unwritten(block, apart)}
    return tuple(request for request in block.requests if (request.node, request.node_uid) not in served)


def lent(act: Act, apart: Iterable[Loan]) -> Act:
    """The write of LEND: all that is set aside is lent, all requests are answered."""
    assert act.block is not None
    return Act(Step.LEND, act.cidr, act.block, lent=(*act.block.lent, *unwritten(act.block, apart)))


# --- the borrower ----------------------------------------------------------------------------------------------


def _borrow(view: View, exhausted: Iterable[Demand]) -> tuple[list[Act], tuple[Demand, ...]]:
    asks: list[Act] = []
    hopeless: list[Demand] = []
    for demand in exhausted:
        pools = [pool for pool in view.pools if pool.name in demand.pools and not pool.disabled]
        coming = {*view.loans.asking, *(act.cidr for act in asks)}
        if not view.loans.strict and any(pool_of(pools, cidr) for cidr in coming):
            continue
        block = None if view.loans.strict else _whom(view, pools)
        if block is None:
            hopeless.append(demand)
        elif demand.waiting:
            asks.append(_ask(view, block, min(demand.waiting, BATCH)))
    return asks, tuple(hopeless)


def _ask(view: View, block: IPAMBlock, count: int) -> Act:
    request = LoanRequest(node=view.node, node_uid=view.node_uid, count=count)
    return Act(Step.ASK, block.cidr, block, lent=block.lent, requests=(*_others_requests(view, block), request))


def _whom(view: View, pools: Iterable[IPPool]) -> IPAMBlock | None:
    """The block to borrow of: of some, in an order of each node's own, the one with the most addresses that no
    pod is known to have."""
    candidates = tuple(pools)
    if sum(pool_of(candidates, cidr) is not None for cidr in view.loans.asked) >= _MOST_ASKED:
        return None
    found = (block for block in view.loans.others.values() if _may_have(view, candidates, block))
    some = nsmallest(_MOST_COMPARED, found, key=lambda block: _place(view, block))
    left = {block.cidr: _seem_free(view, block) for block in some}
    best = max(some, key=lambda block: left[block.cidr], default=None)
    return best if best is not None and left[best.cidr] > 0 else None


def _may_have(view: View, pools: tuple[IPPool, ...], block: IPAMBlock) -> bool:
    return (
        block.cidr not in view.loans.asked
        and pool_of(pools, block.cidr) is not None
        and view.loans.present(block.node, block.node_uid)
        and not view.taken.overlapping(block.cidr, but=1)
    )


def _seem_free(view: View, block: IPAMBlock) -> int:
    whole = Pool.of(block.cidr)
    return whole.last - whole.first + 1 - max(view.loans.users(block.cidr), len(block.lent))


def _place(view: View, block: IPAMBlock) -> bytes:
    return hashlib.sha256(f"{view.node}/{block.cidr}".encode()).digest()


def _others_requests(view: View, block: IPAMBlock) -> tuple[LoanRequest, ...]:
    return tuple(request for request in block.requests if request.node != view.node)


def _withdraw(view: View) -> Iterator[Act]:
    for cidr, block in view.loans.requested.items():
        if view.loans.strict or cidr not in view.loans.asking:
            yield Act(Step.WITHDRAW, cidr, block, lent=block.lent, requests=_others_requests(view, block))


def _give_back(view: View) -> Iterator[Act]:
    ended: dict[str, IPAMBlock] = {}
    for host, borrowed in view.loans.borrowed.items():
        if borrowed.loan.uid in view.closed:
            ended[borrowed.block.cidr] = borrowed.block
        elif not view.leases.get(host) and not _needed(view, host, borrowed):
            yield Act(Step.CLOSE, host, borrowed.block, loans=(borrowed.loan,))
    for cidr, block in ended.items():
        kept = tuple(loan for loan in block.lent if loan.node != view.node or loan.uid not in view.closed)
        yield Act(Step.RETURN, cidr, block, lent=kept, requests=block.requests)


def _needed(view: View, host: str, borrowed: Borrowed) -> bool:
    """Whether pods may soon want a borrowed address that none has."""
    pool = pool_of(view.pools, host)
    if not _is_usable(view, borrowed) or pool is None or pool.disabled:
        return False
    demands = [demand for demand in view.demands if pool.name in demand.pools]
    if host not in view.loans.rested or any(demand.waiting for demand in demands):
        return True
    names = {name for demand in demands for name in demand.pools}
    pools = [one for one in view.pools if one.name in names]
    own = sum(free(view, block) for block in usable(view) if pool_of(pools, block.cidr))
    return bool(demands) and not own and host not in view.idle
