"""Sandboxes with several interfaces, without pod, or with another plugin's interface."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felix_py.cni.conflist import conflist
from felix_py.cni.plugin import GRACE
from felix_py.layout import interface_name
from felix_py.notices import NoticeKind
from tests.support.cni import Node, RoutingNetwork, host_interfaces, pod_args, refused
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]


def held(node: Node) -> list[str]:
    return [lease.container for lease in node.store.all()]


def links_of(where: Callable[..., str]) -> list[str]:
    """Names of interfaces: an end's carrier may come a little after its own setting up."""
    return [line.split(": ")[1] for line in where("ip", "-o", "link").splitlines()]


async def test_interfaces_of_one_sandbox_live_each_by_itself(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path, RoutingNetwork()), make_netns("pod")

    def held_by() -> list[str]:
        return [lease.ifname for lease in node.store.all()]

    async with node:
        await node.runtime.add("c1", pod.path, "eth0", args=pod_args("web"))
        before = links_of(run), links_of(pod.run), run("ip", "route"), pod.run("ip", "rule"), node.store.all()
        for _ in range(2):
            await node.runtime.add("c1", pod.path, "net1", args=pod_args("web"))
            await node.runtime.check("c1", "net1")
            assert held_by() == ["eth0", "net1"]
            await node.runtime.delete("c1", "net1")
            after = links_of(run), links_of(pod.run), run("ip", "route"), node.store.all()
            assert after == (*before[:3], before[4])
        await node.runtime.check("c1")
        await node.runtime.add("c1", pod.path, "net1", args=pod_args("web"))
        # One rule and no more: those of interfaces that are gone have gone with the next.
        assert len(pod.run("ip", "rule").splitlines()) == len(before[3].splitlines()) + 1
        await node.runtime.delete("c1", "eth0")
        assert held_by() == ["net1"]
        await node.runtime.check("c1", "net1")
        await node.runtime.add("c1", pod.path, "eth0", args=pod_args("web"))
        await node.runtime.check("c1")
        gc: dict[str, Any] = {"cniVersion": "1.1.0", "name": "felix-py", "type": "felix-py-cni"}
        gc["cni.dev/valid-attachments"] = [{"containerID": "c1", "ifname": "eth0"}]
        await node.runtime._execute("GC", "felix-py-cni", {}, gc)
        assert held_by() == ["eth0"]


async def test_a_sandbox_that_is_lost_with_several_interfaces(tmp_path: Path, make_netns: MakeNetns) -> None:
    """While no agent runs; and one interface alone, whose pod lives on."""
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        for ifname in ("eth0", "net1"):
            await node.runtime.add("c1", pod.path, ifname, args=pod_args("web"))
        run("ip", "link", "del", interface_name("c1", "net1"))
        await node.plugin.look(1000.0)
        await node.plugin.look(1000.0 + GRACE)
        assert held(node) == ["c1", "c1"]  # the pod is here, so its DEL will come
    async with node:
        assert [lease.ifname for lease in node.recovered] == ["eth0"]
        run("ip", "link", "del", interface_name("c1", "eth0"))
        node.network.departures = {"web"}
        await node.plugin.look(1000.0)
        await node.plugin.look(1000.0 + GRACE)
        assert held(node) == []


async def test_a_container_without_pod_is_released_when_its_interface_is_gone(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    node, places = Node(tmp_path), [make_netns(name) for name in ("one", "two")]
    node.containers = True
    async with node:
        for number, place in enumerate(places):
            await node.runtime.add(f"c{number}", place.path)
        places[0].close()
        run("ip", "link", "del", interface_name("c0", "eth0"), check=False)
        await node.plugin.look(1000.0)
        assert held(node) == ["c0", "c1"]
        await node.plugin.look(1000.0 + GRACE)
        assert held(node) == ["c1"]
        assert not node.said(NoticeKind.LOST_SANDBOX)


@pytest.mark.parametrize("asked", [True, False])
async def test_a_pod_that_another_plugin_has_connected(
    tmp_path: Path, make_netns: MakeNetns, asked: bool
) -> None:
    """It can have an interface of ours beside, but not a second default route."""
    node, pod = Node(tmp_path), make_netns("pod")
    pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    pod.run("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
    pod.run("ip", "link", "set", "eth0", "up")
    pod.run("ip", "link", "set", "other", "up")
    pod.run("ip", "route", "add", "default", "via", "192.0.2.1")
    network = json.loads(conflist())
    if asked:
        network["plugins"][0]["isDefaultGateway"] = True
    node.configure(json.dumps(network))
    async with node:
        before = links_of(pod.run), pod.run("ip", "route")
        adding = node.runtime.add("c1", pod.path, "net1", args=pod_args("web"))
        if not asked:
            result = await adding
            assert not result.get("routes")
            assert pod.run("ip", "route") == before[1]
            await node.runtime.check("c1", "net1")
            return
        await refused(adding, 103, "the pod has a default route already")
        assert before == (links_of(pod.run), pod.run("ip", "route"))
        assert not host_interfaces()
        assert not node.store.all()
