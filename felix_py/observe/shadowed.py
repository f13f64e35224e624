"""Notices of pods whose packets another program's route or rule leads elsewhere.

Our route to a pod stays in the main table then, so nothing of ours is missing: a route of IPv6 with a smaller
metric, or a rule (ip-rule(8)) that looks into another table before main, comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping

from felix_py import log
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Lease
from policy.model import Family

_INTERVAL = 30.0
_AGAIN = 2.0
"""Seconds until a second look: a pod that comes or goes has its lease a moment before or after its route."""


class Shadowed:
    """Looks twice a minute."""

    def __init__(
        self,
        leases: Callable[[], Iterable[Lease]],
        families: Collection[Family],
        ways: Callable[[Collection[str]], Mapping[str, str]],
        gone: Callable[[], Collection[str]],
        notices: Notices,
    ) -> None:
        """``leases``: those that are to be reached. ``ways``: address -> interface by which packets to it leave;
        it does I/O, and raises OSError. ``gone``: interfaces that have a notice of their own."""
        self._leases = leases
        self._families = families
        self._ways = ways
        self._gone = gone
        self._notices = notices
        self._log = log.get("routes")

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                if found := await self._look():
                    await asyncio.sleep(_AGAIN)
                    again = await self._look()
                    found = {address: text for address, text in found.items() if again.get(address) == text}
            except OSError as error:
                self._log.warning("cannot ask for the ways to this node's pods", reason=str(error))
            else:
                self._notices.replace(NoticeKind.ROUTE_SHADOWED, found)
            await asyncio.sleep(_INTERVAL)

    async def _look(self) -> dict[str, str]:
        """Address -> what is wrong."""
        leases = {
            address: lease
            for lease in self._leases()
            for family, address in lease.addresses.items()
            if family in self._families
        }
        found = await asyncio.to_thread(self._ways, tuple(leases))
        gone = self._gone()
        return {
            address: _told(address, lease, found[address])
            for address, lease in leases.items()
            if found[address] != lease.interface and lease.interface not in gone
        }


def _told(address: str, lease: Lease, way: str) -> str:
    where = f"leave by {way}" if way else "are dropped"
    return (
        f"packets to {address} of {lease.owner_text} {where} instead of going to {lease.interface}: another "
        f"program's route or rule comes before ours. `ip route get {address}`, `ip rule` and "
        "`ip route show table all` show which; felix-py leaves it alone"
    )
