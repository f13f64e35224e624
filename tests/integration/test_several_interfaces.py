"""Pods with several interfaces, and containers that are no pods, on a whole agent and with real packets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from felix_py.layout import interface_name
from felix_py.records import Backend
from lab.runtime import CNIRuntime, PluginError
from policy.model import Family, Packet, Protocol
from tests.support import faults
from tests.support.cni import addresses, host_interfaces, pod_args
from tests.support.fakeapi import PODS
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import LiveNode
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns"), pytest.mark.timeout(900)]
MakeNetns = Callable[[str], NetworkNamespace]

PODS_OF_SHOP = "/api/v1/namespaces/shop/pods"

End = tuple[str, str]
"""A pod or container, and one of its interfaces."""


class Node(LiveNode):
    """``ends``: the addresses of every interface."""

    def __init__(self, folder: Path, backend: Backend, make: MakeNetns) -> None:
        super().__init__(folder, backend, make)
        self.ends: dict[End, list[str]] = {}
        second = folder / "second.d"
        second.mkdir()
        plugins = [
            {"type": "felix-py-cni"},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.net1.log_martians": "1"}},
        ]
        network = {"cniVersion": "1.0.0", "name": "second", "plugins": plugins}
        (second / "second.conflist").write_text(json.dumps(network))
        self._second = CNIRuntime(second, [folder / "bin", Path("/usr/lib/cni")])

    def connect(self, name: str, **labels: str) -> None:
        self.add_pod(name, **labels)
        self.ends[name, "eth0"] = list(self.addresses[name].values())

    def connect_first_again(self, name: str, **labels: str) -> None:
        """In the same namespace."""
        adding = self._runtime.add(name, self.places[name].path, args=pod_args(name, "shop"))
        self.ends[name, "eth0"] = addresses(asyncio.run(adding))
        self.addresses[name] = dict(zip(Family, self.ends[name, "eth0"], strict=True))
        self.relabel(name, **labels)

    def connect_plain(self, name: str, place: NetworkNamespace) -> None:
        """A container that is no pod's."""
        self.ends[name, "eth0"] = addresses(asyncio.run(self._runtime.add(name, place.path)))

    def connect_again(self, name: str, args: dict[str, str] | None = None) -> dict[str, Any]:
        """By the second network list, as another interface."""
        args = pod_args(name, "shop") if args is None else args
        result = asyncio.run(self._second.add(name, self.places[name].path, "net1", args=args))
        self.ends[name, "net1"] = addresses(result)
        return result

    def check(self, name: str) -> None:
        asyncio.run(self._second.check(name, "net1"))

    def disconnect(self, name: str, ifname: str) -> None:
        runtime = self._runtime if ifname == "eth0" else self._second
        asyncio.run(runtime.delete(name, ifname))
        del self.ends[name, ifname]

    def reached(self, names: Iterable[str]) -> set[tuple[End, End]]:
        """Which interface gets an answer from which other pod's on TCP port 80, in both families; in one of them,
        as while a change is being written, it says so."""
        ends = {end: own for end, own in self.ends.items() if end[0] in names}
        tries = {
            Packet(source, target, Protocol.TCP, 80): (client, server)
            for client, sources in ends.items()
            for server, targets in ends.items()
            if client[0] != server[0]
            for source, target in zip(sources, targets, strict=True)
        }
        places = [(self.places[end[0]], a, Protocol.TCP, 80) for end, own in ends.items() for a in own]
        with serve(places):
            answered = attempt([(self.places[pair[0][0]], packet) for packet, pair in tries.items()], 1)
        families = [tries[packet] for packet in answered]
        both = {pair for pair in families if families.count(pair) == len(Family)}
        halves = set(families) - both
        return both | {((f"{client}, one family", ifname), server) for (client, ifname), server in halves}

    def expected(self, names: Iterable[str], allowed: set[tuple[str, str]]) -> set[tuple[End, End]]:
        ends = [end for end in self.ends if end[0] in names]
        return {
            (one, other) for one in ends for other in ends if (one[0], other[0]) in allowed and one[0] != other[0]
        }

    def annotation(self, name: str) -> str:
        found = self.api.objects[PODS, "shop", name]["metadata"].get("annotations") or {}
        return str(found.get("felixpy.io/pod-ips", ""))

    def verify(self) -> None:
        argv = [str(Path(sys.executable).with_name("felix-py")), "verify", "--kubeconfig", str(self.kubeconfig)]
        argv += ["--state-dir", str(self.folder / "state"), "--agent-socket", str(self.folder / "run/agent.sock")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_policy_of_a_pod_is_that_of_all_its_interfaces(
    tmp_path: Path, make_netns: MakeNetns, backend: Backend
) -> None:
    names = ("web", "api", "db")
    allowed = {("api", "db"), ("web", "api"), ("db", "api"), ("api", "web"), ("db", "web")}
    with Node(tmp_path, backend, make_netns) as node:
        node.allow("db", {"app": "db"}, {"app": "api"})
        node.start("--announce-pod-ips")
        node.ready()
        for name in names:
            node.connect(name, app=name)
            node.connect_again(name)
        eventually(lambda: node.reached(names) == node.expected(names, allowed), 60)

        # Each address by its own host end, no other default route, and nothing with an address by the other's.
        for name in names:
            for family in Family:
                address = node.ends[name, "net1"][family is Family.V6]
                out = run("ip", f"-{family}", "route", "get", address)
                assert f"dev {interface_name(name, 'net1')} " in out
                routes = node.places[name].run("ip", f"-{family}", "route", "show", "default")
                assert [line.split()[4] for line in routes.splitlines()] == ["eth0"]
            assert node.annotation(name).split(",") == [*node.ends[name, "eth0"], *node.ends[name, "net1"]]
            node.check(name)
        target = node.ends["api", "eth0"][0]
        node.places["web"].run("ip", "route", "add", target, "via", "169.254.1.1", "dev", "net1", "onlink")
        astray = Packet(node.ends["web", "eth0"][0], target, Protocol.TCP, 80)
        with serve([(node.places["api"], target, Protocol.TCP, 80)]):
            assert not attempt([(node.places["web"], astray)], 1)
        node.places["web"].run("ip", "route", "del", target)
        node.verify()

        node.places["db"].run("ip", "rule", "del", "from", node.ends["db", "net1"][0])
        with pytest.raises(PluginError, match=r"rule or route for packets from .* is missing"):
            node.check("db")

        # A restart, and DELs of one interface while the other is used.
        node.disconnect("db", "net1")
        node.connect_again("db")
        node.kill()
        node.start("--announce-pod-ips")
        node.ready()
        eventually(lambda: node.reached(names) == node.expected(names, allowed), 60)
        node.disconnect("db", "eth0")
        node.disconnect("web", "net1")
        assert node.reached(names) == node.expected(names, allowed)
        eventually(lambda: node.annotation("web").split(",") == node.ends["web", "eth0"], 60)
        node.connect_first_again("db", app="db")
        eventually(lambda: node.reached(names) == node.expected(names, allowed), 60)
        for end in list(node.ends):
            node.disconnect(*end)
        assert not host_interfaces()
        assert json.loads(node.ask("/ipam")[1])["leases"] == []


def test_a_container_that_is_no_pods_is_connected_and_no_policy_selects_it(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    """Whatever restricts pods restricts what it reaches of them; nothing restricts the container."""
    names = ("web", "db", "plain")
    allowed = {("web", "plain"), ("db", "plain"), ("plain", "web"), ("db", "web")}
    with Node(tmp_path, Backend.NFT, make_netns) as node:
        node.allow("db", {"app": "db"}, {})
        node.start("--connect-containers")
        node.ready()
        node.connect("web", app="web")
        node.connect("db", app="db")
        node.places["plain"] = make_netns("plain")
        node.connect_plain("plain", node.places["plain"])
        node.connect_again("plain", args={})
        every_pod = allowed | {("web", "db")}
        eventually(lambda: node.reached(names) == node.expected(names, every_pod), 60)
        # A pod that still lists one of its addresses gives it no rights.
        stale = {"ip": node.ends["plain", "eth0"][0]}
        meta = {"name": "stale", "namespace": "shop", "uid": "uid-stale", "labels": {"app": "api"}}
        spec = {"nodeName": "n2"}
        node.api.put(PODS, {"metadata": meta, "spec": spec, "status": {"phase": "Running", "podIPs": [stale]}})
        node.allow("db", {"app": "db"}, {"app": "api"})
        eventually(lambda: "shop/stale" in node.ask("/status")[1], 60)
        eventually(lambda: node.reached(names) == node.expected(names, allowed), 60)
        node.verify()
        node.kill()
        node.start("--connect-containers")
        node.ready()
        eventually(lambda: node.reached(names) == node.expected(names, allowed), 60)
        leases = [lease for lease in json.loads(node.ask("/ipam")[1])["leases"] if lease["container"] == "plain"]
        assert [(lease["pod"], lease["ifname"]) for lease in leases] == [("", "eth0"), ("", "net1")]
        assert json.loads(node.ask("/ipam/check")[1]) == {"differences": []}
        # Without the setting those that are there live on, and no more come.
        node.kill()
        node.start()
        node.ready()
        assert node.reached(names) == node.expected(names, allowed)
        with pytest.raises(PluginError, match="Kubernetes pods only, unless connect-containers is set") as caught:
            node.connect_plain("other", make_netns("other"))
        assert caught.value.code == 7
        for end in list(node.ends):
            node.disconnect(*end)
        assert not host_interfaces()
        assert json.loads(node.ask("/ipam")[1])["leases"] == []


def test_other_interfaces_are_refused_where_other_nodes_would_not_know_them(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    with Node(tmp_path, Backend.NFT, make_netns) as node:
        node.start()
        node.ready()
        node.connect("web", app="web")
        with pytest.raises(
            PluginError, match=r"can have eth0 alone, and no net1: .*announcePodIPs is off"
        ) as caught:
            node.connect_again("web")
        assert caught.value.code == 107
        node.kill()
        node.start("--announce-pod-ips", "--cni-timeout=3")
        node.ready()
        before = host_interfaces(), node.places["web"].run("ip", "-o", "link"), run("ip", "route")
        node.api.fault("patch", faults.refuse(403, "Forbidden"), path=f"{PODS_OF_SHOP}/web/status")
        with pytest.raises(PluginError, match=r"cannot be made known to other nodes' policy: .*403") as caught:
            node.connect_again("web")
        assert caught.value.code == 11
        assert before == (host_interfaces(), node.places["web"].run("ip", "-o", "link"), run("ip", "route"))
        node.connect_again("web")
        assert node.annotation("web").split(",") == [*node.ends["web", "eth0"], *node.ends["web", "net1"]]
