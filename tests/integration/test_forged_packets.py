"""What a pod can get past its policy with packets that it writes byte by byte (raw sockets): nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from felix_py.dataplane import sysctl
from felix_py.layout import GATEWAY, interface_name
from felix_py.records import Backend
from policy.model import Family, NetworkPolicy, Packet, PolicyRule, Port, Protocol
from policy.selectors import EVERYTHING
from tests.support import forged
from tests.support.forged import (
    ADVERTISE,
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    SOLICIT,
    SOLICIT_ROUTER,
    Wire,
    ipv4,
    ipv6,
    neighbour_discovery,
    udp,
    wires,
)
from tests.support.isolate import NetworkNamespace, run
from tests.support.policy_node import NODE, WORLD, PolicyNode
from tests.support.traffic import attempt, serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = Family.V4, Family.V6
SECRET = b"let nobody hear of this"
OPEN_PORT = 4242
"""The one thing that the pods may send, so that it can be known when all before it has come or gone."""

IDENTS = itertools.count(1)

ONLY = NetworkPolicy(
    "shop", "only", EVERYTHING, ingress=(), egress=(PolicyRule(None, (Port(Protocol.UDP, OPEN_PORT),)),)
)


@pytest.fixture(params=list(Backend), ids=str)
def node(request: pytest.FixtureRequest, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[PolicyNode]:
    sysctl.set_up_host(tuple(Family))
    node = PolicyNode(request.param, make_netns)
    for name in ("web", "db"):
        node.add_pod("shop", name, app=name)
    node.add_pod("dev", "tool", app="tool")
    node.apply_policy(ONLY)
    # Every address is resolved before anything is counted.
    web = node.pods["web"].addresses
    for own, there in ((web[0], WORLD[V4]), (web[1], WORLD[V6])):
        with serve([(node.world, there, Protocol.UDP, OPEN_PORT)]):
            assert attempt([(node.places["web"], Packet(own, there, Protocol.UDP, OPEN_PORT))], 10)
    yield node
    node.kernel.close()


def last_word(node: PolicyNode, wire: Wire, number: int, family: Family = V6, pod: str = "web") -> bytes:
    """Send what may pass, to the world; what was sent before it has been judged when it arrives."""
    word = b"last word %d" % number
    own, there = node.address(pod, family), WORLD[family]
    datagram = udp(own, there, OPEN_PORT, word)
    wire.send(ipv6(own, there, datagram, forged.UDP, 64) if family is V6 else ipv4(own, there, datagram))
    return word


def secrets(packets: list[bytes]) -> list[bytes]:
    return [packet for packet in packets if SECRET in packet]


@contextlib.contextmanager
def icmpv6_on_the_node() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as heard:
        heard.setblocking(False)
        yield heard


def heard_by(node_socket: socket.socket) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(node_socket.recv(1 << 16))
    return found


def test_neighbour_discovery_carries_nothing_out_of_the_link(node: PolicyNode) -> None:
    """Types 133, 135 and 136, whatever source, hop limit and extension headers.

    Not to the world, to another pod or to an address of the node.
    """
    web, there = Wire(node.places["web"]), Wire(node.world)
    other = Wire(node.places["db"])
    own = node.address("web", V6)
    numbers = itertools.count()
    with wires(web, there, other), icmpv6_on_the_node() as on_the_node:
        for destination in (WORLD[V6], node.address("db", V6), NODE[V6], "ff05::1", "ff0e::1"):
            for kind in (SOLICIT_ROUTER, SOLICIT, ADVERTISE):
                for source in (own, "2001:db8:bad::1", node.address("db", V6), "fe80::7", "::", GATEWAY[V6]):
                    message = neighbour_discovery(kind, source, destination, data=SECRET)
                    for hop_limit in (64, 255):
                        web.send(ipv6(source, destination, message, hop_limit=hop_limit))
                        for header in (HOP_BY_HOP, DESTINATION_OPTIONS):
                            extra = forged.options(ICMPV6, SECRET)
                            web.send(ipv6(source, destination, message, header, hop_limit, extra))
            word = last_word(node, web, next(numbers))
            assert secrets(there.until(word)) == []
        assert secrets(heard_by(on_the_node)) == []
        other_word = b"end of what came to db"
        node_to_db(node.address("db", V6), other_word)
        assert secrets(other.until(other_word)) == []


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_icmp_errors_about_others_connections_carry_nothing(node: PolicyNode, family: Family) -> None:
    """conntrack calls an error RELATED to the connection that it quotes, whoever sends it."""
    web, there, other = Wire(node.places["web"]), Wire(node.world), Wire(node.places["tool"])
    own, tool, world = node.address("web", family), node.address("tool", family), WORLD[family]
    with wires(web, there, other):
        word = last_word(node, other, 1, family, "tool")  # the other pod's connection with the world
        there.until(word)
        for victim, passes in ((tool, False), (own, True)):
            if victim == own:
                there.until(last_word(node, web, 2, family))
            quoted = udp(world, victim, 4000, b"reply of it", OPEN_PORT)
            if family is V6:
                body = b"\0" * 4 + ipv6(world, victim, quoted, forged.UDP, 60) + SECRET
                web.send(ipv6(own, world, forged.icmpv6(own, world, 1, body, 4)))
            else:
                rest = struct.pack("!I", 0) + ipv4(world, victim, quoted) + SECRET
                web.send(ipv4(own, world, forged.icmp(3, 3, rest), forged.ICMP))
            got = secrets(there.until(last_word(node, web, 3 + passes, family)))
            assert bool(got) is passes, victim


def node_to_db(there: str, data: bytes) -> None:
    """The node reaches its pods always."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, (there, 9))


