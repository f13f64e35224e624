"""A node moves from podCIDRs to a pool, to another pool and back, while its pods run: the whole agent, a real
sidecar, ExaBGP and BIRD, real packets."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from felix_py.cni.errors import Code
from felix_py.records import Backend
from lab.runtime import PluginError
from policy.model import Family, Packet, Protocol
from tests.support.bird import Bird
from tests.support.fakeapi import IP_POOLS
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import CIDRS, GATEWAY, NODE, LiveNode
from tests.support.peered_node import announced, peered_node, start
from tests.support.pool_api import PoolApi
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns"), pytest.mark.timeout(600)]

V4, V6 = Family
V6_CIDR = CIDRS[V6]

PATIENT = ("--cni-timeout", "30")

_SERVE = f"""
import socket
server = socket.create_server(("{GATEWAY[V4]}", 9000))
print("listening", flush=True)
print(server.accept()[1][0], flush=True)
"""
_CONNECT = f"import socket; socket.create_connection(('{GATEWAY[V4]}', 9000), 60)"


@dataclass
class Rack:
    node: LiveNode
    api: PoolApi
    tor: Bird

    def until_announced(self, *prefixes: str) -> None:
        """The router has these of the node, and the podCIDR of IPv6, which has no pool."""
        wanted = {V6_CIDR, *prefixes}
        with suppress(AssertionError):
            eventually(lambda: self.announced() == wanted, 60)
        assert self.announced() == wanted

    def announced(self) -> set[str]:
        return announced(self.tor)

    def reached(self, *names: str) -> set[str]:
        """Which pods answer the router over IPv4, through what it has learned, and a pod beside them."""
        addresses = {name: self.node.addresses[name][V4] for name in names}
        places = self.node.places
        tries = [(self.node.world, Packet(GATEWAY[V4], to, Protocol.TCP, 80)) for to in addresses.values()]
        between = [
            (places[name], Packet(source, to, Protocol.TCP, 80))
            for name, source in addresses.items()
            for to in addresses.values()
            if to != source
        ]
        with serve([(places[name], address, Protocol.TCP, 80) for name, address in addresses.items()]):
            answered = attempt([*tries, *between], 3)
        assert {packet for _, packet in between} <= answered
        reached = {packet.destination for _, packet in tries if packet in answered}
        return {name for name, address in addresses.items() if address in reached}

    def seen(self, name: str) -> str:
        """The source address with which a pod comes to the router."""
        server = self.node.world.popen(["python3", "-c", _SERVE], stdout=subprocess.PIPE)
        assert server.stdout is not None
        with server:
            assert server.stdout.readline().strip() == "listening"
            self.node.places[name].run("python3", "-c", _CONNECT)
            return server.stdout.readline().strip()

    def verified(self) -> str:
        """What ``felix-py verify`` finds wrong."""
        node = self.node
        argv = [str(Path(sys.executable).with_name("felix-py")), "verify", "--node-name", "n1"]
        argv += ["--kubeconfig", str(node.kubeconfig), "--state-dir", str(node.folder / "state")]
        argv += ["--agent-socket", str(node.folder / "run" / "agent.sock"), "--output", "json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def until_claimed(self, cidr: str) -> str:
        """The node's block of a pool, once it has one and knows it."""

        def found() -> str:
            known = {*self.api.blocks()} & {*self.node.status()["blocks"]}
            return next((block for block in known if is_in(block, cidr)), "")

        block = eventually(found, 60)
        assert block
        return block


def is_in(inner: str, outer: str) -> bool:
    return ipaddress.IPv4Network(inner).subnet_of(ipaddress.IPv4Network(outer))


@pytest.fixture(params=list(Backend))
def rack(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], request: pytest.FixtureRequest
) -> Iterator[Rack]:
    api = PoolApi()
    with peered_node(tmp_path, request.param, make_netns, api) as (node, tor):
        start(node, *PATIENT)
        yield Rack(node, api, tor)


def members(name: str) -> set[str]:
    """Members of an IP set."""
    return {line.split()[2] for line in run("ipset", "save", name).splitlines() if line.startswith("add ")}


