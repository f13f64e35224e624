"""The endpoints whose connections must be judged anew, collected for the revoker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable

from msgspec import Struct, field

from felix_py.desired.names import Fixed, SetNames, parse_name
from felix_py.records import Drift
from felix_py.refs import MemberRef, chain_or_set, policy_rests_on
from policy.ir import ChainId, SetId, Tightened
from policy.model import Family

_MASQUERADING = {
    *("POSTROUTING", Fixed.POSTROUTING),
    *(name for names in map(SetNames.of, Family) for name in (names.pool, names.no_masquerade)),
}


class Concerned(Struct):
    """Connections that a change of policy concerns: those of ``addresses``, and of endpoints on ``chains`` (and
    sets); ``everybody``: of all endpoints.

    An address may be a remote pod's: a change of its membership in a set concerns only its connections with
    endpoints of this node.
    """

    addresses: set[str] = field(default_factory=set)
    chains: set[ChainId | SetId] = field(default_factory=set)
    everybody: bool = False

    def __bool__(self) -> bool:
        return bool(self.addresses or self.chains or self.everybody)

    def add(self, other: Concerned) -> None:
        """Add what another one concerns."""
        self.addresses |= other.addresses
        self.chains |= other.chains
        self.everybody |= other.everybody

    def note(self, tightened: Tightened, known: Collection[str] | None) -> None:
        """Add connections that a change of compiled policy may deny.

        ``known``: the endpoint addresses that can have connections, as a new pod's cannot (None: any can).
        """
        self.chains |= tightened.chains
        self.addresses |= tightened.members
        self.addresses.update(a for a in tightened.addresses if known is None or a in known)

    def note_drift(self, drift: Iterable[Drift], standing: Collection[ChainId | SetId]) -> None:
        """Add connections that may have begun while rules or sets had drifted, in whichever way.

        ``standing``: the chains and sets that endpoints' policies depend on; all others are on every packet's
        path. Routes, links, sysctls and masquerading do not affect policy.
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
    """The input of the revoker's next pass. On the event loop only."""

    def __init__(self) -> None:
        self._concerned = Concerned()
        self._noted = asyncio.Event()
        self.changed = 0.0
        """Time of the last addition, in seconds of the monotonic clock."""

    def __bool__(self) -> bool:
        return bool(self._concerned)

    def add(self, concerned: Concerned) -> None:
        """Add connections that policy may deny."""
        self._concerned.add(concerned)
        self.changed = time.monotonic()
        self._noted.set()

    def suspect(self, addresses: Collection[str]) -> None:
        """Add addresses that may have connections of their previous holders."""
        self.add(Concerned(addresses=set(addresses)))

    async def noted(self) -> None:
        """Return once there is something."""
        await self._noted.wait()

    def take(self) -> Concerned:
        """Returns the input, and begins anew."""
        self._noted.clear()
        concerned, self._concerned = self._concerned, Concerned()
        return concerned
