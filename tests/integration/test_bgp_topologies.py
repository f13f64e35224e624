"""Topologies of a data centre: what the API declares becomes sessions with real routers, and routes both ways."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bgp.model import SpeakerConfig
from bgp.resources import BGPConfiguration, BGPNode, BGPPeer
from bgp.topology import topology
from tests.support.bgp import NODE4, NODE6, TOR4, TOR6, Agent, Sidecar, agent, unnumbered
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import eventually, until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

Make = Callable[[str], NetworkNamespace]
WAIT = 60.0
V4, V6 = "10.244.1.0/24", "fd44:1::/64"
LEARNED4, LEARNED6 = "10.244.7.0/24", "fd44:7::/64"
LEARNED = {LEARNED4, LEARNED6}
NO_MESH = BGPConfiguration(name="default", as_number=65001, node_to_node_mesh_enabled=False)
TABLES = f"""
protocol device {{ }}
protocol static s4 {{ ipv4; route {LEARNED4} blackhole; }}
protocol static s6 {{ ipv6; route {LEARNED6} blackhole; }}
template bgp node {{ graceful restart on; graceful restart time 60; connect delay time 1; error wait time 1, 5; }}
"""
FOUR = "ipv4 { import all; export all; next hop self; };"
BOTH = "ipv4 { import all; export all; extended next hop on; next hop self; }; ipv6 { import all; export all; };"


def speaker(
    name: str, nodes: Collection[BGPNode], *peers: BGPPeer, default: BGPConfiguration = NO_MESH
) -> SpeakerConfig:
    found = topology(name, nodes, [default], peers, [], {})
    assert found.speaker is not None
    assert found.problems == ()
    return found.speaker


@contextlib.contextmanager
def running(*processes: Bird | Sidecar) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        yield


def session(name: str, neighbor: str, channels: str, local: int = 65000) -> str:
    """A session of BIRD. ``neighbor``: what follows the word."""
    return f"protocol bgp {name} from node {{ local as {local}; neighbor {neighbor}; {channels} }}\n"


def router(
    namespace: NetworkNamespace, folder: Path, identifier: str, *sessions: str, tables: str = TABLES
) -> Bird:
    return Bird(namespace, folder / "bird", f"router id {identifier}; {tables} {''.join(sessions)}")


def hops(node: Agent) -> dict[str, tuple[str, ...]]:
    return dict(node.speaker.routes())


NODE = BGPNode(name="node", addresses=(NODE4, NODE6))
ONE_SESSION = BGPPeer(name="tor", peer_ip=TOR6, as_number=65000, families=(4, 6))


async def test_ipv6_only_nodes(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> None:
    for command, device in ((run, "tor0"), (tor.run, "node")):
        command("ip", "-4", "address", "flush", "dev", device)
    bird = router(tor, tmp_path, "10.255.0.2", session("six", f"{NODE6} as 65001", BOTH))
    wanted = speaker("node", [BGPNode(name="node", addresses=(NODE6,))], ONE_SESSION)
    with bird:
        async with agent(sidecar.run_dir, wanted, announce={V4, V6}) as node:
            await until(lambda: hops(node) == {LEARNED4: (TOR6,), LEARNED6: (TOR6,)}, WAIT)
            await until(lambda: bird.routes("six") == {V4, V6}, WAIT)
            assert f"via {NODE6} on node" in bird.birdc("show", "route", V4), "RFC 8950"


async def test_unnumbered(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> None:
    """Nothing but link-local addresses on the link: both families by them (RFC 8950)."""
    unnumbered(tor)
    bird = router(tor, tmp_path, "10.255.0.2", session("six", "fe80::1%node as 65001", BOTH))
    peer = BGPPeer(name="tor", peer_ip="fe80::2", interface="tor0", as_number=65000, families=(4, 6))
    wanted = speaker("node", [BGPNode(name="node", addresses=("10.77.0.1", "fd77::1"))], peer)
    with bird:
        learned = {LEARNED4: ("fe80::2%tor0",), LEARNED6: ("fe80::2%tor0",)}
        async with agent(sidecar.run_dir, wanted, announce={V4, V6}) as node:
            await until(lambda: hops(node) == learned, WAIT)
            await until(lambda: bird.routes("six") == {V4, V6}, WAIT)
            for prefix in (V4, V6):
                assert "via fe80::1 on node" in bird.birdc("show", "route", prefix)
        async with agent(sidecar.run_dir, wanted, announce={V4, V6}) as node:
            # Read back from ExaBGP.
            await until(lambda: node.speaker.in_sync and hops(node) == learned, WAIT)


async def test_ipv6_prefixes_on_an_ipv4_session(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> None:
    both = f"{FOUR} ipv6 {{ import all; export all; next hop address {TOR6}; }};"
    bird = router(tor, tmp_path, TOR4, session("four", f"{NODE4} as 65001", both))
    wanted = speaker("node", [NODE], BGPPeer(name="tor", peer_ip=TOR4, as_number=65000, families=(4, 6)))
    with bird:
        async with agent(sidecar.run_dir, wanted, announce={V4, V6}) as node:
            await until(lambda: hops(node) == {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}, WAIT)
            await until(lambda: bird.routes("four") == {V4, V6}, WAIT)
            assert f"via {NODE6} on node" in bird.birdc("show", "route", V6)


async def test_multihop_to_a_router_behind_the_tor(
    tmp_path: Path, make_netns: Make, tor: NetworkNamespace, sidecar: Sidecar
) -> None:
    """Which the node reaches by ``reachableBy``; that route is the agent's, and goes with the peer."""
    far = make_netns("far")
    tor.run("ip", "link", "add", "far", "type", "veth", "peer", "name", "eth0", "netns", far.name)
    tor.run("ip", "address", "add", "10.20.0.1/24", "dev", "far")
    far.run("ip", "address", "add", "10.20.0.2/24", "dev", "eth0")
    tor.run("ip", "link", "set", "far", "up")
    far.run("ip", "link", "set", "eth0", "up")
    tor.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    far.run("ip", "route", "add", "10.9.0.0/24", "via", "10.20.0.1")
    bird = router(far, tmp_path, "10.20.0.2", session("four", f"{NODE4} as 65001", f"multihop 2; {FOUR}"))
    wanted = speaker("node", [NODE], BGPPeer(name="far", peer_ip="10.20.0.2", as_number=65000, reachable_by=TOR4))
    with bird:
        async with agent(sidecar.run_dir, wanted, announce={V4, V6}) as node:
            assert node.changes == [{"10.20.0.2/32": (TOR4,)}]
            run("ip", "route", "add", "10.20.0.2/32", "via", TOR4)  # as the dataplane does
            await until(lambda: hops(node) == {LEARNED4: ("10.20.0.2",)}, WAIT)
            await until(lambda: bird.routes("four") == {V4}, WAIT)
            node.speaker.set_config(speaker("node", [NODE]))
            await until(lambda: {"10.20.0.2/32": ()} in node.changes, WAIT)
            await until(lambda: bird.routes("four") == set(), WAIT)


