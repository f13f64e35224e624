"""Somebody changes what is ours: it is noticed, mended, counted once, and the log says what it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py import pace, pending
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.link_label import link_label
from felix_py.dataplane.links import Links, PodLink, random_mac
from felix_py.dataplane.protocols import Look
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.layout import LINK_GROUP, interface_name
from felix_py.records import Backend, Lease
from policy.model import Family
from tests.support import kernel_state
from tests.support.cni import STANDARD_PLUGINS
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until
from tests.support.watched import CIDRS, GATEWAY, LEARNED, POLICY, execute, node_with_pod

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]
HOST = interface_name("c1", "eth0")
FOREIGN = {Family.V4: "192.0.2.77", Family.V6: "2001:db8::77"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules are read back at once. How long it waits is the unit tests' business."""
    monkeypatch.setattr(pending, "_SOON", (0.0, 0.0, 0.0))


def names(backend: Backend, family: Family) -> dict[str, str]:
    v4 = family is Family.V4
    return {
        "iptables": f"{'iptables' if v4 else 'ip6tables'}-{backend}",
        "n": str(int(family)),
        "ours": f"felix{int(family)}",
        "inet": "inet" if v4 else "inet6",
        "pod": "10.1.0.2" if v4 else "fd00:1::2",
        "host": HOST,
        "foreign": FOREIGN[family],
        "own": CIDRS[family],
        "learned": LEARNED[family],
        "gateway": GATEWAY[family],
    }


RULES: dict[str, tuple[str, dict[str, int], str]] = {
    "chain flushed": (
        "{iptables} -F FELIX-FORWARD",
        {"chain": 1},
        "chain FELIX-FORWARD (filter, IPv{n}): 10 rules (",
    ),
    "rule deleted": (
        "{iptables} -D FELIX-FORWARD 2",
        {"chain": 1},
        "1 rule (-i felix+ -m set ! --match-set felix{n}-source src,src -g FELIX-SPOOFED) missing",
    ),
    "rule put into our chain": (
        "{iptables} -I FELIX-INPUT 1 -s {foreign} -j ACCEPT",
        {"chain": 1},
        "-j ACCEPT) too many",
    ),
    "jump deleted": (
        "{iptables} -D FORWARD 1",
        {"hook": 1},
        "(filter, IPv{n}): 1 rule (-m conntrack ! --ctstate RELATED,ESTABLISHED -j FELIX-FORWARD) missing",
    ),
    "rule above our jump": (
        "{iptables} -I FORWARD 1 -s {foreign} -j ACCEPT",
        {"hook": 1},
        "-j ACCEPT) of others above ours",
    ),
    "built-in chain flushed": ("{iptables} -F FORWARD", {"hook": 1}, "5 rules ("),
    "table flushed": (
        "{iptables} -t nat -F",
        {"chain": 1, "hook": 1},
        "hooks in chain POSTROUTING (nat, IPv{n}): 1 rule (-j FELIX-POSTROUTING) missing",
    ),
    "chain of our names": (
        "{iptables} -N FELIX-NOBODYS",
        {"chain": 1},
        "chain FELIX-NOBODYS (filter, IPv{n}): nobody asked for it",
    ),
}


@pytest.mark.parametrize("case", RULES)
async def test_rules(make_netns: MakeNetns, backend: Backend, family: Family, case: str) -> None:
    commands, expected, words = RULES[case]
    filled = names(backend, family)
    async with node_with_pod(make_netns, backend) as node:
        execute("{iptables} -N MINE; {iptables} -A FORWARD -s {foreign} -j MINE", **filled)
        await until(lambda: node.drift() == {"hook": 1})
        await node.reconciler.settled()
        before = kernel_state.everything(backend)
        execute(commands, **filled)
        await node.drifted(**{**expected, "hook": expected.get("hook", 0) + 1})
        assert [line for line in node.found() if words.format(**filled) in line], node.found()
        after = kernel_state.everything(backend)
        if case == "built-in chain flushed":
            before[f"rules{family}"] = str(before[f"rules{family}"]).replace(
                next(line for line in str(before[f"rules{family}"]).splitlines() if "-j MINE" in line) + "\n", ""
            )
        if case == "rule above our jump":
            ours, theirs, *_ = kernel_state.rules(family, backend, "filter", "FORWARD")
            assert "felix:" in ours
            assert theirs.endswith("-j ACCEPT")
        else:
            assert after == before