def test_on_the_link_it_needs_the_pods_own_source_and_the_full_hop_limit(node: PolicyNode) -> None:
    own, gateway = node.address("web", V6), GATEWAY[V6]
    group = "ff02::1:ff00:1"
    web, there = Wire(node.places["web"]), Wire(node.world)
    with wires(web, there), icmpv6_on_the_node() as on_the_node:
        tries = (
            (own, gateway, SOLICIT, 255, True),
            (own, group, SOLICIT, 255, True),
            (own, "ff02::2", SOLICIT_ROUTER, 255, True),
            (own, gateway, ADVERTISE, 255, True),
            ("::", group, SOLICIT, 255, True),
            (own, gateway, SOLICIT, 254, False),
            (own, group, SOLICIT, 1, False),
            ("::", group, SOLICIT, 254, False),
            ("::", "ff02::1", SOLICIT, 255, False),
            ("::", group, ADVERTISE, 255, False),
            ("fe80::7", gateway, SOLICIT, 255, False),
            (node.address("db", V6), gateway, SOLICIT, 255, False),
            ("2001:db8:bad::1", group, SOLICIT, 255, False),
        )
        for number, (source, destination, kind, hop_limit, passes) in enumerate(tries):
            web.send(
                ipv6(
                    source,
                    destination,
                    neighbour_discovery(kind, source, destination, gateway, SECRET),
                    hop_limit=hop_limit,
                )
            )
            there.until(last_word(node, web, number))
            got = bool(secrets(heard_by(on_the_node)))
            assert got is passes, (source, destination, kind, hop_limit)


