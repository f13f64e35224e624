"""Many nodes claim, use, lend out of and give back blocks, while agents crash and the API lies: no address
twice, no leak.

Small clusters, whose blocks come and go all the time, for four seconds (``make test-all``: a minute), and one of
50 nodes, four pools and 10,000 pods. FELIX_PY_FUZZ_SECONDS sets another time; FELIX_PY_FUZZ_SEED makes it begin
where it failed.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felix_py.ipam.blocks import REST, usable
from felix_py.ipam.parse import overlap
from felix_py.ipam.resources import AffinityState, AssignmentMode, IPPool
from tests.support.block_api import BlockApi
from tests.support.block_nodes import Node, World, addresses, block_of
from tests.support.thorough import ALL, FUZZ_SECONDS, examples

SECONDS = FUZZ_SECONDS if ALL or "FELIX_PY_FUZZ_SECONDS" in os.environ else 4.0
OLD_LISTS = (0, 5, 40)
"""Changes that the first list of an agent may lag behind."""


@dataclass(frozen=True)
class Size:
    """``length``: that of the IPv4 pools. Small ones are empty and full again and again. ``tight``: one pool
    that has no block for some of the nodes; ``steps``: how far the time may go from one event to the next;
    ``rests``: how many of 200 events are a rest."""

    nodes: int
    pods: int
    length: int
    tight: bool = False
    steps: tuple[float, ...] = (0.0, 0.1, 1.0)
    rests: int = 7

    def pools(self) -> tuple[IPPool, ...]:
        if self.tight:
            return (IPPool(name="a", cidr=f"10.0.0.0/{self.length}", block_size=29),)
        return (
            IPPool(name="a", cidr=f"10.0.0.0/{self.length}", block_size=30),
            IPPool(name="b", cidr=f"10.1.0.0/{self.length}", block_size=29, node_selector="zone == 'z'"),
            IPPool(
                name="m", cidr=f"10.2.0.0/{self.length}", block_size=31, assignment_mode=AssignmentMode.MANUAL
            ),
            IPPool(name="v6", cidr="fd00::/118", block_size=126),
        )


SMALL, WHOLE = Size(3, 250, 29), Size(50, 10_000, 20)
TIGHT = Size(4, 250, 28, tight=True, steps=(0.0, 0.0, 0.1), rests=1)
OTHER_SIZES = {"a": 29, "b": 31, "m": 32}


@pytest.mark.timeout(SECONDS + 180)
def test_no_address_twice_and_no_leak() -> None:
    first = int(os.environ.get("FELIX_PY_FUZZ_SEED", random.randrange(2**32)))
    end = time.monotonic() + SECONDS
    for seed in itertools.count(first):
        try:
            run(random.Random(seed), TIGHT if seed % 2 else SMALL)
        except BaseException as error:
            error.add_note(f"FELIX_PY_FUZZ_SEED={seed} (began at {first})")
            raise
        if time.monotonic() > end:
            break


@pytest.mark.timeout(1200)
@settings(max_examples=examples(400), deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_of_blocks_that_overlap_one_is_used(seed: int) -> None:
    """A pool was made anew with another blockSize, and not all agents know that yet."""
    rng = random.Random(seed)
    pool = IPPool(name="a", cidr="10.0.0.0/30", block_size=30)
    world = World(rng, BlockApi(rng), (pool,))
    nodes = [Node(world, name, {}) for name in ("n1", "n2")]
    nodes[1].pools = (replace(pool, block_size=31),)
    for node in nodes:
        node.begin(node.name)
        node.finish()
    for _ in range(120):
        node, what = rng.choice(nodes), rng.randrange(3)
        world.now += 1.0
        if what == 0:
            node.think()
        elif what == 1:
            node.act()
        else:
            node.seen.catch_up(1)
        used = [block.cidr for one in nodes for block in usable(one.view())]
        assert not [pair for pair in itertools.combinations(used, 2) if overlap(*pair)]


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_50_nodes_and_10000_pods() -> None:
    seed = int(os.environ.get("FELIX_PY_FUZZ_SEED", random.randrange(2**32)))
    try:
        run(random.Random(seed), WHOLE)
    except BaseException as error:
        error.add_note(f"FELIX_PY_FUZZ_SEED={seed}")
        raise


def run(rng: random.Random, size: Size) -> None:
    pools = size.pools()
    api = BlockApi(rng, faults=rng.choice([0.0, 0.1, 0.4]))
    world = World(rng, api, pools, stale=rng.choice(OLD_LISTS), strict=rng.random() < 0.2)
    nodes = [Node(world, f"n{i}", {"zone": rng.choice("yz")}) for i in range(size.nodes)]
    pods = (f"p{number}" for number in range(size.pods))
    for step in itertools.count():
        world.now += rng.choice(size.steps)
        if not happen(world, rng.choice(nodes), pods, size):
            break
        if step % size.nodes == 0:
            every_lease_is_in_a_block(world, nodes)
    quiesce(world, nodes, pools)
    everything_fits(world, nodes)
    for node in nodes:
        for pod in list(node.leases):
            node.remove(pod)
    for _ in range(3):  # loans go back first, then the blocks that they were out of
        quiesce(world, nodes, pools)
        world.now += REST + 1
    nothing_is_left(world, nodes)


def happen(world: World, node: Node, pods: Iterator[str], size: Size) -> bool:
    """One thing happens on a node, or to all; whether more will."""
    rng, api = world.rng, world.api
    what = rng.randrange(200)
    if what < size.rests:
        world.now += REST + 1
    elif what < 30:
        if (pod := next(pods, None)) is None:
            return False
        node.begin(pod, rng.choice([(), (), (), ("m",), ("v6",)]))
    elif what < 60:
        node.finish()
    elif what < 100:
        node.think()
    elif what < 140:
        node.act()
    elif what < 180:
        node.catch_up(rng.choice([1, 3, 100]))
    elif what < 190:
        many = rng.choice([1, 2, 3, 100])
        for gone in rng.sample(sorted(node.leases), min(len(node.leases), many)):
            node.remove(gone)
    elif what < 194:
        api.settle(rng.choice([1, 3]))
    elif what < 196:
        node.start()
    elif what == 196:
        node.recreate()
    elif what == 197 and api.affinities:
        # Somebody deletes an affinity by hand: that is no loss.
        gone_affinity = rng.choice(sorted(api.affinities, key=lambda it: it.name))
        api.delete((type(gone_affinity), gone_affinity.name))
    elif what == 198:
        world.strict = rng.random() < 0.3
    elif what == 199:
        world.pools = tuple(changed(rng, pool) for pool in size.pools() if rng.random() < 0.9)
    return True


def changed(rng: random.Random, pool: IPPool) -> IPPool:
    if rng.random() < 0.2:
        return replace(pool, disabled=True)
    return replace(pool, block_size=rng.choice([pool.block_size, OTHER_SIZES.get(pool.name, pool.block_size)]))


def quiesce(world: World, nodes: list[Node], pools: tuple[IPPool, ...]) -> None:
    """The API is well, late writes arrive, and all agents are told everything, until nothing changes."""
    world.api.faults = 0.0
    world.pools = pools
    quiet = 0
    for _ in range(2000):
        before = len(world.api.log)
        world.now += 6.0
        world.api.settle(1000)
        for node in nodes:
            node.finish()
            node.catch_up()
            node.think()
            node.act()
        for node in nodes:
            node.catch_up()
        quiet = quiet + 1 if len(world.api.log) == before else 0
        if quiet == 3:
            return
    raise AssertionError("it never ends")


def everything_fits(world: World, nodes: list[Node]) -> None:
    """Each lease lies in a block that its node has, or is lent to it; owners and the API agree on loans; blocks
    and affinities match, and no two blocks overlap."""
    api = world.api
    closed = set[str]().union(*(node.closed for node in nodes))
    # What an old list has closed although something is lent out of it, goes once that has come back.
    lasting = {(one.node, one.cidr) for one in api.blocks if not (one.lent and one.uid in closed)}
    confirmed = {(one.node, one.cidr) for one in api.affinities if one.state is AffinityState.CONFIRMED}
    leaving = {(one.node, one.cidr) for one in api.affinities} - confirmed
    assert confirmed == lasting
    assert leaving <= {(one.node, one.cidr) for one in api.blocks} - lasting
    every_lease_is_in_a_block(world, nodes)
    lent = {(one.node, loan.uid, loan.address) for one in api.blocks for loan in one.lent}
    assert lent == {(node.name, loan.uid, loan.address) for node in nodes for loan in node.apart}
    assert not [one for one in api.blocks if one.requests]
    cidrs = sorted(one.cidr for one in api.blocks)
    assert not [one for one in api.blocks if nodes[0].seen.known.taken.overlapping(one.cidr, but=1)], cidrs


def every_lease_is_in_a_block(world: World, nodes: list[Node]) -> None:
    """That its node has, or as a loan, as the API server says: at every moment."""
    loans: dict[str, list[str]] = {}
    for loan in (loan for one in world.api.blocks for loan in one.lent):
        loans.setdefault(loan.node, []).append(loan.host)
    for node in nodes:
        mine = [*(one.cidr for one in world.api.blocks if one.node == node.name), *loans.get(node.name, ())]
        for address in addresses(node):
            assert any(block_of(address, cidr) for cidr in mine), (node.name, address)


def nothing_is_left(world: World, nodes: list[Node]) -> None:
    """Nobody asked for addresses lately: nobody keeps a block, or a loan."""
    assert not world.holders
    assert world.api.blocks == []
    assert world.api.affinities == []
    assert not [node.apart for node in nodes if node.apart]
