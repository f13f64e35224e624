"""Which blocks a node claims, keeps and gives back: from what it sees of the API to its next steps. Pure.

A block is claimed in two steps, as Calico does: BlockAffinity ``pending`` (WANT), then the IPAMBlock, whose name
is made of its CIDR, so that one node alone creates it (TAKE), then ``confirmed`` (CONFIRM). It is given back by
CLOSE (on this node: nothing is given out of it any more, and that is on disk), ``pendingDeletion`` (MARK), the
deletion of the IPAMBlock (DELETE), and that of the affinity (FORGET).

Each step follows from the objects as they are seen, so a restart goes on wherever it was, a step that has
happened without an answer is seen, and one that is repeated does nothing, since each names the uid and the
resourceVersion that it was decided on. What is seen may be old:

- A block is used once it has been *seen* with its confirmed affinity. A watch tells in order, so by then every
  block that was created before has been seen, too: of two that overlap (pools may be made anew with another
  blockSize), the later one is seen to overlap by its own node, and given back.
- Only its own node deletes a block (or the controller, once the node is gone). The uids of those that were closed
  are kept on disk (``closed``), so that no old list brings one back.
- A lease without block, because somebody has deleted the object, is a reason to claim its block again.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum, auto

from msgspec import Struct, field

from bgp import prefixes
from felix_py.ipam.loans import NO_LOANS, Loans
from felix_py.ipam.pool import Pool, address_text
from felix_py.ipam.pools import pool_of, reserved_in
from felix_py.ipam.resources import (
    AffinityState,
    BlockAffinity,
    IPAMBlock,
    IPPool,
    IPReservation,
    Loan,
    LoanRequest,
)
from policy.model import Family

REST = 600.0
"""Seconds that a block must have been empty before it is given back."""

_MOST_SPARE = 16
_MOST_TRIED = 1 << 17
"""Blocks of one pool that are looked at for one claim."""


class Step(Enum):
    """What a node does about one block; the first lines of this module have their order, and those from ASK on
    are of :mod:`felix_py.ipam.lending`."""

    WANT = auto()
    TAKE = auto()
    CONFIRM = auto()
    ADOPT = auto()
    """Write the uid of the Node object that was created anew, into a block that has leases."""
    CLOSE = auto()
    MARK = auto()
    DELETE = auto()
    FORGET = auto()
    ASK = auto()
    LEND = auto()
    WITHDRAW = auto()
    RETURN = auto()
    RECLAIM = auto()


class Act(Struct, frozen=True):
    """One step. ``block`` and ``affinity``: the objects that it was decided on, as far as there are any.

    ``lent``, ``requests``: what ASK, LEND, WITHDRAW and RETURN write into the block. ``loans``: those that
    RECLAIM is about; of CLOSE, the borrowed address that is given back, and then ``cidr`` is its host prefix.
    """

    step: Step
    cidr: str
    block: IPAMBlock | None = None
    affinity: BlockAffinity | None = None
    lent: tuple[Loan, ...] = ()
    requests: tuple[LoanRequest, ...] = ()
    loans: tuple[Loan, ...] = ()


class Demand(Struct, frozen=True):
    """Names of the pools of one family that pods of this node use, in order; ``waiting``: pods that found no
    address in the blocks at hand."""

    pools: tuple[str, ...]
    waiting: int = 0


class Taken:
    """The CIDRs of all blocks; finds overlaps without looking at each."""

    def __init__(self, cidrs: Iterable[str] = ()) -> None:
        self._count: dict[tuple[int, int, int], int] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        for cidr in cidrs:
            self.add(cidr)

    def add(self, cidr: str) -> None:
        version, _, length, value = prefixes.parse(cidr)
        key = (version, length, value)
        self._count[key] = self._count.get(key, 0) + 1
        self._lengths[key[:2]] = self._lengths.get(key[:2], 0) + 1
        insort(self._starts[version], value)

    def remove(self, cidr: str) -> None:
        version, _, length, value = prefixes.parse(cidr)
        key = (version, length, value)
        self._count[key] -= 1
        self._lengths[key[:2]] -= 1
        if not self._count[key]:
            del self._count[key]
        if not self._lengths[key[:2]]:
            del self._lengths[key[:2]]
        starts = self._starts[version]
        del starts[bisect_left(starts, value)]

    def __contains__(self, cidr: str) -> bool:
        version, _, length, value = prefixes.parse(cidr)
        return (version, length, value) in self._count

    def overlapping(self, cidr: str, but: int = 0) -> bool:
        """Whether a block overlaps the CIDR; ``but``: blocks of this very CIDR that do not count."""
        version, bits, length, value = prefixes.parse(cidr)
        starts = self._starts[version]
        inside = bisect_right(starts, value + (1 << (bits - length)) - 1) - bisect_left(starts, value)
        if inside > but:
            return True
        return any(
            family == version
            and shorter < length
            and (version, shorter, value >> (bits - shorter) << (bits - shorter)) in self._count
            for family, shorter in self._lengths
        )


class View(Struct, frozen=True, kw_only=True):
    """What a node knows.

    ``node_uid``: empty while there is no Node object. ``pools``: those that can be used, also disabled ones.
    ``own``: its blocks by CIDR. ``taken``: all nodes' blocks. ``affinities``: its own, by CIDR. ``leases``: how
    many leases lie in a block, by the block's CIDR, or by the host prefix of a borrowed address; also in blocks
    that it does not have, and those set aside for others count. ``idle``: blocks and borrowed addresses that
    have been empty for a rest. ``closed``: uids of blocks and loans that it gives back, or has given back.
    ``astray``: affinities with the name of one of its own, and with another node, which nobody but this
    node would remove. ``elsewhere``: whether pods of other nodes have addresses in a CIDR. ``preferred``: CIDRs
    in which blocks are looked for first; ``avoided``: last.
    """

    node: str
    node_uid: str
    pools: tuple[IPPool, ...]
    own: Mapping[str, IPAMBlock]
    taken: Taken
    affinities: Mapping[str, BlockAffinity]
    demands: tuple[Demand, ...] = ()
    leases: Mapping[str, int] = field(default_factory=dict)
    reservations: tuple[IPReservation, ...] = ()
    idle: frozenset[str] = frozenset()
    astray: Mapping[str, BlockAffinity] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    elsewhere: Callable[[str], bool] = lambda _cidr: False
    pod_cidrs: tuple[str, ...] = ()
    wanted: frozenset[str] = frozenset()
    loans: Loans = NO_LOANS


class Plan(Struct, frozen=True):
    """Steps, those that pods may wait for first; and demands for which no block is left. ``hopeless``: those of
    them for which nothing can be borrowed now, either."""

    acts: tuple[Act, ...] = ()
    exhausted: tuple[Demand, ...] = ()
    hopeless: tuple[Demand, ...] = ()


def usable(view: View) -> tuple[IPAMBlock, ...]:
    """The node's blocks out of which addresses may be given now."""
    return tuple(block for block in view.own.values() if _is_usable(view, block))


