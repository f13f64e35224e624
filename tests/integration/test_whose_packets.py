"""A pod's packets come from its own interface, and go to it, by no other way: whoever poses as the pod, and
whatever somebody has made of the interface."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Callable, Iterator

import pytest

from felix_py.dataplane import sysctl
from felix_py.layout import interface_name
from felix_py.records import Backend
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Family,
    NetworkPolicy,
    Packet,
    PodPeer,
    PolicyKind,
    PolicyRule,
    Port,
    Protocol,
    RuleAction,
    Tier,
)
from policy.selectors import EVERYTHING
from tests.support import forged
from tests.support.builders import labelled
from tests.support.forged import Wire, ipv4, ipv6, udp, wires
from tests.support.isolate import NetworkNamespace, run
from tests.support.policy_node import NODE, WORLD, PolicyNode
from tests.support.traffic import attempt, serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = Family.V4, Family.V6
TCP, UDP = Protocol.TCP, Protocol.UDP
PORT = 5000
SECRET = b"sent in somebody else's name"
NOT_TO_WORLD = NetworkPolicy("shop", "not-out", EVERYTHING, egress=(PolicyRule(None, (Port(TCP, 80),)),))
NOT_IN = NetworkPolicy("shop", "not-in", EVERYTHING, ingress=(PolicyRule(None, (Port(TCP, 80),)),))


@pytest.fixture(params=list(Backend), ids=str)
def node(request: pytest.FixtureRequest, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[PolicyNode]:
    sysctl.set_up_host(tuple(Family))
    # Of the host's setting and an interface's the stricter one counts; the rules must not need it.
    for name in ("all", "default"):
        sysctl.write(f"ipv4/conf/{name}/rp_filter", "0")
    node = PolicyNode(request.param, make_netns)
    node.add_pod("shop", "web", app="web")
    node.add_pod("dev", "tool", app="tool")
    node.apply()
    yield node
    node.kernel.close()


def datagram(source: str, destination: str, data: bytes) -> bytes:
    payload = udp(source, destination, PORT, data)
    if ":" in source:
        return ipv6(source, destination, payload, forged.UDP, 64)
    return ipv4(source, destination, payload)


def transparent(proxy: socket.socket) -> None:
    """Let it use addresses that are not the node's, as transparent proxies do (ip(7), IP_TRANSPARENT)."""
    level, option = (socket.IPPROTO_IPV6, 75) if proxy.family == socket.AF_INET6 else (socket.SOL_IP, 19)
    proxy.setsockopt(level, option, 1)


def mac_of(interface: str) -> str:
    mac: str = json.loads(run("ip", "-json", "link", "show", interface))[0]["address"]
    return mac


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_nobody_outside_poses_as_a_pod(node: PolicyNode, family: Family) -> None:
    """By the uplink, to another pod and to the node itself; the pod's policy would have let it."""
    web, tool = node.address("web", family), node.address("tool", family)
    outside, inside = Wire(node.world, towards=mac_of("up0")), Wire(node.places["tool"])
    kind = socket.AF_INET6 if family is V6 else socket.AF_INET
    with wires(outside, inside), socket.socket(kind, socket.SOCK_DGRAM) as on_the_node:
        on_the_node.bind((NODE[family], PORT))
        on_the_node.settimeout(10)
        for destination in (tool, NODE[family]):
            outside.send(datagram(web, destination, SECRET))
            outside.send(datagram(WORLD[family], destination, b"the world's own"))
        assert not [packet for packet in inside.until(b"the world's own") if SECRET in packet]
        assert on_the_node.recv(100) == b"the world's own"
        # What is no pod's here passes: the rule asks for this node's pods only.
        neighbour = "10.1.0.200" if family is V4 else "fd00:1::200"
        outside.send(datagram(neighbour, NODE[family], b"of nobody here"))
        assert on_the_node.recv(100) == b"of nobody here"


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_nor_does_anybody_by_loopback(node: PolicyNode, family: Family) -> None:
    web = node.address("web", family)
    kind = socket.AF_INET6 if family is V6 else socket.AF_INET
    sysctl.write("ipv4/conf/lo/accept_local", "1")
    with socket.socket(kind, socket.SOCK_DGRAM) as on_the_node:
        on_the_node.bind((NODE[family], PORT))
        on_the_node.settimeout(10)
        with socket.socket(kind, socket.SOCK_DGRAM) as proxy:
            transparent(proxy)
            proxy.bind((web, 4001))
            proxy.sendto(SECRET, (NODE[family], PORT))
        with socket.socket(kind, socket.SOCK_DGRAM) as own:
            own.sendto(b"the node's own", (NODE[family], PORT))
        assert on_the_node.recv(100) == b"the node's own"