def test_from_pod_cidr_to_a_pool_to_another_and_back(rack: Rack) -> None:
    node, api = rack.node, rack.api
    node.add_pod("old")
    rack.until_announced(CIDRS[V4])

    # A pool: the pod that runs keeps its address and its announcement, new ones get other addresses.
    api.add_pool("first", "10.64.0.0/24", blockSize=28, natOutgoing=True)
    first = rack.until_claimed("10.64.0.0/24")
    rack.until_announced(CIDRS[V4], first)
    node.add_pod("new")
    assert is_in(node.addresses["new"][V4], first)
    assert node.addresses["new"][V6].startswith("fd00:1::")
    assert rack.reached("old", "new") == {"old", "new"}
    assert f"blackhole {first}" in run("ip", "route", "show", "type", "blackhole")
    assert {"10.64.0.0/24", CIDRS[V4]} <= members("felix4-pool") & members("felix4-nomasq")

    eventually(lambda: f'felix_py_ipam_addresses_resting{{cidr="{first}"}}' in node.ask("/metrics")[1], 60)

    assert rack.seen("new") == NODE[V4]

    # Another one, which is not masqueraded.
    api.add_pool("first", "10.64.0.0/24", blockSize=28, natOutgoing=True, disabled=True)
    api.add_pool("second", "10.65.0.0/24", blockSize=28)
    second = rack.until_claimed("10.65.0.0/24")
    node.add_pod("newest")
    assert is_in(node.addresses["newest"][V4], second)
    rack.until_announced(CIDRS[V4], first, second)
    assert rack.reached("old", "new", "newest") == {"old", "new", "newest"}
    assert rack.seen("newest") == node.addresses["newest"][V4]
    assert rack.seen("new") == NODE[V4]

    # A restart changes nothing.
    withdrawn = rack.tor.withdrawals("node4")
    node.kill()
    start(node, *PATIENT)
    rack.until_announced(CIDRS[V4], first, second)
    assert rack.tor.withdrawals("node4") == withdrawn
    assert rack.reached("old", "new", "newest") == {"old", "new", "newest"}

    # A pool that is not announced any more.
    api.add_pool("second", "10.65.0.0/24", blockSize=28, disableBGPExport=True)
    rack.until_announced(CIDRS[V4], first)

    assert rack.verified() == ""

    # The last pod with an address of the podCIDR ends: that is withdrawn.
    node.delete_pod("old")
    rack.until_announced(first)
    eventually(lambda: f"blackhole {CIDRS[V4]}" not in run("ip", "route", "show", "type", "blackhole"))
    status = node.status()
    assert set(status["blocks"]) == {first, second}
    assert status["notices"] == []

    # Back: without pools podCIDRs count; pods keep what they have.
    for name in ("first", "second"):
        api.delete(IP_POOLS, "", name)
    eventually(lambda: CIDRS[V4] in rack.tor.routes("node4"), 60)
    node.add_pod("last")
    assert node.addresses["last"][V4].startswith("10.1.0.")
    assert rack.reached("new", "last") == {"new", "last"}


@pytest.mark.parametrize("rack", [Backend.NFT], indirect=True)
def test_what_a_pod_asks_for(rack: Rack) -> None:
    node, api = rack.node, rack.api
    api.add_pool("usual", "10.64.0.0/24", blockSize=28)
    api.add_pool("own", "10.66.0.0/24", blockSize=30, assignmentMode="Manual")
    rack.until_claimed("10.64.0.0/24")
    node.annotations = {
        "static": {"felixpy.io/ip-addresses": "10.66.0.9", "felixpy.io/mac": "02:00:00:00:00:99"},
        "choosy": {"felixpy.io/ipv4-pools": '["own"]'},
        "spoilt": {"felixpy.io/ipv4-pools": "[1]"},
        "theirs": {"felixpy.io/ip-addresses": "10.66.0.17"},
    }
    node.add_pod("static")
    assert node.addresses["static"][V4] == "10.66.0.9"
    assert "10.66.0.8/30" in api.blocks()
    assert "02:00:00:00:00:99" in node.places["static"].run("ip", "link", "show", "eth0")
    node.add_pod("choosy")
    assert node.addresses["choosy"][V4].startswith("10.66.0.")
    api.add_block("10.66.0.16/30", "n2")
    words = {
        "spoilt": (Code.INVALID_CONFIG, r"annotation felixpy.io/ipv4-pools of the pod \('\[1\]'\)"),
        "theirs": (Code.ADDRESS_UNAVAILABLE, "10.66.0.17 is in block 10.66.0.16/30 of node n2"),
    }
    for name, (code, text) in words.items():
        with pytest.raises(PluginError, match=text) as caught:
            node.add_pod(name)
        assert caught.value.code == code
    assert [notice["kind"] for notice in node.status()["notices"]] == ["pod-address"]
    assert rack.reached("static", "choosy") == {"static", "choosy"}
