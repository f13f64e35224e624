"""Which CIDRs a pod gets its addresses from, by annotations, pools and blocks; and what it is told otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from felix_py.agent.addressing import Addressing, FakeClaims
from felix_py.cni.network import NetworkError
from felix_py.ipam.asked import Asked, BadAnnotation
from felix_py.ipam.pools import NoPool
from felix_py.ipam.resources import AssignmentMode, IPAMBlock, IPPool, Loan
from felix_py.ipam.store import AddressUnavailable, PoolExhausted
from felix_py.records import NodeRecord
from policy.model import Family, Namespace, Pod
from tests.support.told import ToldFacts

V4 = Family.V4
POD_CIDRS = ("10.1.0.0/24", "fd00:1::/64")


def pool(name: str, cidr: str, **more: Any) -> IPPool:
    return IPPool(name=name, cidr=cidr, block_size=124 if ":" in cidr else 28, **more)


class Rig:
    """A node with podCIDRs of both families, in a cluster with these pools; ``zone`` is its label."""

    def __init__(self, *pools: IPPool, foreign: bool = False) -> None:
        self.facts = ToldFacts("n1")
        self.facts.upsert(NodeRecord("n1", "u", ("192.0.2.1",), POD_CIDRS, (("zone", "a"),)))
        self.claims = FakeClaims("n1", (("zone", "a"),))
        self.claims.pools = list(pools)
        self.claims.pod_cidrs = POD_CIDRS
        self.claims.told = self.facts.set_pooled
        self.namespaces = {("", "shop"): Namespace("shop")}
        self.addressing = Addressing(self.facts, self.namespaces, foreign=foreign)
        self.addressing.follow(self.claims)
        self.claims.tell()

    async def cidrs(self, *addresses: str, pools: tuple[str, ...] = ()) -> tuple[str, ...]:
        return await self.addressing.cidrs_for("shop", "web", pools, addresses)


async def test_without_pools_pod_cidrs() -> None:
    rig = Rig()
    assert await rig.cidrs() == POD_CIDRS
    assert await rig.cidrs("10.1.0.7") == POD_CIDRS
    assert await rig.addressing.gain_addresses("shop", ()) == "the node has no other podCIDR"
    with pytest.raises(NoPool, match="pod shop/web asks for IPPool fast, and there is none for pods"):
        await rig.cidrs(pools=("fast",))


async def test_before_it_is_known_which_pools_there_are() -> None:
    rig = Rig()
    facts = ToldFacts("n1", pooled=None)
    rig.addressing = Addressing(facts, rig.namespaces)
    with pytest.raises(NetworkError, match="not known yet which IPPools"):
        await rig.cidrs()


async def test_while_the_blocks_of_the_first_pool_are_not_known() -> None:
    rig = Rig()
    rig.claims.late = True
    with pytest.raises(NetworkError, match="not known yet which IPPools"):
        await rig.cidrs()


async def test_no_pod_gets_an_address_outside_of_pools_that_may_not_be_seen() -> None:
    rig = Rig()
    rig.claims.hidden = ("fast", "slow")
    for addresses in ((), ("10.1.0.7",)):
        with pytest.raises(NetworkError, match=r"IPPool fast, slow: this node may not see .* ClusterRole"):
            await rig.cidrs(*addresses)
    rig.claims.hidden = ()
    assert await rig.cidrs() == POD_CIDRS


async def test_a_family_without_pools_keeps_its_pod_cidrs() -> None:
    rig = Rig(pool("a", "10.64.0.0/16"))
    with pytest.raises(PoolExhausted, match="no block of IPPool a yet"):
        await rig.cidrs()
    rig.claims.free = ["10.64.0.0/28"]
    assert not await rig.addressing.gain_addresses("shop", ())
    assert await rig.cidrs() == ("10.64.0.0/28", "fd00:1::/64")
    assert rig.facts.address_cidrs == ("10.64.0.0/28", "fd00:1::/64")
    assert await rig.addressing.gain_addresses("shop", ())


async def test_pools_that_are_not_for_this_pod() -> None:
    rig = Rig(pool("a", "10.64.0.0/16", node_selector="zone == 'b'"), pool("b", "10.65.0.0/16", disabled=True))
    rig.claims.claim("10.64.0.0/28")
    with pytest.raises(NoPool, match="no IPPool of IPv4 is for pod shop/web on this node"):
        await rig.cidrs()
    assert await rig.cidrs(pools=("a",)) == ("10.64.0.0/28", "fd00:1::/64")
    assert await rig.cidrs(pools=("10.64.0.0/16",)) == ("10.64.0.0/28", "fd00:1::/64")
    for name in ("b", "c"):
        with pytest.raises(NoPool, match=f"IPPool {name} does not exist, is disabled, or is not for pods"):
            await rig.cidrs(pools=(name,))


async def test_a_family_that_has_no_pool_for_the_pod_does_not_leave_it_with_the_other() -> None:
    rig = Rig(pool("a", "10.64.0.0/16"), pool("six", "fd64::/112", namespace_selector="team == 'x'"))
    rig.claims.claim("10.64.0.0/28")
    with pytest.raises(NoPool, match="no IPPool of IPv6"):
        await rig.cidrs()


async def test_a_static_address() -> None:
    manual = AssignmentMode.MANUAL
    rig = Rig(pool("own", "10.66.0.0/16", assignment_mode=manual), pool("off", "10.67.0.0/16", disabled=True))
    # Nobody has its block: this node claims it, and none of another pool.
    rig.claims.free = ["10.66.0.0/28", "10.66.1.0/28"]
    assert await rig.cidrs("10.66.1.7") == ("10.66.1.0/28", "fd00:1::/64")
    assert rig.claims.free == ["10.66.0.0/28"]
    assert await rig.cidrs("10.66.1.9") == ("10.66.1.0/28", "fd00:1::/64")
    rig.claims.claim("10.66.2.0/28", "n2")
    words = "10.66.2.5 is in block 10.66.2.0/28 of node n2: a pod of this node cannot have it"
    for address, reason in {
        "10.66.2.5": words,
        "10.66.3.5": "10.66.3.5 of IPPool own cannot be had now",
        "10.67.0.5": "10.67.0.5 is in IPPool off, which is disabled",
        "10.1.0.5": "10.1.0.5 is in no IPPool for pods",
    }.items():
        with pytest.raises(AddressUnavailable, match=reason):
            await rig.cidrs(address)
    # A family without pools: the podCIDR.
    rig.claims.claim("10.66.4.0/28")
    assert await rig.cidrs("fd00:1::7", "10.66.4.2") == ("fd00:1::/64", "10.66.4.0/28", "fd00:1::/64")


async def test_a_static_address_that_is_lent() -> None:
    rig = Rig(pool("own", "10.66.0.0/16"))
    for cidr, node, loan in (
        ("10.66.0.0/28", "n1", ("10.66.0.5", "n2")),
        ("10.66.1.0/28", "n2", ("10.66.1.5", "n1")),
    ):
        lent = (Loan(*loan),)
        rig.claims.blocks.append(IPAMBlock(name=cidr, cidr=cidr, node=node, node_uid="u", lent=lent))
    rig.claims.tell()
    with pytest.raises(
        AddressUnavailable, match=r"10.66.0.5 is lent to node n2: a pod of this node cannot have it"
    ):
        await rig.cidrs("10.66.0.5")
    assert (await rig.cidrs("10.66.1.5"))[0] == "10.66.1.5/32"


def test_annotations_of_the_pod_and_its_namespace() -> None:
    rig = Rig(foreign=True)
    assert rig.addressing.asked("shop", "web") == Asked()
    rig.facts.upsert(Pod("shop", "web", "u", "n1", annotations=(("cni.projectcalico.org/ipv4pools", "a"),)))
    assert rig.addressing.asked("shop", "web") == Asked({V4: ("a",)})
    rig.namespaces["", "shop"] = Namespace("shop", annotations=(("felixpy.io/ipv6-pools", "six"),))
    assert rig.addressing.asked("shop", "web") == Asked({V4: ("a",), Family.V6: ("six",)})
    rig.namespaces["", "shop"] = Namespace("shop", annotations=(("felixpy.io/ipv6-pools", "10.0.0.0/8"),))
    with pytest.raises(BadAnnotation, match="of the namespace"):
        rig.addressing.asked("shop", "web")
