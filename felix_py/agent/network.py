"""The agent's side of the CNI server (:class:`felix_py.cni.network.Network`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from felix_py.agent.addressing import Addressing
from felix_py.agent.facts import Facts
from felix_py.agent.forgetting import Forgetting
from felix_py.agent.own_prefixes import hosts_of
from felix_py.agent.pod_ips import PodIPs
from felix_py.agent.pooled import NO_POOLS, Pooled
from felix_py.cni.network import NetworkError
from felix_py.desired.names import DISPATCH, Fixed, SetNames, names_of
from felix_py.failures import Failures, Name
from felix_py.layout import ROUTE_PROTOCOL_PODS
from felix_py.reconcile import NotApplied, Reconciler, leads_astray
from felix_py.records import Failure, Lease, Update
from felix_py.refs import ApplyRef, HookRef, RouteRef
from policy.change import Change
from policy.model import Family, ObjectKey, Pod

_CHAINS = (*(set(Fixed) - {Fixed.POSTROUTING}), *DISPATCH.values())
_SETS = (set_ for n in map(SetNames.of, Family) for set_ in (n.source, n.local, n.egress, n.ingress))
SHARED: frozenset[Name] = frozenset((ApplyRef, HookRef, *_CHAINS, *_SETS))
"""Objects that every endpoint depends on: a failure of one concerns all endpoints."""


def concern_everybody(facts: Facts, failures: Failures) -> bool:
    """Whether failures that lead astray concern more than the local endpoints that depend on their objects.

    The ADD of such an endpoint waits for them (:meth:`PodNetwork.enforce`). An object that no endpoint depends on
    and that cannot be removed concerns all, since no ADD waits for it.
    """
    own: set[str] = set()
    for endpoint in facts.view.endpoints():
        own.update(endpoint.addresses, *map(names_of, facts.engine.chains_of(endpoint.key)))
    tolerable = set(failures.naming(own)).difference(failures.naming(SHARED))
    return leads_astray(failure for failure in failures if failure not in tolerable)


class PodNetwork:
    """Adds endpoints to the facts and removes them, and waits until the kernel has the change."""

    def __init__(
        self,
        facts: Facts,
        reconciler: Reconciler,
        mtu: Callable[[], int],
        forgetting: Forgetting,
        pod_ips: PodIPs | None = None,
        addressing: Addressing | None = None,
    ) -> None:
        """``pod_ips`` tells other nodes of a pod's addresses, as soon as it is connected. Without ``addressing``
        there are podCIDRs only."""
        self._facts = facts
        self._reconciler = reconciler
        self._mtu = mtu
        self._forgetting = forgetting
        self._pod_ips = pod_ips
        addressing = addressing or Addressing(facts)
        self.asked = addressing.asked
        self.cidrs_for = addressing.cidrs_for
        self.why_none = addressing.why_none
        self.gain_addresses = addressing.gain_addresses
        self.kept = addressing.kept
        self.keeper = addressing.keeper
        self.keep = addressing.keep
        self._ready = False
        self._hindrance = ""
        self._usable = asyncio.Event()
        """Set while :meth:`unready` is None."""
        self._waiting: dict[ObjectKey, set[asyncio.Future[None]]] = {}
        self._grows: tuple[Pooled, frozenset[Family]] = (NO_POOLS, NO_POOLS.growing)

    def fold(self, change: Change[Pod]) -> None:
        """Wake the waiters for a pod that the store now has on this node."""
        pod = change.after
        if pod is not None and self._facts.is_here(pod):
            for waiter in self._waiting.pop(pod.key, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def _uid(self, key: ObjectKey) -> str | None:
        """The uid of a pod of this node, or None if none of this name is known."""
        pod = self._facts.pod(key)
        return pod.uid if pod is not None and self._facts.is_here(pod) else None

    def set_ready(self) -> None:
        """Allow new endpoints: all known ones are in the kernel, and nothing stale is."""
        self._ready = True
        self._tell_usable()
        self._forgetting.begin(self.pod_cidrs())

    def hinder(self, reason: str) -> None:
        """Set a reason for not being ready other than the cluster or a failed write; empty: none."""
        self._hindrance = reason
        self._tell_usable()

    def _tell_usable(self) -> None:
        if self.unready() is None:
            self._usable.set()
        else:
            self._usable.clear()

    # --- felix_py.cni.network.Network ------------------------------------------------------------------

    def unready(self) -> str | None:
        """Why an ADD cannot work now, or None."""
        if self._hindrance or self._ready:
            return self._hindrance or None
        if failures := self._reconciler.failures:
            return f"policy is not in force yet: {next(iter(failures))}"
        if reason := self._reconciler.unread:
            return f"the kernel cannot be read: {reason}"
        return "the agent has not yet seen the whole cluster (is the API server reachable?)"

    async def ready(self) -> None:
        """Return once an ADD can work."""
        await self._usable.wait()

    def departed(self, lease: Lease) -> bool:
        """Whether the lease's pod has left this node or has a newer sandbox; False if that is not known yet, and
        for a container that is no pod's."""
        if not lease.pod:
            return False
        uid = self._uid(lease.owner)
        another = uid is None or (uid != lease.uid and "" not in (uid, lease.uid))
        return self._ready and (another or self._facts.held.has_newer_than(lease))

    async def wait_for_pod(self, namespace: str, name: str, uid: str) -> None:
        """Return once the pod is known; with a uid, that pod and not an earlier one of its name."""
        key = (namespace, name)
        while (known := self._uid(key)) is None or (uid and known != uid):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(key, set()).add(waiter)
            try:
                await waiter
            finally:
                self._stop_waiting(key, waiter)

    def why_unknown(self, namespace: str, name: str, uid: str) -> str:
        """Returns the reason why :meth:`wait_for_pod` still waits."""
        pod = self._facts.pod((namespace, name))
        known = f"pod {namespace}/{name} is not known from the API server yet"
        if pod is None:
            # A pod of a standalone kubelet, or of another API server than the agent's, never becomes known.
            return f"{known}; is it this agent's API server that the kubelet works for?"
        if not self._facts.is_here(pod):
            return f"the API server has pod {namespace}/{name} on node {pod.node or '(none)'}, not on this one"
        return f"{known} with uid {uid}, but with {pod.uid}: an earlier or a later pod of this name"

    def _stop_waiting(self, key: ObjectKey, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiting.get(key, set())
        waiters.discard(waiter)
        if not waiters:
            self._waiting.pop(key, None)

    async def enforce(self, lease: Lease) -> None:
        """Return once class membership, source binding and route are in the kernel, conntrack has no entries of
        the addresses' previous holders, and other nodes can know the pod's. Raises NetworkError if the kernel
        refused a part, or the API server an address of a further interface.
        """
        self._facts.attach(lease)
        await self._settled(lease)
        await self._forgetting.gone(lease.addresses.values())
        if self._pod_ips and lease.pod:
            await self._pod_ips.connected(lease)

    def leaving(self, lease: Lease) -> None:
        """The pod's interface is about to be deleted."""
        self._facts.leaving(lease)
        routes = (RouteRef(host, ROUTE_PROTOCOL_PODS) for host in hosts_of(lease))
        self._reconciler.let_go(Update(routes=dict.fromkeys(routes)))

    async def release(self, lease: Lease) -> None:
        """Return once the kernel's objects are removed; conntrack entries are deleted meanwhile, or soon after.

        Before the first sync it does not wait: the sweep removes whatever is left. Raises NetworkError if the
        kernel kept a part.
        """
        self._facts.detach(lease)
        self._reconciler.let_go(_memberships(lease))
        # The address's next holder must not inherit the connections of this one. No new ones can begin: the
        # interface is gone, and its routes with it.
        self._forgetting.release(lease.addresses.values())
        if self._pod_ips and lease.pod:
            self._pod_ips.released(lease)
        if self._ready:
            await self._settled(lease)

    def only_first(self) -> str:
        """Why a pod can have no interface but its first, or empty."""
        if self._pod_ips:
            return ""
        return "other nodes' policy would not know its addresses, since announcePodIPs is off"

    def look(self) -> None:
        """Find out, every minute or so, whether other nodes are told what they should be."""
        if self._pod_ips and self._ready:
            self._pod_ips.look()

    async def close(self) -> None:
        """Delete the connections of released addresses that are left."""
        await self._forgetting.close()

    async def _settled(self, lease: Lease) -> None:
        try:
            await self._reconciler.settled(lambda: self._names(lease))
        except NotApplied as error:
            raise NetworkError(str(error)) from error

    def _names(self, lease: Lease) -> set[Name]:
        """The names of all objects that an endpoint depends on."""
        chains = self._facts.engine.chains_of(lease.owner)
        named = (name for chain in chains for name in names_of(chain))
        return {*lease.addresses.values(), lease.interface, *named, *SHARED}

    async def problems(self, lease: Lease) -> list[str]:
        """Returns what the kernel lacks of the endpoint (CNI CHECK)."""
        if not self._facts.held.stands(lease):
            return ["the pod's policy and route are not set up (its sandbox is not the newest of the pod)"]
        try:
            missing = await self._reconciler.differences()
        except NotApplied as error:
            raise NetworkError(str(error)) from error
        ours = Failures(Failure(ref, "") for ref in missing).naming(self._names(lease))
        return [f"{failure.ref} is not in the kernel" for failure in ours]

    def pod_cidrs(self) -> tuple[str, ...]:
        """The CIDRs that this node gives addresses of."""
        return self._facts.address_cidrs

    def lent(self) -> dict[str, str]:
        """See :meth:`felix_py.cni.network.Network.lent`."""
        return self._facts.pooled.lent_to()

    def borrowed(self) -> dict[str, str]:
        """See :meth:`felix_py.cni.network.Network.borrowed`."""
        pooled = self._facts.pooled
        return {host: pooled.owner_of(host.partition("/")[0])[0] for host in pooled.borrowed}

    def growing(self) -> frozenset[Family]:
        """Families of which this node can still claim blocks."""
        pooled = self._facts.pooled
        if self._grows[0] is not pooled:  # it looks at all nodes' blocks
            self._grows = (pooled, pooled.growing)
        return self._grows[1]

    def mtu(self) -> int:
        """MTU for pod interfaces."""
        return self._mtu()


def _memberships(lease: Lease) -> Update:
    """Returns the removal of a lease from the sets that its own endpoint is a member of."""
    update = Update()
    for family, address in lease.addresses.items():
        names = SetNames.of(family)
        update.members[names.source] = {f"{address},{lease.interface}": None}
        update.members |= {name: {address: None} for name in (names.local, names.egress, names.ingress)}
    return update
