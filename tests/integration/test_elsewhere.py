"""Addresses that something else on the node uses are not given to pods."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.dataplane.elsewhere import ElsewhereLookup
from felix_py.ipam.store import AddressStore, Claim, PoolExhausted
from felix_py.notices import NoticeKind
from lab.runtime import PluginError
from policy.model import Family
from tests.support.cni import Node, RoutingNetwork, addresses, pod_args
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]

SETUP = (
    "ip link add cni0 type bridge",
    "ip link set cni0 up",
    "ip link add eth0 type veth peer name far0",
    "ip addr add 192.0.2.5/24 dev eth0",
    "ip addr add 2001:db8::5/64 dev eth0 nodad",
    "ip link set eth0 up",
    "ip link set far0 up",
    "ip route add default via 192.0.2.1",
    "ip route add default via 2001:db8::1",
    # What the agent itself has for a podCIDR.
    "ip route add blackhole 10.66.0.0/24 proto 88",
    "ip -6 route add blackhole fd66::/64 proto 88",
)


@pytest.fixture
def lookup(netns: None) -> Iterator[ElsewhereLookup]:
    for command in SETUP:
        run(*command.split())
    found = ElsewhereLookup()
    yield found
    found.close()


def ask(lookup: ElsewhereLookup, address: str, length: int) -> tuple[str, str] | None:
    parsed = ipaddress.ip_address(address)
    found = lookup(Family(parsed.version), int(parsed), length)
    return found and (found.what, found.how)


@pytest.mark.parametrize(
    ("commands", "address", "what", "how"),
    [
        (["ip addr add 10.66.0.1/24 dev cni0"], "10.66.0.1", "10.66.0.1", "address of this host (cni0)"),
        (["ip addr add fd66::1/64 dev cni0 nodad"], "fd66::1", "fd66::1", "address of this host"),
        (["ip addr add 10.66.0.9/32 dev lo"], "10.66.0.9", "10.66.0.9", "address of this host (lo)"),
        (["ip addr add 10.66.0.1/25 dev cni0"], "10.66.0.127", "10.66.0.127", "broadcast address of cni0"),
        (["ip route add local 10.66.0.0/24 dev lo"], "10.66.0.77", "10.66.0.0/24", "address of this host"),
        (["ip route add 10.66.0.64/26 via 192.0.2.9"], "10.66.0.70", "10.66.0.64/26", "through eth0 by somebody"),
        (["ip route add 10.66.0.7/32 dev cni0"], "10.66.0.7", "10.66.0.7", "through cni0 by somebody"),
        (["ip route add fd66::8000/113 via 2001:db8::9"], "fd66::8001", "fd66::8000/113", "through eth0"),
        (
            ["ip route add 10.66.0.8/32 nexthop via 192.0.2.8 nexthop via 192.0.2.9"],
            "10.66.0.8",
            "10.66.0.8",
            "several interfaces",
        ),
        (
            ["ip neigh add 10.66.0.7 lladdr 02:00:00:00:00:01 dev cni0 nud stale"],
            "10.66.0.7",
            "10.66.0.7",
            "neighbour on cni0",
        ),
        (
            ["ip neigh add fd66::7 lladdr 02:00:00:00:00:01 dev eth0 nud permanent"],
            "fd66::7",
            "fd66::7",
            "neighbour on eth0",
        ),
    ],
)
def test_what_is_in_use(lookup: ElsewhereLookup, commands: list[str], address: str, what: str, how: str) -> None:
    length = 24 if "." in address else 64
    assert ask(lookup, address, length) is None
    for command in commands:
        run(*command.split())
    # The kernel enters the route of an IPv6 address a moment later, also where it does no DAD.
    eventually(lambda: ask(lookup, address, length) is not None)
    found = ask(lookup, address, length)
    assert found is not None
    assert found[0] == what
    assert how in found[1]


@pytest.mark.parametrize(
    "command",
    [
        "ip route add 10.66.0.7/32 dev cni0 proto 88",  # a pod's
        "ip route add 10.66.0.64/26 via 192.0.2.9 proto 89",  # learned
        "ip route add 10.66.0.0/16 via 192.0.2.9",  # wider than the podCIDR
        "ip neigh add 10.66.0.7 lladdr 02:00:00:00:00:01 dev felix0123456789 nud stale",  # a pod claims it
        "ip neigh add 10.66.0.7 dev cni0 nud failed",  # somebody has only asked for it
    ],
)
def test_what_says_nothing(lookup: ElsewhereLookup, command: str) -> None:
    run("ip", "link", "add", "felix0123456789", "type", "bridge")
    run("ip", "link", "set", "felix0123456789", "up")
    run(*command.split())
    assert ask(lookup, "10.66.0.7", 24) is None
    assert ask(lookup, "10.66.0.70", 24) is None


def test_a_large_part_of_the_pool_is_passed_over_at_once(lookup: ElsewhereLookup, tmp_path: Path) -> None:
    run("ip", "route", "add", "fd66::/65", "via", "2001:db8::9")
    run("ip", "route", "add", "10.66.0.0/25", "via", "192.0.2.9")
    store = AddressStore(tmp_path / "leases.db", lookup)
    lease = store.allocate(Claim("c", "eth0", "n", "ns", "pod"), ["10.66.0.0/24", "fd66::/64"])
    assert lease.addresses == {Family.V4: "10.66.0.128", Family.V6: "fd66::8000:0:0:0"}
    run("ip", "route", "add", "10.66.0.128/25", "via", "192.0.2.9")
    with pytest.raises(PoolExhausted, match=r"10\.66\.0\.0/25 is routed through eth0"):
        store.allocate(Claim("d", "eth0", "n", "ns", "pod"), ["10.66.0.0/24"])
    assert store.full(["10.66.0.0/24"]) == (Family.V4,)
    store.close()


async def test_the_bridge_of_the_cni_plugin_before_us(tmp_path: Path, make_netns: MakeNetns) -> None:
    """Its own address, and that of a pod behind it, stay theirs; requests for them are refused with words."""
    node = Node(tmp_path, RoutingNetwork())
    pods = [make_netns(f"p{number}") for number in range(4)]
    run("ip", "link", "add", "cni0", "type", "bridge")
    run("ip", "addr", "add", "10.65.0.1/24", "dev", "cni0")
    run("ip", "addr", "add", "fd65::1/64", "dev", "cni0", "nodad")
    run("ip", "link", "set", "cni0", "up")
    run("ip", "neigh", "add", "10.65.0.2", "lladdr", "02:00:00:00:00:01", "dev", "cni0", "nud", "reachable")
    async with node:
        results = [
            await node.runtime.add(f"c{n}", pod.path, args=pod_args(f"web-{n}")) for n, pod in enumerate(pods[:2])
        ]
        assert [addresses(result) for result in results] == [
            ["10.65.0.3", "fd65::2"],
            ["10.65.0.4", "fd65::3"],
        ]
        said = {notice.subject: notice.text for notice in node.notices.all()}
        assert said.keys() == {"10.65.0.1", "10.65.0.2", "fd65::1"}
        assert "cni0" in said["10.65.0.1"]
        assert {notice.kind for notice in node.notices.all()} == {NoticeKind.ADDRESS_IN_USE}
        for address in ("10.65.0.1", "10.65.0.2", "fd65::1"):
            with pytest.raises(PluginError, match="cannot be a pod's") as caught:
                await node.runtime.add(
                    "c9", pods[2].path, args=pod_args("web-9"), capabilities={"ips": [address]}
                )
            assert caught.value.code == 101
