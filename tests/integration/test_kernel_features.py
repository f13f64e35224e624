"""A kernel without some netfilter matches: it is noticed, said, and policy holds. Also on real packets."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.dataplane import probe, sysctl
from felix_py.dataplane.probe import missing_features
from felix_py.desired.features import Feature, matches
from felix_py.layout import GATEWAY, interface_name
from felix_py.records import Backend, Report
from felix_py.ruleset.model import Match, OpaqueMatch
from policy.model import Family, NetworkPolicy, Packet, PolicyRule, Port, Protocol
from policy.selectors import EVERYTHING
from tests.support import forged
from tests.support.forged import SOLICIT, Wire, ipv4, ipv6, neighbour_discovery, udp, wires
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import PolicedNode
from tests.support.policy_node import NODE, WORLD, PolicyNode
from tests.support.traffic import attempt, serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = Family.V4, Family.V6
MakeNetns = Callable[[str], NetworkNamespace]
SECRET = b"let nobody hear of this"
OPEN_PORT = 4242


# --- what is there -----------------------------------------------------------------------------------


def saved(backend: Backend) -> list[str]:
    return [run(f"{tool}-{backend}-save") for tool in ("iptables", "ip6tables")]


def test_this_kernel_has_all_of_them_and_trying_leaves_no_trace(backend: Backend) -> None:
    before = saved(backend)
    for families in ((V4,), (V6,), tuple(Family)):
        assert missing_features(families, backend) == {}
    assert saved(backend) == before


@pytest.mark.parametrize("feature", list(Feature))
def test_what_is_not_there_is_found_alone(
    backend: Backend, feature: Feature, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(one: Feature, family: Family) -> tuple[Match, ...]:
        found = matches(one, family)
        return (OpaqueMatch("nosuchmatch", ()),) if one is feature and found else found

    monkeypatch.setattr(probe, "matches", other)
    before = saved(backend)
    found = missing_features(tuple(Family), backend)
    assert found.keys() == {feature}
    assert "nosuchmatch" in found[feature]
    assert missing_features((V4,), backend).keys() == ({feature} if matches(feature, V4) else set())
    assert saved(backend) == before


def test_where_nothing_can_be_tried_nothing_counts_as_missing(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "command", lambda *_: "/bin/false")
    assert missing_features(tuple(Family), backend) == {}


# --- an agent on such a kernel -----------------------------------------------------------------------


class Lacking:
    """Tools of a kernel that takes no rule with some matches, put before the real ones."""

    def __init__(self, folder: Path, backend: Backend, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder / "tools"
        self._folder.mkdir()
        self._refused = folder / "refused"
        self._refused.touch()
        for tool in ("iptables", "ip6tables"):
            name = f"{tool}-{backend}-restore"
            path = self._folder / name
            path.write_text(
                "#!/bin/sh\n"
                f"input={self._folder}/input.$$\n"
                'cat > "$input"\n'
                f'if grep -qE -f {self._refused} "$input"; then\n'
                '  echo "no such match here" >&2; rm "$input"; exit 1\n'
                "fi\n"
                'exec < "$input"; rm "$input"\n'
                f'exec {shutil.which(name)} "$@"\n'
            )
            path.chmod(0o755)
        patch.setenv("PATH", f"{self._folder}:{os.environ['PATH']}")

    def lack(self, *features: Feature) -> None:
        self._refused.write_text("".join(f"^-[AIR] .* -m {feature} \n" for feature in features))


def verify(node: PolicedNode, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name("felix-py")), "verify", f"--kubeconfig={node.kubeconfig}"]
    argv += [f"--state-dir={node.folder}/state", "--node-name=n1", *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


def test_an_agent_without_any_of_them_gets_ready_and_says_so(
    tmp_path: Path, make_netns: MakeNetns, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = Lacking(tmp_path, backend, monkeypatch)
    with PolicedNode(tmp_path, backend, make_netns) as node:
        node.prepare()  # with all of them
        assert any("-m bpf" in text for text in saved(backend))
        tools.lack(*Feature)
        node.start()
        node.ready()
        node.settled()
        for text in saved(backend):
            assert not [feature for feature in Feature if f"-m {feature} " in text]
            assert "FELIX-ERROR" in text
        said = {notice["subject"]: notice for notice in node.status()["notices"]}
        assert said.keys() == set(Feature)
        for feature, notice in said.items():
            assert notice["kind"] == "kernel-feature"
            assert f"load the module xt_{feature} and restart the agent" in notice["text"]
            assert notice["text"] in node.log
        assert node.metric('felix_py_notices{kind="kernel-feature"}') == len(Feature)
        assert node.status()["failures"] == []
        # By what the agent says, and without one by trying.
        socket = f"--agent-socket={tmp_path}/run/agent.sock"
        for asked in ([socket], ["--agent-socket=/nowhere", f"--backend={backend}"]):
            done = verify(node, *asked)
            assert done.returncode == 0, done.stdout + done.stderr
        node.kill()
        # The modules are there: all is as it was.
        tools.lack()
        node.start()
        node.ready()
        node.settled()
        assert any("-m bpf" in text for text in saved(backend))
        assert node.status()["notices"] == []


@pytest.mark.parametrize("feature", list(Feature))
def test_one_that_is_missing_costs_no_other(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch, feature: Feature
) -> None:
    tools = Lacking(tmp_path, Backend.NFT, monkeypatch)
    tools.lack(feature)
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.start()
        node.ready()
        text = "".join(saved(Backend.NFT))
        assert {one for one in Feature if f"-m {one} " in text} == set(Feature) - {feature}
        assert [notice["subject"] for notice in node.status()["notices"]] == [feature]


# --- what packets do then ----------------------------------------------------------------------------

ONLY = NetworkPolicy(
    "shop", "only", EVERYTHING, ingress=(), egress=(PolicyRule(None, (Port(Protocol.UDP, OPEN_PORT),)),)
)


def without(backend: Backend, make: MakeNetns, *missing: Feature) -> PolicyNode:
    sysctl.set_up_host(tuple(Family))
    node = PolicyNode(backend, make, missing=missing)
    node.add_pod("shop", "web", app="web")
    node.add_pod("dev", "tool", app="tool")
    node.apply_policy(ONLY)
    return node


def word(node: PolicyNode, wire: Wire, pod: str, family: Family, data: bytes) -> bytes:
    """Send what may pass, to the world."""
    own, there = node.address(pod, family), WORLD[family]
    datagram = udp(own, there, OPEN_PORT, data)
    wire.send(ipv6(own, there, datagram, forged.UDP, 64) if family is V6 else ipv4(own, there, datagram))
    return data


def resolve(node: PolicyNode, pod: str) -> None:
    """Let the pod and the world find each other, before anything is counted."""
    for family in Family:
        own, there = node.address(pod, family), WORLD[family]
        with serve([(node.world, there, Protocol.UDP, OPEN_PORT)]):
            assert attempt([(node.places[pod], Packet(own, there, Protocol.UDP, OPEN_PORT))], 10)


def test_rules_are_found_again_as_they_were_written(backend: Backend, make_netns: MakeNetns) -> None:
    node = without(backend, make_netns, *Feature)
    try:
        assert node.kernel.differences() == []
        assert node.kernel.apply(sweep=True) == Report()
    finally:
        node.kernel.close()


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_without_bpf_no_icmp_error_of_a_pod_passes(
    backend: Backend, make_netns: MakeNetns, family: Family
) -> None:
    node = without(backend, make_netns, Feature.BPF)
    for pod in ("web", "tool"):
        resolve(node, pod)
    own, world = node.address("web", family), WORLD[family]
    web, there = Wire(node.places["web"]), Wire(node.world)
    with wires(web, there):
        there.until(word(node, web, "web", family, b"the connection"))
        for victim in (node.address("tool", family), own):
            quoted = udp(world, victim, 4000, b"reply of it", OPEN_PORT)
            if family is V6:
                body = b"\0" * 4 + ipv6(world, victim, quoted, forged.UDP, 60) + SECRET
                for kind in (1, 2, 3, 4, 100, 127):
                    error = forged.icmpv6(own, world, kind, body)
                    web.send(ipv6(own, world, error))
                    extra = forged.options(forged.ICMPV6)
                    web.send(ipv6(own, world, error, forged.DESTINATION_OPTIONS, 64, extra))
            else:
                rest = struct.pack("!I", 0) + ipv4(world, victim, quoted) + SECRET
                for kind in (3, 4, 5, 11, 12):
                    web.send(ipv4(own, world, forged.icmp(kind, 0, rest), forged.ICMP))
        heard = there.until(word(node, web, "web", family, b"last word"))
        assert not [packet for packet in heard if SECRET in packet]
    # Echo is judged by policy as ever: nobody restricts the other pod.
    node.places["tool"].run("ping", "-c", "1", "-W", "10", world)
    node.kernel.close()


def test_without_hl_neighbour_discovery_works_on_the_link_alone(backend: Backend, make_netns: MakeNetns) -> None:
    node = without(backend, make_netns, Feature.HL)
    resolve(node, "web")
    own, other, gateway = node.address("web", V6), node.address("tool", V6), GATEWAY[V6]
    web, there = Wire(node.places["web"]), Wire(node.world)
    with wires(web, there), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as on_node:
        on_node.setblocking(False)
        tries = (
            (own, gateway, 255, True),
            (own, gateway, 64, True),  # heard by whoever listens; the kernel itself passes it over
            (other, gateway, 255, False),
            ("fe80::7", gateway, 255, False),
            (own, WORLD[V6], 255, False),
            (own, NODE[V6], 64, False),
        )
        for number, (source, destination, hop_limit, passes) in enumerate(tries):
            message = neighbour_discovery(SOLICIT, source, destination, gateway, SECRET)
            web.send(ipv6(source, destination, message, hop_limit=hop_limit))
            heard = there.until(word(node, web, "web", V6, b"word %d" % number))
            assert not [packet for packet in heard if SECRET in packet]
            got = False
            try:
                while True:
                    got = SECRET in on_node.recv(1 << 16) or got
            except BlockingIOError:
                pass
            assert got is passes, (source, destination, hop_limit)
    node.kernel.close()


def test_without_addrtype_the_node_begins_nothing_to_a_restricted_pod(
    backend: Backend, make_netns: MakeNetns
) -> None:
    node = without(backend, make_netns, Feature.ADDRTYPE)
    resolve(node, "web")
    places = [
        (node.places[pod], a, Protocol.TCP, 80) for pod in ("web", "tool") for a in node.pods[pod].addresses
    ]
    with serve(places):
        for family in Family:
            with socket.create_connection((node.address("tool", family), 80), timeout=10):
                pass
            with pytest.raises(TimeoutError), socket.create_connection((node.address("web", family), 80), 2):
                pass
    # What the pod itself began with the node gets its answers.
    for kind, family in ((socket.AF_INET, V4), (socket.AF_INET6, V6)):
        with node.places["web"].enter():
            asking = socket.socket(kind, socket.SOCK_DGRAM)
        with asking, socket.socket(kind, socket.SOCK_DGRAM) as answering:
            asking.settimeout(10)
            answering.settimeout(10)
            answering.bind((NODE[family], OPEN_PORT))
            asking.sendto(b"?", (NODE[family], OPEN_PORT))
            answering.sendto(b"!", answering.recvfrom(64)[1])
            assert asking.recv(64) == b"!"
    node.kernel.close()


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_without_devgroup_a_renamed_interface_sends_nothing_as_a_pod(
    backend: Backend, make_netns: MakeNetns, family: Family
) -> None:
    node = without(backend, make_netns, Feature.DEVGROUP)
    for pod in ("web", "tool"):
        resolve(node, pod)
    host = interface_name("tool", "eth0")
    for words in (("down",), ("name", "renamed0"), ("up",)):
        run("ip", "link", "set", "renamed0" if words == ("up",) else host, *words)
    nobody = "2001:db8:bad::1" if family is V6 else "203.0.113.7"
    tool, web, there = Wire(node.places["tool"]), Wire(node.places["web"]), Wire(node.world)
    with wires(tool, web, there):
        for source in (node.address("tool", family), node.address("web", family), nobody):
            data, to = SECRET + source.encode(), WORLD[family]
            datagram = udp(source, to, OPEN_PORT, data)
            tool.send(ipv6(source, to, datagram, forged.UDP, 64) if family is V6 else ipv4(source, to, datagram))
        heard = there.until(word(node, web, "web", family, b"last word"))
    # What stays open is what the notice says: IPv6 knows no rp_filter.
    sources = [packet.partition(SECRET)[2].decode() for packet in heard if SECRET in packet]
    assert sources == ([nobody] if family is V6 else [])
    node.kernel.close()
