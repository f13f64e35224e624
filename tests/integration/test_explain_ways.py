"""``felix-py explain`` beside real packets that something other than iptables rules keeps away."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.records import Backend
from policy.model import Family, Protocol
from tests.support.explaining import ALLOWED, DENIED, UNKNOWN, explain, gets_through
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import GATEWAY, PolicedNode
from tests.support.traffic import serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

Make = Callable[[str], NetworkNamespace]


def test_a_packet_that_no_rule_drops_and_that_is_lost_all_the_same(tmp_path: Path, make_netns: Make) -> None:
    """The agent is stopped, so nothing mends it; explain needs none."""
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.prepare()
        web, api = node.addresses["web"], node.addresses["api"]
        spoils: list[tuple[str, str, Family, str]] = [
            (
                "sysctl -w net.ipv4.ip_forward=0",
                "sysctl -w net.ipv4.ip_forward=1",
                Family.V4,
                "nothing is forwarded",
            ),
            (
                "sysctl -w net.ipv6.conf.all.forwarding=0",
                "sysctl -w net.ipv6.conf.all.forwarding=1",
                Family.V6,
                "nothing is forwarded",
            ),
            (
                f"ip rule add from {web[Family.V4]} prohibit",
                f"ip rule del from {web[Family.V4]} prohibit",
                Family.V4,
                f"the kernel takes nothing for it from {web[Family.V4]}",
            ),
            (
                f"ip -6 rule add from {web[Family.V6]} blackhole",
                f"ip -6 rule del from {web[Family.V6]} blackhole",
                Family.V6,
                f"the kernel takes nothing for it from {web[Family.V6]}",
            ),
        ]
        for spoil, mend, family, words in spoils:
            ends = (node.places["web"], web[family]), (node.places["api"], api[family])
            asked = ("shop/web", "shop/api", "--port", "80", f"--ipv{int(family)}")
            assert (explain(node, *asked)[0], gets_through(*ends)) == (ALLOWED, True)
            run(*spoil.split())
            code, said = explain(node, *asked)
            assert (code, gets_through(*ends)) == (UNKNOWN, False), said
            assert said.startswith("MISMATCH shop/web"), said
            assert words in said
            run(*mend.split())
            assert (explain(node, *asked)[0], gets_through(*ends)) == (ALLOWED, True)
        # What policy denies is denied, and nothing disagrees with that.
        run("sysctl", "-w", "net.ipv4.ip_forward=0")
        code, said = explain(node, "shop/web", "shop/db", "--port", "80", "--ipv4")
        assert code == DENIED
        assert said.startswith("DENIED "), said


def test_a_pod_whose_interface_is_down_inside(tmp_path: Path, make_netns: Make) -> None:
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.prepare()
        web, api = ((node.places[name], node.addresses[name][Family.V4]) for name in ("web", "api"))
        node.places["api"].run("ip", "link", "set", "eth0", "down")
        for asked in (("shop/web", "shop/api"), ("shop/api", "shop/web")):
            code, said = explain(node, *asked, "--port", "80", "--ipv4")
            assert code == UNKNOWN, said
            assert "has no carrier" in said
        assert not gets_through(web, api)


def test_no_way_back(tmp_path: Path, make_netns: Make) -> None:
    """A connection needs replies: a route to another node's pod is missing, or one to a client outside."""
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.prepare()
        outside = "198.51.100.9"
        node.world.run("ip", "address", "add", f"{outside}/32", "dev", "lo")
        node.world.run("ip", "route", "add", "10.1.0.0/24", "via", "192.0.2.1")
        ends = (node.world, outside), (node.places["web"], node.addresses["web"][Family.V4])
        asked = (outside, "shop/web", "--port", "80")
        code, said = explain(node, *asked)
        assert not gets_through(*ends)
        assert code == ALLOWED  # by policy, and by this node's rules
        lost = f"{outside} (where replies go): there is no route to it"
        assert said.splitlines()[0].endswith(f"policy allows it, but on n1 {lost}"), said
        run("ip", "route", "add", f"{outside}/32", "via", GATEWAY[Family.V4])
        assert gets_through(*ends)
        assert "but" not in explain(node, *asked)[1].splitlines()[0]


@pytest.mark.skipif(not shutil.which("nft"), reason="needs nftables")
def test_rules_of_nftables_are_not_read_and_that_is_said(tmp_path: Path, make_netns: Make) -> None:
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.prepare()
        web, api = ((node.places[name], node.addresses[name][Family.V4]) for name in ("web", "api"))
        asked = ("shop/web", "shop/api", "--port", "80", "--ipv4")
        run("nft", "add table inet fence")
        run("nft", "add chain inet fence way { type filter hook forward priority 10; policy accept; }")
        code, said = explain(node, *asked)
        assert (code, gets_through(web, api), "nftables" in said) == (ALLOWED, True, False)
        run("nft", "add rule inet fence way tcp dport 80 drop")
        code, said = explain(node, *asked)
        assert (code, gets_through(web, api)) == (ALLOWED, False)
        but = "policy allows it, but on n1 rules of nftables were not looked at: inet fence way"
        assert said.splitlines()[0].endswith(but), said
        # What is dropped anyhow, and other families and hooks, are not in doubt.
        assert "nftables" not in explain(node, "shop/web", "shop/db", "--port", "80")[1]
        run("nft", "delete table inet fence")
        run("nft", "add table ip6 fence")
        run("nft", "add chain ip6 fence way { type filter hook forward priority 10; policy drop; }")
        assert "nftables" not in explain(node, *asked)[1]
        assert "ip6 fence way" in explain(node, *asked[:4], "--ipv6")[1]
        run("nft", "delete table ip6 fence")


def test_an_address_of_the_node_that_its_object_does_not_have(tmp_path: Path, make_netns: Make) -> None:
    """A node reaches its own pods, from whichever of its addresses."""
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.prepare()
        run("ip", "address", "add", "192.0.2.50/32", "dev", "lo")
        db = node.addresses["db"][Family.V4]
        with serve([(node.places["db"], db, Protocol.TCP, 80)]):
            socket.create_connection((db, 80), 10, ("192.0.2.50", 0)).close()
        code, said = explain(node, "192.0.2.50", "shop/db", "--port", "80")
        assert code == ALLOWED, said
        assert "a node always reaches its own pods" in said
        assert explain(node, "192.0.2.51", "shop/db", "--port", "80")[0] == DENIED
