"""Which addresses an ADD leases, and which MAC its interface has.

What the runtime asks for (runtimeConfig, then args.cni, then CNI_ARGS) counts before annotations of the pod, and
those before annotations of its namespace. Whatever is asked for is either given or an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from felix_py.cni.errors import CNIError, Code
from felix_py.cni.network import Network
from felix_py.cni.types import PodName, Request
from felix_py.ipam.asked import Asked, BadAnnotation
from felix_py.ipam.pools import NoPool
from felix_py.ipam.resources import Choice
from felix_py.ipam.store import AddressUnavailable, PoolExhausted
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Lease

NO_CIDR = (
    "this node has no podCIDRs yet (does the controller manager allocate node CIDRs?), and no block of an IPPool"
)

_MOST_TRIES = 3
"""Further blocks that one ADD tries."""


class Addresses:
    """Chooses addresses for pods that the agent knows, and leases them. On the event loop only."""

    def __init__(self, network: Network, notices: Notices) -> None:
        self._network = network
        self._notices = notices

    def asked(self, request: Request, pod: PodName) -> Asked:
        """What the pod's annotations ask for. CNIError if one cannot be understood, or cannot be met.

        Addresses and MAC are those of its first interface; pools are for all of them.
        """
        if not pod.name:
            return Asked()
        subject = f"{pod.namespace}/{pod.name}"
        try:
            found = self._network.asked(pod.namespace, pod.name)
        except BadAnnotation as error:
            text = f"pod {subject} cannot start: {error}"
            self._notices.say(NoticeKind.POD_ADDRESS, subject, text)
            raise CNIError(Code.INVALID_CONFIG, text) from None
        if request.config.delegate and (found.addresses or found.pools or found.keep):
            text = f"pod {subject} asks for pools or addresses by annotations, but the IPAM plugin "
            text += f"{request.config.delegate} gives the addresses"
            raise CNIError(Code.INVALID_CONFIG, text)
        self._notices.clear(NoticeKind.POD_ADDRESS, subject)
        return found if request.first else Asked(pools=found.pools)

    async def lease(
        self,
        request: Request,
        wanted: Sequence[str],
        asked: Asked,
        allocate: Callable[[Choice], Awaitable[Lease]],
    ) -> Lease:
        """Have addresses leased by ``allocate``; where none is left, wait for what this node can still get.

        ``wanted``: addresses that the runtime asks for.

        Raises:
            CNIError, AllocationError: nothing was leased.
        """
        pod, tries = request.pod(), 0
        while True:
            try:
                lease = await allocate(await self._choose(pod, wanted, asked))
            except NoPool as error:
                raise PoolExhausted(str(error)) from None
            except PoolExhausted as error:
                # What this node can still get may turn out to be in use by something else on it.
                tries += 1
                if tries > _MOST_TRIES:
                    raise
                if why := await self._network.gain_addresses(pod.namespace, _names(asked)):
                    raise PoolExhausted(f"{error}: {why}") from None
            else:
                if pod.name and request.first:
                    addresses = tuple(lease.addresses.values())
                    await self._network.keep(pod.namespace, pod.name, addresses if asked.keep else ())
                return lease

    async def _choose(self, pod: PodName, wanted: Sequence[str], asked: Asked) -> Choice:
        requested = tuple(wanted) or asked.addresses
        for address in requested:
            if (owner := self._network.keeper(address)) not in ("", f"{pod.namespace}/{pod.name}"):
                raise AddressUnavailable(f"{address} is kept for pod {owner}")
        if asked.keep and not requested and (kept := self._network.kept(pod.namespace, pod.name)):
            with suppress(
                AddressUnavailable
            ):  # its block is another node's by now: the name gets another address
                return await self._with(pod, asked, kept)
        return await self._with(pod, asked, requested)

    async def _with(self, pod: PodName, asked: Asked, requested: tuple[str, ...]) -> Choice:
        cidrs = await self._network.cidrs_for(pod.namespace, pod.name, _names(asked), requested)
        if not cidrs:
            raise PoolExhausted(NO_CIDR)
        return Choice(cidrs, requested)

    def look(self) -> None:
        """Withdraw notices of pods that are not on this node any more, or do not ask for what they did."""
        for subject in self._notices.of(NoticeKind.POD_ADDRESS):
            namespace, _, name = subject.partition("/")
            try:
                self._network.asked(namespace, name)
            except BadAnnotation:
                continue
            self._notices.clear(NoticeKind.POD_ADDRESS, subject)


def _names(asked: Asked) -> tuple[str, ...]:
    return tuple(name for names in asked.pools.values() for name in names)
