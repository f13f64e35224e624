"""2,000 nodes and 100,000 pods: what their blocks cost the API server, in requests and in bytes.

A compact model: all agents have seen the same, so one record of all blocks serves for all of them. They decide at
the same moments, which is the worst case for meeting each other at one block.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest

from felix_py.ipam.blocks import Act, Demand, Step, Taken, View, plan, usable
from felix_py.ipam.known import leases_by_block
from felix_py.ipam.pool import Pool
from felix_py.ipam.resources import BlockAffinity, IPAMBlock, IPPool
from policy.model import Family
from tests.support.block_api import BlockApi, Refused

POOL = IPPool(name="pods", cidr="10.0.0.0/13", block_size=26)
PODS = 50


@dataclass
class Node:
    name: str
    own: dict[str, IPAMBlock] = field(default_factory=dict)
    affinities: dict[str, BlockAffinity] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)

    def view(self, taken: Taken) -> View:
        return View(
            node=self.name,
            node_uid=self.name,
            pools=(POOL,),
            own=self.own,
            taken=taken,
            affinities=self.affinities,
            demands=(Demand((POOL.name,)),),
            leases=leases_by_block({Family.V4: self.numbers}, self.own, (POOL,)),
        )

    def fill(self, taken: Taken, most: int) -> None:
        """Give addresses to some pods, out of the blocks at hand."""
        used = set(self.numbers)
        for block in map(Pool.of, [one.cidr for one in usable(self.view(taken))]):
            free = [number for number in range(block.first, block.last + 1) if number not in used]
            self.numbers += free[: min(most, PODS - len(self.numbers))]


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [2000])
def test_blocks_of_2000_nodes(count: int) -> None:
    api = BlockApi(random.Random(1))
    nodes = {f"node-{number}": Node(f"node-{number}") for number in range(count)}
    taken, seen, refused = Taken(), 0, 0
    for _round in range(40):
        acts = [(node, act) for node in nodes.values() for act in plan(node.view(taken)).acts]
        refused += sum(not done(api, act, node.name) for node, act in acts)
        seen = tell(api, seen, nodes, taken)
        for node in nodes.values():
            node.fill(taken, 10)
        if not acts and all(len(node.numbers) == PODS for node in nodes.values()):
            break
    else:
        raise AssertionError("it does not come to rest")
    everywhere = [number for node in nodes.values() for number in node.numbers]
    assert len(set(everywhere)) == count * PODS
    blocks = len(api.blocks)
    assert blocks <= 2 * count
    # Three writes a block. Where another node was quicker, one is in vain, and two are for its affinity.
    assert api.requests <= 3 * blocks + 4 * refused
    assert refused <= blocks // 4
    sent = sum(len(line(one)) for one in api.blocks)
    each = f"{sent / 1e6:.2f} MB of events in all for each agent"
    print(f"{count} nodes: {blocks} blocks, {api.requests} writes, {refused} refused; {each}")
    assert sent <= 600 * blocks


def done(api: BlockApi, act: Act, node: str) -> bool:
    assert act.step is not Step.CLOSE
    try:
        api.carry_out(act, node, node)
    except Refused:
        return False
    return True


def tell(api: BlockApi, seen: int, nodes: dict[str, Node], taken: Taken) -> int:
    for (kind, name), obj in api.log[seen:]:
        if isinstance(obj, IPAMBlock):
            if obj.cidr not in taken:
                taken.add(obj.cidr)
            nodes[obj.node].own[obj.cidr] = obj
        elif isinstance(obj, BlockAffinity):
            nodes[obj.node].affinities[obj.cidr] = obj
        else:
            assert kind is BlockAffinity, "no block is deleted"
            for node in nodes.values():
                node.affinities = {cidr: one for cidr, one in node.affinities.items() if one.name != name}
    return len(api.log)


def line(block: IPAMBlock) -> bytes:
    """The event of a watch by which each agent is told of a block, without managedFields."""
    metadata = {
        "name": block.name,
        "uid": "00000000-0000-0000-0000-000000000000",
        "resourceVersion": "123456789",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    spec = {"cidr": block.cidr, "node": block.node, "nodeUID": metadata["uid"]}
    head = {"apiVersion": "felixpy.io/v1alpha1", "kind": "IPAMBlock"}
    return msgspec.json.encode({"type": "ADDED", "object": {**head, "metadata": metadata, "spec": spec}})