UNHINDERED = {
    "dropped above": "{iptables} -I FORWARD 1 -s {foreign} -j DROP",
    "logged above": "{iptables} -I INPUT 1 -s {foreign} -j LOG --log-prefix theirs",
    "accepted behind": "{iptables} -A FORWARD -s {foreign} -j ACCEPT",
    "masqueraded before": "{iptables} -t nat -I POSTROUTING 1 -s {foreign} -j MASQUERADE",
    "portmap": "",
}


@pytest.mark.parametrize("case", UNHINDERED)
async def test_rules_of_others_that_do_not_hinder_ours_stay_where_they_are(
    make_netns: MakeNetns, backend: Backend, family: Family, tmp_path: Path, case: str
) -> None:
    async with node_with_pod(make_netns, backend) as node:
        if case == "portmap":
            portmap(backend, tmp_path)
        else:
            execute(UNHINDERED[case], **names(backend, family))
        before = kernel_state.everything(backend)
        node.kernel.looks.clear()
        node.pending.look(Look.RULES)
        await until(lambda: any(Look.RULES in parts for parts in node.kernel.looks))
        await node.reconciler.settled()
        assert node.found() == []
        assert node.drift() == {}
        assert await node.reconciler.differences() == []
        assert kernel_state.everything(backend) == before
        if case == "portmap":
            first, *others = kernel_state.rules(family, backend, "nat", "POSTROUTING")
            assert "CNI-HOSTPORT-MASQ" in first
            assert "felix:" in others[0]


