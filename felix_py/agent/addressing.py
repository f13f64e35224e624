"""Which CIDRs a pod of this node gets its addresses from: pools by annotations and selectors, else podCIDRs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from bgp.prefixes import version
from felix_py.agent.facts import Facts
from felix_py.agent.keeping import Keeping
from felix_py.agent.pooled import Pooled
from felix_py.cni.network import NetworkError
from felix_py.ipam.asked import Asked, asked
from felix_py.ipam.pools import NOT_KNOWN, NoPool, Subject, cidrs_of, eligible
from felix_py.ipam.resources import IPAMBlock, IPPool
from felix_py.ipam.store import AddressUnavailable, PoolExhausted
from policy.model import Family, Labels, Namespace, ObjectKey


class Claims(Protocol):
    """Who claims blocks for this node. ``asked``: names or CIDRs of pools that a pod asks for, or ()."""

    async def caught_up(self) -> bool:
        """Return once the blocks of the pools that are declared are known; false: that takes too long."""

    def unseen(self) -> tuple[str, ...]:
        """Pools for pods, by name, that are declared, or were when they were last seen, and that cannot be used
        since the API server does not let us see them, or their blocks."""

    def eligible(self, namespace: str, asked: tuple[str, ...]) -> Mapping[Family, tuple[IPPool, ...]]:
        """The pools that pods of a namespace may use; see :func:`felix_py.ipam.pools.eligible`."""

    def cidrs_for(self, namespace: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        """The CIDRs of these, in order; of families without pools, the podCIDRs. Raises NoPool."""

    async def wait_for_address(self, namespace: str, asked: tuple[str, ...]) -> str:
        """Have a further block claimed; returns why there is none, or empty."""

    async def claim_with(self, address: str) -> bool:
        """Claim the block of a pool that an address is in, which no node has; whether this node has it now."""


class FakeClaims:
    """A cluster's pools and blocks that tests control: what is claimed is there at once."""

    def __init__(self, node: str = "n1", labels: Labels = ()) -> None:
        self.node = node
        self.labels = dict(labels)
        self.namespaces: dict[str, dict[str, str]] = {}
        """Labels by name."""
        self.pools: list[IPPool] = []
        self.blocks: list[IPAMBlock] = []
        self.pod_cidrs: tuple[str, ...] = ()
        self.free: list[str] = []
        """Blocks that can still be claimed."""
        self.told: Callable[[Pooled], None] = lambda _pooled: None
        """Called with what there is now, when it has changed."""
        self.late = False
        """Whether blocks are not known in time."""
        self.hidden: tuple[str, ...] = ()
        """Pools that may not be seen."""

    def claim(self, cidr: str, node: str = "") -> None:
        """A block is a node's from now on."""
        node = node or self.node
        self.blocks.append(IPAMBlock(name=cidr, cidr=cidr, node=node, node_uid=f"uid-{node}"))
        self.tell()

    def tell(self) -> None:
        """Tell what there is."""
        self.told(Pooled.of(self.node, self.pools, self.blocks))

    async def caught_up(self) -> bool:
        return not self.late

    def unseen(self) -> tuple[str, ...]:
        return self.hidden

    def eligible(self, namespace: str, asked: tuple[str, ...]) -> Mapping[Family, tuple[IPPool, ...]]:
        return eligible(self.pools, Subject(self.labels, self.namespaces.get(namespace, {}), asked))

    def cidrs_for(self, namespace: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        found = self.eligible(namespace, asked)
        return cidrs_of(found, [block for block in self.blocks if block.node == self.node], self.pod_cidrs)

    async def wait_for_address(self, namespace: str, asked: tuple[str, ...]) -> str:
        if not self.free:
            return "every block is claimed"
        self.claim(self.free.pop(0))
        return ""

    async def claim_with(self, address: str) -> bool:
        for cidr in self.free:
            if Pooled(blocks=(cidr,)).block_of(address):
                self.free.remove(cidr)
                self.claim(cidr)
                return True
        return False


class Addressing:
    """Answers for the CNI plugin. On the event loop only."""

    def __init__(
        self,
        facts: Facts,
        namespaces: Mapping[ObjectKey, Namespace] | None = None,
        *,
        foreign: bool = False,
    ) -> None:
        """``namespaces``: the store's. ``foreign``: Calico's annotations count where there is none of ours."""
        self._facts = facts
        self._namespaces = {} if namespaces is None else namespaces
        self._claims: Claims | None = None
        self._keeping: Keeping | None = None
        self._foreign = foreign

    def follow(self, claims: Claims, keeping: Keeping | None = None) -> None:
        """Use the blocks that are claimed, and the addresses that are kept."""
        self._claims, self._keeping = claims, keeping

    def kept(self, namespace: str, name: str) -> tuple[str, ...]:
        """See :meth:`felix_py.cni.network.Network.kept`."""
        return self._keeping.of(namespace, name) if self._keeping else ()

    def keeper(self, address: str) -> str:
        """See :meth:`felix_py.cni.network.Network.keeper`."""
        return self._keeping.owner(address) if self._keeping else ""

    async def keep(self, namespace: str, name: str, addresses: tuple[str, ...]) -> None:
        """See :meth:`felix_py.cni.network.Network.keep`."""
        if self._keeping:
            await self._keeping.keep(namespace, name, addresses)

    def asked(self, namespace: str, name: str) -> Asked:
        """See :meth:`felix_py.cni.network.Network.asked`."""
        pod, whole = self._facts.pod((namespace, name)), self._namespaces.get(("", namespace))
        of_pod, of_namespace = pod.annotations if pod else (), whole.annotations if whole else ()
        return asked(of_pod, of_namespace, foreign=self._foreign)

    def why_none(self) -> str:
        """See :meth:`felix_py.cni.network.Network.why_none`."""
        if not (unseen := self._claims.unseen() if self._claims and self._facts.pools_known else ()):
            return ""
        return (
            f"IPPool {', '.join(unseen)}: this node may not see the pools or their blocks, and no pod gets an "
            "address outside of them: see whether the ClusterRole felix-py is of this version"
        )

    async def cidrs_for(
        self, namespace: str, name: str, pools: tuple[str, ...], addresses: tuple[str, ...]
    ) -> tuple[str, ...]:
        """See :meth:`felix_py.cni.network.Network.cidrs_for`."""
        # A pod that starts just after the first IPPool was declared gets no address of a podCIDR any more.
        if not self._facts.pools_known or not (self._claims is None or await self._claims.caught_up()):
            raise NetworkError(NOT_KNOWN)
        if self._claims is None or not self._facts.pooled.families:
            if hidden := self.why_none():
                raise NetworkError(hidden)
            if pools:
                raise NoPool(f"pod {namespace}/{name} asks for IPPool {pools[0]}, and there is none for pods")
            return self._facts.pod_cidrs
        fixed = {Family(version(address)): address for address in addresses}
        own = [await self._cidr_with(address, self._claims) for address in fixed.values()]
        found = self._claims.eligible(namespace, pools)
        if open_ := found.keys() - fixed.keys():
            self._check(f"{namespace}/{name}", {family: found[family] for family in sorted(open_)})
        if not open_ and not any(Family(version(cidr)) not in found for cidr in self._facts.pod_cidrs):
            return tuple(own)
        chosen = self._claims.cidrs_for(namespace, pools)
        for family in sorted(open_):
            if not any(version(cidr) == family for cidr in chosen):
                names = ", ".join(pool.name for pool in found[family])
                raise PoolExhausted(f"this node has no block of IPPool {names} yet")
        return (*own, *chosen)

    @staticmethod
    def _check(pod: str, found: Mapping[Family, tuple[IPPool, ...]]) -> None:
        """A pod gets an address of each family that has pools, or does not start."""
        for family, pools in found.items():
            if not pools:
                raise NoPool(
                    f"no IPPool of IPv{int(family)} is for pod {pod} on this node: look at nodeSelector, "
                    "namespaceSelector, disabled and assignmentMode of those that there are"
                )

    async def _cidr_with(self, address: str, claims: Claims) -> str:
        """The CIDR out of which this node may give this very address, which is claimed if nobody has it."""
        family = Family.V6 if ":" in address else Family.V4
        if family not in self._facts.pooled.families:
            return next((cidr for cidr in self._facts.pod_cidrs if version(cidr) == family), "")
        if not (pool := self._facts.pooled.pool_with(address)):
            raise AddressUnavailable(f"{address} is in no IPPool for pods")
        if pool.disabled:
            raise AddressUnavailable(f"{address} is in IPPool {pool.name}, which is disabled")
        if cidr := self._facts.pooled.block_of(address):
            return cidr
        if borrower := self._facts.pooled.borrower_of(address):
            raise AddressUnavailable(f"{address} is lent to node {borrower}: a pod of this node cannot have it")
        if not self._facts.pooled.owner_of(address)[0]:
            await claims.claim_with(address)
        if cidr := self._facts.pooled.block_of(address):
            return cidr
        node, block = self._facts.pooled.owner_of(address)
        whose = f"is in block {block} of node {node}" if node else f"of IPPool {pool.name} cannot be had now"
        raise AddressUnavailable(f"{address} {whose}: a pod of this node cannot have it")

    async def gain_addresses(self, namespace: str, pools: tuple[str, ...]) -> str:
        """See :meth:`felix_py.cni.network.Network.gain_addresses`."""
        if self._claims is None or not self._facts.pooled.families:
            return "the node has no other podCIDR"
        return await self._claims.wait_for_address(namespace, pools)
