"""What a pod's annotations ask for, through the real client, store and kernel; pools as a fake tells them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.cni.errors import Code
from felix_py.ipam.resources import IPReservation
from felix_py.notices import NoticeKind
from lab.runtime import PluginError
from tests.support.cni import Node, addresses, pod_args, refused
from tests.support.isolate import NetworkNamespace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

MakeNetns = Callable[[str], NetworkNamespace]
WEB = ("default", "web")


def mac_of(place: NetworkNamespace) -> str:
    (link,) = json.loads(place.run("ip", "-j", "link", "show", "eth0"))
    return str(link["address"])


async def test_addresses_and_mac_by_annotation(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, places = Node(tmp_path), {name: make_netns(name) for name in ("web", "other")}
    node.network.annotations[WEB] = {
        "felixpy.io/ip-addresses": '["10.65.0.77", "fd65::77"]',
        "felixpy.io/mac": "02:00:00:ab:cd:ef",
    }
    async with node:
        result = await node.runtime.add("web", places["web"].path, args=pod_args("web"))
        assert addresses(result) == ["10.65.0.77", "fd65::77"]
        assert mac_of(places["web"]) == "02:00:00:ab:cd:ef"
        # Somebody else with the same wish gets an error that says who has it, and keeps nothing.
        node.network.annotations["default", "other"] = {"felixpy.io/ip-addresses": "10.65.0.77"}
        call = node.runtime.add("other", places["other"].path, args=pod_args("other"))
        await refused(call, Code.ADDRESS_UNAVAILABLE, "10.65.0.77 is in use by container web")
        assert len(node.store.all()) == 1
        # What the runtime asks for counts before the annotation.
        args = pod_args("other") | {"IP": "10.65.0.78"}
        result = await node.runtime.add("other", places["other"].path, args=args)
        assert addresses(result)[0] == "10.65.0.78"


async def test_one_family_is_asked_for_and_the_other_chosen(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, place = Node(tmp_path), make_netns("web")
    node.network.annotations[WEB] = {"felixpy.io/ip-addresses": "fd65::99"}
    async with node:
        found = addresses(await node.runtime.add("web", place.path, args=pod_args("web")))
        assert found == ["10.65.0.1", "fd65::99"]


async def test_an_annotation_that_cannot_be_understood(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, place = Node(tmp_path), make_netns("web")
    node.network.annotations[WEB] = {"felixpy.io/ip-addresses": "10.65.0.0/24"}
    async with node:
        words = r"pod default/web cannot start: annotation felixpy.io/ip-addresses of the pod \('10.65.0.0/24'\)"
        await refused(node.runtime.add("web", place.path, args=pod_args("web")), Code.INVALID_CONFIG, words)
        assert node.store.all() == ()
        assert node.said(NoticeKind.POD_ADDRESS).keys() == {"default/web"}
        await node.plugin.look()
        assert node.said(NoticeKind.POD_ADDRESS).keys() == {"default/web"}
        node.network.annotations[WEB] = {}
        await node.plugin.look()
        assert node.said(NoticeKind.POD_ADDRESS) == {}
        assert addresses(await node.runtime.add("web", place.path, args=pod_args("web")))[0] == "10.65.0.1"


async def test_another_ipam_plugin_cannot_do_what_annotations_ask_for(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    node, place = Node(tmp_path), make_netns("web")
    node.configure(
        '{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"felix-py-cni","ipam":{"type":"absent"}}]}'
    )
    node.network.annotations[WEB] = {"felixpy.io/ipv4-pools": "fast"}
    async with node:
        with pytest.raises(PluginError, match="the IPAM plugin absent gives the addresses"):
            await node.runtime.add("web", place.path, args=pod_args("web"))


async def test_pods_wait_for_a_further_block(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, places = Node(tmp_path), [make_netns(f"p{number}") for number in range(4)]
    node.network.cidrs = ("10.65.0.0/31",)
    node.network.coming = [("10.65.1.0/32",)]
    async with node:
        found = []
        for number, place in enumerate(places[:3]):
            result = await node.runtime.add(f"p{number}", place.path, args=pod_args(f"p{number}"))
            found += addresses(result)
        assert found == ["10.65.0.0", "10.65.0.1", "10.65.1.0"]
        call = node.runtime.add("p3", places[3].path, args=pod_args("p3"))
        await refused(call, Code.POOL_EXHAUSTED, "no free address is left in 10.65.0.0/31, 10.65.1.0/32")


async def test_reserved_addresses_are_for_those_who_ask(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, places = Node(tmp_path), {name: make_netns(name) for name in ("web", "a", "b")}
    node.network.cidrs = ("10.65.0.0/29",)
    node.reservations = [IPReservation("printers", ("10.65.0.0/30", "10.65.0.6/32", "10.65.0.4/31"))]
    node.network.annotations[WEB] = {"felixpy.io/ip-addresses": "10.65.0.2"}
    async with node:
        call = node.runtime.add("a", places["a"].path, args=pod_args("a"))
        text = "no free address is left in 10.65.0.0/29.*: the node has no other podCIDR"
        await refused(call, Code.POOL_EXHAUSTED, text)
        result = await node.runtime.add("web", places["web"].path, args=pod_args("web"))
        assert addresses(result) == ["10.65.0.2"]
        node.reserved.set([IPReservation("printers", ("10.65.0.0/30",))])
        result = await node.runtime.add("b", places["b"].path, args=pod_args("b"))
        assert addresses(result) == ["10.65.0.4"]
        # A pod that has one is nothing to tell of, nor is an address that is passed over.
        await node.plugin.look()
        assert node.notices.all() == []


async def test_an_address_that_stays_with_the_name(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, places = Node(tmp_path), {name: make_netns(name) for name in ("db-0", "a", "b", "c")}
    node.network.cidrs = ("10.65.0.0/30",)
    node.network.annotations["default", "db-0"] = {"felixpy.io/keep-address": "true"}
    node.network.annotations["default", "b"] = {"felixpy.io/ip-addresses": "10.65.0.1"}

    async def add(name: str, container: str = "") -> list[str]:
        container = container or name
        return addresses(await node.runtime.add(container, places[name].path, args=pod_args(name)))

    async with node:
        assert await add("db-0") == ["10.65.0.1"]
        assert node.network.keeps == {"default/db-0": ("10.65.0.1",)}
        node.reserved.keep({"10.65.0.1": "default/db-0"})
        await node.runtime.delete("db-0")
        # Nobody else gets it, asked for or not.
        assert await add("a") == ["10.65.0.2"]
        await refused(add("b"), Code.ADDRESS_UNAVAILABLE, "10.65.0.1 is kept for pod default/db-0")
        await refused(add("c"), Code.POOL_EXHAUSTED, "no free address is left")
        assert await add("db-0", "db-0-again") == ["10.65.0.1"]
        await node.runtime.delete("db-0-again")
        # Without the annotation the name gives it up.
        node.network.annotations["default", "db-0"] = {}
        node.reserved.keep({})
        assert await add("db-0", "db-0-last") == ["10.65.0.1"]
        assert node.network.keeps == {}
