"""Addresses that only the annotation of another node's pod tells, whichever comes first: pod, Node or pools.

The whole agent, real packets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.datastore.announcement_writer import ANNOTATION
from felix_py.records import Backend
from policy.model import Family, Packet, Protocol
from tests.support.fakeapi import NODES, PODS
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import GATEWAY, NODE, LiveNode
from tests.support.pool_api import PoolApi
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

REPORTED, FURTHER = "10.64.1.5", "10.64.1.6"
BLOCK = "10.64.1.0/24"


class Server(PoolApi):
    """An API server of a cluster in which n1 has the pod db, which lets in nobody but those of app=api, and n2
    the pod api."""

    def add_api(self) -> None:
        meta = {"namespace": "shop", "name": "api", "uid": "uid-api", "labels": {"app": "api"}}
        meta |= {"annotations": {ANNOTATION: f"{REPORTED},{FURTHER}"}}
        status = {"phase": "Running", "podIP": REPORTED, "podIPs": [{"ip": REPORTED}]}
        self.put(PODS, {"metadata": meta, "spec": {"nodeName": "n2"}, "status": status})

    def add_node(self, *cidrs: str) -> None:
        addresses = [{"type": "InternalIP", "address": GATEWAY[Family.V4]}]
        node = {"metadata": {"name": "n2", "uid": "uid-n2"}, "spec": {"podCIDRs": list(cidrs)}}
        self.put(NODES, {**node, "status": {"addresses": addresses}})


@pytest.fixture
def node(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[LiveNode]:
    with LiveNode(tmp_path, Backend.NFT, make_netns, Server()) as made:
        for address in (REPORTED, FURTHER):
            made.world.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
        made.world.run("ip", "route", "add", "10.0.0.0/8", "via", NODE[Family.V4])
        run("ip", "route", "add", BLOCK, "via", GATEWAY[Family.V4])
        made.allow("db", {"app": "db"}, {"app": "api"})
        yield made


def start(node: LiveNode) -> None:
    node.start("--announce-pod-ips", "--refresh-interval", "3600")
    node.ready()


def reaches(node: LiveNode) -> set[str]:
    """With which of its addresses the pod of the other node reaches db."""
    db = node.addresses["db"][Family.V4]
    with serve([(node.places["db"], db, Protocol.TCP, 80)]):
        packets = [Packet(source, db, Protocol.TCP, 80) for source in (REPORTED, FURTHER)]
        return {packet.source for packet in attempt([(node.world, packet) for packet in packets], 1)}


def api(node: LiveNode) -> Server:
    assert isinstance(node.api, Server)
    return node.api


def test_a_node_that_comes_after_its_pods(node: LiveNode) -> None:
    start(node)
    node.add_pod("db", app="db")
    api(node).add_api()
    eventually(lambda: reaches(node) == {REPORTED}, 30)
    api(node).add_node(BLOCK)
    eventually(lambda: reaches(node) == {REPORTED, FURTHER}, 30)


def test_pools_and_blocks_are_known_after_all_pods(node: LiveNode) -> None:
    """As at each start."""
    api(node).add_node()
    api(node).add_pool("p", "10.64.0.0/16", blockSize=24)
    api(node).add_block(BLOCK, "n2")
    api(node).add_api()
    start(node)
    node.add_pod("db", app="db")
    eventually(lambda: reaches(node) == {REPORTED, FURTHER}, 30)
    node.kill()
    start(node)
    assert reaches(node) == {REPORTED, FURTHER}
