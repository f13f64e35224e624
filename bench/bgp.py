"""BGP at scale, with CPU time and memory: the whole agent with its sidecar beside a BIRD 2 that does the same.

- A route server's prefixes into the kernel: from the moment in which it has them until the node's kernel has all;
  and ``ip -batch`` with the same routes, for the kernel's part.
- 1,000 addresses of Services (/32) out to a router, all at once.
- A route reflector with 200 clients, one prefix each: from its start until each client has those of all others.
- Nothing: two established sessions, idle.

Of felix-py the agent counts, too, in CPU time and memory (PSS), where it runs as a process of its own.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.harness import Row, megabytes, show
from bench.processes import Cost
from bench.rack import rack
from bgp import bridge
from tests.support import raw_bgp
from tests.support.agent_process import NODE
from tests.support.bgp import NODE4, NODE_ASN, TOR4, TOR_ASN, Sidecar, agent, config, link
from tests.support.bird import Bird
from tests.support.declared_agent import DeclaredAgent, declared_agent
from tests.support.fakeapi import BGP_CONFIGURATIONS, SERVICES, SLICES, FakeApi, Json
from tests.support.isolate import Here, NetworkNamespace, run
from tests.support.waiting import eventually, until

_PATIENCE = 900.0
_CLUSTER_ID = "10.9.0.1"
_AWAKE = bridge._START + bridge._CHANGE
"""Seconds in which ExaBGP's loop is kept awake after its start and a session's."""


def main(quick: bool) -> None:
    """All of it, each in network namespaces of its own."""
    for size in (100,) if quick else (2000, 10_000):
        _learn(size, 1 if quick else 3)
    _services(20 if quick else 1000, 1 if quick else 3)
    _reflect(5 if quick else 200)
    _idle(1.0 if quick else 20.0)


@dataclass
class _Rows:
    """Time, CPU time and memory, of one way after the other."""

    title: str
    seconds: list[Row]
    cpu: list[Row]
    memory: list[Row]

    @classmethod
    def of(cls, title: str, *ways: str) -> _Rows:
        return cls(title, *([Row(way, base=way == "BIRD") for way in ways] for _ in range(3)))

    def add(self, way: str, seconds: float, cost: Cost) -> None:
        for rows, value in ((self.seconds, seconds), (self.cpu, cost.seconds()), (self.memory, cost.memory())):
            next(row for row in rows if row.what == way).values.append(value)

    def show(self) -> None:
        show(self.title, [row for row in self.seconds if row.values])
        show(f"{self.title}: CPU time", [row for row in self.cpu if row.values])
        show(f"{self.title}: memory", [row for row in self.memory if row.values], megabytes)


@contextmanager
def _agent(folder: Path, *peers: int) -> Iterator[DeclaredAgent]:
    with declared_agent(folder, options=["--cluster-cidr=10.0.0.0/8"]) as node:
        for path in (SERVICES, SLICES):
            node.api.serve(path)
        _declare(node)
        for index in peers:
            node.peer(index)
        node.start()
        eventually(lambda: _sessions(node) == len(peers), _PATIENCE)
        eventually(lambda: node.get("/readyz")[0] == 200, _PATIENCE)
        yield node


def _declare(node: DeclaredAgent, **spec: object) -> None:
    node.declare(BGP_CONFIGURATIONS, "default", asNumber=NODE_ASN, nodeToNodeMeshEnabled=False, **spec)


def _sessions(node: DeclaredAgent) -> int:
    try:
        return sum(one["established"] for one in node.status()["peers"])
    except OSError:
        return 0  # it does not listen yet


def _cost(node: DeclaredAgent) -> Cost:
    return Cost([node.pid, *node.sidecar.pids()])


@contextmanager
def _bird(folder: Path, text: str) -> Iterator[Bird]:
    """BIRD in the node's place."""
    bird = Bird(Here(), folder / "node", text)
    bird.start()
    try:
        yield bird
    finally:
        bird.stop()


def _addresses(count: int, length: int) -> list[str]:
    step = 1 << 32 - length
    first = 0x0A800000
    values = (first + number * step for number in range(count))
    return [f"{v >> 24}.{v >> 16 & 255}.{v >> 8 & 255}.{v & 255}/{length}" for v in values]


# --- into the kernel ------------------------------------------------------------------------------------------

_SERVER = """
router id {router};
protocol device {{ }}
protocol static many {{ disabled; ipv4; {routes} }}
protocol bgp node {{
  local as {asn}; neighbor {node} as {node_asn}; connect delay time 1;
  ipv4 {{ import all; export where proto = "many"; next hop self; }};
}}
"""
_NODE = """
router id {node};
protocol device {{ }}
protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol static services {{ disabled; ipv4; {routes} }}
protocol bgp tor {{
  local as {node_asn}; neighbor {router} as {asn}; connect delay time 1;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
"""
_NOTHING = "protocol device { }"
_NAMES = {"router": TOR4, "asn": TOR_ASN, "node": NODE4, "node_asn": NODE_ASN}