def test_forged_solicitations_do_not_fill_the_nodes_neighbour_table(node: PolicyNode) -> None:
    web, there = Wire(node.places["web"]), Wire(node.world)
    own = node.address("web", V6)
    with wires(web, there):
        for number in range(600):
            for source in (f"fe80::bad:{number:x}", f"fd00:1::bad:{number:x}", f"2001:db8:bad::{number:x}"):
                for kind, to in (
                    (SOLICIT, GATEWAY[V6]),
                    (SOLICIT, "ff02::1:ff00:1"),
                    (SOLICIT_ROUTER, "ff02::2"),
                    (ADVERTISE, GATEWAY[V6]),
                ):
                    message = neighbour_discovery(kind, source, to, source if kind == ADVERTISE else GATEWAY[V6])
                    web.send(ipv6(source, to, message))
        there.until(last_word(node, web, 1))
    entries = json.loads(run("ip", "-json", "-6", "neigh", "show", "dev", interface_name("web", "eth0")))
    told = node.places["web"].run("ip", "-json", "-6", "address", "show", "dev", "eth0", "scope", "link")
    # Of what the filter leaves out ip has empty entries.
    link_locals = {one["local"] for one in json.loads(told)[0]["addr_info"] if one}
    assert {entry["dst"] for entry in entries} <= {own, *link_locals}
    # ARP: rp_filter takes no sender that is not routed to the pod.
    with wires(web := Wire(node.places["web"], towards="ff:ff:ff:ff:ff:ff"), there := Wire(node.world)):
        mac = bytes.fromhex("020000000007")
        for number in range(1, 255):
            sender = socket.inet_aton(f"10.9.0.{number}")
            arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + sender + b"\0" * 6
            web.send(arp + socket.inet_aton(NODE[V4]), forged.ETH_P_ARP)
        with_gateway = Wire(node.places["web"])
        there.until(last_word(node, with_gateway, 2))
        with_gateway.close()
    entries = json.loads(run("ip", "-json", "-4", "neigh", "show", "dev", interface_name("web", "eth0")))
    assert {entry["dst"] for entry in entries} <= {node.address("web", V4)}


@pytest.mark.parametrize("lost", ["node", "pod"])
def test_neighbours_that_are_forgotten_are_found_again(node: PolicyNode, lost: str) -> None:
    place, own = node.places["web"], node.address("web", V6)
    if lost == "node":
        run("ip", "-6", "neigh", "flush", "dev", interface_name("web", "eth0"))
    else:
        # A permanent entry that somebody has deleted; also a guest that never had one.
        place.run("ip", "-6", "neigh", "del", GATEWAY[V6], "dev", "eth0")
    with serve([(node.world, WORLD[V6], Protocol.UDP, OPEN_PORT), (place, own, Protocol.TCP, 80)]):
        assert attempt([(place, Packet(own, WORLD[V6], Protocol.UDP, OPEN_PORT))], 10)
        with socket.create_connection((own, 80), timeout=10):
            pass


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_fragments_are_judged_as_the_whole_packet_that_they_are_of(node: PolicyNode, family: Family) -> None:
    """Later fragments have no ports: policy must not take them for anything else than their packet's."""
    place, there = node.places["web"], WORLD[family]
    with serve([(node.world, there, Protocol.UDP, port) for port in (OPEN_PORT, 4243)]):
        kind = socket.AF_INET6 if family is V6 else socket.AF_INET
        listening = Wire(node.world)
        with place.enter():
            sender = socket.socket(kind, socket.SOCK_DGRAM)
        with wires(listening), sender:
            sender.settimeout(10)
            sender.sendto(SECRET * 200, (there, 4243))
            sender.sendto(b"x" * 4000, (there, OPEN_PORT))
            assert sender.recv(1 << 16)  # the echo of what policy allows; it was sent last
            with wires(web := Wire(place)):
                word = last_word(node, web, 1, family)
                assert secrets(listening.until(word)) == []


