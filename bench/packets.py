"""What a forwarded packet costs: felix-py's rules beside none, and beside a chain for each endpoint.

UDP between two pods of one node, through a router namespace that holds the rules, IPv4, on both backends. Counted
are first packets of flows (each makes a conntrack entry and is judged by egress and ingress policy) and packets
of established ones, in nanoseconds that they take longer than without any rule. 0, 110 and 250 endpoints in 1, 10
and 50 policy classes; both pods are in the last class. The comparison has the same policies, in the ways of
others: a chain for each endpoint, found by a rule for each endpoint (as kube-router does) or by a tree of
interface name prefixes (as Calico does, which checks the source address by rpfilter), both pods being the last.
Sender and receiver are one thread, so that nothing is woken up: a packet is through when send(2) returns. It
keeps one processor and, where that is allowed, runs before all else: other work on the machine hardly shows.

"Beside the kubelet's chains": to notice flushes, the kubelet makes an empty chain in mangle, nat and filter of
the backend that it uses (KUBE-KUBELET-CANARY in its kubelet_network_linux.go). So packets pass these tables on
every node, whoever else has rules there.

Rows that begin with ``part`` are single parts of such rule sets beside the one rule that accepts what is
established: their difference from that row is what the part costs. Each of the two pods' packets meets it, so
it is the cost of one check.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

from bench.clusters import labelled
from bench.harness import Row, Way, compare, show
from felix_py.dataplane.backend import command
from felix_py.dataplane.kernel import Kernel
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.layout import ROUTE_PROTOCOL_PODS
from felix_py.records import Backend, Lease
from policy.model import (
    Family,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyRule,
    Port,
    Protocol,
    Selector,
)
from tests.support.isolate import NetworkNamespace, run
from tests.support.told import ToldEngine

V4 = Family.V4
PORT = 7
CLIENT, SERVER = "10.65.255.1", "10.65.255.2"
MARKS = Marks.from_mask(0xFFFF0000)
_POLICY = PolicyRule((PodPeer(None, Selector()),), (Port(Protocol.UDP, PORT),))
_GATEWAY = "169.254.1.1"
_MAC = "ee:ee:ee:ee:ee:ee"


def main(quick: bool) -> None:
    """Each backend by itself, all kinds of rules in turn."""
    for backend in Backend:
        with ExitStack() as stack:
            kinds = _kinds(backend, quick)
            paths = [(kind, stack.enter_context(_path(kind, 20 if quick else 200))) for kind in kinds]
            times, packets = (2, 50) if quick else (41, 400)
            stack.enter_context(_undisturbed())
            new = [Way(k.what, p.first, before=p.forget, share=len(p.sources), base=k.base) for k, p in paths]
            _show(f"packets, {backend}: first of a flow", compare(new, times))
            old = [
                Way(k.what, functools.partial(p.established, packets), share=2 * packets, base=k.base)
                for k, p in paths
            ]
            _show(f"packets, {backend}: established", compare(old, times))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """On one processor, before all else; the programs that it starts are not."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        with suppress(PermissionError):
            first = os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO))
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, first)
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)


def _show(title: str, rows: Sequence[Row]) -> None:
    """With what each kind of rules adds to a packet."""
    bare = next(row.median for row in rows if row.base)
    show(title, [replace(row, note="" if row.base else f"{(row.median - bare) * 1e9:+,.0f} ns") for row in rows])


# --- kinds of rules -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    """``write`` writes the rules; it runs in the router's namespace. ``pods``: the two are endpoints of ours."""

    what: str
    write: Callable[[], None]
    base: bool = False
    pods: bool = True


