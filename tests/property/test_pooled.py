"""What pools and blocks mean for routes, masquerading and BGP, against what the documents say of each address."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from functools import lru_cache

from hypothesis import given
from hypothesis import strategies as st

from bgp.prefixes import parse
from felix_py.agent.pooled import Pooled
from felix_py.desired.marks import Marks
from felix_py.desired.names import SetNames
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.ipam.resources import AllowedUse, IPAMBlock, IPPool, Loan
from felix_py.layout import ROUTE_PROTOCOL_PODS
from felix_py.records import Lease, NodeRecord, Route, RouteKind
from policy.model import Family
from tests.support.told import ToldFacts

WORLD = [str(address) for address in ipaddress.ip_network("10.0.0.0/26")]
QUARTERS = ["10.0.0.0/28", "10.0.0.16/28", "10.0.0.32/28", "10.0.0.48/28"]
HERE, OTHER = "n0", "n1"
NODE_ADDRESS = "192.0.2.1"
OUTSIDE = "203.0.113.7"


@lru_cache(maxsize=1 << 14)
def is_in(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def inside(address: str, cidrs: Iterable[str]) -> bool:
    return any(is_in(address, cidr) for cidr in cidrs)


@st.composite
def pools(draw: st.DrawFn) -> list[IPPool]:
    chosen = draw(st.lists(st.sampled_from(QUARTERS[:3]), unique=True, max_size=3))
    uses = st.sampled_from([{AllowedUse.WORKLOAD}, {AllowedUse.LOAD_BALANCER}, set(AllowedUse)])
    return [
        IPPool(
            name=f"p{number}",
            cidr=cidr,
            block_size=30,
            nat_outgoing=draw(st.booleans()),
            disable_bgp_export=draw(st.booleans()),
            allowed_uses=frozenset(draw(uses)),
            disabled=draw(st.booleans()),
        )
        for number, cidr in enumerate(chosen)
    ]


@st.composite
def blocks(draw: st.DrawFn, of: Collection[IPPool]) -> list[IPAMBlock]:
    found = []
    for pool in of:
        for block in ipaddress.ip_network(pool.cidr).subnets(new_prefix=pool.block_size):
            owner = draw(st.sampled_from([HERE, OTHER, ""]))
            if owner:
                borrower = OTHER if owner == HERE else HERE
                lent = (Loan(str(block[2]), borrower),) if draw(st.booleans()) else ()
                found.append(IPAMBlock(name=str(block), cidr=str(block), node=owner, node_uid="u", lent=lent))
    return found


def lease(number: int, address: str) -> Lease:
    return Lease(f"c{number}", "eth0", "n", "shop", f"p{number}", "", f"felix{number}", {Family.V4: address}, 1.0)


class Kernel:
    """What the planner asks for."""

    def __init__(self) -> None:
        self.planner = Planner((Family.V4,), StaticOptions(Marks.from_mask(0xFFFF0000)), {})
        self.members: dict[str, set[str]] = {}
        self.routes: dict[str, Route] = {}

    def apply(self, facts: ToldFacts) -> None:
        facts.collect(self.planner)
        for update in (self.planner.take(), self.planner.confirm()):
            for name, members in update.members.items():
                held = self.members.setdefault(name, set())
                held.update(text for text, mark in members.items() if mark is not None)
                held.difference_update(text for text, mark in members.items() if mark is None)
            for key, route in update.routes.items():
                if route is None:
                    self.routes.pop(key.destination, None)
                elif key.protocol == ROUTE_PROTOCOL_PODS:
                    self.routes[key.destination] = route

    def masquerades(self, source: str, destination: str) -> bool:
        names = SetNames.of(Family.V4)
        from_pool = inside(source, self.members.get(names.pool, ()))
        return from_pool and not inside(destination, self.members.get(names.no_masquerade, ()))

    def blackholes(self) -> set[str]:
        return {cidr for cidr, route in self.routes.items() if route.kind is RouteKind.BLACKHOLE}


@given(st.data())
def test_a_node_can_grow_while_a_block_is_nobodys(data: st.DataObject) -> None:
    declared = data.draw(pools())
    claimed = data.draw(blocks(declared))
    taken = {block.cidr for block in claimed}
    free = any(
        str(block) not in taken
        for pool in declared
        if AllowedUse.WORKLOAD in pool.allowed_uses and not pool.disabled
        for block in ipaddress.ip_network(pool.cidr).subnets(new_prefix=pool.block_size)
    )
    assert Pooled.of(HERE, declared, claimed).growing == (frozenset({Family.V4}) if free else frozenset())


@given(st.data())
def test_each_address_is_treated_as_its_pool_says(data: st.DataObject) -> None:
    facts, kernel = ToldFacts(HERE, (Family.V4,)), Kernel()
    pod_cidr = data.draw(st.sampled_from(["10.0.0.48/28", "10.0.0.0/28", "10.0.0.0/27"]))
    facts.upsert(NodeRecord(HERE, "u", (NODE_ADDRESS,), (pod_cidr,)))
    held: dict[int, Lease] = {}
    for number in range(data.draw(st.integers(1, 4))):
        declared = data.draw(pools())
        claimed = data.draw(blocks(declared))
        pooled = Pooled.of(HERE, declared, claimed)
        facts.set_pooled(pooled)
        own = [block.cidr for block in claimed if block.node == HERE]
        lent = {loan.address for block in claimed if block.node == HERE for loan in block.lent}
        borrowed = {loan.address for block in claimed if block.node == OTHER for loan in block.lent}
        mine = [a for a in WORLD if inside(a, own) and a not in lent] + sorted(borrowed) + ["10.0.0.49"]
        address = data.draw(st.sampled_from(mine))
        if number in held and data.draw(st.booleans()):
            facts.detach(held.pop(number))
        if address not in {one.addresses[Family.V4] for one in held.values()}:
            held[number] = lease(number, address)
            facts.attach(held[number])
        kernel.apply(facts)

        for_pods = [pool for pool in declared if AllowedUse.WORKLOAD in pool.allowed_uses]
        used = [one.addresses[Family.V4] for one in held.values()]
        elsewhere = {*borrowed, *(a for a in used if inside(a, own))}
        leftover = not for_pods or any(inside(a, [pod_cidr]) for a in used if a not in elsewhere)
        # Routes: nothing to a block's free address leaves the node again.
        idle = {f"{address}/32" for address in borrowed.difference(used)}
        assert kernel.blackholes() == {*own, *idle} | ({pod_cidr} if leftover else set())
        # Announced: all that a pod has, and the node's blocks, but nothing of a pool that is not exported.
        announced = facts.announced
        assert announced is not None
        assert len(set(announced)) == len(announced)
        hidden = [pool.cidr for pool in declared if pool.disable_bgp_export]
        for a in WORLD:
            is_mine = inside(a, own) or a in used or (leftover and inside(a, [pod_cidr]))
            if not inside(a, hidden):
                assert inside(a, announced) == is_mine, a
            elif not inside(pod_cidr.partition("/")[0], hidden) and leftover and inside(a, [pod_cidr]):
                pass  # a podCIDR that is wider than the pool is announced as a whole
            else:
                assert not inside(a, [one for one in announced if one != pod_cidr]), a
        # Learned: what others have out of ours, but nothing that is ours.
        theirs = {a for a in WORLD if inside(a, [b.cidr for b in claimed if b.node == OTHER])} - borrowed
        for a in WORLD:
            never = inside(a, facts.never_learned)
            if a in lent or (a in theirs and a not in used):
                assert not never, a
            elif a in used or inside(a, own):
                assert never, a
        # Masqueraded: natOutgoing of the pool of the source; where there is none, as the setting says.
        pods = {pod_cidr, *(pool.cidr for pool in for_pods)}
        for source in [*used, "10.0.0.1", "10.0.0.20", "10.0.0.40", "10.0.0.60"]:
            pool = next((pool for pool in declared if inside(source, [pool.cidr])), None)
            asks = pool.nat_outgoing if pool else inside(source, [*pods, *(facts.own_prefixes or ())])
            assert kernel.masquerades(source, OUTSIDE) == asks, source
            for destination in [NODE_ADDRESS, *used, *(pool.cidr.partition("/")[0] for pool in declared)]:
                assert not kernel.masquerades(source, destination)


def test_what_a_node_with_many_blocks_holds_is_small() -> None:
    world = list(ipaddress.ip_network("10.128.0.0/16").subnets(new_prefix=26))
    pool = IPPool(name="p", cidr="10.128.0.0/16", block_size=26, nat_outgoing=True)
    claimed = [
        IPAMBlock(name=str(cidr), cidr=str(cidr), node=f"n{number % 100}", node_uid="u")
        for number, cidr in enumerate(world)
    ]
    pooled = Pooled.of("n7", [pool], claimed)
    assert list(pooled.blocks) == sorted(pooled.blocks, key=parse)
    assert len(pooled.blocks) == len([number for number in range(len(world)) if number % 100 == 7])
    assert pooled.masqueraded(["10.128.0.0/24", "10.9.0.0/24"]) == ("10.9.0.0/24", "10.128.0.0/16")
    assert pooled.block_of("10.128.1.200") == "10.128.1.192/26"
    assert pooled.owner_of("10.128.0.1") == ("n0", "10.128.0.0/26")
