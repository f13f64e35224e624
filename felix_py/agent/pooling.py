"""Tells facts and address store of the pools, reservations and blocks that the claims know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Protocol

from felix_py.agent.facts import Facts
from felix_py.agent.pooled import NO_POOLS, Pooled
from felix_py.ipam.reserved import Reserved
from felix_py.ipam.resources import IPAMBlock, IPPool, IPReservation
from felix_py.notices import NoticeKind, Notices

_LOOK = 1.0
"""Seconds between two looks whether the API server refuses us the pools, while they are waited for."""

_UNLISTED = "IPPools"


class Known(Protocol):
    """See :class:`felix_py.agent.claims.Claims`."""

    @property
    def known(self) -> bool: ...

    @property
    def pools(self) -> Sequence[IPPool]: ...

    @property
    def reservations(self) -> Sequence[IPReservation]: ...

    @property
    def all_blocks(self) -> Collection[IPAMBlock]: ...

    def unseen(self) -> tuple[str, ...]: ...


class Pooling:
    """On the event loop only."""

    def __init__(
        self,
        node_name: str,
        claims: Known,
        facts: Facts,
        reserved: Reserved,
        refused: Callable[[], bool],
        notices: Notices,
    ) -> None:
        """``refused``: whether the API server does not let us see pools or blocks."""
        self._node_name = node_name
        self._claims = claims
        self._facts = facts
        self._reserved = reserved
        self._refused = refused
        self._notices = notices
        self._last: object = None
        self._settled = asyncio.Event()

    def take_over(self) -> None:
        """Pools, reservations or blocks may have changed."""
        if not self._claims.known:
            return
        pools, blocks = tuple(self._claims.pools), tuple(self._claims.all_blocks)
        reservations = tuple(self._claims.reservations)
        if (pools, blocks, reservations) == self._last:
            return
        self._last = pools, blocks, reservations
        self._reserved.set(reservations)
        self._facts.set_pooled(Pooled.of(self._node_name, pools, blocks))
        self._settled.set()
        self._notices.clear(NoticeKind.IP_POOLS, _UNLISTED)

    async def settled(self) -> None:
        """Return once it is known which pools there are.

        An agent that may not list them works as if there were none, and says so: else no pod would start on a
        node whose ClusterRole is older than its agent. Where it knows of some from before, none does: no pod gets
        an address outside of the pools (:class:`felix_py.agent.addressing.Addressing`).
        """
        while not self._facts.pools_known:
            if self._refused():
                unseen = self._claims.unseen()
                what = "pods get addresses of podCIDRs"
                if unseen:
                    what = f"no pod starts: there are {', '.join(unseen)}"
                text = (
                    f"IPPools, or their blocks, cannot be listed, so {what}. See the log, and whether the "
                    "ClusterRole felix-py is of this version"
                )
                self._notices.say(NoticeKind.IP_POOLS, _UNLISTED, text)
                self._facts.set_pooled(NO_POOLS)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._settled.wait()
