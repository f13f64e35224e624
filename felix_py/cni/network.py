"""What the CNI plugin asks of the rest of the agent, and a fake of it for tests."""

from __future__ import annotations

import asyncio
from typing import Protocol

from felix_py.records import Lease


class NetworkError(Exception):
    """The agent cannot do it now; trying again later may work."""


class Network(Protocol):
    """The agent as the plugin sees it. Everything is called on the agent's event loop.

    Of several leases for one pod (a new sandbox is there before the old one's DEL came) the one with the latest
    ``created`` is the pod's endpoint; releasing an older one does not disturb it.
    """

    def unready(self) -> str | None:
        """Why no pod can be connected now, or None."""

    async def wait_for_pod(self, namespace: str, name: str, uid: str) -> None:
        """Return once the agent knows the pod. ``uid`` may be empty: any pod of that name.

        A static pod has the uid that the kubelet gave it, not that of its mirror in the API.
        """

    def why_unknown(self, namespace: str, name: str, uid: str) -> str:
        """Why :meth:`wait_for_pod` of these has not returned, for people."""

    async def enforce(self, lease: Lease) -> None:
        """Return once class membership, source binding and route of the lease are in the kernel.

        And nothing is left there of connections that an earlier holder of its addresses had.
        Its interface is up. Asking again for the same lease is fine.

        Raises:
            NetworkError: they are not; the plugin will call :meth:`release`.
        """

    def leaving(self, lease: Lease) -> None:
        """The lease's interface is about to be deleted: nobody is to miss it, nor the route through it.

        :meth:`release` follows, unless the interface cannot be deleted.
        """

    async def release(self, lease: Lease) -> None:
        """Return once no route, rule or set in the kernel refers to the lease any more; an unknown lease is fine.

        Its interface is gone. Its connections may go a little later.

        Raises:
            NetworkError: something may be left; the plugin keeps the lease, and the runtime repeats its DEL.
        """

    def departed(self, lease: Lease) -> bool:
        """Whether the lease's pod is not on this node any more, or has a newer interface; false if not known."""

    async def problems(self, lease: Lease) -> list[str]:
        """What is missing in the kernel of that which :meth:`enforce` put there."""

    def pod_cidrs(self) -> tuple[str, ...]:
        """The node's pod CIDRs, as its Node object has them now; empty before they are known."""

    def mtu(self) -> int:
        """MTU of pod interfaces, in bytes."""


class FakeNetwork:
    """A network without a kernel. Tests set its public fields, and read from ``enforced`` what is in force."""

    def __init__(self, pod_cidrs: tuple[str, ...] = ("10.65.0.0/24", "fd65::/64")) -> None:
        self.cidrs = pod_cidrs
        self.reason: str | None = None
        self.known: set[tuple[str, str]] | None = None
        """Pods that the API server told of; None: every pod."""
        self.refuse: str | None = None
        """Why :meth:`enforce` fails, if it is to."""
        self.stuck: str | None = None
        """Why :meth:`release` fails, if it is to."""
        self.enforced: dict[tuple[str, str], Lease] = {}
        self.departures: set[str] = set()
        """Names of pods that are not on this node any more."""
        self.gone: set[str] = set()
        """Interfaces that are or were about to be deleted."""
        self._changed = asyncio.Condition()

    def departed(self, lease: Lease) -> bool:
        return lease.pod in self.departures

    async def learn(self, namespace: str, name: str) -> None:
        """The API server tells of a pod."""
        async with self._changed:
            self.known = (self.known or set()) | {(namespace, name)}
            self._changed.notify_all()

    def endpoint(self, namespace: str, name: str) -> Lease | None:
        """The pod's endpoint: the newest of its leases."""
        leases = [lease for lease in self.enforced.values() if (lease.namespace, lease.pod) == (namespace, name)]
        return max(leases, key=lambda lease: lease.created, default=None)

    def unready(self) -> str | None:
        return self.reason

    async def wait_for_pod(self, namespace: str, name: str, uid: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.known is None or (namespace, name) in self.known)

    def why_unknown(self, namespace: str, name: str, uid: str) -> str:
        return f"pod {namespace}/{name} is not known from the API server yet"

    async def enforce(self, lease: Lease) -> None:
        self.enforced[lease.container, lease.ifname] = lease  # half done is what a real failure leaves, too
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

    def pod_cidrs(self) -> tuple[str, ...]:
        return self.cidrs

    def mtu(self) -> int:
        return 1500