def fragments(
    family: Family, source: str, destination: str, port: int, *, first: bool = True, last: bool = True
) -> Iterator[bytes]:
    """One of the parts of a datagram, or both; no part ever fits one of another call."""
    data, ident = udp(source, destination, port, SECRET * 8), next(IDENTS)
    cut = 64
    for wanted, offset, part, more in ((first, 0, data[:cut], True), (last, cut, data[cut:], False)):
        if not wanted:
            continue
        if family is V4:
            yield ipv4(source, destination, part, fragment=(0x2000 if more else 0) | offset // 8, ident=ident)
        else:
            extra = forged.fragment_header(forged.UDP, offset, more=more, ident=ident)
            yield ipv6(source, destination, part, FRAGMENT, 64, extra)


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_forged_fragments_carry_nothing(node: PolicyNode, family: Family) -> None:
    web, there = Wire(node.places["web"]), Wire(node.world)
    own, other = node.address("web", family), node.address("db", family)
    with wires(web, there):
        for source, (first, last) in itertools.product(
            (own, other), ((True, False), (False, True), (True, True))
        ):
            if source == own and first and last:
                continue
            for packet in fragments(family, source, WORLD[family], OPEN_PORT, first=first, last=last):
                web.send(packet)
        for packet in fragments(family, own, WORLD[family], 4243):
            web.send(packet)
        assert secrets(there.until(last_word(node, web, 1, family))) == []
        # The same way, allowed: the test can tell.
        for packet in fragments(family, own, WORLD[family], OPEN_PORT):
            web.send(packet)
        assert secrets(there.until(last_word(node, web, 2, family))) != []


def datagram(family: Family, source: str, destination: str, port: int, data: bytes, source_port: int) -> bytes:
    whole = udp(source, destination, port, data, source_port)
    return ipv6(source, destination, whole, forged.UDP, 64) if family is V6 else ipv4(source, destination, whole)


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_a_known_connection_takes_nothing_from_another_pod(node: PolicyNode, family: Family) -> None:
    """Packets of connections that are known are not looked up in the set of bound sources."""
    own, there, port = node.address("web", family), WORLD[family], 4000
    other, listening = Wire(node.places["tool"]), Wire(node.world)
    kind = socket.AF_INET6 if family is V6 else socket.AF_INET
    with node.places["web"].enter():
        mine = socket.socket(kind, socket.SOCK_DGRAM)
    with serve([(node.world, there, Protocol.UDP, OPEN_PORT)]), wires(other, listening), mine:
        mine.settimeout(10)
        mine.bind((own, port))
        mine.sendto(b"hello", (there, OPEN_PORT))
        assert mine.recv(1 << 16)
        other.send(datagram(family, own, there, OPEN_PORT, SECRET, port))  # as the pod
        other.send(datagram(family, there, own, port, SECRET, OPEN_PORT))  # as its peer
        word = last_word(node, other, 1, family, "tool")
        assert secrets(listening.until(word)) == []
        # The connection itself goes on, and the test can tell.
        mine.sendto(SECRET, (there, OPEN_PORT))
        word = last_word(node, other, 2, family, "tool")
        assert len(secrets([mine.recv(1 << 16)])) == 1
        assert secrets(listening.until(word)) != []
        mine.setblocking(False)
        with pytest.raises(BlockingIOError):
            mine.recv(1 << 16)


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_a_route_that_somebody_adds_gives_a_pod_no_other_source(node: PolicyNode, family: Family) -> None:
    """What begins a connection has the source that is bound to the interface, not one that is routed there."""
    network, stranger = ("fd99::/64", "fd99::5") if family is V6 else ("10.99.0.0/24", "10.99.0.5")
    run("ip", f"-{int(family)}", "route", "add", network, "dev", interface_name("web", "eth0"))
    web, listening = Wire(node.places["web"]), Wire(node.world)
    with socket.socket(socket.AF_INET6 if family is V6 else socket.AF_INET, socket.SOCK_DGRAM) as on_the_node:
        on_the_node.bind((NODE[family], OPEN_PORT))
        on_the_node.setblocking(False)
        with wires(web, listening):
            for destination in (WORLD[family], NODE[family]):
                web.send(datagram(family, stranger, destination, OPEN_PORT, SECRET, 4000))
            assert secrets(listening.until(last_word(node, web, 1, family))) == []
            assert heard_by(on_the_node) == []
            # The same with its own: the test can tell.
            web.send(datagram(family, node.address("web", family), NODE[family], OPEN_PORT, SECRET, 4001))
            listening.until(last_word(node, web, 2, family))
            assert heard_by(on_the_node) == [SECRET]
