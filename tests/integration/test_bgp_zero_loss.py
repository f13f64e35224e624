"""No packet between outside and a pod by two ToRs is lost, whatever happens to BGP; real BIRDs are witnesses."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.traffic import PORT, Place, Stream, Traffic
from tests.support.agent_process import POD_CIDR
from tests.support.bgp import NODE_ASN, TOR_ASN, link
from tests.support.bird import Bird
from tests.support.declared_agent import SECRET, DeclaredAgent, declared_agent
from tests.support.fakeapi import BGP_CONFIGURATIONS, BGP_FILTERS, BGP_PEERS
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

OUTSIDE, OUTSIDE_CIDR = "10.65.200.1", "10.65.200.0/24"
STREAMS = 5


def bird_config(index: int, password: str) -> str:
    """A ToR that has the other one as well, for the time in which it changes its own session."""
    return f"""
    router id 10.{9 + index}.0.2;
    log stderr all;
    protocol device {{ }}
    protocol kernel {{ ipv4 {{ import none; export all; }}; }}
    protocol static outside {{ ipv4; route {OUTSIDE_CIDR} via 10.2{index}.0.2; }}
    template bgp any {{ local as {TOR_ASN}; connect delay time 1; error wait time 1, 2; }}
    protocol bgp node from any {{
      neighbor 10.{9 + index}.0.1 as {NODE_ASN};
      debug {{ routes }};
      password "{password}";
      graceful restart on; graceful restart time 60;
      ipv4 {{ import all; export where proto = "outside"; next hop self; }};
    }}
    protocol bgp neighbour from any {{
      neighbor 10.30.0.{2 - index} as {TOR_ASN}; direct;
      ipv4 {{ import all; export where proto = "node"; next hop self; }};
    }}
    """


@dataclass
class Tor:
    """One of the two routers."""

    index: int
    bird: Bird
    folder: Path

    def configure(self, password: str) -> None:
        self.bird.write(bird_config(self.index, password))
        self.bird.birdc("configure")

    def withdrawals(self) -> list[str]:
        """Lines of its log by which a route of the node went."""
        log = (self.folder / "bird.log").read_text()
        return re.findall(rf"^.*node.ipv4 > removed .*{POD_CIDR} .*$", log, re.MULTILINE)


@dataclass
class Scene:
    """The node is the current namespace."""

    agent: DeclaredAgent
    tors: Sequence[Tor]
    streams: Sequence[Stream]
    places: Sequence[Place]

    def steady(self) -> bool:
        """Sessions with both routers are up and their routes in use here, and none is kept from before there.

        And each router has the other one's, for the time in which it has not its own.
        """
        asked = [(tor, protocol) for tor in self.tors for protocol in ("node", "neighbour")]
        routes = [tor.bird.birdc("show", "route", "protocol", protocol) for tor, protocol in asked]
        told = all(POD_CIDR in shown and "s)" not in shown for shown in routes)
        hops = run("ip", "route", "show", OUTSIDE_CIDR, "proto", "89")
        return told and all(f"10.{9 + tor.index}.0.2" in hops for tor in self.tors)

    def told(self, community: str) -> bool:
        """Both routers have the pods' prefix with this community."""
        shown = (tor.bird.birdc("show", "route", "all", POD_CIDR, "protocol", "node") for tor in self.tors)
        return all(community in one for one in shown)

    def passwords(self, *values: str) -> None:
        self.agent.secret(**{f"tor{index}": value for index, value in enumerate(values)})

    def declare(self, **spec: object) -> None:
        self.agent.declare(
            BGP_CONFIGURATIONS, "default", **{"asNumber": NODE_ASN, "nodeToNodeMeshEnabled": False, **spec}
        )

    @contextmanager
    def lossless(self) -> Iterator[Traffic]:
        """What happens meanwhile costs no packet."""
        with Traffic(self.streams, self.places) as traffic:
            yield traffic
            self.agent.until(self.steady, "as before")
            traffic.stop()
        print(traffic.report())
        assert all(stream.well for stream in self.streams), traffic.report()


