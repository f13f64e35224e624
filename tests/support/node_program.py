"""A small node's kernel program, with every kind of rule, set and route that the plan makes."""

from __future__ import annotations

import socket

import pytest

from felix_py.dataplane import host_ends
from felix_py.dataplane.kernel import Kernel
from felix_py.layout import HOST_MAC, LINK_GROUP, ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import NETLINK_ROUTE
from felix_py.records import Backend, Hook, NextHop, Report, Route, RouteKind, SetSpec, SetType, Update
from felix_py.refs import ChainRef, RouteRef
from felix_py.ruleset.model import Rules
from policy.model import Family
from tests.support.isolate import run
from tests.support.rules import rule_of

POD = "felix0123456789"
OTHER = "felixabcdefabcd"
BITS = {Family.V4: 32, Family.V6: 128}
NET = {Family.V4: "10.1.0", Family.V6: "fd00:1:"}
IPTABLES = {Family.V4: "iptables", Family.V6: "ip6tables"}
HOOK = rule_of("-m", "comment", "--comment", "way in", "-j", "FELIX-FORWARD")
ACCEPTED = ("-m", "mark", "--mark", "0x10000/0x10000", "-j", "ACCEPT")


one_backend = pytest.mark.parametrize("backend", [Backend.NFT], indirect=True)
"""For tests of things to which the iptables backend makes no difference."""

IN_TURN = [
    (Backend.LEGACY, Family.V4),
    (Backend.NFT, Family.V6),
    pytest.param(Backend.LEGACY, Family.V6, marks=pytest.mark.heavy),
    pytest.param(Backend.NFT, Family.V4, marks=pytest.mark.heavy),
]
"""Each backend and each family once, and at length each with each."""

each_with_another = pytest.mark.parametrize(
    ("backend", "family"),
    IN_TURN,
    ids=lambda value: f"v{int(value)}" if isinstance(value, Family) else str(value),
    indirect=True,
)
"""For the rows of a table: each on both backends and of both families, and at length on each of each."""


def make_interfaces() -> None:
    """Two pod interfaces and an uplink, in the current namespace."""
    commands = []
    for name, peer in ((POD, "pod0"), (OTHER, "pod1"), ("up0", "tor0")):
        commands += [f"link add {name} type veth peer name {peer}", f"link set {name} up", f"link set {peer} up"]
    commands += ["addr add 192.0.2.1/24 dev up0", "addr add 2001:db8::1/64 dev up0 nodad"]
    run("ip", "-batch", "-", stdin="\n".join(commands))
    for name in (POD, OTHER):
        make_host_end(name)


def make_host_end(name: str) -> None:
    """Have an interface look as the CNI plugin leaves a pod's host end."""
    run("ip", "link", "set", name, "address", HOST_MAC, "group", str(LINK_GROUP))
    with Netlink(NETLINK_ROUTE) as netlink:
        host_ends.configure(netlink, socket.if_nametoindex(name), name, list(Family), 1500, "")


def address(family: Family, host: int) -> str:
    return f"{NET[family]}.{host}" if family is Family.V4 else f"{NET[family]}:{host:x}"


def name(family: Family, text: str) -> str:
    return f"felix{int(family)}-{text}"


def pod_route(family: Family, host: int, interface: str = POD) -> Route:
    key = RouteRef(f"{address(family, host)}/{BITS[family]}", ROUTE_PROTOCOL_PODS)
    return Route(key, next_hops=(NextHop(interface=interface),), link_scope=True)


def learned_route(family: Family, *gateways: int) -> Route:
    key = RouteRef("10.9.0.0/24" if family is Family.V4 else "fd00:9::/64", ROUTE_PROTOCOL_LEARNED)
    uplink = "192.0.2." if family is Family.V4 else "2001:db8::"
    return Route(key, next_hops=tuple(NextHop(gateway=f"{uplink}{g}") for g in gateways))


def blackhole(family: Family) -> Route:
    cidr = f"{NET[family]}.0/24" if family is Family.V4 else f"{NET[family]}:/64"
    return Route(RouteRef(cidr, ROUTE_PROTOCOL_PODS), RouteKind.BLACKHOLE)


