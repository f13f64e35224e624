"""Nodes that claim blocks, lend addresses and give them to pods, in a simulation: agents crash, the API lies,
pools change.

An address store of theirs is a dictionary that survives; what an agent remembers does not.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from felix_py.ipam import lending
from felix_py.ipam.blocks import REST, Act, Demand, Plan, Step, View, usable
from felix_py.ipam.known import Idle, leases_by_block
from felix_py.ipam.lending import usable_loans
from felix_py.ipam.loans import Loans, by_block
from felix_py.ipam.pool import Pool, address_number, address_text
from felix_py.ipam.pools import NoPool, Subject, cidrs_of, eligible
from felix_py.ipam.resources import IPAMBlock, IPPool, Loan
from policy.model import Family
from tests.support.block_api import BlockApi, Refused, Seen, TimedOut


class AddressTwice(AssertionError):
    """Two pods have one address."""


@dataclass
class World:
    """The truth: pods by address, pools, time. ``stale``: changes that a list may lag behind. ``strict``:
    nothing is lent."""

    rng: random.Random
    api: BlockApi
    pools: tuple[IPPool, ...]
    stale: int = 0
    holders: dict[str, str] = field(default_factory=dict)
    now: float = 0.0
    strict: bool = True
    loans: int = 0
    """Loans that were made."""


class Node:
    """One node. Durable: ``leases`` (pod -> addresses), ``closed`` (uids), ``apart`` (what it has lent) and
    ``noted`` (of which versions of its blocks)."""

    def __init__(self, world: World, name: str, labels: dict[str, str]) -> None:
        self.world = world
        self.name = name
        self.labels = labels
        self.uid = f"{name}/0"
        self.leases: dict[str, dict[Family, int]] = {}
        self.closed: set[str] = set()
        self.apart: list[Loan] = []
        self.noted: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        """An agent starts: it remembers nothing, and its first lists may be old."""
        self.seen = Seen(self.world.api, self.name, self.world.stale)
        self.pools = self.world.pools
        self._shut: set[str] = set()
        self._idle = Idle()
        self.plan = Plan()
        self._tried: dict[Act, float] = {}
        self._demands: dict[tuple[str, ...], float] = {}
        self._begun: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {}
        self.queue: dict[str, tuple[str, ...]] = {}
        self._waiting: dict[tuple[str, ...], int] = {}

    def catch_up(self, most: int | None = None) -> None:
        """Be told of some changes, or of all, and of the pools as they are now."""
        self.seen.catch_up(most)
        if most is None or most > 1:
            self.pools = self.world.pools

    def recreate(self) -> None:
        """Its Node object is deleted, and made anew."""
        self.uid = f"{self.name}/{int(self.uid.rpartition('/')[2]) + 1}"

    # --- pods ----------------------------------------------------------------------------------------

    def begin(self, pod: str, asked: tuple[str, ...] = ()) -> None:
        """The first half of the ADD of a pod, and again of those that have found nothing: out of which CIDRs, as
        the agent knows it now."""
        self.queue[pod] = asked
        view = self.view()
        mine, borrowed = usable(view), usable_loans(view)
        for waiting, pools_asked in self.queue.items():
            try:
                found = eligible(self.pools, Subject(self.labels, {}, pools_asked))
            except NoPool:
                continue
            wanted = tuple(tuple(pool.name for pool in pools) for pools in found.values() if pools)
            self._demands |= dict.fromkeys(wanted, self.world.now)
            self._begun[waiting] = cidrs_of(found, mine, (), borrowed), wanted

    def finish(self) -> None:
        """The second half of all ADDs under way: addresses out of these, durably."""
        begun, self._begun = self._begun, {}
        for pod, (cidrs, wanted) in begun.items():
            if given := self._choose(cidrs):
                self._lease(pod, given)
            else:
                self._waiting |= dict.fromkeys(wanted, 1)

    def _choose(self, cidrs: tuple[str, ...]) -> dict[Family, int] | None:
        """One address of each family that the CIDRs have, as the address store does; None: one has none left."""
        given: dict[Family, int] = {}
        for cidr in cidrs:
            family = Pool.of(cidr).family
            if family not in given and (free := next(iter(self._free(cidr)), None)) is not None:
                given[family] = free
        return given if given.keys() == {Pool.of(cidr).family for cidr in cidrs} else None

    def _free(self, cidr: str) -> list[int]:
        block = Pool.of(cidr)
        used = {(family, number) for given in self.leases.values() for family, number in given.items()}
        used |= {address_number(loan.address) for loan in self.apart}
        numbers = range(block.first, block.last + 1) if cidr not in self._shut else ()
        return [number for number in numbers if (block.family, number) not in used]

    def _lease(self, pod: str, given: dict[Family, int]) -> None:
        for family, number in given.items():
            address = address_text(family, number)
            if address in self.world.holders:
                raise AddressTwice(f"{address}: {self.world.holders[address]} and {pod} of {self.name}")
            self.world.holders[address] = pod
        self.leases[pod] = given
        del self.queue[pod]

    def remove(self, pod: str) -> None:
        for family, number in self.leases.pop(pod).items():
            del self.world.holders[address_text(family, number)]

    # --- blocks --------------------------------------------------------------------------------------

    def view(self) -> View:
        known = self.seen.known
        numbers: dict[Family, set[int]] = {family: set() for family in Family}
        for given in self.leases.values():
            for family, number in given.items():
                numbers[family].add(number)
        for family, number in (address_number(loan.address) for loan in self.apart):
            numbers[family].add(number)
        mine = (*known.own, *known.loans.borrowed)
        leases = leases_by_block(numbers, mine, self.pools)
        self._idle.note(mine, leases, self.world.now)
        self._demands = {k: at for k, at in self._demands.items() if self.world.now - at < REST}
        return View(
            node=self.name,
            node_uid=self.uid,
            pools=self.pools,
            own=known.own,
            taken=known.taken,
            affinities=known.affinities,
            demands=tuple(Demand(pools, self._waiting.get(pools, 0)) for pools in self._demands),
            leases=leases,
            idle=self._idle.rested(self.world.now),
            closed=frozenset(self.closed),
            loans=self._loans(),
        )

    def _loans(self) -> Loans:
        known, now = self.seen.known.loans, self.world.now
        return Loans(
            strict=self.world.strict,
            others=known.others,
            requested=known.requested,
            borrowed=known.borrowed,
            set_aside=by_block(self.apart, self.seen.known.own),
            noted=self.noted,
            returned=frozenset(known.returned),
            asking=known.asking(now),
            asked=known.asked(now),
            rested=self._idle.rested(now, lending.REST),
        )

    def think(self) -> None:
        """Decide what to do; it is done later, when all may be different."""
        view = self.view()
        self._shut -= {*(block.cidr for block in usable(view)), *usable_loans(view)}
        self._adopt(self.seen.known.own.values())
        self.plan = lending.plan(self.view())
        self._waiting = {}

    def act(self) -> None:
        """Do what was decided last; each step may be the last one."""
        for act in self.plan.acts:
            if self._tried.get(act, -1.0) > self.world.now:
                continue
            self._tried[act] = self.world.now + 2
            if act.step is Step.CLOSE:
                self._close(act)
                continue
            if act.step is Step.RECLAIM:
                self.apart = [loan for loan in self.apart if loan not in act.loans]
                self.seen.known.loans.returned -= {loan.uid for loan in act.loans}
                continue
            if act.step is Step.ASK:
                self.seen.known.loans.ask(act.cidr, self.world.now)
            write = self._lend(act) if act.step is Step.LEND else act
            try:
                self.world.api.carry_out(write, self.name, self.uid)
            except (Refused, TimedOut):
                self._tried[act] = self.world.now + 5
        self.plan = Plan()

    def _close(self, act: Act) -> None:
        assert act.block is not None
        block = Pool.of(act.cidr)
        if not any(number in block for given in self.leases.values() for number in given.values()):
            self._shut.add(act.cidr)
            self.closed |= {loan.uid for loan in act.loans} or {act.block.uid}

    def _lend(self, act: Act) -> Act:
        """Set addresses aside, durably; returns the write that is to follow."""
        assert act.block is not None
        view = self.view()
        asking = lending.unanswered(act.block, view.loans.set_aside.get(act.cidr, ()))
        asking_each = [request for request in asking for _ in range(request.count)]
        free = self._free(act.cidr)[: lending.may_lend(view, act.block)]
        for number, to in zip(free, asking_each, strict=False):
            self.world.loans += 1
            address = address_text(Pool.of(act.cidr).family, number)
            self.apart.append(Loan(address, to.node, to.node_uid, f"loan-{self.world.loans}"))
            self.noted[self.apart[-1].uid] = act.block.resource_version
        return lending.lent(act, by_block(self.apart, self.seen.known.own).get(act.cidr, ()))

    def _adopt(self, own: Iterable[IPAMBlock]) -> None:
        """Take over what the API shows and this node does not know of."""
        known, used = {loan.uid for loan in self.apart}, addresses(self)
        for block in own:
            found = [loan for loan in block.lent if loan.uid not in known and loan.address not in used]
            self.apart += found
            self.noted |= dict.fromkeys((loan.uid for loan in found), block.resource_version)


def addresses(node: Node) -> set[str]:
    return {address_text(family, number) for given in node.leases.values() for family, number in given.items()}


def block_of(address: str, cidr: str) -> bool:
    family, number = address_number(address)
    block = Pool.of(cidr)
    return block.family is family and number in block