async def test_dynamic_neighbors_of_the_tor(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> None:
    """The ToR knows no node by its address; and a node that is told of no ToR any more leaves no session."""
    dynamic = f'dynamic name "rack"; {FOUR}'
    bird = router(tor, tmp_path, TOR4, session("nodes", "range 10.9.0.0/24 external", dynamic))
    peer = BGPPeer(name="tor", peer_ip=TOR4, as_number=65000)
    with bird:
        async with agent(sidecar.run_dir, speaker("node", [NODE], peer), announce={V4}) as node:
            await until(lambda: hops(node) == {LEARNED4: (TOR4,)}, WAIT)
            await until(lambda: bird.routes("rack1") == {V4}, WAIT)
            node.speaker.set_config(speaker("node", [NODE]))
            await until(lambda: hops(node) == {}, WAIT)
            await until(lambda: V4 not in bird.birdc("show", "route"), WAIT)


async def test_a_family_is_added_to_one_session_and_the_other_is_not_touched(
    tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar
) -> None:
    sessions = session("six", f"{NODE6} as 65001", BOTH), session("four", f"{NODE4} as 65001", FOUR)
    bird = router(tor, tmp_path, TOR4, *sessions)
    four = BGPPeer(name="four", peer_ip=TOR4, as_number=65000)
    six = BGPPeer(name="six", peer_ip=TOR6, as_number=65000)
    with bird:
        async with agent(sidecar.run_dir, speaker("node", [NODE], four, six), announce={V4, V6}) as node:
            await until(lambda: bird.routes("four") == {V4} and bird.routes("six") == {V6}, WAIT)
            untouched = bird.written("four")
            both = BGPPeer(name="six", peer_ip=TOR6, as_number=65000, families=(4, 6))
            node.speaker.set_config(speaker("node", [NODE], four, both))
            await until(lambda: bird.routes("six") == {V4, V6}, WAIT)
            assert f"via {NODE4} on node" in bird.birdc("show", "route", "protocol", "six", V4)
            assert bird.written("four") == untouched
            await until(lambda: hops(node).get(LEARNED4) == (TOR4, TOR6), WAIT)


# --- several nodes ------------------------------------------------------------------------------------------


def segment(make_netns: Make, *names: str) -> dict[str, NetworkNamespace]:
    """Namespaces on one bridge in the current one, with addresses 10.30.0.1 and fd30::1, 2, and so on."""
    run("ip", "link", "add", "segment", "type", "bridge")
    run("ip", "link", "set", "segment", "up")
    found: dict[str, NetworkNamespace] = {}
    for host, name in enumerate(names, 1):
        found[name] = namespace = make_netns(name)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        run("ip", "link", "set", name, "master", "segment", "up")
        namespace.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
        for address in (f"10.30.0.{host}/24", f"fd30::{host}/64"):
            namespace.run("ip", "address", "add", address, "dev", "eth0")
        namespace.run("ip", "link", "set", "eth0", "up")
    eventually(
        lambda: all("LOWER_UP" in each.run("ip", "link", "show", "dev", "eth0") for each in found.values())
    )
    return found


def pods(host: int) -> set[str]:
    return {f"10.244.{10 + host}.0/24", f"fd44:{10 + host}::/64"}


class Nodes:
    """Several nodes of a cluster, each with a sidecar in its own namespace and an agent."""

    def __init__(self, folder: Path, namespaces: dict[str, NetworkNamespace], nodes: list[BGPNode]) -> None:
        self.nodes = nodes
        self.sidecars = {node.name: Sidecar(folder / node.name / "run", namespaces[node.name]) for node in nodes}

    @contextlib.asynccontextmanager
    async def agents(self, *peers: BGPPeer, default: BGPConfiguration) -> AsyncIterator[dict[str, Agent]]:
        async with AsyncExitStack() as stack:
            yield {
                node.name: await stack.enter_async_context(
                    agent(
                        self.sidecars[node.name].run_dir,
                        speaker(node.name, self.nodes, *peers, default=default),
                        announce=pods(host),
                    )
                )
                for host, node in enumerate(self.nodes, 1)
            }


def of_others(host: int, total: int) -> dict[str, tuple[str, ...]]:
    """What a node learns: each other node's pods, by that node."""
    found: dict[str, tuple[str, ...]] = {}
    for other in range(1, total + 1):
        if other != host:
            found |= {
                f"10.244.{10 + other}.0/24": (f"10.30.0.{other}",),
                f"fd44:{10 + other}::/64": (f"fd30::{other}",),
            }
    return found


async def test_full_mesh_of_three_nodes(tmp_path: Path, make_netns: Make) -> None:
    """iBGP, two sessions for each pair; one node's ExaBGP dies, which costs no route."""
    names = ("one", "two", "three")
    namespaces = segment(make_netns, *names)
    nodes = [BGPNode(name=n, addresses=(f"10.30.0.{i}", f"fd30::{i}")) for i, n in enumerate(names, 1)]
    cluster = Nodes(tmp_path, namespaces, nodes)

    with running(*cluster.sidecars.values()):
        async with cluster.agents(default=BGPConfiguration(name="default")) as agents:
            every = list(agents.values())

            def complete() -> bool:
                return all(hops(each) == of_others(host, 3) for host, each in enumerate(every, 1))

            await until(complete, WAIT)
            os.kill(cluster.sidecars["two"].exabgp(), signal.SIGKILL)
            await until(lambda: not agents["two"].up(), WAIT)
            assert complete()
            await until(lambda: all(each.up() for each in every), WAIT)
            assert complete()


async def test_a_route_reflector_outside(tmp_path: Path, make_netns: Make) -> None:
    names = ("one", "two", "rr")
    namespaces = segment(make_netns, *names)
    nodes = [BGPNode(name=n, addresses=(f"10.30.0.{i}", f"fd30::{i}")) for i, n in enumerate(names[:2], 1)]
    clients = [
        session(
            f"{name}{family}", f"{at} as 64512", f"rr client; ipv{family} {{ import all; export all; }};", 64512
        )
        for host, name in enumerate(names[:2], 1)
        for family, at in ((4, f"10.30.0.{host}"), (6, f"fd30::{host}"))
    ]
    reflector = router(namespaces["rr"], tmp_path, "10.30.0.3", *clients)
    cluster = Nodes(tmp_path, namespaces, nodes)
    peers = [BGPPeer(name=f"rr{at[:2]}", peer_ip=at, as_number=64512) for at in ("10.30.0.3", "fd30::3")]
    default = BGPConfiguration(name="default", node_to_node_mesh_enabled=False)

    with running(reflector, *cluster.sidecars.values()):
        async with cluster.agents(*peers, default=default) as agents:
            outside = {LEARNED4: ("10.30.0.3",), LEARNED6: ("fd30::3",)}
            await until(lambda: hops(agents["one"]) == of_others(1, 2) | outside, WAIT)
            await until(lambda: hops(agents["two"]) == of_others(2, 2) | outside, WAIT)


async def test_route_reflectors_on_nodes(tmp_path: Path, make_netns: Make) -> None:
    """Two of one cluster: clients have each other's routes from both, by the next hops of their announcers."""
    names = ("one", "two", "rr1", "rr2")
    namespaces = segment(make_netns, *names)
    nodes = [
        BGPNode(
            name=name,
            addresses=(f"10.30.0.{host}",),
            labels={"rr": ""} if name.startswith("rr") else {},
            cluster_id="244.0.0.1" if name.startswith("rr") else "",
        )
        for host, name in enumerate(names, 1)
    ]
    cluster = Nodes(tmp_path, namespaces, nodes)
    peers = (
        BGPPeer(name="clients", node_selector="!has(rr)", peer_selector="has(rr)"),
        BGPPeer(name="reflectors", node_selector="has(rr)", peer_selector="has(rr)"),
    )
    default = BGPConfiguration(name="default", node_to_node_mesh_enabled=False)

    def complete(agents: dict[str, Agent]) -> bool:
        expected = [{p: h for p, h in of_others(i, 4).items() if ":" not in p} for i in range(1, 5)]
        return [hops(each) for each in agents.values()] == expected

    with running(*cluster.sidecars.values()):
        async with cluster.agents(*peers, default=default) as agents:
            assert [len(each.speaker.peers()) for each in agents.values()] == [2, 2, 3, 3]
            await until(lambda: complete(agents), WAIT)
            cluster.sidecars["rr1"].kill()
            await until(lambda: not any(peer.established for peer in agents["rr1"].speaker.peers()), WAIT)
            assert complete({name: agents[name] for name in names}), "the other reflector has them, too"


async def test_an_as_for_each_rack(tmp_path: Path, make_netns: Make) -> None:
    """Each rack's ToR is the next hop of its node for the other rack's pods."""
    namespaces = segment(make_netns, "one", "two", "tor1", "tor2")
    nodes = [
        BGPNode(name=n, addresses=(f"10.30.0.{i}",), labels={"rack": n}, as_number=65000 + i)
        for i, n in enumerate(("one", "two"), 1)
    ]

    def tor(number: int) -> Bird:
        other, asn = 3 - number, 65100 + number
        return router(
            namespaces[f"tor{number}"],
            tmp_path / f"tor{number}",
            f"10.30.0.{number + 2}",
            session("rack", f"10.30.0.{number} as {65000 + number}", FOUR, asn),
            session("spine", f"10.30.0.{other + 2} as {65100 + other}", FOUR, asn),
            tables="protocol device { } template bgp node { connect delay time 1; }",
        )

    peers = [
        BGPPeer(name=f"rack-{n}", node_selector=f"rack == '{n}'", peer_ip=f"10.30.0.{i + 2}", as_number=65100 + i)
        for i, n in enumerate(("one", "two"), 1)
    ]
    cluster = Nodes(tmp_path, namespaces, nodes)

    with running(tor(1), tor(2), *cluster.sidecars.values()):
        async with cluster.agents(*peers, default=NO_MESH) as agents:
            await until(lambda: hops(agents["one"]) == {"10.244.12.0/24": ("10.30.0.3",)}, WAIT)
            await until(lambda: hops(agents["two"]) == {"10.244.11.0/24": ("10.30.0.4",)}, WAIT)