def portmap(backend: Backend, tmp_path: Path) -> None:
    """What the runtime has the real plugin do for a pod with a hostPort; it takes the iptables in its path."""
    for tool in ("iptables", "ip6tables"):
        (tmp_path / tool).symlink_to(shutil.which(f"{tool}-{backend}") or "")
    config = {
        "cniVersion": "1.0.0",
        "name": "k8s",
        "type": "portmap",
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": {
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.1.0.2/32"}, {"address": "fd00:1::2/128"}],
        },
    }
    environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1"}
    environment |= {
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(STANDARD_PLUGINS),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    plugin = STANDARD_PLUGINS / "portmap"
    subprocess.run(
        [plugin], input=json.dumps(config), text=True, env=environment, check=True, capture_output=True
    )


ROUTES: dict[str, tuple[str, dict[str, int], str]] = {
    "pod's route deleted": ("ip -{n} route del {pod}", {"route": 1}, "route {pod}/{bits}: missing"),
    "pod's route bent": (
        "ip -{n} route replace {pod} dev up0 proto 88",
        {"route": 1},
        "route {pod}/{bits}: leads elsewhere",
    ),
    "blackhole deleted": ("ip -{n} route del blackhole {own}", {"route": 1}, "route {own}: missing"),
    "learned route deleted": ("ip -{n} route del {learned}", {"route": 1}, "route {learned}: missing"),
    "route of our protocol added": (
        "ip -{n} route add {foreign} dev up0 proto 88",
        {"route": 1},
        "route {foreign}/{bits}: nobody asked for it (protocol 88)",
    ),
    "host interface down": ("ip link set {host} down", {"link": 1, "route": 2}, "interface {host}: down"),
    "MAC changed": (
        "ip link set {host} address 02:00:00:00:00:01",
        {"link": 1},
        "interface {host}: its MAC is 02:00:00:00:00:01",
    ),
    "renamed": ("ip link set {host} name pod0", {"link": 1}, "interface {host}: called pod0 now"),
    "renamed and down": (
        "ip link set {host} down; ip link set {host} name pod0",
        {"link": 2, "route": 2},
        "interface {host}: called pod0 now",
    ),
    "in another group": ("ip link set {host} group 7", {"link": 1}, "interface {host}: in link group 7"),
    "in a bridge": (
        "ip link add br7 type bridge; ip link set {host} master br7",
        {"link": 1},
        "interface {host}: a port of the interface with index ",
    ),
    "gateway address deleted": (
        "ip -6 addr del fe80::1/64 dev {host}",
        {"link": 1},
        "interface {host}: without fe80::1",
    ),
    "last address deleted": (
        "ip -4 addr add 198.51.100.1/32 dev {host}; ip -4 addr del 198.51.100.1/32 dev {host}",
        {"route": 1},
        "route 10.1.0.2/32: missing",
    ),
    "forwarding off": (
        "sysctl -qw net.ipv{n}.conf.all.forwarding=0",
        {"sysctl": 1},
        "forward",
    ),
    "proxy ARP on": (
        "sysctl -qw net.ipv4.conf.{host}.proxy_arp=1",
        {"sysctl": 1},
        "sysctl net.ipv4.conf.{host}.proxy_arp: 1 instead of 0",
    ),
    "uplink's last address replaced": (
        "ip -4 addr del 192.0.2.1/24 dev up0; ip -4 addr add 192.0.2.1/24 dev up0",
        {"route": 1},
        "route 10.1.1.0/24: missing",
    ),
    "uplink down and up": (
        "ip link set up0 down; ip link set up0 up; ip addr add 2001:db8::1/64 dev up0 nodad",
        {"route": 2},
        "route {learned}: missing",
    ),
}


@pytest.mark.parametrize("case", ROUTES)
async def test_routes_links_and_settings(make_netns: MakeNetns, family: Family, case: str) -> None:
    commands, expected, words = ROUTES[case]
    filled = names(Backend.NFT, family) | {"bits": "32" if family is Family.V4 else "128"}
    async with node_with_pod(make_netns, Backend.NFT) as node:
        run(
            "ip",
            f"-{int(family)}",
            "route",
            "add",
            "blackhole",
            FOREIGN[family],
            "proto",
            "static",
            "metric",
            "9",
        )
        before = kernel_state.everything(Backend.NFT)
        settings = host_end()
        execute(commands, **filled)
        await node.drifted(**expected)
        assert [line for line in node.found() if words.format(**filled) in line], node.found()
        assert kernel_state.everything(Backend.NFT) == before
        assert host_end() == settings


def host_end() -> list[str]:
    """What is to be kept of the pod's host end and the host."""
    addresses = [line.split()[3] for line in run("ip", "-6", "-o", "addr", "show", "dev", HOST).splitlines()]
    link = run("ip", "link", "show", "dev", HOST).split()
    paths = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
    paths += [f"ipv{n}/conf/{HOST}/forwarding" for n in (4, 6)] + [f"ipv4/conf/{HOST}/proxy_arp"]
    values = [Path("/proc/sys/net", path).read_text().strip() for path in paths]
    told = [link[link.index(word) + 1] for word in ("link/ether", "state", "group")]
    return [*addresses, *told, "master" if "master" in link else "", *values]


async def test_an_interface_that_is_gone_is_named_and_keeps_nobody_else_waiting(
    make_netns: MakeNetns, backend: Backend
) -> None:
    async with node_with_pod(make_netns, backend) as node:
        other = await node.add_pod("c2", make_netns("c2"))
        run("ip", "link", "del", HOST)
        await until(lambda: node.drift() == {"link": 1, "route": 2})
        assert [line for line in node.found() if line.startswith(f"interface {HOST}: gone")]
        await node.reconciler.settled()
        assert not node.reconciler.failures
        # Its part of sets stays consistent, and the next look does not count it again.
        assert len(kernel_state.sets()["felix4-source"]) == 2
        assert await node.network.problems(other) == []
        await node.reconciler.settled()
        assert node.drift() == {"link": 1, "route": 2}
        # The runtime deletes the pod and makes it anew.
        gone = node.pods.pop("c1")
        node.network.leaving(gone)
        await node.network.release(gone)
        await node.add_pod("c1", make_netns("again"))
        assert f"dev {HOST}" in run("ip", "route", "get", "10.1.0.3")
        assert node.drift() == {"link": 1, "route": 2}


async def test_another_interface_that_takes_the_name_is_shut_and_the_pods_gets_it_back(
    make_netns: MakeNetns, backend: Backend
) -> None:
    async with node_with_pod(make_netns, backend) as node:
        before = run("ip", "-o", "link", "show", HOST).partition(":")[0]
        execute("ip link set {host} name pod0; ip link add {host} type veth peer name other0", host=HOST)
        stranger = run("ip", "-o", "link", "show", HOST).partition(":")[0]
        run("ip", "link", "set", HOST, "address", "ee:ee:ee:ee:ee:ee", "group", str(LINK_GROUP), "up")
        await until(lambda: run("ip", "-o", "link", "show", HOST, check=False).partition(":")[0] == before)
        await until(lambda: "state UP" in run("ip", "link", "show", HOST))
        assert ",UP" not in run("ip", "link", "show", f"stray{stranger}")
        assert f"dev {HOST}" in run("ip", "route", "get", "10.1.0.2")
        assert f"interface {HOST}: called pod0 now" in node.found()
        assert await node.reconciler.differences() == []


async def test_another_interface_in_place_of_a_deleted_one_is_not_taken_for_the_pods(
    make_netns: MakeNetns, backend: Backend
) -> None:
    async with node_with_pod(make_netns, backend) as node:
        execute("ip link del {host}; ip link add {host} type veth peer name other0", host=HOST)
        stranger = run("ip", "-o", "link", "show", HOST).partition(":")[0]
        run(
            "ip", "link", "set", HOST, "address", "ee:ee:ee:ee:ee:ee", "group", str(LINK_GROUP), "up", check=False
        )
        await until(lambda: HOST not in run("ip", "-o", "link", "show"))
        assert ",UP" not in run("ip", "link", "show", f"stray{stranger}")
        await until(lambda: node.kernel.gone_interfaces == {HOST})
        assert "blackhole" in run("ip", "route", "show", "10.1.0.0/24")
        assert run("ip", "route", "show", "10.1.0.2") == ""


def test_what_was_renamed_while_no_agent_ran_is_found_by_its_label(make_netns: MakeNetns) -> None:
    lease = Lease("c9", "eth0", "n", "shop", "p", "u", interface_name("c9", "eth0"), {Family.V4: "10.1.0.9"}, 1.0)
    with Links() as links:
        place = make_netns("c9")
        made = PodLink(
            lease.interface, place.path, "eth0", lease.addresses, random_mac(), 1500, link_label(lease)
        )
        links.create(made)
    execute("ip link set {host} name pod0; ip link add {host} type veth peer name other0", host=lease.interface)
    stranger = run("ip", "-o", "link", "show", lease.interface).partition(":")[0]
    planner = Planner((Family.V4,), StaticOptions(Marks.from_mask(0xFFFF0000)), {})
    planner.attach(lease)
    with Kernel((Family.V4,), Backend.NFT) as kernel:
        kernel.update(planner.take())
        kernel.load()
        assert kernel.apply().failures == ()
        kernel.load()
        assert kernel.apply().failures == ()
    assert "alias felix-py shop/p" in run("ip", "link", "show", lease.interface)
    assert f"dev {lease.interface}" in run("ip", "route", "show", "10.1.0.9")
    assert ",UP" not in run("ip", "link", "show", f"stray{stranger}")


async def test_a_route_that_somebody_takes_over_is_left_to_them_and_comes_back_after_them(
    make_netns: MakeNetns, family: Family
) -> None:
    filled = names(Backend.NFT, family)
    bits = "32" if family is Family.V4 else "128"
    async with node_with_pod(make_netns, Backend.NFT) as node:
        execute("ip -{n} route replace {pod} dev up0 proto static", **filled)
        what = f"route {filled['pod']}/{bits}"
        await until(lambda: [failure for failure in node.reconciler.failures if str(failure.ref) == what])
        assert "protocol 4" in next(iter(node.reconciler.failures)).reason
        assert "dev up0" in run("ip", f"-{int(family)}", "route", "show", filled["pod"])
        execute("ip -{n} route del {pod} dev up0 proto static", **filled)
        await until(lambda: not node.reconciler.failures)
        assert f"dev {HOST}" in run("ip", f"-{int(family)}", "route", "show", filled["pod"])
        assert node.drift() == {"route": 1}


WHOLE = "family {inet} maxelem 1048576"
"""As ours are made: a set for fewer members is another set, whatever it holds."""

SETS: dict[str, tuple[str, dict[str, int], str]] = {
    "member deleted": (
        "ipset del {ours}-source {pod},{host}",
        {"member": 1},
        "set {ours}-source member {pod},{host}: missing",
    ),
    "member added": (
        "ipset add {ours}-pool {foreign}",
        {"member": 1},
        "set {ours}-pool member {foreign}: nobody asked for it",
    ),
    "set destroyed and made anew": (
        f"ipset create mine hash:net {WHOLE}; ipset swap mine {{ours}}-nomasq; ipset destroy mine",
        {"member": 2},
        "set {ours}-nomasq member {own}: missing",
    ),
    "set flushed": (
        "ipset flush {ours}-source",
        {"member": 1},
        "set {ours}-source member {pod},{host}: missing",
    ),
    "sets swapped": (
        "ipset swap {ours}-pool {ours}-nomasq",
        {"member": 2},
        "set {ours}-nomasq member ",
    ),
    "set of our names": ("ipset create {ours}-nobodys hash:ip", {"set": 1}, "set {ours}-nobodys: nobody asked"),
}


EXCHANGED = (
    "ipset del {ours}-pool {own}; ipset add {ours}-pool {foreign}",
    {"member": 2},
    "set {ours}-pool member {own}: missing",
)


@pytest.mark.parametrize("case", [*SETS, "member exchanged for another"])
async def test_sets(make_netns: MakeNetns, family: Family, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their sizes, long before the refresh; at the refresh where these are as before."""
    commands, expected, words = SETS.get(case, EXCHANGED)
    filled = names(Backend.NFT, family)
    if case in SETS:
        monkeypatch.setattr(pace, "_RARELY", 0.05)
    async with node_with_pod(make_netns, Backend.NFT, refresh=3600 if case in SETS else 0.2) as node:
        run("ipset", "create", "theirs", "hash:ip")
        before = kernel_state.everything(Backend.NFT)
        execute(commands, **filled)
        await node.drifted(**expected)
        assert [line for line in node.found() if words.format(**filled) in line], node.found()
        after = kernel_state.everything(Backend.NFT)
        assert after["sets"] == before["sets"]


async def test_what_we_do_ourselves_is_no_drift_and_costs_no_look(
    make_netns: MakeNetns, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods, policies and routes come and go; then somebody else does something, which is told after all that."""
    monkeypatch.setattr(pace, "_RARELY", 0.0)
    monkeypatch.setattr(pace, "_LITTLE", 0)
    async with node_with_pod(make_netns, backend) as node:
        for number in range(3):
            await node.add_pod(f"more{number}", make_netns("more"))
        node.facts.delete(POLICY)
        await node.reconciler.settled()
        node.facts.upsert(POLICY)
        node.facts.learned({LEARNED[Family.V4]: ()})
        await node.reconciler.settled()
        node.facts.learned({LEARNED[Family.V4]: (GATEWAY[Family.V4],)})
        await node.reconciler.settled()
        for number in range(3):
            await node.remove_pod(f"more{number}")
        assert node.drift() == {}
        execute("{iptables} -N FELIX-NOBODYS; ip -{n} route del {pod}", **names(backend, Family.V4))
        await until(lambda: node.drift() == {"route": 1, "chain": 1})
        await node.reconciler.settled()
        assert sorted(node.kernel.looks, key=str) == sorted([Look.ROUTES, Look.RULES], key=str)
