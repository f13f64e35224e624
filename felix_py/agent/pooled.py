"""What IPPools and IPAMBlocks mean for one node's routes, masquerading and BGP. Pure.

The meaning of ``natOutgoing`` and ``disableBGPExport`` is Calico's: packets from a pool with natOutgoing to a
destination that is in no pool are masqueraded; prefixes of a pool with disableBGPExport are not announced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct, field

from bgp.prefixes import PrefixSet, parse, version
from felix_py.ipam.pools import pool_of
from felix_py.ipam.resources import AllowedUse, IPAMBlock, IPPool
from policy.cidr import nets, to_cidrs
from policy.model import Family, IPBlock
from policy.syntax import strictly_inside


class Pooled(Struct, frozen=True):
    """Pools, and whose their blocks are, as one node sees it; empty: there are no pools.

    ``pools`` do not overlap. ``blocks``: this node's, canonical CIDRs. ``borrowed``: addresses of other nodes'
    blocks that this node has; ``lent``: addresses of its own that others have, both as host prefixes. ``others``:
    node -> its blocks; ``loans``: borrower -> host prefixes, of all other nodes.
    """

    pools: tuple[IPPool, ...] = ()
    blocks: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    loans: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, here: str, pools: Iterable[IPPool], blocks: Iterable[IPAMBlock]) -> Pooled:
        """As the objects say. ``here``: the node's name."""
        of_node: dict[str, list[str]] = {here: []}
        loans: dict[str, list[str]] = {here: []}
        lent = []
        for block in sorted(blocks, key=lambda one: parse(one.cidr)):
            of_node.setdefault(block.node, []).append(block.cidr)
            for loan in block.lent:
                loans.setdefault(loan.node, []).append(loan.host)
                if block.node == here:
                    lent.append(loan.host)
        return cls(
            tuple(pools),
            tuple(of_node.pop(here)),
            tuple(loans.pop(here)),
            tuple(lent),
            {node: tuple(cidrs) for node, cidrs in of_node.items()},
            {node: tuple(hosts) for node, hosts in loans.items()},
        )

    @property
    def families(self) -> frozenset[Family]:
        """Families whose addresses come from pools. Others have the nodes' podCIDRs."""
        return frozenset(pool.family for pool in self._for_pods())

    @property
    def growing(self) -> frozenset[Family]:
        """Families of which a pool has blocks that nobody has claimed."""
        claimed = [*self.blocks, *self.blocks_of_others()]
        found = set()
        for pool in self._for_pods():
            inside = PrefixSet([pool.cidr])
            blocks = 2 ** (pool.block_size - parse(pool.cidr)[2])
            some_left = len(claimed) < blocks or sum(map(inside.covers, claimed)) < blocks
            if not pool.disabled and some_left:
                found.add(pool.family)
        return frozenset(found)

    @property
    def aggregates(self) -> tuple[str, ...]:
        """This node's blocks of more than one address. One of a single address counts while a pod has it."""
        return tuple(cidr for cidr in self.blocks if not _is_host(cidr))

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        """CIDRs of which any address may be a pod's."""
        return tuple(pool.cidr for pool in self._for_pods())

    def _for_pods(self) -> Iterator[IPPool]:
        return (pool for pool in self.pools if AllowedUse.WORKLOAD in pool.allowed_uses)

    def exported(self, prefixes: Iterable[str]) -> tuple[str, ...]:
        """Those of ``prefixes`` that are announced."""
        hidden = PrefixSet(pool.cidr for pool in self.pools if pool.disable_bgp_export)
        return tuple(prefix for prefix in prefixes if not hidden.covers(prefix))

    def not_others(self, prefixes: Iterable[str]) -> tuple[str, ...]:
        """Prefixes of this node without what others have: addresses that it has lent, and blocks out of a podCIDR
        that it has no more use for."""
        given = tuple(prefixes)
        ours = PrefixSet(given)
        theirs = [*self.lent, *filter(ours.covers, self.blocks_of_others())]
        left: list[str] = []
        for own in given:
            holes = [cidr for cidr in theirs if strictly_inside(cidr, own)]
            left += _without([own], holes) if holes else [own]
        return tuple(left)

    def blocks_of_others(self) -> Iterator[str]:
        """The blocks of all other nodes."""
        return (cidr for cidrs in self.others.values() for cidr in cidrs)

    def of_others(self) -> dict[str, tuple[str, ...]]:
        """Node -> blocks and borrowed addresses, of all other nodes."""
        names = {**self.others, **self.loans}
        return {node: (*self.others.get(node, ()), *self.loans.get(node, ())) for node in names}

    def masqueraded(self, others: Collection[str]) -> tuple[str, ...]:
        """The sources whose packets out of the cluster are masqueraded.

        ``others``: CIDRs of pods that may have addresses of no pool: of those outside all pools, all are.
        """
        if not self.pools:
            return tuple(others)
        outside = _without(others, [pool.cidr for pool in self.pools])
        return (*outside, *(pool.cidr for pool in self.pools if pool.nat_outgoing))

    def all_pools(self) -> tuple[str, ...]:
        """The CIDRs of all pools: packets to these are never masqueraded."""
        return tuple(pool.cidr for pool in self.pools)

    def block_of(self, address: str) -> str:
        """The CIDR out of which this node has an address: a block, a borrowed host prefix, or empty."""
        host = _host(address)
        if host in self.borrowed:
            return host
        if host in self.lent:
            return ""
        return next((cidr for cidr in self.blocks if PrefixSet([cidr]).covers(host)), "")

    def owner_of(self, address: str) -> tuple[str, str]:
        """(node, block) of the other node in whose block an address is, or two empty texts."""
        host = _host(address)
        for node, cidrs in self.others.items():
            for cidr in cidrs:
                if PrefixSet([cidr]).covers(host):
                    return node, cidr
        return "", ""

    def borrower_of(self, address: str) -> str:
        """The other node that has borrowed an address, or empty."""
        host = _host(address)
        return next((node for node, hosts in self.loans.items() if host in hosts), "")

    def lent_to(self) -> dict[str, str]:
        """Addresses of this node's blocks that others have -> the borrower."""
        mine = set(self.lent)
        return {
            host.partition("/")[0]: node for node, hosts in self.loans.items() for host in hosts if host in mine
        }

    def pool_with(self, address: str) -> IPPool | None:
        """The pool for pods that an address is in."""
        return pool_of(self._for_pods(), _host(address))


NO_POOLS = Pooled()


def _host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _is_host(cidr: str) -> bool:
    _, bits, length, _ = parse(cidr)
    return bits == length


def _without(cidrs: Iterable[str], excepted: Iterable[str]) -> tuple[str, ...]:
    """The addresses of ``cidrs`` that are not in ``excepted``, as CIDRs."""
    holes, found = tuple(excepted), list(cidrs)
    left: list[str] = []
    for family in Family:
        own = tuple(hole for hole in holes if version(hole) == family)
        spans = nets((IPBlock(cidr, own) for cidr in found), family)
        left += (one if "/" in one else _host(one) for one in to_cidrs(spans, family))
    return tuple(left)