def _is_usable(view: View, block: IPAMBlock) -> bool:
    affinity = view.affinities.get(block.cidr)
    return (
        affinity is not None
        and affinity.state is AffinityState.CONFIRMED
        and bool(block.node_uid)
        and block.node_uid == view.node_uid
        and block.uid not in view.closed
        and not view.taken.overlapping(block.cidr, but=1)
    )


def free(view: View, block: IPAMBlock) -> int:
    """Addresses of a block that no lease has, and that are neither reserved nor lent; never too many."""
    pool = Pool.of(block.cidr)
    apart = {loan.uid for loan in view.loans.set_aside.get(block.cidr, ())}  # which count as leases
    lent = sum(loan.uid not in apart for loan in block.lent)
    taken = view.leases.get(block.cidr, 0) + reserved_in(block.cidr, view.reservations) + lent
    return max(0, pool.last - pool.first + 1 - taken)


def plan(view: View) -> Plan:
    """The next steps, without those of loans. Without a Node object there are none."""
    if not view.node_uid:
        return Plan()
    known = {*view.own, *view.affinities, *view.leases, *view.wanted}
    settled = [act for cidr in sorted(known, key=prefixes.parse) if (act := _settle(view, cidr)) is not None]
    claims, exhausted = _claims(view)
    back = _give_back(view)
    astray = [Act(Step.FORGET, cidr, None, affinity) for cidr, affinity in view.astray.items()]
    return Plan((*astray, *claims, *settled, *back), exhausted)


# --- one block -------------------------------------------------------------------------------------------------


def _settle(view: View, cidr: str) -> Act | None:
    block, affinity = view.own.get(cidr), view.affinities.get(cidr)
    if block is None:
        return _without_block(view, cidr, affinity)
    if block.uid in view.closed:
        if affinity is not None and affinity.state is not AffinityState.PENDING_DELETION:
            return Act(Step.MARK, cidr, block, affinity)
        # It may have been closed by an old list, which did not show the loans.
        return None if block.lent else Act(Step.DELETE, cidr, block, affinity)
    if block.node_uid != view.node_uid:
        return Act(Step.ADOPT if _needed(view, block) else Step.CLOSE, cidr, block, affinity)
    if affinity is None:
        return Act(Step.WANT, cidr, block)
    if affinity.state is AffinityState.CONFIRMED:
        return None
    if not _needed(view, block):
        # What another block overlaps is never confirmed; of pendingDeletion somebody else has made it.
        unwanted = affinity.state is AffinityState.PENDING_DELETION or view.taken.overlapping(cidr, but=1)
        return Act(Step.CLOSE if unwanted else Step.CONFIRM, cidr, block, affinity)
    return Act(Step.CONFIRM, cidr, block, affinity)


def _needed(view: View, block: IPAMBlock) -> bool:
    return view.leases.get(block.cidr, 0) > 0 or bool(block.lent)


