"""This node's blocks of IPPools: claimed before pods need them, given back when they are empty for long; and
single addresses that nodes lend each other.

What is to be done is decided by :mod:`felix_py.ipam.blocks` and :mod:`felix_py.ipam.lending`; here it is done.
Without any IPPool, and without a block of an earlier life, nothing is watched but the pools, and nothing written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bgp.resources import Problem
from felix_py import log
from felix_py.agent.block_notes import BlockNotes
from felix_py.agent.block_steps import Steps
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.agent.demands import Demands, Pools, names_of
from felix_py.agent.loan_book import LoanBook
from felix_py.agent.pool_notices import PoolNotices, used_up
from felix_py.agent.pooled import Pooled
from felix_py.backoff import Backoff
from felix_py.datastore.block_objects import BlockObjects
from felix_py.datastore.client import ApiError, Unreachable
from felix_py.datastore.store import Record, Store
from felix_py.ipam import blocks, lending
from felix_py.ipam.blocks import Act, Step, View
from felix_py.ipam.known import Idle, Known, leases_by_block
from felix_py.ipam.loans import Loans, by_block
from felix_py.ipam.pool import Pool, address_text
from felix_py.ipam.pools import NOT_KNOWN, NoPool, Subject, cidrs_of, eligible, pool_of
from felix_py.ipam.resources import BlockAffinity, IPAMBlock, IPPool, IPReservation, Loan
from felix_py.ipam.store import AddressStore
from felix_py.notices import Notices
from felix_py.records import NodeRecord
from policy.change import Change
from policy.model import Family, Pod

T = TypeVar("T")

_LOOK = 30.0
_LOOK_WHILE_WAITED_FOR = 1.0
"""Seconds between two reviews at most; addresses that pods give back, and refusals, are no events here."""

_LOOKS = (0.1, 1.0)
"""Seconds between two looks at blocks that are not known yet."""

_PACE = 0.05


class Leases(Protocol):
    """The address store, as :class:`felix_py.cni.workers.Leases` has it."""

    def numbers(self, family: Family) -> list[int]: ...

    async def use(self, action: Callable[[AddressStore], T]) -> T: ...


class Writer(Protocol):
    """Does one step on the API server; blocking."""

    def carry_out(self, act: Act, node_uid: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Around:
    """What else the node knows: its podCIDRs, its families, and which pod has an address."""

    pod_cidrs: Callable[[], tuple[str, ...]]
    families: Collection[Family]
    pod_at: Callable[[str], Pod | None]


class Claims:
    """On the event loop only."""

    def __init__(
        self,
        node_name: str,
        notes: BlockNotes,
        store: Store,
        declared: DeclaredPools,
        objects: BlockObjects,
        leases: Leases,
        writer: Writer,
        book: LoanBook,
        around: Around,
        notices: Notices,
        warn: Callable[[Problem, str], None],
        *,
        timeout: float = 30.0,
        strict: bool = True,
    ) -> None:
        """``timeout``: seconds that :meth:`wait_for_address` waits at most. ``warn`` writes an Event on the
        object of a uid. ``strict``: no addresses are lent or borrowed."""
        self._node_name = node_name
        self._store = store
        self._objects = objects
        self._leases = leases
        self._writer = writer
        self._book = book
        self._around = around
        self._declared = declared
        self._told = PoolNotices(declared, notices, warn)
        self.timeout = timeout
        self.strict = strict
        self._log = log.get("blocks")
        self._notes = notes
        if self._notes.lost:
            self._log.warning("what blocks this node had is lost", reason=self._notes.lost)
        self._known = Known(node_name)
        self._idle = Idle()
        self._demands = Demands()
        self._exhausted: frozenset[Pools] = frozenset()
        self._due = asyncio.Event()
        self._steps = Steps(self._carry_out, self._due.set, self._told, book.path)
        self._reviewed = asyncio.Event()
        self.known = False
        """Whether pools, and blocks where there are any, have been read."""
        self._followed: frozenset[Family] = frozenset()
        """Families of which pods get addresses of pools, as :attr:`on_change` was told last."""
        self.blocks: tuple[IPAMBlock, ...] = ()
        """This node's, out of which addresses may be given now."""
        self.borrowed: Mapping[str, str] = {}
        """Host prefixes of borrowed addresses that may be given now -> the loans' uids."""
        self._shut: frozenset[str] = frozenset()
        self.on_change: Callable[[], None] = lambda: None
        """Called after :attr:`known`, :attr:`pools`, :attr:`blocks` or :attr:`all_blocks` may have changed."""
        objects.subscribe(self._fold)
        store.subscribe(self._fold_node)
        declared.on_change(self._due.set)
        for table in (objects.blocks, objects.affinities):
            table.on_change(self._due.set)

    @property
    def pools(self) -> tuple[IPPool, ...]:
        """The pools that can be used, also disabled ones, of this node's families, by name."""
        return tuple(pool for pool in self._declared.pools if pool.family in self._around.families)

    @property
    def reservations(self) -> tuple[IPReservation, ...]:
        """Those that can be used."""
        return self._declared.reservations

    @property
    def all_blocks(self) -> Collection[IPAMBlock]:
        """The blocks of all nodes."""
        return self._objects.blocks.records.values()

    def set_strict(self, strict: bool) -> None:
        """Change whether addresses are lent or borrowed. Pods keep what they have."""
        self.strict = strict
        self._due.set()

    # --- what pods get -------------------------------------------------------------------------------

    async def caught_up(self) -> bool:
        """Return once the blocks of the first pools of a family are known; false: they are not within
        :attr:`timeout`. Of those that may not be seen nothing is ever known, so nobody waits for them for long.
        """
        looks = Backoff(*_LOOKS)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                while not self._has_caught_up():
                    with suppress(TimeoutError):
                        # Nobody tells when a refusal has stood for long enough to count.
                        async with asyncio.timeout(looks.delay()):
                            await self._reviewed.wait()
        return self._has_caught_up()

    def _has_caught_up(self) -> bool:
        return self._families() <= self._followed or self._objects.refused()

    def unseen(self) -> tuple[str, ...]:
        """Pools whose addresses nobody can give here, by name: the API server does not let us see all of them."""
        if self._declared.listed and not self._objects.refused():
            return ()
        return self._declared.last_seen(set(self._around.families) - self._followed)

    def _families(self) -> frozenset[Family]:
        return Pooled(pools=self.pools).families

    def cidrs_for(self, namespace: str, asked: Sequence[str] = ()) -> tuple[str, ...]:
        """The CIDRs that a pod gets its addresses of, in order; of families without pools, the podCIDRs.

        Raises:
            NoPool: one that is asked for cannot be used, or it is not known yet which there are.
        """
        if not self.known:
            raise NoPool(NOT_KNOWN)
        found = self.eligible(namespace, asked)
        self._demands.note((names_of(pools) for pools in found.values() if pools), time.monotonic())
        return cidrs_of(found, self.blocks, self._around.pod_cidrs(), self.borrowed)

    async def wait_for_address(self, namespace: str, asked: Sequence[str] = ()) -> str:
        """Have a further block claimed for a pod that found no address, or an address borrowed.

        Returns empty once there may be one; else why there is none.

        Raises:
            NoPool: as :meth:`cidrs_for`.
        """
        before = self.cidrs_for(namespace, asked)
        wanted = [names_of(pools) for pools in self.eligible(namespace, asked).values() if pools]
        # Free addresses that are counted and yet not given out are in use elsewhere: they are none.
        full = [pools for pools in wanted if not self._left(pools)]
        short = full or wanted
        try:
            async with asyncio.timeout(self.timeout):
                with self._demands.waiting(short) as found_nothing:
                    while self.cidrs_for(namespace, asked) == before:
                        found_nothing(self._uids())
                        reviewed = self._reviewed
                        self._due.set()
                        await reviewed.wait()
                        if full and all(map(self._left, full)):
                            break
                        if self._exhausted.issuperset(short):
                            return self._why_none(short)
        except TimeoutError:
            return f"this node has got no further one within {self.timeout:g} seconds"
        return ""

    def _why_none(self, short: Sequence[Pools]) -> str:
        names = dict.fromkeys(name for pools in short for name in pools)
        pools = [pool for pool in self.pools if pool.name in names]
        asked = self._known.loans.in_vain(time.monotonic())
        return used_up(names, None if self.strict else [one for one in asked if pool_of(pools, one.block.cidr)])

    async def claim_with(self, address: str) -> bool:
        """Claim the block of a pool that an address is in; whether this node has it now."""
        family = Family.V6 if ":" in address else Family.V4
        host = f"{address}/{int(family.bits)}"
        pool = next((one for one in self.pools if pool_of([one], host)), None)
        if pool is None or pool.disabled:
            return False
        cidr = blocks.block_at(pool, Pool.of(host).first)
        try:
            async with asyncio.timeout(self.timeout):
                with self._demands.waiting((), cidr):
                    while not (mine := any(block.cidr == cidr for block in self.blocks)):
                        if cidr in self._known.taken and cidr not in self._known.own:
                            break
                        reviewed = self._reviewed
                        self._due.set()
                        await reviewed.wait()
        except TimeoutError:
            return False
        return mine

    def eligible(self, namespace: str, asked: Sequence[str] = ()) -> Mapping[Family, tuple[IPPool, ...]]:
        """The pools that pods of a namespace may use here; see :func:`felix_py.ipam.pools.eligible`."""
        record = self._store.namespaces.records.get(("", namespace))
        labels = dict(record.labels) if record else {}
        return eligible(self.pools, Subject(self._node_labels(), labels, tuple(asked)))

    def _node_labels(self) -> dict[str, str]:
        node = self._store.nodes.records.get(("", self._node_name))
        return dict(node.labels) if node else {}

    def _left(self, names: Pools) -> int:
        view = self._view()
        pools = [pool for pool in view.pools if pool.name in names]
        own = sum(blocks.free(view, block) for block in self.blocks if pool_of(pools, block.cidr))
        return own + sum(not view.leases.get(host) for host in self.borrowed if pool_of(pools, host))

    def _uids(self) -> frozenset[str]:
        return frozenset((*(block.uid for block in self.blocks), *self.borrowed.values()))

    # --- what there is -------------------------------------------------------------------------------

    def _fold(self, changes: Sequence[Change[Any]]) -> None:
        for change in changes:
            before, after = change.before, change.after
            if isinstance(before or after, IPAMBlock):
                self._known.fold_block(before, after)
            elif isinstance(before or after, BlockAffinity):
                self._known.fold_affinity(before, after)

    def _fold_node(self, changes: Sequence[Change[Record]]) -> None:
        for change in changes:
            node = change.of(NodeRecord)
            if node is not None and self._node_name in {one.name for one in (node.before, node.after) if one}:
                self._due.set()

    def _view(self) -> View:
        pools = self.pools
        mine = (*self._known.own, *self._known.loans.borrowed)
        numbers = {
            family: {*self._leases.numbers(family), *self._book.numbers(family)}
            for family in self._around.families
        }
        leases = leases_by_block(numbers, mine, pools)
        now = time.monotonic()
        self._idle.note(mine, leases, now)
        node = self._store.nodes.records.get(("", self._node_name))
        return View(
            node=self._node_name,
            node_uid=node.uid if node else "",
            pools=pools,
            own=self._known.own,
            taken=self._known.taken,
            affinities=self._known.affinities,
            demands=self._demands.all(pools, self._node_labels(), self._uids(), now),
            leases=leases,
            reservations=self._declared.reservations,
            idle=self._idle.rested(now),
            astray=self._known.astray,
            closed=frozenset(self._notes.closed),
            elsewhere=self._has_pods_elsewhere,
            pod_cidrs=self._around.pod_cidrs(),
            wanted=self._demands.wanted,
            loans=self._loans(now),
        )

    def _loans(self, now: float) -> Loans:
        known = self._known.loans
        return Loans(
            strict=self.strict,
            others=known.others,
            requested=known.requested,
            borrowed=known.borrowed,
            set_aside=by_block(self._book.loans, self._known.own),
            noted=self._book.noted,
            returned=frozenset(known.returned),
            asking=known.asking(now),
            asked=known.asked(now),
            rested=self._idle.rested(now, lending.REST),
            present=self._is_present,
            users=lambda cidr: sum(1 for _ in self._pods_in(cidr)),
            in_use=self._is_in_use,
        )

    def _is_present(self, name: str, uid: str) -> bool:
        node = self._store.nodes.records.get(("", name))
        return node is not None and node.uid == uid

    def _is_in_use(self, loan: Loan) -> bool:
        pod = self._around.pod_at(loan.address)
        return pod is not None and pod.node == loan.node and self._is_present(loan.node, loan.node_uid)

    def _has_pods_elsewhere(self, cidr: str) -> bool:
        return any(pod.node != self._node_name for pod in self._pods_in(cidr))

    def _pods_in(self, cidr: str) -> Iterator[Pod]:
        block = Pool.of(cidr)
        for number in range(block.first, block.last + 1):
            if (pod := self._around.pod_at(address_text(block.family, number))) is not None:
                yield pod

    # --- doing ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim and give back until cancelled. Nodes and namespaces must be known."""
        while True:
            self._due.clear()
            try:
                await self._review()
            except Exception:
                # A defect here must not end the agent, which goes on with the blocks that it has.
                self._log.exception("cannot look after the blocks")
            reviewed, self._reviewed = self._reviewed, asyncio.Event()
            reviewed.set()
            await asyncio.sleep(_PACE)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._next_look()):
                    await self._due.wait()

    def _next_look(self) -> float:
        if self._demands.urgent or not self._objects.listed():
            return _LOOK_WHILE_WAITED_FOR
        return min(_LOOK, self._steps.next_in())

    async def _review(self) -> None:
        if not self._declared.listed:
            return
        self._told.declared()
        if self._declared.any or self._notes.any:
            self._objects.want()
        if self._objects.wanted and not self._objects.listed():
            # At the start it is told by who waits for the pools (felix_py.agent.pooling).
            self._told.unseen(self.known and self._objects.refused())
            return
        self._told.unseen(False)
        view = self._view()
        await self._take_over(blocks.usable(view), lending.usable_loans(view))
        view = self._view()
        found = lending.plan(view)
        self._exhausted = frozenset(demand.pools for demand in found.hopeless)
        self._told.exhausted(found.exhausted, None if self.strict else found.hopeless)
        self._steps.begin(found.acts, view.node_uid)

    async def _take_over(self, usable: tuple[IPAMBlock, ...], borrowed: tuple[str, ...]) -> None:
        """Use these blocks and addresses. Those that this node has are noted on disk before, for the next
        start."""
        if (problem := await self._notes.have(sorted(self._known.own))) is not None:
            self._told.unwritten(str(self._notes.file.path), problem)
        await self._declared.keep()
        await self._book.adopt(self._known.own.values())
        loans = {host: self._known.loans.borrowed[host].loan.uid for host in borrowed}
        before = self._uids()
        given = {**{block.cidr: block.uid for block in usable}, **loans}
        if reopened := [cidr for cidr, uid in given.items() if uid not in before]:
            await self._leases.use(lambda store: store.reopen(*reopened))
        await self._shut_closed()
        self.blocks, self.borrowed, self.known = usable, loans, True
        self.on_change()
        self._followed = self._families()

    async def _shut_closed(self) -> None:
        """What an earlier life has closed, and is still to be seen, is not given out, asked for or not."""
        of = {block.uid: cidr for cidr, block in self._known.own.items()}
        of |= {one.loan.uid: host for host, one in self._known.loans.borrowed.items()}
        closed = frozenset(uid for uid in self._notes.closed if uid in of)
        if cidrs := [of[uid] for uid in closed - self._shut]:
            await self._leases.use(lambda store: store.shut(*cidrs))
        self._shut = closed

    async def _carry_out(self, act: Act, node_uid: str) -> None:
        match act.step:
            case Step.CLOSE:
                await self._close(act)
            case Step.RECLAIM:
                await self._reclaim(act)
            case Step.LEND:
                await self._lend(act, node_uid)
            case Step.ASK:
                await self._ask(act, node_uid)
            case _:
                await asyncio.to_thread(self._writer.carry_out, act, node_uid)

    async def _ask(self, act: Act, node_uid: str) -> None:
        self._known.loans.ask(act.cidr, time.monotonic())
        try:
            await asyncio.to_thread(self._writer.carry_out, act, node_uid)
        except (ApiError, Unreachable):
            # If it has happened, it will be seen, and counts from then on.
            self._known.loans.forget(act.cidr)
            raise

    async def _close(self, act: Act) -> None:
        """Give nothing out of a block any more, and note that on disk before anybody else can know."""
        assert act.block is not None
        if by_block(self._book.loans, [act.cidr]).get(act.cidr):
            return
        if not await self._leases.use(lambda store: store.close_empty(act.cidr)):
            return
        self.blocks = tuple(block for block in self.blocks if block.cidr != act.cidr)
        self.borrowed = {host: uid for host, uid in self.borrowed.items() if host != act.cidr}
        problem = await self._notes.close([loan.uid for loan in act.loans] or [act.block.uid])
        self._told.unwritten(str(self._notes.file.path), problem)
        if problem:
            await self._leases.use(lambda store: store.reopen(act.cidr))
        else:
            what = "a borrowed address" if act.loans else "a block"
            self._log.info(f"giving back {what}", cidr=act.cidr)

    async def _lend(self, act: Act, node_uid: str) -> None:
        """Set addresses aside, on disk, before the borrowers can know of them."""
        assert act.block is not None
        view = self._view()
        asking = lending.unanswered(act.block, view.loans.set_aside.get(act.cidr, ()))
        await self._book.set_aside(act.block, asking, lending.may_lend(view, act.block))
        apart = by_block(self._book.loans, self._known.own).get(act.cidr, ())
        await asyncio.to_thread(self._writer.carry_out, lending.lent(act, apart), node_uid)

    async def _reclaim(self, act: Act) -> None:
        await self._book.forget(act.loans)
        self._known.loans.returned -= {loan.uid for loan in act.loans}
        self._log.info("lent addresses have come back", addresses=[loan.address for loan in act.loans])
