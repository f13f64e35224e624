"""Whose connections are to be judged anew: noted by those who know of a reason, until the revoker takes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from felix_py.desired.names import Fixed, parse_name
from felix_py.desired.static import SetNames
from felix_py.records import Drift
from felix_py.refs import MemberRef, chain_or_set, policy_rests_on
from policy.ir import ChainId, SetId, Tightened
from policy.model import Family

_MASQUERADING = {
    *("POSTROUTING", Fixed.POSTROUTING),
    *(name for names in map(SetNames.of, Family) for name in (names.pool, names.no_masquerade)),
}


@dataclass(slots=True)
class Concerned:
    """What a change of policy concerns: connections of ``addresses``, and those of endpoints on ``chains``
    (and sets).

    Addresses are mostly endpoints', but that of a pod elsewhere will do: whose
    membership in a set changes, its connections with endpoints of this node are concerned, and no others.
    ``everybody``: all endpoints.
    """

    addresses: set[str] = field(default_factory=set)
    chains: set[ChainId | SetId] = field(default_factory=set)
    everybody: bool = False

    def __bool__(self) -> bool:
        return bool(self.addresses or self.chains or self.everybody)

    def add(self, other: Concerned) -> None:
        """Both."""
        self.addresses |= other.addresses
        self.chains |= other.chains
        self.everybody |= other.everybody

    def note(self, tightened: Tightened, known: Collection[str] | None) -> None:
        """Add what a change of compiled policy may turn from allowed into denied.

        ``known``: the endpoints' addresses that can have connections (None: any can); a pod that has just come
        has none.
        """
        self.chains |= tightened.chains
        self.addresses |= tightened.members
        self.addresses.update(a for a in tightened.addresses if known is None or a in known)

    def note_drift(self, drift: Iterable[Drift], standing: Collection[ChainId | SetId]) -> None:
        """Add what may have begun while rules or sets were not as they should be, whichever way they differed.

        ``standing``: the chains and sets that endpoints' policies stand on. All others are on everybody's way.
        Routes, links and settings decide nothing about policy; nor does masquerading.
        """
        for found in drift:
            name = chain_or_set(found.ref)
            if not policy_rests_on(found.ref) or name in _MASQUERADING:
                continue
            compiled = parse_name(name)
            if isinstance(found.ref, MemberRef) and "/" not in found.ref.text:
                self.addresses.add(found.ref.address)
            elif compiled is not None and compiled in standing:
                self.chains.add(compiled)
            else:
                self.everybody = True


class Due:
    """What the revoker is to look at next. On the event loop only."""

    def __init__(self) -> None:
        self._concerned = Concerned()
        self._noted = asyncio.Event()
        self.changed = 0.0
        """When something was noted last, in seconds of the monotonic clock."""

    def __bool__(self) -> bool:
        return bool(self._concerned)

    def add(self, concerned: Concerned) -> None:
        """These may have connections that policy denies."""
        self._concerned.add(concerned)
        self.changed = time.monotonic()
        self._noted.set()

    def suspect(self, addresses: Collection[str]) -> None:
        """Some addresses may have connections that are not theirs."""
        self.add(Concerned(addresses=set(addresses)))

    async def noted(self) -> None:
        """Return once there is something."""
        await self._noted.wait()

    def take(self) -> Concerned:
        """All of it, which is not due any more."""
        self._noted.clear()
        concerned, self._concerned = self._concerned, Concerned()
        return concerned