def _without_block(view: View, cidr: str, affinity: BlockAffinity | None) -> Act | None:
    """The node does not have the block: nobody has, or another node."""
    lost = view.leases.get(cidr, 0) > 0 or (cidr in view.wanted and not view.elsewhere(cidr))
    if view.taken.overlapping(cidr):
        return Act(Step.FORGET, cidr, None, affinity) if affinity is not None else None
    if affinity is None:
        return Act(Step.WANT, cidr) if lost else None
    if lost or (affinity.state is AffinityState.PENDING and _demanded(view, cidr)):
        return Act(Step.TAKE, cidr, None, affinity)
    return Act(Step.FORGET, cidr, None, affinity)


def _demanded(view: View, cidr: str) -> bool:
    pool = pool_of(view.pools, cidr)
    return pool is not None and not pool.disabled and any(pool.name in demand.pools for demand in view.demands)


# --- more blocks, and fewer ------------------------------------------------------------------------------------


def spare(pool: IPPool) -> int:
    """Free addresses below which a node claims a further block: a quarter of one, 16 at most."""
    bits = prefixes.parse(pool.cidr)[1]
    return min(_MOST_SPARE, max(1, (1 << (bits - pool.block_size)) // 4))


def _claims(view: View) -> tuple[list[Act], tuple[Demand, ...]]:
    acts: list[Act] = []
    exhausted: list[Demand] = []
    usable_now = usable(view)
    for demand in sorted(view.demands, key=lambda it: (-it.waiting, it.pools)):
        pools = [pool for name in demand.pools for pool in view.pools if pool.name == name and not pool.disabled]
        if not pools:
            continue
        left = sum(free(view, block) for block in usable_now if pool_of(pools, block.cidr))
        enough = left >= spare(pools[0]) and not demand.waiting
        if enough or any(pool_of(pools, cidr) for cidr in (*_coming(view), *(act.cidr for act in acts))):
            continue
        cidr = next((found for pool in pools if (found := free_block(view, pool))), None)
        if cidr is None:
            exhausted.append(demand)
        else:
            acts.append(Act(Step.WANT, cidr))
    return acts, tuple(exhausted)


def _coming(view: View) -> Iterator[str]:
    """Blocks of which this node will be able to use addresses soon."""
    for cidr, affinity in view.affinities.items():
        if affinity.state is AffinityState.PENDING and not view.taken.overlapping(cidr, but=cidr in view.own):
            yield cidr
    for cidr, block in view.own.items():
        adopted = block.node_uid != view.node_uid and _needed(view, block)
        if block.uid not in view.closed and (adopted or cidr not in view.affinities):
            yield cidr


def free_block(view: View, pool: IPPool) -> str | None:
    """A block of the pool that nobody has: nodes begin at different places, so that they seldom meet."""
    version, bits, length, value = prefixes.parse(pool.cidr)
    size = pool.block_size
    count = 1 << (size - length)
    begin, stride = _order(view, pool)
    for index in range(min(count, _MOST_TRIED)):
        number = value + ((begin + index * stride) % count << (bits - size))
        cidr = f"{address_text(Family(version), number)}/{size}"
        if cidr in view.affinities or view.taken.overlapping(cidr) or view.elsewhere(cidr):
            continue
        whole = Pool.of(cidr)
        if reserved_in(cidr, view.reservations) < whole.last - whole.first + 1:
            return cidr
    return None


def _order(view: View, pool: IPPool) -> tuple[int, int]:
    """The number of the block that is looked at first, and the stride to the next: odd, so that all are met."""
    _, bits, _, value = prefixes.parse(pool.cidr)
    for cidr in view.pod_cidrs:
        if pool_of([pool], cidr) is not None:
            return (prefixes.parse(cidr)[3] - value) >> (bits - pool.block_size), 1
    seed = hashlib.sha256(f"{view.node}/{pool.name}".encode()).digest()
    return int.from_bytes(seed[:8]), int.from_bytes(seed[8:16]) | 1


def _give_back(view: View) -> list[Act]:
    """At most one block that has been empty for a rest and that nobody misses."""
    mine = usable(view)
    for block in sorted(mine, key=lambda it: prefixes.parse(it.cidr), reverse=True):
        if block.cidr in view.idle and not _needed(view, block) and not _missed(view, block, mine):
            return [Act(Step.CLOSE, block.cidr, block, view.affinities[block.cidr])]
    return []


def _missed(view: View, block: IPAMBlock, mine: Iterable[IPAMBlock]) -> bool:
    if not _demanded(view, block.cidr):
        return False
    pool = pool_of(view.pools, block.cidr)
    assert pool is not None
    others = [one for one in mine if one is not block]
    if not any(pool_of([pool], one.cidr) for one in others):
        return True
    return any(
        sum(free(view, one) for one in others if pool_of(_named(view, demand), one.cidr)) < 2 * spare(pool)
        for demand in view.demands
        if pool.name in demand.pools
    )


def _named(view: View, demand: Demand) -> list[IPPool]:
    return [pool for pool in view.pools if pool.name in demand.pools]


def block_at(pool: IPPool, number: int) -> str:
    """The CIDR of the pool's block that has an address, given as a number."""
    version, bits, _, _ = prefixes.parse(pool.cidr)
    shift = bits - pool.block_size
    return f"{address_text(Family(version), number >> shift << shift)}/{pool.block_size}"