def _kinds(backend: Backend, quick: bool) -> list[_Kind]:
    sizes = [(110, 1), (110, 10), (110, 50), (250, 1), (250, 10), (250, 50)]
    kinds = [
        _Kind("no rules at all", lambda: None, base=True),
        _Kind("conntrack alone: established is accepted", functools.partial(_conntrack_alone, backend)),
        *(_Kind(f"part: {what}", functools.partial(_part, backend, tables)) for what, tables in _PARTS.items()),
        _Kind("felix-py, 0 endpoints", functools.partial(_ours, backend, 0, 0), pods=False),
    ]
    for endpoints, classes in sizes[1:2] if quick else sizes:
        what = f"felix-py, {endpoints} endpoints, {classes} {'class' if classes == 1 else 'classes'}"
        kinds.append(_Kind(what, functools.partial(_ours, backend, endpoints, classes)))
    masquerading = functools.partial(_ours, backend, 110, 10, nat_outgoing=True)
    kinds.append(_Kind("felix-py, 110 endpoints, 10 classes, natOutgoing", masquerading))
    for endpoints in (110,) if quick else (110, 250):
        for what, dispatch, checked in (
            ("a rule each", _rule_each, False),
            ("prefix tree", _prefix_tree, False),
            ("prefix tree, rpfilter", _prefix_tree, True),
        ):
            write = functools.partial(_chain_each, backend, endpoints, dispatch, checked=checked)
            kinds.append(_Kind(f"a chain for each of {endpoints} endpoints, {what}", write))
    return kinds + list(_beside_kubelet(backend, kinds))


def _beside_kubelet(backend: Backend, kinds: Sequence[_Kind]) -> Iterator[_Kind]:
    """The kubelet's chains by themselves, and beside all that is no part of anything."""

    def both(write: Callable[[], None]) -> None:
        for table in ("mangle", "nat", "filter"):
            _restore(backend, [":KUBE-KUBELET-CANARY - [0:0]"], table)
        write()

    for kind in kinds:
        if kind.base or kind.what.endswith(("rpfilter", "10 classes")):
            beside = "the kubelet's chains alone" if kind.base else f"{kind.what}, beside the kubelet's chains"
            yield replace(kind, what=beside, write=functools.partial(both, kind.write), base=False)


def _ours(backend: Backend, endpoints: int, classes: int, *, nat_outgoing: bool = False) -> None:
    """As the agent writes them. A policy with both directions for each class; its peers are all pods."""
    engine, planner = ToldEngine((V4,)), Planner((V4,), StaticOptions(MARKS, nat_outgoing=nat_outgoing), {})
    engine.upsert(Namespace("default"))
    for number in range(classes):
        selector = labelled("class", str(number))
        engine.upsert(
            NetworkPolicy("default", f"policy-{number}", selector, ingress=(_POLICY,), egress=(_POLICY,))
        )
    for number, address in enumerate(_addresses(endpoints)):
        chosen = classes - 1 if address in (CLIENT, SERVER) else number % classes
        pod = Pod("default", f"pod-{number}", labels=(("class", str(chosen)),), addresses=(address,))
        engine.upsert(pod)
        engine.lease(LocalEndpoint(pod.namespace, pod.name, pod.addresses))
    for address, interface in ((CLIENT, _interface(0)), (SERVER, _interface(1))) if endpoints else ():
        lease = Lease(address, "eth0", "k8s", "default", address, "", interface, {V4: address}, created=0.0)
        planner.attach(lease)
    for delta in engine.flush():
        planner.policy(delta)
    planner.cluster((), ("10.65.0.0/16",), ())
    with Kernel((V4,), backend) as kernel:
        kernel.load()
        kernel.update(planner.take())
        report = kernel.apply()
        if report.failures:
            raise RuntimeError(str(report.failures))


def _addresses(endpoints: int) -> list[str]:
    """Those of the node's endpoints, the two real ones last."""
    others = [f"10.65.{n >> 8}.{n & 255}" for n in range(2, endpoints)]
    return [*others, CLIENT, SERVER] if endpoints else []


def _conntrack_alone(backend: Backend) -> None:
    _restore(backend, ["-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"])