@pytest.mark.parametrize("how", ["renamed", "in a bridge"])
def test_an_interface_that_is_not_what_it_was_is_shut_by_the_rules_alone(node: PolicyNode, how: str) -> None:
    """Nobody has mended anything yet; neither egress nor ingress policy may be lost meanwhile."""
    node.apply_policy(NOT_TO_WORLD)
    node.apply_policy(NOT_IN)
    name = interface_name("web", "eth0")
    web, tool = node.places["web"], node.places["tool"]
    tries = []
    for family in Family:
        own, other = node.address("web", family), node.address("tool", family)
        for port in (80, 81):
            tries += [
                (web, Packet(own, WORLD[family], TCP, port)),
                (web, Packet(own, other, TCP, port)),
                (node.world, Packet(WORLD[family], own, TCP, port)),
                (tool, Packet(other, own, TCP, port)),
            ]
    places = [
        (place, a, TCP, port)
        for place, ends in (
            (web, node.pods["web"].addresses),
            (tool, node.pods["tool"].addresses),
            (node.world, tuple(WORLD.values())),
        )
        for a in ends
        for port in (80, 81)
    ]
    with serve(places):
        assert attempt(tries, 5) == {packet for _, packet in tries if packet.port == 80}
        if how == "renamed":
            run("ip", "link", "set", name, "name", "pod0")
        else:
            run("ip", "link", "add", "br0", "type", "bridge")
            sysctl.write("ipv4/conf/br0/rp_filter", "0")
            run("ip", "link", "set", "br0", "up")
            run("ip", "link", "set", name, "master", "br0")
            # As somebody would who believes that a bridge is what pods need.
            for family in Family:
                own = node.address("web", family)
                run("ip", "route", "replace", f"{own}/{family.bits}", "dev", "br0")
            run("ip", "-6", "addr", "add", "fe80::1/64", "dev", "br0", "nodad")
            run("ip", "link", "set", "br0", "address", "ee:ee:ee:ee:ee:ee")
        assert attempt(tries, 0.5) == set()


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_a_renamed_interface_lets_no_forged_source_out(node: PolicyNode, family: Family) -> None:
    """Its name binds it to no address; its link group does not let it out."""
    name = interface_name("web", "eth0")
    for setting in ("all", name):
        sysctl.write(f"ipv4/conf/{setting}/rp_filter", "0")
    own = node.address("web", family)
    assert attempt_udp(node, family)
    run("ip", "link", "set", name, "name", "pod0")
    web, there = Wire(node.places["web"]), Wire(node.world)
    with wires(web, there):
        for source in ("10.9.9.9", own) if family is V4 else ("fd00:9::9", own):
            web.send(datagram(source, WORLD[family], SECRET))
        run("ip", "link", "set", "pod0", "name", name)
        web.send(datagram(own, WORLD[family], b"as it was"))
        assert not [packet for packet in there.until(b"as it was") if SECRET in packet]


def attempt_udp(node: PolicyNode, family: Family) -> bool:
    """Whether the pod reaches the world, and so whether every address on the way is resolved."""
    own = node.address("web", family)
    with serve([(node.world, WORLD[family], UDP, PORT)]):
        return bool(attempt([(node.places["web"], Packet(own, WORLD[family], UDP, PORT))], 10))


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_what_the_node_sends_in_anothers_name_does_not_pass_where_policy_would_be_asked(
    node: PolicyNode, family: Family
) -> None:
    """As IPVS and transparent proxies do: out of OUTPUT, where the node's own packets are never denied."""
    node.add_pod("dev", "free", app="free")
    node.apply_policy(NOT_TO_WORLD)
    node.apply_policy(NOT_IN)
    web, tool, free, world = (node.address(pod, family) for pod in ("web", "tool", "free", "web"))
    world = WORLD[family]
    # The node finds its pods' link addresses, from its own address, whatever policy says.
    for pod in (web, tool, free):
        run("ip", f"-{family}", "neigh", "flush", "to", pod)
    heard = {
        web: Wire(node.places["web"]),
        free: Wire(node.places["free"]),
        world: Wire(node.world),
    }
    with wires(*heard.values()):
        for source, destination, passes in (
            (tool, web, False),  # ingress
            (world, web, False),
            (web, world, False),  # egress
            (web, free, False),
            (tool, free, True),
            (world, free, True),
            (tool, world, True),
        ):
            kind = socket.AF_INET6 if family is V6 else socket.AF_INET
            with socket.socket(kind, socket.SOCK_DGRAM) as proxy, socket.socket(kind, socket.SOCK_DGRAM) as own:
                transparent(proxy)
                proxy.bind((source, 0))
                with contextlib.suppress(PermissionError):  # what OUTPUT drops, send(2) says
                    proxy.sendto(SECRET, (destination, PORT))
                last = f"the node's own, {source}".encode()
                own.sendto(last, (destination, PORT))
                got = [packet for packet in heard[destination].until(last) if SECRET in packet]
                assert bool(got) is passes, (source, destination)