def chains(family: Family) -> dict[tuple[str, str], Rules]:
    """Every kind of rule that the plan makes."""
    nets, ports = name(family, "nets"), name(family, "ports")
    return {
        ("raw", "FELIX-SOURCE"): (
            rule_of("-m", "set", "--match-set", name(family, "source"), "src,src", "-j", "RETURN"),
            rule_of("-j", "DROP"),
        ),
        ("mangle", "FELIX-CLASSIFY"): (
            rule_of("!", "-i", "felix+", "!", "-o", "felix+", "-j", "RETURN"),
            rule_of("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "RETURN"),
            rule_of("-j", "MARK", "--set-xmark", "0x0/0xff0000"),
            rule_of("-i", "felix+", "-j", "SET", "--map-set", name(family, "egress"), "src", "--map-mark"),
        ),
        ("filter", "FELIX-FORWARD"): (
            rule_of("-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"),
            rule_of("-m", "mark", "--mark", "0x20000/0xfe0000", "-g", "FELIX-CE-1"),
            rule_of(
                "-i",
                "felix+",
                "-o",
                "felix+",
                "-m",
                "set",
                "--match-set",
                name(family, "source"),
                "dst,src",
                "-j",
                "RETURN",
            ),
        ),
        ("filter", "FELIX-CE-1"): (
            rule_of(
                *("-p", "tcp", "-m", "multiport", "--dports", "80,443,8000:8080"),
                *("-m", "set", "--match-set", nets, "src"),
                *("-m", "comment", "--comment", 'default/web "it\'s" \\ rule 1'),
                *("-j", "FELIX-ALLOW"),
            ),
            rule_of("-p", "udp", "-m", "set", "--match-set", ports, "dst,dst", "-g", "FELIX-ALLOW"),
            rule_of("-p", "sctp", "-m", "multiport", "--dports", "5", "-j", "FELIX-ALLOW"),
            rule_of("-j", "DROP"),
        ),
        ("filter", "FELIX-ALLOW"): (rule_of("-j", "MARK", "--set-xmark", "0x10000/0x10000"),),
        ("filter", "FELIX-EMPTY"): (),
        ("nat", "FELIX-POSTROUTING"): (
            rule_of(
                *("-m", "set", "--match-set", nets, "src", "-m", "set", "!", "--match-set", nets, "dst"),
                *("-j", "MASQUERADE", "--random-fully"),
            ),
        ),
    }


def hooks(family: Family) -> list[Hook]:
    return [
        Hook(family, "raw", "PREROUTING", rule_of("-i", "felix+", "-j", "FELIX-SOURCE"), first=True),
        Hook(family, "mangle", "FORWARD", rule_of("-j", "FELIX-CLASSIFY"), first=True),
        Hook(family, "filter", "FORWARD", HOOK, first=True),
        Hook(family, "filter", "FORWARD", rule_of("-i", "felix+", *ACCEPTED), first=False, rank=1),
        Hook(family, "filter", "FORWARD", rule_of("-o", "felix+", *ACCEPTED), first=False, rank=2),
        Hook(family, "nat", "POSTROUTING", rule_of("-j", "FELIX-POSTROUTING"), first=True),
    ]


def sets(family: Family) -> dict[SetSpec, dict[str, int]]:
    host = address(family, 2)
    cidr = "192.168.0.0/16" if family is Family.V4 else "fd00:2::/48"
    return {
        SetSpec(name(family, "source"), SetType.NET_IFACE, family): {f"{host},{POD}": 0},
        SetSpec(name(family, "egress"), SetType.IP, family, 0xFE0000): {host: 0x20000},
        SetSpec(name(family, "nets"), SetType.NET, family): {cidr: 0, host: 0},
        SetSpec(name(family, "ports"), SetType.IP_PORT, family): {f"{host},udp:53": 0, f"{host},sctp:7": 0},
        SetSpec(name(family, "empty"), SetType.IP, family): {},
    }


def whole(*families: Family) -> Update:
    """Everything that a small node has."""
    update = Update()
    for family in families or Family:
        for spec, members in sets(family).items():
            update.sets[spec.name] = spec
            update.members[spec.name] = dict(members)
        update.chains |= {ChainRef(family, t, c): rules for (t, c), rules in chains(family).items()}
        update.hooks |= dict.fromkeys(hooks(family), True)
        for route in (pod_route(family, 2), learned_route(family, 7, 8), blackhole(family)):
            update.routes[route.key] = route
    return update


def put(kernel: Kernel, update: Update, *, sweep: bool = False) -> Report:
    kernel.update(update)
    return kernel.apply(sweep=sweep)


def check_quiet(kernel: Kernel, *, sweep: bool = True) -> None:
    assert kernel.apply(sweep=sweep) == Report()


def without_empty_tables(state: dict[str, object]) -> dict[str, object]:
    """Kernel state less built-in chains without rules: a table stays once it has been used."""
    return {
        key: "\n".join(line for line in value.splitlines() if line.startswith("-A"))
        if isinstance(value, str)
        else value
        for key, value in state.items()
    }