_PARTS: dict[str, dict[str, str]] = {
    "an empty raw table": {"raw": ""},
    "an empty mangle table": {"mangle": ""},
    "established is not sent to a chain of mangle": {
        "mangle": "-A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED -j MARK --set-xmark 0x0/0x1"
    },
    "source by rpfilter (with raw)": {"raw": "-A PREROUTING -i felix+ -m rpfilter --invert -j DROP"},
    "source by an IP set (with raw)": {
        "raw": "-A PREROUTING -i felix+ -m set ! --match-set bench-source src,src -j DROP"
    },
    "ten comments (a first packet's)": {
        "filter": "\n".join(["-A FORWARD -m comment --comment felix:0123456789abcdef"] * 10)
    },
    "ten mark matches (a first packet's)": {"filter": "\n".join(["-A FORWARD -m mark --mark 0x7/0x7"] * 10)},
    "two class maps (with mangle)": {
        "mangle": "-A FORWARD -j SET --map-set bench-class src --map-mark\n"
        "-A FORWARD -j SET --map-set bench-class dst --map-mark"
    },
}
"""What -> the rule of each table."""


def _part(backend: Backend, tables: dict[str, str]) -> None:
    bound = [
        f"add bench-source {address},{_interface(number)}\nadd bench-class {address} skbmark 0x2/0xfe0000"
        for number, address in enumerate((CLIENT, SERVER))
    ]
    created = ["create bench-source hash:net,iface", "create bench-class hash:ip skbinfo"]
    run("ipset", "restore", stdin="\n".join([*created, *bound, ""]))
    _conntrack_alone(backend)
    for table, rules in tables.items():
        _restore(backend, rules.splitlines(), table)


_Dispatch = Callable[[int], tuple[list[str], list[str]]]
"""Chains and rules that lead from FORWARD to the chain of each endpoint."""


def _chain_each(backend: Backend, endpoints: int, dispatch: _Dispatch, *, checked: bool) -> None:
    """A chain for each endpoint and direction, all of them with the same policy. ``checked``: the source, too."""
    if checked:
        _restore(backend, ["-A PREROUTING -i felix+ -m rpfilter --validmark --invert -j DROP"], "raw")
    members = [f"add bench-peers {address}" for address in _addresses(endpoints)]
    run("ipset", "restore", stdin="\n".join(["create bench-peers hash:ip", *members, ""]))
    chains, rules = ["POLICY-E", "POLICY-I"], []
    for number in range(endpoints):
        for direction in "EI":
            chain = f"EP-{direction}-{number}"
            chains.append(chain)
            rules += [
                f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                f"-A {chain} -m conntrack --ctstate INVALID -j DROP",
                f"-A {chain} -j MARK --set-xmark 0x0/0x10000",
                f"-A {chain} -j POLICY-{direction}",
                f"-A {chain} -m mark --mark 0x10000/0x10000 -j RETURN",
                f"-A {chain} -j DROP",
            ]
    for direction, side in (("E", "dst"), ("I", "src")):
        match = f"-p udp -m multiport --dports {PORT} -m set --match-set bench-peers {side}"
        rules.append(f"-A POLICY-{direction} {match} -j MARK --set-xmark 0x10000/0x10000")
    more_chains, more_rules = dispatch(endpoints)
    _restore(backend, [*(f":{chain} - [0:0]" for chain in chains + more_chains), *rules, *more_rules])


def _rule_each(endpoints: int) -> tuple[list[str], list[str]]:
    """A rule for each endpoint's address, as kube-router has them."""
    addresses = list(enumerate(_addresses(endpoints)))
    rules = [f"-A FORWARD -s {address}/32 -j EP-E-{number}" for number, address in addresses]
    return [], rules + [f"-A FORWARD -d {address}/32 -j EP-I-{number}" for number, address in addresses]


def _prefix_tree(endpoints: int) -> tuple[list[str], list[str]]:
    """Sixteen branches by the next letter of the interface's name, then its endpoints, as Calico has them."""
    branches: dict[str, list[int]] = {}
    for number in range(endpoints):
        branches.setdefault(_name(number, endpoints)[5], []).append(number)
    chains, rules = [], []
    for direction, option in (("E", "-i"), ("I", "-o")):
        root = f"DISPATCH-{direction}"
        chains.append(root)
        rules.append(f"-A FORWARD {option} felix+ -j {root}")
        for letter, numbers in sorted(branches.items()):
            chains.append(f"{root}-{letter}")
            rules.append(f"-A {root} {option} felix{letter}+ -g {root}-{letter}")
            for number in numbers:
                leaf = f"-A {root}-{letter} {option} {_name(number, endpoints)}"
                rules.append(f"{leaf} -g EP-{direction}-{number}")
        rules.append(f"-A {root} -j DROP")
    return chains, rules


