"""Which addresses the annotation of this node's pods must have, and whether it has them.

The kubelet reports the addresses of a pod's first interface alone. So other nodes know those of further ones by
the annotation ``felixpy.io/pod-ips`` only, and such an interface is connected once it is written: a policy that
denies the pod must deny it with all of its addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from bgp.prefixes import PrefixSet
from felix_py.agent.held import HeldLeases
from felix_py.cni.network import NetworkError
from felix_py.datastore.announcement_writer import AnnouncementWriter
from felix_py.layout import FIRST_INTERFACE
from felix_py.records import Lease
from policy.model import ObjectKey, Pod


class PodIPs:
    """On the event loop only."""

    def __init__(
        self,
        writer: AnnouncementWriter,
        held: HeldLeases,
        pods_here: Callable[[], Iterable[Pod]],
        believed: Callable[[], Iterable[str]],
    ) -> None:
        """``pods_here``: the API server's pods of this node. ``believed``: CIDRs that others take for its."""
        self._writer = writer
        self._held = held
        self._pods_here = pods_here
        self._believed = believed

    async def connected(self, lease: Lease) -> None:
        """Tell of an interface that is connected; of one that is not the pod's first, return once it is written.

        Raises:
            NetworkError: it is not, or other nodes would not believe it.
        """
        if lease.ifname == FIRST_INTERFACE:
            self._tell(lease.owner)
            return
        inside = PrefixSet(self._believed())
        if outside := [a for family, a in lease.addresses.items() if not inside.covers(f"{a}/{family.bits}")]:
            text = (
                f"{outside[0]} is not of this node's podCIDRs or blocks, so other nodes' policy would not know it"
            )
            raise NetworkError(f"{text} as {lease.owner_text}'s")
        loop = asyncio.get_running_loop()
        written: asyncio.Future[str] = loop.create_future()

        def done(problem: str) -> None:
            with suppress(RuntimeError):  # the agent has ended meanwhile
                loop.call_soon_threadsafe(lambda: None if written.done() else written.set_result(problem))

        self._tell(lease.owner, done)
        if problem := await written:
            text = f"the address of {lease.ifname} cannot be made known to other nodes' policy: {problem}"
            raise NetworkError(text)

    def released(self, lease: Lease) -> None:
        """Tell of an interface that is gone, if its pod has others."""
        if lease.ifname != FIRST_INTERFACE or self._held.of(lease.owner):
            self._tell(lease.owner)

    def look(self) -> None:
        """Write again what got lost, or was left by an agent that was killed."""
        for pod in self._pods_here():
            has = {address for lease in self._held.of(pod.key) for address in lease.addresses.values()}
            further = self._further(pod.key)
            if not has.issuperset(pod.announced) or not further <= {*pod.announced, *pod.addresses}:
                self._tell(pod.key)

    def _further(self, key: ObjectKey) -> set[str]:
        leases = (lease for lease in self._held.of(key) if lease.ifname != FIRST_INTERFACE)
        return {address for lease in leases for address in lease.addresses.values()}

    def _tell(self, key: ObjectKey, done: Callable[[str], None] | None = None) -> None:
        leases = self._held.of(key)
        addresses = tuple(address for lease in leases for address in lease.addresses.values())
        uid = next((lease.uid for lease in leases if lease.uid), "")
        self._writer.announce(key, uid, addresses, done)
