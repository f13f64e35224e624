"""Which addresses an ADD leases, and which MAC its interface has.

What the runtime asks for (runtimeConfig, then args.cni, then CNI_ARGS) counts before annotations of the pod, and
those before annotations of its namespace. Whatever is asked for is either given or an error.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Sequence

from felix_py.cni.errors import CNIError, Code
from felix_py.cni.network import Network
from felix_py.cni.types import PodName, Request
from felix_py.ipam.asked import Asked, BadAnnotation
from felix_py.ipam.pools import NoPool
from felix_py.ipam.resources import Choice
from felix_py.ipam.store import PoolExhausted
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Lease

NO_CIDR = "this node has no podCIDRs yet (does the controller manager allocate node CIDRs?)"


class Addresses:
    """Chooses addresses for pods that the agent knows, and leases them. On the event loop only."""

    def __init__(self, network: Network, notices: Notices) -> None:
        self._network = network
        self._notices = notices

    def asked(self, request: Request, pod: PodName) -> Asked:
        """What the pod's annotations ask for. CNIError if one cannot be understood, or cannot be met."""
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
        return found

    async def lease(
        self, pod: PodName, wanted: Sequence[str], asked: Asked, allocate: Callable[[Choice], Awaitable[Lease]]
    ) -> Lease:
        """Have addresses leased by ``allocate``; where none is left, wait for what this node can still get.

        ``wanted``: addresses that the runtime asks for.

        Raises:
            CNIError, AllocationError: nothing was leased.
        """
        try:
            while True:
                choice = await self._choose(pod, wanted, asked)
                try:
                    return await allocate(choice)
                except PoolExhausted:
                    if not await self._network.gain_addresses(pod.namespace, pod.name, _names(asked)):
                        raise
        except NoPool as error:
            raise PoolExhausted(str(error)) from None

    async def _choose(self, pod: PodName, wanted: Sequence[str], asked: Asked) -> Choice:
        network, requested = self._network, tuple(wanted) or asked.addresses
        cidrs = network.cidrs_for(pod.namespace, pod.name, _names(asked))
        for address in requested:
            if not _inside(address, cidrs):
                cidrs = (*cidrs, *await network.cidrs_with(address))
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


def _inside(address: str, cidrs: Iterable[str]) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in ipaddress.ip_network(cidr) for cidr in cidrs)
