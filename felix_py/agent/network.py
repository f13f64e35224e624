"""What the CNI server asks of the agent (:class:`felix_py.cni.network.Network`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from felix_py.agent.facts import Facts
from felix_py.reconcile import NotApplied, Reconciler
from felix_py.records import Failure, Lease
from policy.model import ObjectKey, Pod


class PodNetwork:
    """Endpoints in and out of the facts, and the kernel's word that it has them."""

    def __init__(self, facts: Facts, reconciler: Reconciler, mtu: Callable[[], int]) -> None:
        self._facts = facts
        self._reconciler = reconciler
        self._mtu = mtu
        self._ready = False
        self._pods: dict[ObjectKey, str] = {}
        self._waiting: dict[ObjectKey, asyncio.Event] = {}

    def pod_seen(self, pod: Pod) -> None:
        """The informer knows a pod (in this incarnation)."""
        self._pods[pod.key] = pod.uid
        if pod.key in self._waiting:
            self._waiting[pod.key].set()

    def pod_gone(self, pod: Pod) -> None:
        """The pod's object is gone."""
        self._pods.pop(pod.key, None)

    def set_ready(self) -> None:
        """Everything that was there before is in the kernel: new endpoints may come."""
        self._ready = True

    # --- felix_py.cni.network.Network ------------------------------------------------------------------

    def unready(self) -> str | None:
        """Why an ADD cannot work now, or None."""
        if not self._ready:
            return "the agent has not yet seen the whole cluster (is the API server reachable?)"
        if not self._facts.pod_cidrs:
            return "this node has no podCIDRs yet (does the controller manager allocate node CIDRs?)"
        return None

    async def wait_for_pod(self, namespace: str, name: str, uid: str) -> None:
        """Return once the pod is known; with a uid, that very pod and not an earlier one of its name."""
        key = (namespace, name)
        while key not in self._pods or (uid and self._pods[key] != uid):
            event = self._waiting.setdefault(key, asyncio.Event())
            event.clear()
            try:
                await event.wait()
            finally:
                self._waiting.pop(key, None)

    async def enforce(self, lease: Lease) -> None:
        """Return once class membership, source binding and route are in the kernel.

        Raises:
            NotApplied: the kernel refused a part of it.
        """
        self._facts.attach(lease)
        self._reconciler.note()
        await self._reconciler.settled(lambda failure: _concerns(failure, lease, self._chains(lease)))

    def _chains(self, lease: Lease) -> set[str]:
        return self._facts.engine.chains_of((lease.namespace, lease.pod))

    async def release(self, lease: Lease) -> None:
        """Return once they are gone again. Before the first sync nothing is written: the sweep will see to it."""
        self._facts.detach(lease)
        if self._ready:
            try:
                await self._reconciler.settled(lambda failure: _concerns(failure, lease, set()))
            except NotApplied as error:
                # The link's end takes the route with it; what is left in sets is tried again by the reconciler.
                for failure in error.failures:
                    _ = failure

    async def problems(self, lease: Lease) -> list[str]:
        """What of the endpoint is missing in the kernel (CNI CHECK)."""
        if not self._facts.is_attached(lease):
            return ["the pod's policy and route are not set up (its interface is not the newest of the pod)"]
        return [f"{f.what}: {f.reason}" for f in self._reconciler.failures if _concerns(f, lease, self._chains(lease))]

    def pod_cidrs(self) -> tuple[str, ...]:
        """The node's pod CIDRs, one of a family at most."""
        return self._facts.pod_cidrs

    def mtu(self) -> int:
        """MTU for pod interfaces."""
        return self._mtu()


def _concerns(failure: Failure, lease: Lease, chains: set[str]) -> bool:
    words = (*lease.addresses.values(), lease.interface, *chains)
    return any(word in failure.what for word in words) or failure.what == "apply"