def _blackholes(prefixes: Sequence[str]) -> str:
    return "".join(f"route {prefix} blackhole;\n" for prefix in prefixes)


def _in_kernel() -> int:
    """Prefixes of all tables of this namespace."""
    text = Path("/proc/thread-self/net/fib_triestat").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.lstrip().startswith("Prefixes:"))


def _learn(size: int, times: int) -> None:
    title = f"bgp: {size:,} prefixes of a route server into the kernel"
    rows = _Rows.of(title, "BIRD", "felix-py", "ip -batch")
    prefixes = _addresses(size, 24)
    server = _SERVER.format(routes=_blackholes(prefixes), **_NAMES)

    def learn(bird: Bird) -> float:
        expected, since = _in_kernel() + size, time.perf_counter()
        bird.birdc("enable", "many")
        eventually(lambda: _in_kernel() >= expected, _PATIENCE, pause=0.005)
        return time.perf_counter() - since

    for _ in range(times):
        with rack(server) as (folder, bird, _), _bird(folder, _NODE.format(routes="", **_NAMES)) as node:
            eventually(partial(node.established, "tor"), _PATIENCE)
            cost = Cost([node.pid])
            rows.add("BIRD", learn(bird), cost)
        with rack(server) as (folder, bird, _), _agent(folder, 0) as felix:
            cost = _cost(felix)
            rows.add("felix-py", learn(bird), cost)
        with rack(server) as (folder, _, _):
            (folder / "batch").write_text("".join(f"route add {prefix} via {TOR4}\n" for prefix in prefixes))
            since = time.perf_counter()
            run("ip", "-batch", str(folder / "batch"))
            rows.seconds[2].values.append(time.perf_counter() - since)
    rows.show()


# --- out of the node ------------------------------------------------------------------------------------------


def _services(size: int, times: int) -> None:
    rows = _Rows.of(f"bgp: {size:,} Service addresses out to a router", "BIRD", "felix-py")
    prefixes = _addresses(size, 32)
    tor = _SERVER.format(routes="", **_NAMES)
    of_bird = _NODE.format(routes=_blackholes(prefixes), **_NAMES)

    def announce(bird: Bird, tell: Callable[[], object]) -> float:
        expected, since = bird.count("node") + size, time.perf_counter()
        tell()
        eventually(lambda: bird.count("node") >= expected, _PATIENCE, pause=0.005)
        return time.perf_counter() - since

    for _ in range(times):
        with rack(tor) as (folder, bird, _), _bird(folder, of_bird) as node:
            eventually(partial(node.established, "tor"), _PATIENCE)
            cost = Cost([node.pid])
            rows.add("BIRD", announce(bird, partial(node.birdc, "enable", "services")), cost)
        with rack(tor) as (folder, bird, _), _agent(folder, 0) as felix:
            for number, prefix in enumerate(prefixes):
                _serve(felix.api, f"service-{number}", prefix.partition("/")[0])
            ranges = [{"cidr": "10.128.0.0/9"}]
            tell = partial(
                _declare, felix, serviceLoadBalancerIPs=ranges, serviceLoadBalancerAggregation="Disabled"
            )
            cost = _cost(felix)
            rows.add("felix-py", announce(bird, tell), cost)
    rows.show()


def _serve(api: FakeApi, name: str, address: str) -> None:
    """A Service with a load balancer's address and an endpoint."""
    meta: Json = {"name": name, "namespace": "default"}
    status = {"loadBalancer": {"ingress": [{"ip": address}]}}
    cluster_ip: Json = {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}
    spec: Json = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", **cluster_ip}
    api.put(SERVICES, {"metadata": meta, "spec": spec, "status": status})
    labels = {"kubernetes.io/service-name": name}
    endpoints = [{"addresses": ["10.65.0.7"], "nodeName": NODE}]
    meta = {"name": f"{name}-1", "namespace": "default", "labels": labels}
    api.put(SLICES, {"metadata": meta, "addressType": "IPv4", "endpoints": endpoints})


# --- a route reflector ----------------------------------------------------------------------------------------


def _client(number: int) -> str:
    return f"10.9.0.{10 + number}"


