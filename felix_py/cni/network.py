"""The interface of the CNI plugin to the rest of the agent, and a fake for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from felix_py.ipam.asked import Asked, asked
from felix_py.records import Lease
from policy.model import Family


class NetworkError(Exception):
    """The agent cannot do it now; a later try may succeed."""


class Network(Protocol):
    """The agent as the plugin sees it, called on the agent's event loop.

    Of several sandboxes of one pod (a new one precedes the DEL of the old one) the newest is the pod's endpoint,
    with a lease for each interface; releasing one of an older sandbox does not disturb it. A lease without pod
    is of a container that no policy selects.
    """

    def unready(self) -> str | None:
        """Why no pod can be connected now, or None."""

    async def ready(self) -> None:
        """Return once pods can be connected (:meth:`unready` is None)."""

    async def wait_for_pod(self, namespace: str, name: str, uid: str) -> None:
        """Return once the agent knows the pod. An empty ``uid`` matches any pod of that name.

        A static pod has the uid that the kubelet gave it, not that of its mirror pod in the API.
        """

    def why_unknown(self, namespace: str, name: str, uid: str) -> str:
        """Why :meth:`wait_for_pod` has not returned, as text for people."""

    async def enforce(self, lease: Lease) -> None:
        """Return once class membership, source binding and route of the lease are in the kernel.

        Connections of an earlier holder of its addresses are then gone. The interface is up. Idempotent. After a
        NetworkError the plugin calls :meth:`release`.
        """

    def leaving(self, lease: Lease) -> None:
        """Announce that the lease's interface is being deleted: its absence and its route's are no drift.

        :meth:`release` follows, unless the interface cannot be deleted.
        """

    async def release(self, lease: Lease) -> None:
        """Return once no route, rule or set in the kernel refers to the lease; an unknown lease is no error.

        Its interface is gone. Its connections may be removed a little later.

        Raises:
            NetworkError: something may be left; the plugin keeps the lease, and the runtime repeats its DEL.
        """

    def departed(self, lease: Lease) -> bool:
        """Whether the lease's pod has left this node, or has a newer sandbox; false if unknown, or no pod's."""

    async def problems(self, lease: Lease) -> list[str]:
        """Differences of the kernel from what :meth:`enforce` wrote, as texts."""

    def pod_cidrs(self) -> tuple[str, ...]:
        """The CIDRs that this node gives addresses of: its blocks of pools, and podCIDRs of families without
        pools; empty before they are known."""

    def why_none(self) -> str:
        """Why no pod gets an address although there are CIDRs: pools that this node may not see; or empty."""

    def lent(self) -> Mapping[str, str]:
        """Addresses of this node's blocks that other nodes have borrowed -> the borrower."""

    def borrowed(self) -> Mapping[str, str]:
        """Those of :meth:`pod_cidrs` that are borrowed addresses -> the node whose block has it."""

    def growing(self) -> frozenset[Family]:
        """Families of which this node can still get more CIDRs."""

    def asked(self, namespace: str, name: str) -> Asked:
        """What the annotations of a pod and its namespace ask for. Raises BadAnnotation."""

    async def cidrs_for(
        self, namespace: str, name: str, pools: tuple[str, ...], addresses: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Those of :meth:`pod_cidrs` that a pod's addresses may come from, in order.

        ``pools``: names or CIDRs of those that it asks for; () for those whose selectors match. ``addresses``:
        those that it must have, at most one a family; nobody's block that one is in becomes this node's.

        Raises:
            NoPool: a family has pools, but none for this pod.
            PoolExhausted: a family has pools for it, but this node has no block of them yet.
            AddressUnavailable: one of ``addresses`` is in no pool, or another node's.
            NetworkError: it is not known yet which pools there are.
        """

    async def gain_addresses(self, namespace: str, pools: tuple[str, ...]) -> str:
        """Wait for further addresses for a pod that found none; returns why none have come, or empty."""

    def kept(self, namespace: str, name: str) -> tuple[str, ...]:
        """The addresses that stay with a pod's name."""

    def keeper(self, address: str) -> str:
        """namespace/name of the pod whose name keeps an address, or empty."""

    async def keep(self, namespace: str, name: str, addresses: tuple[str, ...]) -> None:
        """Have a pod's name keep these addresses, and no others; on disk when this returns.

        Raises:
            NetworkError: that cannot be written.
        """

    def only_first(self) -> str:
        """Why a pod can have no interface but ``eth0``, or empty."""

    def mtu(self) -> int:
        """MTU of pod interfaces, in bytes."""


class FakeNetwork:
    """A network without a kernel. Tests set its public fields, and read the leases in force from ``enforced``."""

    def __init__(self, pod_cidrs: tuple[str, ...] = ("10.65.0.0/24", "fd65::/64")) -> None:
        self.cidrs = pod_cidrs
        self.hidden = ""
        """What :meth:`why_none` says."""
        self.reason: str | None = None
        self.known: set[tuple[str, str]] | None = None
        """Pods known from the API server; None: every pod."""
        self.refuse: str | None = None
        """Reason with which :meth:`enforce` fails, or None."""
        self.stuck: str | None = None
        """Reason with which :meth:`release` fails, or None."""
        self.enforced: dict[tuple[str, str], Lease] = {}
        self.annotations: dict[tuple[str, str], dict[str, str]] = {}
        """Those of pods, by namespace and name."""
        self.keeps: dict[str, tuple[str, ...]] = {}
        """Kept addresses, by namespace/name."""
        self.loans: dict[str, str] = {}
        """Addresses that are lent -> the borrower."""
        self.coming: list[tuple[str, ...]] = []
        """CIDRs that pods get, one after the other, when they find no address."""
        self.departures: set[str] = set()
        """Names of pods that have left this node."""
        self.gone: set[str] = set()
        """Interfaces passed to :meth:`leaving`."""
        self.alone = ""
        """Why a pod can have no further interface."""
        self._changed = asyncio.Condition()

    def departed(self, lease: Lease) -> bool:
        return lease.pod in self.departures

    async def learn(self, namespace: str, name: str) -> None:
        """Make a pod known."""
        async with self._changed:
            self.known = (self.known or set()) | {(namespace, name)}
            self._changed.notify_all()

    def endpoint(self, namespace: str, name: str) -> Lease | None:
        """The pod's endpoint: the newest of its leases."""
        leases = [lease for lease in self.enforced.values() if (lease.namespace, lease.pod) == (namespace, name)]
        return max(leases, key=lambda lease: lease.created, default=None)

    def unready(self) -> str | None:
        return self.reason

    async def ready(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.reason is None)

    async def begin(self) -> None:
        """Be ready from now on."""
        async with self._changed:
            self.reason = None
            self._changed.notify_all()

    async def wait_for_pod(self, namespace: str, name: str, uid: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.known is None or (namespace, name) in self.known)

    def why_unknown(self, namespace: str, name: str, uid: str) -> str:
        return f"pod {namespace}/{name} is not known from the API server yet"

    async def enforce(self, lease: Lease) -> None:
        self.enforced[lease.container, lease.ifname] = lease  # before a failure: a real one is half done, too
        if self.refuse:
            raise NetworkError(self.refuse)

    def leaving(self, lease: Lease) -> None:
        self.gone.add(lease.interface)

    async def release(self, lease: Lease) -> None:
        if self.stuck:
            raise NetworkError(self.stuck)
        self.enforced.pop((lease.container, lease.ifname), None)

    async def problems(self, lease: Lease) -> list[str]:
        return [] if (lease.container, lease.ifname) in self.enforced else [f"no route to {lease.interface}"]

    def lent(self) -> Mapping[str, str]:
        return self.loans

    def borrowed(self) -> Mapping[str, str]:
        return {}

    def growing(self) -> frozenset[Family]:
        return frozenset(Family(6 if ":" in cidr else 4) for cidrs in self.coming for cidr in cidrs)

    def pod_cidrs(self) -> tuple[str, ...]:
        return self.cidrs

    def why_none(self) -> str:
        return self.hidden

    def asked(self, namespace: str, name: str) -> Asked:
        return asked(tuple(self.annotations.get((namespace, name), {}).items()))

    async def cidrs_for(
        self, namespace: str, name: str, pools: tuple[str, ...], addresses: tuple[str, ...]
    ) -> tuple[str, ...]:
        return pools or self.cidrs

    async def gain_addresses(self, namespace: str, pools: tuple[str, ...]) -> str:
        if not self.coming:
            return "the node has no other podCIDR"
        self.cidrs += self.coming.pop(0)
        return ""

    def kept(self, namespace: str, name: str) -> tuple[str, ...]:
        return self.keeps.get(f"{namespace}/{name}", ())

    def keeper(self, address: str) -> str:
        return next((owner for owner, addresses in self.keeps.items() if address in addresses), "")

    async def keep(self, namespace: str, name: str, addresses: tuple[str, ...]) -> None:
        self.keeps.pop(f"{namespace}/{name}", None)
        if addresses:
            self.keeps[f"{namespace}/{name}"] = addresses

    def only_first(self) -> str:
        return self.alone

    def mtu(self) -> int:
        return 1500