NFT_PROXY = """
table {ip} kube-proxy {{
  chain mark-for-masquerade {{
    meta mark set meta mark or 0x4000
  }}
  chain endpoint-web {{
    {ip} saddr {pod} jump mark-for-masquerade
    meta l4proto tcp dnat to {to}
  }}
  chain service-web {{
    numgen random mod 1 vmap {{ 0 : goto endpoint-web }}
  }}
  map service-ips {{
    type {addr} . inet_proto . inet_service : verdict
    elements = {{ {service} . tcp . 800 : goto service-web }}
  }}
  chain services {{
    {ip} daddr . meta l4proto . th dport vmap @service-ips
  }}
  chain masquerading {{
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority -100
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority 100
    jump masquerading
  }}
}}
"""
"""As kube-proxy's nftables mode writes a service with one endpoint, less what it refuses."""


@pytest.mark.skipif(not shutil.which("nft"), reason="needs nftables")
@pytest.mark.parametrize("family", list(Family), ids=str)
def test_beside_kube_proxy_in_nftables_mode_policy_judges_the_endpoint(node: PolicyNode, family: Family) -> None:
    node.add_pod("shop", "api", app="api")
    from_dev = PolicyRule((PodPeer(labelled(team="dev"), None),), (Port(TCP, 80),))
    node.apply_policy(NetworkPolicy("shop", "from-dev", EVERYTHING, ingress=(from_dev,)))
    service = "10.96.0.10" if family is V4 else "fd00:96::10"
    web, tool, api = (node.address(pod, family) for pod in ("web", "tool", "api"))
    to = f"{web}:80" if family is V4 else f"[{web}]:80"
    names = {"ip": "ip" if family is V4 else "ip6", "addr": f"ipv{family}_addr"}
    run("nft", "-f", "-", stdin=NFT_PROXY.format(service=service, pod=web, to=to, **names))
    run("ip", f"-{family}", "route", "add", f"{service}/{family.bits}", "dev", "up0")
    with serve([(node.places["web"], web, TCP, 80)]):
        tries = {
            "tool": (node.places["tool"], Packet(tool, service, TCP, 800)),
            "itself": (node.places["web"], Packet(web, service, TCP, 800)),
            "api": (node.places["api"], Packet(api, service, TCP, 800)),
            "world": (node.world, Packet(WORLD[family], service, TCP, 800)),
        }
        assert attempt([tries["tool"], tries["itself"]], 10) == {tries["tool"][1], tries["itself"][1]}
        assert attempt([tries["api"], tries["world"]], 0.5) == set()
        with socket.create_connection((service, 800), timeout=10):
            pass  # the node reaches its pods always


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_services_work_as_before(node: PolicyNode, family: Family) -> None:
    """As kube-proxy (iptables) does it: to another pod, to itself by the hairpin, from the node."""
    node.apply_policy(NOT_IN)
    tool = "iptables" if family is V4 else "ip6tables"
    service = "10.96.0.10" if family is V4 else "fd00:96::10"
    web, other = node.address("web", family), node.address("tool", family)
    nat = f"{tool}-{node.backend.value}", "-w", "-t", "nat"
    for chain in ("PREROUTING", "OUTPUT"):
        to = f"{web}:80" if family is V4 else f"[{web}]:80"
        run(*nat, "-A", chain, "-d", service, "-p", "tcp", "--dport", "800", "-j", "DNAT", "--to-destination", to)
    run(*nat, "-A", "POSTROUTING", "-s", web, "-d", web, "-j", "MASQUERADE")
    run("ip", f"-{family}", "route", "add", "unreachable", f"{service}/{family.bits}", "metric", "5000")
    with serve([(node.places["web"], web, TCP, 80)]):
        tries = [
            (node.places["web"], Packet(web, service, TCP, 800)),
            (node.places["tool"], Packet(other, service, TCP, 800)),
            (node.world, Packet(WORLD[family], service, TCP, 800)),
        ]
        assert attempt(tries, 5) == {packet for _, packet in tries}
        with socket.create_connection((web, 80), timeout=10):
            pass
        # A pod cannot keep itself away; the cluster's policies can (network-policy-api on hairpin traffic).
        node.apply_policy(NetworkPolicy("shop", "deny", EVERYTHING, ingress=(), egress=()))
        itself = tries[0]
        assert attempt([itself], 10) == {itself[1]}
        shop = PodPeer(labelled(team="shop"), None)
        deny = (ClusterRule(RuleAction.DENY, (shop,)),)
        node.apply_policy(ClusterPolicy(PolicyKind.CLUSTER, "guard", Tier.ADMIN, 1, shop, ingress=deny))
        assert attempt([itself], 0.5) == set()
        with node.places["web"].enter(), socket.create_connection((web, 80), timeout=10):
            pass  # by its own address it never leaves the pod
