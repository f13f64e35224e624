"""Which CIDRs a pod of this node gets its addresses from: pools by annotations and selectors, else podCIDRs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from felix_py.agent.facts import Facts
from felix_py.agent.pooled import Pooled
from felix_py.cni.network import NetworkError
from felix_py.ipam.asked import Asked, asked
from felix_py.ipam.pools import NoPool, Subject, cidrs_of, eligible
from felix_py.ipam.resources import IPAMBlock, IPPool
from felix_py.ipam.store import AddressUnavailable
from policy.model import Family, Labels, Namespace, ObjectKey

NOT_KNOWN = "it is not known yet which IPPools there are (is the API server reachable?)"


class Claims(Protocol):
    """Who claims blocks for this node. ``asked``: names or CIDRs of pools that a pod asks for, or ()."""

    def cidrs_for(self, namespace: str, name: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        """The CIDRs for a pod, in order; of families without pools, the podCIDRs. Raises NoPool."""

    async def wait_for_address(self, namespace: str, name: str, asked: tuple[str, ...]) -> bool:
        """Have a further block claimed, or an address borrowed; false: there is none, or it takes too long."""

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

    def claim(self, cidr: str, node: str = "") -> None:
        """A block is a node's from now on."""
        node = node or self.node
        self.blocks.append(IPAMBlock(name=cidr, cidr=cidr, node=node, node_uid=f"uid-{node}"))
        self.tell()

    def tell(self) -> None:
        """Tell what there is."""
        self.told(Pooled.of(self.node, self.pools, self.blocks))

    def cidrs_for(self, namespace: str, name: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        subject = Subject(self.labels, self.namespaces.get(namespace, {}), asked)
        found = eligible(self.pools, subject)
        if empty := [family for family, pools in found.items() if not pools]:
            raise NoPool(f"no IPPool of IPv{int(empty[0])} is for pod {namespace}/{name}")
        return cidrs_of(found, [block for block in self.blocks if block.node == self.node], self.pod_cidrs)

    async def wait_for_address(self, namespace: str, name: str, asked: tuple[str, ...]) -> bool:
        if not self.free:
            return False
        self.claim(self.free.pop(0))
        return True

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
        claims: Claims | None = None,
        *,
        foreign: bool = False,
    ) -> None:
        """``namespaces``: the store's. ``foreign``: Calico's annotations count where there is none of ours."""
        self._facts = facts
        self._namespaces = namespaces or {}
        self._claims = claims
        self._foreign = foreign

    def asked(self, namespace: str, name: str) -> Asked:
        """See :meth:`felix_py.cni.network.Network.asked`."""
        pod, whole = self._facts.pod((namespace, name)), self._namespaces.get(("", namespace))
        of_pod, of_namespace = pod.annotations if pod else (), whole.annotations if whole else ()
        return asked(of_pod, of_namespace, foreign=self._foreign)

    def cidrs_for(self, namespace: str, name: str, pools: tuple[str, ...]) -> tuple[str, ...]:
        """See :meth:`felix_py.cni.network.Network.cidrs_for`."""
        if not self._facts.pools_known:
            raise NetworkError(NOT_KNOWN)
        if self._claims is None or not self._facts.pooled.families:
            if pools:
                raise NoPool(f"pod {namespace}/{name} asks for IPPool {pools[0]}, and there is none for pods")
            return self._facts.pod_cidrs
        return self._claims.cidrs_for(namespace, name, pools)

    async def cidrs_with(self, address: str) -> tuple[str, ...]:
        """See :meth:`felix_py.cni.network.Network.cidrs_with`."""
        family = Family.V6 if ":" in address else Family.V4
        if family not in self._facts.pooled.families or self._claims is None:
            return ()
        if not (pool := self._facts.pooled.pool_with(address)):
            raise AddressUnavailable(f"{address} is in no IPPool for pods")
        if pool.disabled:
            raise AddressUnavailable(f"{address} is in IPPool {pool.name}, which is disabled")
        if cidr := self._facts.pooled.block_of(address):
            return (cidr,)
        node, block = self._facts.pooled.owner_of(address)
        if not node and await self._claims.claim_with(address):
            return (self._facts.pooled.block_of(address),)
        node, block = self._facts.pooled.owner_of(address)
        whose = f"is in block {block} of node {node}" if node else f"of IPPool {pool.name} cannot be had now"
        raise AddressUnavailable(f"{address} {whose}: a pod of this node cannot have it")

    async def gain_addresses(self, namespace: str, name: str, pools: tuple[str, ...]) -> bool:
        """See :meth:`felix_py.cni.network.Network.gain_addresses`."""
        if self._claims is None or not self._facts.pooled.families:
            return False
        return await self._claims.wait_for_address(namespace, name, pools)