def connect(tors: Sequence[NetworkNamespace], outside: NetworkNamespace) -> None:
    """Node, two routers and a machine outside, which uses both; and a cable between the routers."""
    forward = ("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
    for index, tor in enumerate(tors):
        link(tor, index)
        tor.run(*forward)
        outside.run("ip", "link", "add", f"tor{index}", "type", "veth", "peer", "name", "out", "netns", tor.name)
        for place, device, host in ((tor, "out", 1), (outside, f"tor{index}", 2)):
            place.run("ip", "address", "add", f"10.2{index}.0.{host}/24", "dev", device)
            place.run("ip", "link", "set", device, "up")
    tors[0].run("ip", "link", "add", "other", "type", "veth", "peer", "name", "other", "netns", tors[1].name)
    for index, tor in enumerate(tors):
        tor.run("ip", "address", "add", f"10.30.0.{1 + index}/24", "dev", "other")
        tor.run("ip", "link", "set", "other", "up")
    outside.run("ip", "link", "set", "lo", "up")
    outside.run("ip", "address", "add", f"{OUTSIDE}/32", "dev", "lo")
    hops = [word for index in (0, 1) for word in ("nexthop", "via", f"10.2{index}.0.1")]
    outside.run("ip", "route", "add", POD_CIDR, "src", OUTSIDE, *hops)
    outside.run("sysctl", "-qw", "net.ipv4.fib_multipath_hash_policy=1")  # by port
    run(*forward)
    run("sysctl", "-qw", "net.ipv4.fib_multipath_hash_policy=1")


@pytest.fixture
def scene(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Scene]:
    places = [make_netns(name) for name in ("tor0", "tor1", "outside", "pod")]
    *routers, outside, pod = places
    connect(routers, outside)
    tors = []
    for index, router in enumerate(routers):
        folder = tmp_path / f"bird{index}"
        tors.append(Tor(index, Bird(router, folder, bird_config(index, "first")), folder))
        tors[-1].bird.start()
    with declared_agent(tmp_path, options=["--cluster-cidr=10.65.0.0/16"]) as agent:
        where = [Place(place.name, Path(place.path)) for place in (outside, pod)]
        scene = Scene(agent, tors, [], where[1:])
        scene.declare()
        scene.passwords("first", "first")
        for index in (0, 1):
            agent.peer(index, password={"secretKeyRef": {"name": SECRET, "key": f"tor{index}"}}, filters=["all"])
        agent.declare(BGP_FILTERS, "all", exportV4=[{"action": "Accept"}])
        agent.add_pod("pod")
        agent.start()
        agent.wait_ready()
        code, result = agent.call("ADD", "pod", pod.path)
        assert code == 0, result
        address = result["ips"][0]["address"].partition("/")[0]
        scene.streams = [Stream("udp", where[0], address, PORT, "pod") for _ in range(STREAMS)]
        agent.until(scene.steady, "all is well")
        yield scene
    for tor in tors:
        tor.bird.stop()


def restarts(scene: Scene) -> None:
    scene.agent.restart()
    scene.agent.until(scene.steady, "the agent is back")
    exabgp = scene.agent.sidecar.exabgp()
    os.kill(exabgp, signal.SIGKILL)
    scene.agent.until(lambda: scene.agent.sidecar.exabgp() not in (0, exabgp), "another ExaBGP")
    scene.agent.until(lambda: all(one["established"] for one in scene.agent.status()["peers"]), "up")


def changes(scene: Scene) -> None:
    """Ten of the configuration, and edits of a filter."""
    for number in range(10):
        advertised = [{"cidr": "10.65.0.0/16", "communities": [f"{NODE_ASN}:{number}"], "med": number}]
        scene.declare(prefixAdvertisements=advertised, maxPaths=16 - number)
        if number % 2:
            scene.agent.api.delete(BGP_PEERS, "", "tor2")
        else:
            scene.agent.peer(2, peerIP="10.9.0.77")  # nobody
        scene.agent.until(lambda n=number: scene.told(f"({NODE_ASN},{n})"), "it is in force")  # type: ignore[misc]
    for number in range(3):
        add = {"addCommunity": {"value": f"{NODE_ASN}:{100 + number}"}}
        scene.agent.declare(BGP_FILTERS, "all", exportV4=[{"action": "Accept", "operations": [add]}])
        scene.agent.until(lambda n=number: scene.told(f"({NODE_ASN},{100 + n})"), "it is in force")  # type: ignore[misc]


def rotation(scene: Scene) -> None:
    """Of a password, at one router after the other. BIRD drops a session's routes for that."""
    running = scene.agent.run_dir / "bgp" / "exabgp-running.conf"
    for tor, passwords in zip(scene.tors, (("second", "first"), ("second", "second")), strict=True):
        tor.configure("second")
        scene.passwords(*passwords)
        number = passwords.count("second")
        scene.agent.until(lambda n=number: running.read_text().count('"second"') == n, "it is in force")  # type: ignore[misc]
        scene.agent.until(lambda tor=tor: tor.bird.established("node"), "up with it")  # type: ignore[misc]
        scene.agent.until(scene.steady, "as before")


@pytest.mark.parametrize("disturb", [restarts, changes])
def test_nothing_is_lost_and_nothing_is_withdrawn(scene: Scene, disturb: Callable[[Scene], None]) -> None:
    with scene.lossless():
        disturb(scene)
    assert [tor.withdrawals() for tor in scene.tors] == [[], []]


def test_a_password_is_rotated(scene: Scene) -> None:
    with scene.lossless():
        rotation(scene)
    assert all(tor.withdrawals() for tor in scene.tors), "as of itself"


@pytest.mark.heavy
def test_at_the_full_rate(scene: Scene) -> None:
    """All of it in a row at 1,000 packets a second, if the machine has nothing else to do."""
    idle = os.getloadavg()[0] < 1.5
    with scene.lossless() as traffic:
        for disturb in (restarts, changes, restarts, rotation):
            disturb(scene)
    assert traffic.rate > 950 or not idle