class _Clients:
    """Peers of our own making, a thread for all: BIRD has one session with an address. Each announces a prefix.

    ``told``: of each, how many prefixes it has been told.
    """

    def __init__(self, namespace: NetworkNamespace, count: int) -> None:
        self._chooser = selectors.DefaultSelector()
        self._open = True
        self.told = dict.fromkeys(range(count), 0)
        self._data: dict[int, bytes] = {}
        for number in self.told:
            namespace.run("ip", "address", "add", f"{_client(number)}/24", "dev", "node")
            with namespace.enter():
                listener = socket.create_server((_client(number), raw_bgp.PORT))
            self._chooser.register(listener, selectors.EVENT_READ, partial(self._accept, number))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while self._open:
            for key, _ in self._chooser.select(0.2):
                key.data(key.fileobj)

    def _accept(self, number: int, listener: socket.socket) -> None:
        peer, _ = listener.accept()
        self.told[number], self._data[number] = 0, b""
        peer.sendall(raw_bgp.opening(NODE_ASN, _client(number)))
        self._chooser.register(peer, selectors.EVENT_READ, partial(self._read, number))

    def _read(self, number: int, peer: socket.socket) -> None:
        data = b""
        with suppress(ConnectionError):
            data = peer.recv(1 << 16)
        if not data:
            self._chooser.unregister(peer)
            peer.close()
            return
        messages, self._data[number] = raw_bgp.messages(self._data[number] + data)
        for kind, body in messages:
            if kind == raw_bgp.OPEN:
                own = raw_bgp.attributes(
                    _client(number), (), raw_bgp.attribute(0x40, raw_bgp.LOCAL_PREF, b"\0\0\0d")
                )
                announced = raw_bgp.nlri(f"10.128.{number}.0/24")
                peer.sendall(
                    raw_bgp.message(raw_bgp.KEEPALIVE) + raw_bgp.update(own, announced) + raw_bgp.END_OF_RIB
                )
            elif kind == raw_bgp.UPDATE:
                self.told[number] += raw_bgp.announced(body)

    def close(self) -> None:
        """End all sessions."""
        self._open = False
        self._thread.join()
        for key in list(self._chooser.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._chooser.close()


def _reflect(count: int) -> None:
    rows = _Rows.of(f"bgp: a route reflector with {count} clients", "BIRD", "felix-py")
    peers = "".join(
        f"protocol bgp c{n} {{ local as {NODE_ASN}; neighbor {_client(n)} as {NODE_ASN}; rr client;\n"
        "connect delay time 1; ipv4 { import all; export all; }; hold time 240; }\n"
        for n in range(count)
    )

    def all_told() -> bool:
        return all(told >= count - 1 for told in clients.told.values())

    with rack(_NOTHING) as (folder, _, tor), closing(_Clients(tor, count)) as clients:
        text = f"router id {NODE4};\nprotocol device {{ }}\n{peers}"
        since = time.perf_counter()
        with _bird(folder, text) as node:
            cost = Cost([node.pid])
            eventually(all_told, _PATIENCE)
            rows.add("BIRD", time.perf_counter() - since, cost)
    with rack(_NOTHING) as (folder, _, tor), closing(_Clients(tor, count)) as clients:
        plain = config(*({"peerIP": _client(n), "asNumber": NODE_ASN, "holdTime": 240} for n in range(count)))
        wanted = replace(plain, peers=tuple(replace(peer, cluster_id=_CLUSTER_ID) for peer in plain.peers))
        sidecar = Sidecar(folder / "run")
        sidecar.start()

        async def reflect() -> None:
            since, before = time.perf_counter(), time.thread_time()
            async with agent(sidecar.run_dir, wanted, announce=set()):
                await until(sidecar.exabgp, _PATIENCE)
                cost = Cost(sidecar.pids()[:2])
                await until(all_told, _PATIENCE, pause=0.05)
                rows.add("felix-py", time.perf_counter() - since, cost)
            rows.cpu[1].values[-1] += time.thread_time() - before

        try:
            asyncio.run(reflect())
        finally:
            sidecar.stop()
    rows.memory[1].note = "without the agent"
    rows.show()


# --- nothing --------------------------------------------------------------------------------------------------


def _idle(seconds: float) -> None:
    parts = ("BIRD", "felix-py: ExaBGP, sidecar, bridge", "felix-py: agent")
    busy = [Row(part, base=part == "BIRD") for part in parts]
    memory = [Row(part, base=part == "BIRD") for part in parts]

    def measure(groups: Mapping[int, Sequence[int]]) -> None:
        """``groups``: row -> processes."""
        costs = {row: Cost(pids) for row, pids in groups.items()}
        time.sleep(seconds)
        for row, cost in costs.items():
            busy[row].values.append(cost.seconds() / seconds)
            memory[row].values.append(cost.memory())

    second = {"router": "10.10.0.2", "node": "10.10.0.1", "asn": TOR_ASN, "node_asn": NODE_ASN}
    with rack(_SERVER.format(routes="", **_NAMES)) as (folder, _, _), ExitStack() as stack:
        tor = NetworkNamespace("tor2")
        stack.callback(tor.close)
        link(tor, 1)
        other = Bird(tor, folder / "tor2", _SERVER.format(routes="", **second))
        stack.callback(other.stop)
        other.start()
        further = _NODE[_NODE.index("protocol bgp tor") :].replace("bgp tor", "bgp tor2").format(**second)
        with _bird(folder, _NODE.format(routes="", **_NAMES) + further) as node:
            eventually(lambda: node.established("tor") and node.established("tor2"), _PATIENCE)
            measure({0: [node.pid]})
        with _agent(folder, 0, 1) as felix:
            time.sleep(_AWAKE)
            measure({1: felix.sidecar.pids(), 2: [felix.pid]})
    show("bgp: idle with two peers, CPU time a second", busy)
    show("bgp: idle with two peers, memory", memory, megabytes)
