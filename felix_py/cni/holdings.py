"""Who holds which address of this node, for people: held against the kernel and the API, and released by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bgp.prefixes import PrefixSet
from felix_py import log
from felix_py.cni.errors import CNIError
from felix_py.cni.network import Network, NetworkError
from felix_py.cni.plugin import Plugin
from felix_py.cni.recovery import about
from felix_py.cni.workers import Interfaces, Leases
from felix_py.dataplane.links import HostEnd, LinkError
from felix_py.ipam.pool import address_number
from felix_py.ipam.store import LeaseKey
from felix_py.records import Lease
from policy.model import Pod


class NotReleased(Exception):
    """An address was not released; the message says why. ``unknown``: nobody has it."""

    def __init__(self, reason: str, *, unknown: bool = False) -> None:
        self.unknown = unknown
        super().__init__(reason)


class Finding(NamedTuple):
    """A difference between the store and the rest, in words. ``lost``: nothing is left of the lease's pod."""

    addresses: tuple[str, ...]
    text: str
    lost: bool = False


def compare(
    leases: Iterable[Lease],
    ends: Iterable[HostEnd],
    pods: Iterable[Pod],
    cidrs: Collection[str],
    departed: Callable[[Lease], bool],
    lent: Mapping[str, str],
) -> list[Finding]:
    """The differences between leases, host interfaces, and the API's ``pods`` of this node.

    ``cidrs``: those that pods get addresses of here. ``departed``: see :meth:`Network.departed`; ``lent``:
    :meth:`Network.lent`.
    """
    held = {lease.interface: lease for lease in leases}
    present = {end.lease.interface if end.lease else end.name: end for end in ends}
    found = [finding for lease in held.values() if (finding := _of_lease(lease, present, departed))]
    for name, end in present.items():
        if name not in held:
            of = tuple(end.lease.addresses.values()) if end.lease else ()
            found.append(Finding(of, f"the interface {end.name} is like those of pods, but no lease is its"))
    return found + _of_pods(pods, held.values(), cidrs) + _of_loans(held.values(), lent)


def _of_lease(lease: Lease, present: Mapping[str, HostEnd], departed: Callable[[Lease], bool]) -> Finding | None:
    addresses, owner = tuple(lease.addresses.values()), lease.owner_text
    end, gone = present.get(lease.interface), departed(lease)
    if end is None:
        gone = gone or not lease.pod
        of = "the pod" if lease.pod else "the container"
        after = f"and {of} is not here any more: it is lost" if gone else "and its DEL has not come"
        text = f"leased to {owner}, but its interface {lease.interface} is gone, {after}"
        return Finding(addresses, text, lost=gone)
    if end.lease is not None and end.lease.addresses != lease.addresses:
        label = ", ".join(end.lease.addresses.values())
        return Finding(addresses, f"leased to {owner}, but its interface {end.name} is labelled {label}")
    if gone:
        text = f"leased to {owner}, which is not here any more, but its interface {end.name} is"
        return Finding(addresses, f"{text}: has the runtime forgotten it?")
    return None


def _of_pods(pods: Iterable[Pod], leases: Iterable[Lease], cidrs: Collection[str]) -> list[Finding]:
    inside = PrefixSet(cidrs)
    of: dict[tuple[str, str], set[str]] = {}
    for lease in leases:
        of.setdefault((lease.namespace, lease.pod), set()).update(lease.addresses.values())
    found = []
    for pod in pods:
        if pod.host_network or not pod.active:
            continue
        listed = [address for address in pod.addresses if inside.covers(address)]
        if unknown := tuple(address for address in listed if address not in of.get(pod.key, ())):
            text = f"the API lists it for pod {pod.namespace}/{pod.name}, which has no lease of it"
            found.append(Finding(unknown, text))
    return found


def _of_loans(leases: Iterable[Lease], lent: Mapping[str, str]) -> list[Finding]:
    return [
        Finding((address,), f"leased to {lease.owner_text}, and lent to node {lent[address]}")
        for lease in leases
        for address in lease.addresses.values()
        if address in lent
    ]


