"""Many nodes claim, use and give back blocks, while agents crash and the API lies: no address twice, no leak.

A short form; ``make test-all`` has 50 nodes, four pools and 10,000 pods, and seeds until a minute is over.
FELIX_PY_FUZZ_SECONDS sets another time; FELIX_PY_FUZZ_SEED makes it begin where it failed.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from felix_py.ipam.blocks import REST
from felix_py.ipam.pools import NoPool
from felix_py.ipam.resources import AffinityState, AssignmentMode, IPPool
from tests.support.block_api import BlockApi
from tests.support.block_nodes import Node, World, addresses, block_of
from tests.support.thorough import ALL, FUZZ_SECONDS

NODES, PODS = (50, 10_000) if ALL else (8, 600)
SECONDS = FUZZ_SECONDS if ALL or "FELIX_PY_FUZZ_SECONDS" in os.environ else 4.0
POOLS = (
    IPPool(name="a", cidr="10.0.0.0/19" if ALL else "10.0.0.0/24", block_size=28),
    IPPool(name="b", cidr="10.1.0.0/19" if ALL else "10.1.0.0/24", block_size=29, node_selector="zone == 'z'"),
    IPPool(name="m", cidr="10.2.0.0/20", block_size=30, assignment_mode=AssignmentMode.MANUAL),
    IPPool(name="v6", cidr="fd00::/108", block_size=124),
)
OTHER_SIZES = {"a": 27, "m": 32}


@pytest.mark.timeout(SECONDS + 180)
def test_no_address_twice_and_no_leak() -> None:
    first = int(os.environ.get("FELIX_PY_FUZZ_SEED", random.randrange(2**32)))
    end = time.monotonic() + SECONDS
    for seed in itertools.count(first):
        try:
            run(random.Random(seed))
        except BaseException as error:
            error.add_note(f"FELIX_PY_FUZZ_SEED={seed} (began at {first})")
            raise
        if time.monotonic() > end:
            break


def run(rng: random.Random) -> None:
    world = World(rng, BlockApi(rng, faults=rng.choice([0.0, 0.1, 0.4])), POOLS, stale=rng.choice([0, 5, 50]))
    nodes = [Node(world, f"n{i}", {"zone": rng.choice("yz")}) for i in range(NODES)]
    for number in range(PODS):
        happen(world, rng.choice(nodes), f"p{number}")
    quiesce(world, nodes)
    everything_fits(world, nodes)
    for node in nodes:
        for pod in list(node.leases):
            node.remove(pod)
    quiesce(world, nodes)
    world.now += REST + 1
    quiesce(world, nodes)
    nothing_is_left(world, nodes)


def happen(world: World, node: Node, pod: str) -> None:
    """A pod comes, and with some luck other things do."""
    rng = world.rng
    world.now += rng.choice([0.0, 0.1, 1.0])
    with suppress(NoPool):
        node.begin(pod, rng.choice([(), (), (), ("m",), ("v6",)]))
    if rng.random() < 0.7:
        node.review()
    node.seen.catch_up(rng.choice([1, 5, 100]))
    node.finish()
    for gone in rng.sample(sorted(node.leases), min(len(node.leases), rng.choice([0, 1, 1, 3]))):
        node.remove(gone)
    world.api.settle(rng.choice([0, 1, 3]))
    what = rng.random()
    if what < 0.02:
        node.start()
    elif what < 0.025:
        node.recreate()
    elif what < 0.03 and world.api.objects:
        # Somebody deletes an affinity by hand: that is no loss.
        if world.api.affinities:
            gone_affinity = rng.choice(sorted(world.api.affinities, key=lambda it: it.name))
            world.api.delete((type(gone_affinity), gone_affinity.name))
    elif what < 0.035:
        world.now += REST + 1
    elif what < 0.04:
        world.pools = tuple(changed(rng, pool) for pool in POOLS if rng.random() < 0.9)


def changed(rng: random.Random, pool: IPPool) -> IPPool:
    if rng.random() < 0.2:
        return replace(pool, disabled=True)
    return replace(pool, block_size=rng.choice([pool.block_size, OTHER_SIZES.get(pool.name, pool.block_size)]))


def quiesce(world: World, nodes: list[Node]) -> None:
    """The API is well, late writes arrive, and all agents are told everything, until nothing changes."""
    world.api.faults = 0.0
    world.pools = POOLS
    quiet = 0
    for _ in range(2000):
        before = len(world.api.log)
        world.now += 6.0
        world.api.settle(1000)
        for node in nodes:
            node.finish()
            node.seen.catch_up()
            node.review()
        for node in nodes:
            node.seen.catch_up()
        quiet = quiet + 1 if len(world.api.log) == before else 0
        if quiet == 3:
            return
    raise AssertionError("it never ends")


def everything_fits(world: World, nodes: list[Node]) -> None:
    """Each lease lies in a block that its node has, blocks and affinities match, and no two blocks overlap."""
    api = world.api
    assert {one.state for one in api.affinities} <= {AffinityState.CONFIRMED}
    assert {(one.node, one.cidr) for one in api.affinities} == {(one.node, one.cidr) for one in api.blocks}
    for node in nodes:
        mine = [one.cidr for one in api.blocks if one.node == node.name]
        for address in addresses(node):
            assert any(block_of(address, cidr) for cidr in mine), (node.name, address)
    cidrs = sorted(one.cidr for one in api.blocks)
    assert not [one for one in api.blocks if nodes[0].seen.known.taken.overlapping(one.cidr, but=1)], cidrs


def nothing_is_left(world: World, nodes: list[Node]) -> None:
    """Nobody asked for addresses lately: nobody keeps a block."""
    assert not world.holders
    assert world.api.blocks == []
    assert world.api.affinities == []
