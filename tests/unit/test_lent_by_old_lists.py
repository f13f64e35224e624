"""An agent starts, and its first list of blocks is of long ago: what it has lent stays the borrower's."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from felix_py.ipam.blocks import REST
from felix_py.ipam.resources import IPPool
from tests.support.block_api import BlockApi
from tests.support.block_nodes import Node, World, addresses

POOL = IPPool(name="a", cidr="10.0.0.0/29", block_size=29)
"""Of one block: whoever has it lends to all others."""


class Furthest(random.Random):
    """The greatest number each time, so that a list is as old as it may be."""

    def randint(self, _least: int, most: int) -> int:
        return most


class Scene:
    """Three nodes. ``first`` has the block first, then ``owner``, which lends addresses to ``borrower``."""

    def __init__(self) -> None:
        self.api = BlockApi(Furthest(0))
        self.world = World(self.api.rng, self.api, (POOL,), strict=False)
        self.first, self.owner, self.borrower = (Node(self.world, name, {}) for name in ("n1", "n2", "n3"))
        self.start(self.first, "p1")
        self.of_first = len(self.api.log)
        self.first.remove("p1")
        self.until(lambda: not self.api.blocks, REST + 1)
        self.start(self.owner, "p2")
        self.owner.remove("p2")
        self.of_owner = len(self.api.log)
        self.start(self.borrower, "p3")
        self.loans = tuple(self.owner.apart)
        assert addresses(self.borrower) <= {loan.address for loan in self.loans}

    def start(self, node: Node, pod: str) -> None:
        """A pod starts, and gets an address at some time."""
        node.begin(pod)
        self.until(lambda: bool(node.leases))

    def until(self, reached: Callable[[], bool], pause: float = 6.0) -> None:
        """Let things take their course."""
        for _ in range(30):
            self.world.now += pause
            for node in (self.first, self.owner, self.borrower):
                self.turn(node)
            if reached():
                return
        raise AssertionError("it never happens")

    def turn(self, node: Node) -> None:
        for pod in list(node.queue):
            node.begin(pod, node.queue[pod])
        node.finish()
        node.catch_up()
        node.think()
        node.act()

    def restart_owner(self, at: int) -> None:
        """With lists of then."""
        self.world.stale = len(self.api.log) - at
        self.owner.start()

    def still_lent(self) -> bool:
        """What the borrower's pod has."""
        (block,) = self.api.blocks
        used = addresses(self.borrower)
        return bool(used) and used <= {loan.address for loan in block.lent}


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_the_block_was_another_nodes_then(scene: Scene) -> None:
    scene.restart_owner(scene.of_first)
    scene.owner.think()
    scene.owner.act()
    assert tuple(scene.owner.apart) == scene.loans
    # It sees what has happened step by step; its pods take all that it has, and AddressTwice would be raised.
    for number in range(8):
        scene.owner.begin(f"many{number}")
    for _ in range(len(scene.api.log)):
        scene.owner.catch_up(1)
        scene.owner.think()
        scene.owner.begin("more")
        scene.owner.finish()
    assert len(scene.owner.leases) == 6 - len(scene.loans)
    assert scene.still_lent()


def test_the_block_is_closed_by_a_list_without_the_loan(scene: Scene) -> None:
    """And the node's own note of the loan is lost."""
    scene.owner.apart = []
    scene.restart_owner(scene.of_owner)
    scene.owner.think()
    scene.world.now += REST + 1
    scene.owner.think()
    scene.owner.act()
    assert scene.owner.closed
    for _ in range(10):
        scene.turn(scene.owner)
        scene.turn(scene.borrower)
        assert scene.still_lent()
    # Once the loan has come back, so does the block.
    scene.borrower.remove("p3")
    scene.until(lambda: not scene.api.blocks, REST + 1)
    assert not scene.owner.apart


def test_another_node_has_the_block_by_now(scene: Scene) -> None:
    """The owner was away until its block was freed: then what it has noted counts no more."""
    scene.borrower.remove("p3")
    for kind, name in list(scene.api.objects):
        scene.api.delete((kind, name))
    scene.start(scene.first, "p4")
    scene.until(lambda: not scene.owner.apart)