def _name(number: int, endpoints: int) -> str:
    """An endpoint's interface; the last two are the real ones, in the last branch."""
    real = number - (endpoints - 2)
    return _interface(real) if real >= 0 else f"felix{number % 16:x}{number:09x}"


def _interface(real: int) -> str:
    return f"felixf{0xFFFFFFFF0 + real:09x}"


def _restore(backend: Backend, lines: list[str], table: str = "filter") -> None:
    text = "\n".join([f"*{table}", *sorted(lines, key=lambda line: line[:1] != ":"), "COMMIT", ""])
    run(command(V4, backend, "restore"), "--noflush", stdin=text)


# --- the way of a packet --------------------------------------------------------------------------------------


@dataclass
class _Path:
    """A client, a router with rules, a server; and the sockets of the two ends."""

    router: NetworkNamespace
    server: socket.socket
    client: socket.socket
    sources: list[socket.socket] = field(default_factory=list)

    def established(self, packets: int) -> None:
        """So many requests of one flow, each with its answer."""
        client, server = self.client, self.server
        for _ in range(packets):
            client.send(b"?")
            _, sender = server.recvfrom(16)
            server.sendto(b"!", sender)
            client.recv(16)

    def first(self) -> None:
        """One packet of each of many flows."""
        server = self.server
        for source in self.sources:
            source.send(b"?")
            server.recv(16)

    def forget(self) -> None:
        """Make every flow a new one."""
        self.router.run("conntrack", "-F")


@contextmanager
def _path(kind: _Kind, flows: int) -> Iterator[_Path]:
    """Three network namespaces of its own."""
    names = (_interface(0), _interface(1)) if kind.pods else ("plain0", "plain1")
    with ExitStack() as stack:
        client, router, server = (NetworkNamespace(f"bench-{role}") for role in ("client", "router", "server"))
        for namespace in (client, router, server):
            stack.callback(namespace.close)
        for namespace, name, address in ((client, names[0], CLIENT), (server, names[1], SERVER)):
            _connect(namespace, router, name, address)
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
        with router.enter():
            kind.write()
        listening = stack.enter_context(_socket(server, SERVER, PORT))
        path = _Path(router, listening, stack.enter_context(_socket(client, CLIENT)))
        path.sources += [stack.enter_context(_socket(client, CLIENT)) for _ in range(flows)]
        for sender in (path.client, *path.sources):
            sender.connect((SERVER, PORT))
        path.established(1)
        yield path


def _connect(pod: NetworkNamespace, router: NetworkNamespace, name: str, address: str) -> None:
    """A veth pair as our CNI plugin makes it: a /32, and neighbours that need not be asked for."""
    pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", router.name)
    pod.run("ip", "link", "set", "eth0", "up")
    router.run("ip", "link", "set", name, "address", _MAC, "up")
    pod.run("ip", "address", "add", f"{address}/32", "dev", "eth0")
    pod.run("ip", "neighbour", "add", _GATEWAY, "lladdr", _MAC, "dev", "eth0", "nud", "permanent")
    pod.run("ip", "route", "add", "default", "via", _GATEWAY, "dev", "eth0", "onlink")
    mac = json.loads(pod.run("ip", "-j", "link", "show", "dev", "eth0"))[0]["address"]
    router.run("ip", "neighbour", "add", address, "lladdr", mac, "dev", name, "nud", "permanent")
    protocol = str(ROUTE_PROTOCOL_PODS)
    router.run("ip", "route", "add", f"{address}/32", "dev", name, "scope", "link", "proto", protocol)


def _socket(namespace: NetworkNamespace, address: str, port: int = 0) -> socket.socket:
    with namespace.enter():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(2)  # a packet that is lost ends the benchmark
    made.bind((address, port))
    return made