class Holdings:
    """What ``felix-py ipam`` asks the agent. On the event loop only."""

    def __init__(
        self,
        plugin: Plugin,
        leases: Leases,
        interfaces: Interfaces,
        network: Network,
        pods: Callable[[], Iterable[Pod] | None],
    ) -> None:
        """``pods`` returns the API's pods of this node, None: they are not known yet."""
        self._plugin = plugin
        self._leases = leases
        self._interfaces = interfaces
        self._network = network
        self._pods = pods

    def show(self) -> dict[str, Any]:
        """CIDRs, loans and leases, as JSON. ``borrowedOf``: the node whose block a borrowed address is of, or
        empty.
        """
        cidrs, lent, borrowed = self._network.pod_cidrs(), self._network.lent(), self._network.borrowed()
        resting = self._leases.resting(cidrs)
        return {
            "cidrs": [
                {
                    "cidr": cidr,
                    "used": used,
                    "free": free - (away := sum(map(PrefixSet([cidr]).covers, lent))),
                    "resting": resting[cidr],
                    "lent": away,
                    "borrowedOf": borrowed.get(cidr, ""),
                }
                for cidr, (used, free) in self._leases.usage(cidrs).items()
            ],
            "lent": [{"address": address, "node": node} for address, node in sorted(lent.items())],
            "leases": [described(lease) for lease in self._all()],
        }

    async def check(self) -> list[Finding]:
        """All differences now; what a call is changing at this moment is left out, and what is not known yet."""
        ends = await self._interfaces.host_ends()
        busy = {lease.interface for lease in self._all() if self._plugin.is_busy(_key(lease))}
        leases = [lease for lease in self._all() if lease.interface not in busy]
        ends = [end for end in ends if (end.lease.interface if end.lease else end.name) not in busy]
        network = self._network
        return compare(leases, ends, self._pods() or (), network.pod_cidrs(), network.departed, network.lent())

    def not_compared(self) -> tuple[str, ...]:
        """What :meth:`check` can say nothing of at present, in words."""
        words = "the API server has not told yet which pods are here, so leases were not compared with pods"
        return (words,) if self._pods() is None else ()

    async def fix(self, grace: float) -> list[Lease]:
        """Release what two looks ``grace`` seconds apart find lost; returns what was released."""
        first = await self._lost()
        await asyncio.sleep(grace)
        released = []
        for lease in await self._lost():
            if lease not in first:
                continue
            try:
                await self._plugin.free(lease)
            except (CNIError, NetworkError, LinkError, OSError) as error:
                log.get("cni").warning("cannot release a lost lease yet", reason=str(error), **about(lease))
            else:
                log.get("cni").warning("released a lost lease, as asked", **about(lease))
                released.append(lease)
        return released

    async def release(self, address: str, *, force: bool) -> Lease:
        """Release the lease of an address, and with ``force`` its interface.

        Raises:
            NotReleased: nobody has it, or the lease stays.
            ValueError: it is not an address.
        """
        asked = address_number(address)
        for lease in self._all():
            if asked in map(address_number, lease.addresses.values()):
                try:
                    await self._plugin.free(lease, force=force)
                except (CNIError, NetworkError, LinkError, OSError) as error:
                    raise NotReleased(str(error)) from error
                log.get("cni").warning("released a lease, as asked", force=force, **about(lease))
                return lease
        seconds = await self._leases.use(lambda store: store.rested(address))
        rests = "" if seconds is None else f"; it was released {seconds:.0f} seconds ago"
        raise NotReleased(f"{address} is not leased on this node{rests}", unknown=True)

    async def _lost(self) -> list[Lease]:
        lost = {address for finding in await self.check() if finding.lost for address in finding.addresses}
        return [lease for lease in self._all() if lost & set(lease.addresses.values())]

    def _all(self) -> Sequence[Lease]:
        found = (self._leases.get(*key) for key in self._leases.keys())  # noqa: SIM118 - no mapping
        return sorted((lease for lease in found if lease), key=lambda lease: lease.created)


def described(lease: Lease) -> dict[str, Any]:
    """A lease as JSON."""
    return {
        "addresses": list(lease.addresses.values()),
        "namespace": lease.namespace,
        "pod": lease.pod,
        "uid": lease.uid,
        "container": lease.container,
        "ifname": lease.ifname,
        "network": lease.network,
        "interface": lease.interface,
        "created": lease.created,
    }


def _key(lease: Lease) -> LeaseKey:
    return (lease.container, lease.ifname)
