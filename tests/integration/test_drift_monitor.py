"""The monitor itself: what passes the socket filter, what storms cost, what happens when events are lost."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py import pending
from felix_py.dataplane import lock_watch, monitor
from felix_py.dataplane.backend import OwnProcesses
from felix_py.dataplane.backend import run as run_tool
from felix_py.dataplane.kernel_events import GROUPS, host_filter
from felix_py.dataplane.lock_watch import LockWatch
from felix_py.dataplane.part import Sweep
from felix_py.dataplane.protocols import Look
from felix_py.dataplane.routes import Routes
from felix_py.layout import interface_name
from felix_py.netlink.wire import NETLINK_ROUTE
from felix_py.records import Backend, NextHop, Route
from felix_py.refs import RouteRef
from policy.model import Family
from tests.support import cni
from tests.support.cni import pod_args
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until
from tests.support.watched import WatchedNode, node_with_pod

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]
_HEADER = struct.Struct("=IHHII")


@pytest.fixture
def routes() -> Iterator[Routes]:
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "tor0")
    run("ip", "link", "set", "up0", "up")
    made = Routes(list(Family))
    yield made
    made.close()


def heard(listening: socket.socket) -> list[tuple[str, int]]:
    """Route messages that came through: (NEW or DEL, protocol)."""
    found: list[tuple[str, int]] = []
    while True:
        try:
            data = listening.recv(1 << 16)
        except BlockingIOError:
            return found
        kind = _HEADER.unpack_from(data)[1]
        if kind in (24, 25):
            found.append(("NEW" if kind == 24 else "DEL", data[21]))


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ("route add {dst} dev up0 proto bird", []),
        ("route add {dst} dev up0 proto bird; route del {dst} proto bird", []),
        ("route add {dst} dev up0 proto bird; route replace {dst} dev tor0 proto bird", [("NEW", 12)]),
        ("route add {dst} dev up0 proto 88", [("NEW", 88)]),
        ("route add {dst} dev up0 proto 89; route del {dst}", [("NEW", 89), ("DEL", 89)]),
        (
            "route add {dst} dev up0 proto 88; route replace {dst} dev tor0 proto static",
            [("NEW", 88), ("NEW", 4)],
        ),
        ("route add {dst} dev up0 proto 88 table 7", []),
    ],
)
@pytest.mark.parametrize("family", list(Family), ids=["v4", "v6"])
def test_routes_that_pass_the_filter(
    routes: Routes, family: Family, commands: str, expected: list[tuple[str, int]]
) -> None:
    run("ip", "link", "set", "tor0", "up")
    destination = "198.51.100.0/24" if family is Family.V4 else "2001:db8:7::/64"
    with monitor.listen(NETLINK_ROUTE, GROUPS, host_filter(routes.port)) as listening:
        for command in commands.format(dst=destination).split(";"):
            run("ip", f"-{int(family)}", *command.split())
        assert heard(listening) == expected


def test_routes_that_we_write_do_not_pass_and_all_else_does(routes: Routes) -> None:
    key = RouteRef("10.0.0.1/32", 88)
    with monitor.listen(NETLINK_ROUTE, GROUPS, host_filter(routes.port)) as listening:
        for route in (Route(key, next_hops=(NextHop(interface="up0"),), link_scope=True), None):
            routes.route(key, route)
            routes.remove(Sweep.NOTHING)
            assert routes.write().failures == ()
        assert heard(listening) == []
        run("ip", "link", "set", "up0", "down")
        assert _HEADER.unpack_from(listening.recv(1 << 16))[1] == 16


def foreign_routes(count: int, command: str, interface: str) -> None:
    addresses = (f"100.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(count))
    lines = [f"route {command} {address}/32 dev {interface} proto bird" for address in addresses]
    run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


async def test_a_storm_of_others_routes_is_not_looked_at(make_netns: MakeNetns) -> None:
    """10,000 routes come, change and go; then one of ours goes, which is told after all of them."""
    async with node_with_pod(make_netns, Backend.NFT) as node:
        for command, interface in (("add", "up0"), ("replace", "tor0"), ("del", "tor0")):
            await asyncio.to_thread(foreign_routes, 10_000, command, interface)
        run("ip", "route", "del", "10.1.0.2")
        await until(lambda: node.drift() == {"route": 1})
        assert node.kernel.looks == [Look.ROUTES]


async def test_lost_events_are_made_up_for_by_a_look_at_everything_they_could_have_told(
    make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_BUFFER", 4096)
    async with node_with_pod(make_netns, Backend.NFT) as node:
        # All of it happens before the event loop gets to read any of it.
        for _ in range(20):
            run("ip", "link", "set", "up0", "mtu", "1400")
            run("ip", "link", "set", "up0", "mtu", "1500")
        run("ip", "route", "del", "10.1.0.2")
        run("ip", "link", "set", interface_name("c1", "eth0"), "address", "02:00:00:00:00:01")
        await until(lambda: node.drift() == {"route": 1, "link": 1})
        assert Look.ROUTES | Look.LINKS | Look.SETTINGS in node.kernel.looks


async def test_lost_events_of_rules_are_made_up_for_by_reading_them_back(
    make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_BUFFER", 4096)
    monkeypatch.setattr(pending, "_SOON", (0.0, 0.0, 0.0))
    async with node_with_pod(make_netns, Backend.NFT) as node:
        rules = "".join(f"-A KUBE-SVC -s 10.9.{n >> 8}.{n & 255}/32 -j RETURN\n" for n in range(2000))
        text = f"*nat\n:KUBE-SVC - [0:0]\n{rules}COMMIT\n*filter\n-D FORWARD -j NONE\nCOMMIT\n"
        run("iptables-nft-restore", "--noflush", stdin=text.replace("-D FORWARD -j NONE", "-F FELIX-INPUT"))
        await until(lambda: node.drift() == {"chain": 1})


# --- the xtables lock ------------------------------------------------------------------------------------


def test_use_of_the_lock_by_others_is_told_and_ours_is_not() -> None:
    own = OwnProcesses()
    watch = LockWatch(own)
    try:
        assert not watch.used_by_others()
        run_tool(["/usr/sbin/iptables-legacy", "-N", "MINE"], own=own)
        assert not watch.used_by_others()
        run("iptables-legacy", "-N", "THEIRS")
        assert watch.used_by_others()
        assert not watch.used_by_others()
        run("iptables-legacy-save")  # needs no lock
        run("iptables-nft", "-N", "THEIRS")
        assert not watch.used_by_others()
        # Side by side: one of ours does not hide theirs.
        theirs = subprocess.Popen(["iptables-legacy", "-w", "-N", "MORE"])
        run_tool(["/usr/sbin/iptables-legacy", "-w", "-N", "MINE2"], own=own)
        assert theirs.wait() == 0
        assert watch.used_by_others()
    finally:
        watch.close()


def test_use_of_the_lock_is_told_while_no_descriptor_is_left_and_afterwards() -> None:
    """The kernel opens the file for each event that is read."""
    watch = LockWatch(OwnProcesses())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        run("iptables-legacy", "-N", "THEIRS")
        free = os.dup(watch.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            assert watch.used_by_others()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not watch.used_by_others()
        run("iptables-legacy", "-N", "MORE")
        assert watch.used_by_others()
    finally:
        watch.close()


def test_a_lock_that_was_made_anew_is_watched_once_somebody_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lock_watch, "LOCK", tmp_path / "xtables.lock")
    watch = LockWatch(set())
    try:
        assert lock_watch.LOCK.exists()
        lock_watch.LOCK.unlink()
        watch.renew()
        subprocess.run(["cat", str(lock_watch.LOCK)], check=True)
        assert watch.used_by_others()
    finally:
        watch.close()


def test_a_pid_is_ours_until_a_while_after_its_end() -> None:
    now = 100.0
    own = OwnProcesses(lambda: now)
    assert 7 not in own
    own.started(7)
    now += 3600
    assert 7 in own
    own.ended(7)
    now += 5
    assert 7 in own
    now += 10
    assert 7 not in own


# --- CNI -------------------------------------------------------------------------------------------------


async def test_pods_that_come_and_go_are_no_drift_however_often_somebody_looks(
    make_netns: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DEL deletes the interface first; whoever looks just then must not miss it, nor its route."""
    monkeypatch.setattr(pending, "_PROMPTLY", (0.0, 0.0, 0.0))
    places = [make_netns(f"p{number}") for number in range(5)]

    async def look_for_ever(node: WatchedNode) -> None:
        while True:
            node.pending.look(Look.LINKS | Look.ROUTES)
            await asyncio.sleep(0)

    async with WatchedNode(Backend.NFT) as node:
        monkeypatch.setattr(node.network, "pod_cidrs", lambda: ("10.1.0.0/25", "fd00:1::/80"))
        async with cni.Node(tmp_path, node.network) as runtime:
            for number in range(5):
                node.know_pod("default", f"c{number}")
            looking = asyncio.create_task(look_for_ever(node))
            for _ in range(3):
                names = range(5)
                calls = [runtime.runtime.add(f"c{n}", places[n].path, args=pod_args(f"c{n}")) for n in names]
                await asyncio.gather(*calls)
                assert await node.reconciler.differences() == []
                await asyncio.gather(*(runtime.runtime.delete(f"c{n}") for n in names))
            looking.cancel()
            assert len(node.kernel.looks) > 5
            await node.reconciler.settled()
            assert node.drift() == {}, node.found()
