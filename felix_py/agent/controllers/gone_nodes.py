"""Frees the blocks of nodes that are gone, and what they had borrowed, while this agent leads
(:mod:`felix_py.ipam.gone`)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from msgspec import Struct

from felix_py import log
from felix_py.agent.block_writer import BlockWriter
from felix_py.agent.elector import Elector, NotLeading, boot_time
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.followed import Followed
from felix_py.datastore.kinds import IPAM_BLOCKS, block_affinities
from felix_py.datastore.node_presence import stands
from felix_py.datastore.store import Store
from felix_py.ipam.blocks import Act, Step
from felix_py.ipam.gone import Gone, Orphan, Owner
from felix_py.ipam.resources import AffinityState

AFFINITIES = block_affinities()

LOOK = 60.0
"""Seconds between two looks at the API for pods of nodes that seem to be gone."""

_READ = 10.0


class _Look(Struct, frozen=True):
    """What a look has found. ``failed``: why it was cut short, or None."""

    standing: frozenset[Owner]
    failed: Exception | None = None


class GoneNodes:
    """The controller. On the event loop only; reads and writes are in another thread."""

    def __init__(
        self,
        api: Api,
        store: Store,
        elector: Elector,
        follow: Callable[[], Followed],
        *,
        look: float = LOOK,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        """``follow`` returns IPAMBlocks and BlockAffinities to be followed."""
        self._api = api
        self._store = store
        self._elector = elector
        self._follow = follow
        self._writer = BlockWriter(api, "")
        self._look = look
        self._clock = clock
        self._log = log.get("gone-nodes")

    async def run(self) -> None:
        """Look and free until cancelled. The grace begins anew with each leader."""
        gone, followed = Gone(), self._follow()
        followed.start()
        try:
            await followed.until_listed()
            while True:
                await self._round(gone, followed)
                await asyncio.sleep(self._look * random.uniform(0.9, 1.1))
        finally:
            await followed.stop()

    async def _round(self, gone: Gone, followed: Followed) -> None:
        owners = self._seen(gone, followed)
        if not owners:
            return
        look = await asyncio.to_thread(self._look_at, owners)
        for owner in look.standing:
            gone.seen(owner, self._clock())
        if look.failed is not None:
            self._log.warning("cannot look for the pods of nodes that are gone", reason=str(look.failed))
        # What has changed since the look began is in the tables by now, or the resourceVersions tell it.
        self._seen(gone, followed)
        for owner, orphans in gone.due(self._clock()).items():
            if owner in owners:
                await self._free(owner, orphans)
        for block, kept in gone.ended(self._clock()):
            act = Act(Step.RETURN, block.cidr, block, lent=kept, requests=block.requests)
            try:
                await asyncio.to_thread(self._write, act)
            except NotLeading:
                return
            except (ApiError, Unreachable) as error:
                # Of one that has changed meanwhile, the next look will find what is left.
                self._log.warning("cannot end loans to a node that is gone", block=block.cidr, reason=str(error))
            else:
                self._log.info("ended loans to nodes that are gone", block=block.cidr)

    def _seen(self, gone: Gone, followed: Followed) -> tuple[Owner, ...]:
        nodes = {node.name: node.uid for node in self._store.nodes.records.values()}
        blocks = followed.table(IPAM_BLOCKS).records.values()
        return gone.look(blocks, followed.table(AFFINITIES).records.values(), nodes, self._clock())

    def _look_at(self, owners: tuple[Owner, ...]) -> _Look:
        """In a thread. After a failure nobody counts as gone who was not looked at."""
        standing: set[Owner] = set()
        for index, (node, uid) in enumerate(owners):
            try:
                if stands(self._api, node, uid, _READ):
                    standing.add((node, uid))
            except (ApiError, Unreachable) as error:
                return _Look(frozenset({*standing, *owners[index:]}), error)
        return _Look(frozenset(standing))

    async def _free(self, owner: Owner, orphans: tuple[Orphan, ...]) -> None:
        for orphan in orphans:
            try:
                freed = await asyncio.to_thread(self._free_one, orphan)
            except NotLeading:
                return
            except (ApiError, Unreachable) as error:
                self._log.warning("cannot free a block", block=orphan.cidr, node=owner[0], reason=str(error))
                return
            if freed:
                self._log.info("freed a block of a node that is gone", block=orphan.cidr, node=owner[0])

    def _free_one(self, orphan: Orphan) -> bool:
        """In a thread: the next step of a node that gives a block back. True: that was the last one. False: the
        rest comes with the next look, from what is there by then."""
        try:
            if orphan.block is not None:
                if orphan.affinity is not None and orphan.affinity.state is not AffinityState.PENDING_DELETION:
                    self._step(Step.MARK, orphan)
                    return False
                self._step(Step.DELETE, orphan)
            if orphan.affinity is not None:
                self._step(Step.FORGET, orphan)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return False
        return True

    def _step(self, step: Step, orphan: Orphan) -> None:
        self._write(Act(step, orphan.cidr, orphan.block, orphan.affinity))

    def _write(self, act: Act) -> None:
        with self._elector.writing():
            self._writer.carry_out(act, "")
