"""A whole agent with pods, and IPPools and blocks that a server refuses, or somebody edits or deletes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.runtime import PluginError
from policy.model import Family
from tests.support import faults
from tests.support.fakeapi import BLOCK_AFFINITIES, DEFINITIONS, IP_POOLS, IP_RESERVATIONS, IPAM_BLOCKS
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import LiveNode
from tests.support.pool_api import PoolApi
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = Family
POOL = "10.64.0.0/24"


@dataclass
class Rig:
    node: LiveNode
    api: PoolApi

    def with_a_pool(self) -> str:
        """The agent runs, there is a pool, and the node has a block of it, which is returned."""
        self.node.start()
        self.node.ready()
        self.api.add_pool("pods", POOL, blockSize=28)
        return eventually(lambda: next(iter(self.blocks()), ""), 30)

    def blocks(self) -> list[str]:
        """Those that the agent says it has."""
        found: list[str] = self.node.status()["blocks"]
        return found


@pytest.fixture
def rig(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Rig]:
    api = PoolApi()
    with LiveNode(tmp_path, None, make_netns, api) as node:
        yield Rig(node, api)


@pytest.mark.parametrize(
    ("code", "path"),
    [
        (403, IP_POOLS),
        (404, IP_RESERVATIONS),
        (403, IPAM_BLOCKS),
        (404, BLOCK_AFFINITIES),
        pytest.param(404, IP_POOLS, marks=pytest.mark.heavy),
        pytest.param(403, IP_RESERVATIONS, marks=pytest.mark.heavy),
        pytest.param(404, IPAM_BLOCKS, marks=pytest.mark.heavy),
        pytest.param(403, BLOCK_AFFINITIES, marks=pytest.mark.heavy),
    ],
)
def test_an_agent_that_starts_while_pools_are_refused_for_a_moment(rig: Rig, path: str, code: int) -> None:
    """As by a server that has started at the same time. It worked as if there were no pools: the routes of its
    blocks and their masquerading went, and pods got addresses of its podCIDR."""
    block = rig.with_a_pool()
    rig.node.add_pod("before")
    rig.node.kill()
    if code == 404:  # so it has not read its definitions, either
        rig.api.fault("*", faults.refuse(code), path=DEFINITIONS, times=20)
    rig.api.fault("*", faults.refuse(code), path=path, times=3)
    rig.node.start()
    rig.node.ready()
    assert rig.blocks() == [block]
    assert f"blackhole {block}" in run("ip", "route", "show", "type", "blackhole")
    rig.node.add_pod("after")
    assert {of[V4].startswith("10.64.0.") for of in rig.node.addresses.values()} == {True}


@pytest.mark.parametrize("path", [IP_POOLS, IPAM_BLOCKS])
def test_an_agent_that_may_not_see_pools_any_more_gives_no_pod_an_address_outside_of_them(
    rig: Rig, path: str
) -> None:
    """As by a ClusterRole of an earlier version. New pods got addresses of the podCIDR, for their lives."""
    rig.with_a_pool()
    rig.node.add_pod("before")
    rig.node.kill()
    rig.api.fault("*", faults.refuse(403, "Forbidden"), path=path, times=10_000)
    rig.node.start()
    rig.node.until_unready("IPPool pods: this node may not see")
    with pytest.raises(PluginError, match=r"IPPool pods: this node may not see .* ClusterRole"):
        rig.node.add_pod("meanwhile")
    rig.api.clear_faults()
    rig.node.ready()
    rig.node.add_pod("after")
    assert {of[V4].startswith("10.64.0.") for of in rig.node.addresses.values()} == {True}
