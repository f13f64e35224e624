"""Cold start: from the start of the agent's process to the right verdict on a pod's packets.

A node with 100 pods (``--quick``: 10) in a cluster of 5,000 pods, 62 nodes, 200 namespaces and 1,000
NetworkPolicies. While the agent is stopped, a policy is edited: what it denied to one pod is allowed from now
on. That pod sends a datagram every millisecond, and the clock runs from the agent's start to the first that
arrives. Then the agent is started once more, while a runtime adds a pod, which waits for it: until the ADD is
answered, the pod's policy in force. The other row is the least that any such agent in Python does: the
interpreter's start (``python -c pass``), a list of each kind from the same server (four requests at once,
nothing decoded), and one iptables-restore of a small table. The API server of both is a process of its own that
sends bytes which it prepared. The rows between them are the way to the ADD: how long modules alone take to load,
and when the agent's log says that it has read the kernel, listed the cluster, and written policy.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import socketserver
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bench.harness import Row, show
from felix_py.cni.errors import Code
from lab.runtime import PluginError
from tests.support.agent_program import NODE, AgentProgram
from tests.support.cni import pod_args
from tests.support.fakeapi import NAMESPACES, NODES, PODS, POLICIES
from tests.support.isolate import NetworkNamespace, new_netns, run

Json = dict[str, Any]

_PORT = 5000
_RULES = "*filter\n:BARE-LIMIT - [0:0]\n-A BARE-LIMIT -j RETURN\nCOMMIT\n"
_DISK = "/var/tmp"
_MODULES = "import felix_py.cli, felix_py.agent.main"
_STEPS = {
    "starting": "felix-py agent, until the kernel is read",
    "the cluster is known": "felix-py agent, until the cluster is listed",
    "in sync: policy is in force": "felix-py agent, until policy is in force, while an ADD waits",
}
"""Lines of the log, and what they mean."""


def main(quick: bool) -> None:
    """Both in turn, in one network namespace."""
    size = _Size(pods=500, local=10, policies=100, namespaces=20) if quick else _Size()
    with new_netns(), TemporaryDirectory(dir=_DISK) as folder, _serving(size) as (server, edited):
        asyncio.run(_run(Path(folder), size, server, edited, times=2 if quick else 11))


@dataclass(frozen=True, slots=True)
class _Size:
    pods: int = 5000
    local: int = 100
    nodes: int = 62
    namespaces: int = 200
    policies: int = 1000
    local_policies: int = 200


async def _run(folder: Path, size: _Size, server: str, edited: Synchronized[int], times: int) -> None:
    _uplink()
    places = [NetworkNamespace(f"pod{number}") for number in range(size.local)]
    agent = AgentProgram(folder, server, "--backend=nft", "--log-level=debug")
    limit = Row("the interpreter, a list of each kind, one iptables-restore", base=True)
    start = Row("felix-py agent, until the verdict is right")
    first = Row("felix-py agent, until the first ADD is answered")
    modules = Row("loading the agent's modules")
    steps = {event: Row(what) for event, what in _STEPS.items()}
    work: list[float] = []
    try:
        with agent:
            agent.start()
            agent.wait_ready()
            target = await _connect(agent, places[:-1])
        for counted in range(times + 1):
            before, loading = _bare(server), _loading()
            edited.value = 1
            with _arrivals(places, target) as arrived:
                begun = time.perf_counter()
                with agent:
                    agent.start()
                    arrived.wait(60)
                    seconds, cpu = time.perf_counter() - begun, _cpu(agent.pid)
                    edited.value = 0
            with agent:  # what was allowed is denied again
                since, begun, read = time.time(), time.perf_counter(), agent.log.stat().st_size
                agent.start()
                await _first(agent, places[-1], size.local - 1)
                answered = time.perf_counter() - begun
                await agent.runtime.delete("first")
                agent.wait_ready()
            if counted:
                modules.values.append(loading)
                for event, at in _told(agent.log, read).items():
                    steps[event].values.append(at - since)
                first.values.append(answered)
                limit.values.append(before)
                start.values.append(seconds)
                work.append(cpu)
    finally:
        for place in places:
            place.close()
    start.note = f"CPU {statistics.median(work):.2f} s"
    title = f"start: {size.pods} pods, {size.local} of them here, {size.policies} policies"
    show(title, [limit, modules, *steps.values(), first, start])


def _uplink() -> None:
    """As a node has one: addresses and a default route."""
    run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "router")
    run("ip", "link", "set", "router", "up")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "uplink")
    run("ip", "link", "set", "uplink", "up")
    run("ip", "route", "add", "default", "via", "192.0.2.254")


async def _connect(agent: AgentProgram, places: list[NetworkNamespace]) -> str:
    """Connect the node's pods; the first is the client. Returns the address of the second, its server."""
    addresses = []
    for number, place in enumerate(places):
        result = await agent.runtime.add(f"pod-{number}", place.path, args=_args(number))
        addresses.append(str(result["ips"][0]["address"]).partition("/")[0])
    return addresses[1]


async def _first(agent: AgentProgram, place: NetworkNamespace, number: int) -> None:
    """Add a pod as soon as the agent can."""
    while True:
        try:
            await agent.runtime.add("first", place.path, args=_args(number))
            return
        except PluginError as error:
            if error.code != Code.TRY_AGAIN:
                raise
        await asyncio.sleep(0.005)


def _args(number: int) -> dict[str, str]:
    return pod_args(f"pod-{number}", "ns-0")


@contextmanager
def _arrivals(places: list[NetworkNamespace], target: str) -> Iterator[threading.Event]:
    """The client sends; set once something arrives."""
    arrived, over = threading.Event(), threading.Event()
    with places[1].enter():
        inbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        inbox.bind(("0.0.0.0", _PORT))
    with places[0].enter():
        outbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def receive() -> None:
        inbox.recv(10)
        arrived.set()

    def send() -> None:
        while not over.wait(0.001):
            try:
                outbox.sendto(b"x", (target, _PORT))
            except PermissionError:
                continue

    threads = [threading.Thread(target=job, daemon=True) for job in (receive, send)]
    for thread in threads:
        thread.start()
    try:
        yield arrived
    finally:
        over.set()
        threads[1].join()
        outbox.close()
        inbox.close()


def _cpu(pid: int) -> float:
    """CPU seconds of a process, all its threads, and the tools that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _told(log: Path, read: int) -> dict[str, float]:
    """When the agent said that it has come to each step, in seconds since the epoch. ``read``: bytes of the log
    that are of earlier starts."""
    lines = map(json.loads, log.read_bytes()[read:].splitlines())
    at = {line["event"]: line["timestamp"] for line in lines if line["event"] in _STEPS}
    return {event: datetime.fromisoformat(at[event]).timestamp() for event in _STEPS}


def _loading() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", _MODULES], check=True)
    return time.perf_counter() - begun


def _bare(server: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    with ThreadPoolExecutor(len(_KINDS)) as pool:
        list(pool.map(lambda path: urllib.request.urlopen(server + path).read(), _KINDS))
    run("iptables-nft-restore", "-n", stdin=_RULES)
    return time.perf_counter() - begun


# --- the API server ---------------------------------------------------------------------------------------------

_KINDS = (PODS, NAMESPACES, NODES, POLICIES)


@contextmanager
def _serving(size: _Size) -> Iterator[tuple[str, Synchronized[int]]]:
    """A server of what the cluster holds; 1 in the value: of what it holds after the edit."""
    fork = multiprocessing.get_context("fork")
    edited = fork.Value("i", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    process = fork.Process(target=_serve, args=(listener, size, edited), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", edited
    finally:
        process.terminate()
        process.join()
        listener.close()


def _serve(listener: socket.socket, size: _Size, edited: Synchronized[int]) -> None:
    contents = [_content(size, allowed) for allowed in (False, True)]
    lists = [{path: _list(items) for path, items in content.items()} for content in contents]
    streams = [{path: _stream(items) for path, items in content.items()} for content in contents]

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline().split():
                length = 0
                while (header := self.rfile.readline().strip().lower()) != b"":
                    if header.startswith(b"content-length:"):
                        length = int(header.partition(b":")[2])
                self.rfile.read(length)
                self._answer(urlsplit(line[1].decode()))

        def _answer(self, url: Any) -> None:
            query = parse_qs(url.query)
            found = (streams if "watch" in query else lists)[edited.value].get(url.path)
            if found is None:
                body = b'{"kind":"Status","code":404}'
                if url.path.endswith("/customresourcedefinitions"):
                    found = b"" if "watch" in query else _list([])
                else:
                    self._send(404, body)
                    return
            if "watch" not in query:
                self._send(200, found)
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            if "sendInitialEvents" in query:
                self.wfile.write(found)
            self.rfile.read(1)  # until the client has gone

        def _send(self, code: int, body: bytes) -> None:
            self.wfile.write(f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


def _list(items: list[Json]) -> bytes:
    return json.dumps({"metadata": {"resourceVersion": "9"}, "items": items}).encode()


def _stream(items: list[Json]) -> bytes:
    """The chunks of a WatchList, up to the bookmark that completes the list."""
    events: list[Json] = [{"type": "ADDED", "object": item} for item in items]
    mark = {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}
    lines = [
        json.dumps(event).encode() + b"\n"
        for event in (*events, {"type": "BOOKMARK", "object": {"metadata": mark}})
    ]
    return b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines)


def _content(size: _Size, allowed: bool) -> dict[str, list[Json]]:
    return {
        NODES: [_node(number) for number in range(size.nodes)],
        NAMESPACES: [
            _meta(f"ns-{number}", labels={"team": f"t{number % 10}"}) for number in range(size.namespaces)
        ],
        POLICIES: [_edited(allowed), *(_policy(size, number) for number in range(size.policies))],
        PODS: [_pod(size, number) for number in range(size.pods)],
    }


def _meta(name: str, namespace: str = "", labels: dict[str, str] | None = None) -> Json:
    return {"metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": labels or {}}}


def _node(number: int) -> Json:
    name = NODE if number == 0 else f"other-{number}"
    address = {"type": "InternalIP", "address": f"192.0.2.{number + 1}"}
    return _meta(name) | {"spec": {"podCIDRs": [f"10.{number + 100}.0.0/20"]}, "status": {"addresses": [address]}}


def _pod(size: _Size, number: int) -> Json:
    """The first ones are here, in the first namespaces, and get their address by ADD."""
    here = number < size.local
    node = 0 if here else 1 + number % (size.nodes - 1)
    namespace = 0 if here else number % size.namespaces
    address = "" if here else f"10.{node + 100}.{number // 250}.{number % 250}"
    labels = {"app": f"a{number % 20}", "tier": f"r{number % 4}"} | (
        {"edited": f"p{number}"} if number < 2 else {}
    )
    padding = [{"name": f"FIELD_{field}", "value": f"value of {field}"} for field in range(60)]
    return _meta(f"pod-{number}", f"ns-{namespace}", labels) | {
        "spec": {"nodeName": NODE if here else f"other-{node}", "containers": [{"name": "c", "env": padding}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}] if address else []},
    }


def _policy(size: _Size, number: int) -> Json:
    namespace = 0 if number < size.local_policies else 1 + number % (size.namespaces - 1)
    peers = [
        {"podSelector": {"matchLabels": {"tier": f"r{number % 4}"}}},
        {"namespaceSelector": {"matchLabels": {"team": f"t{number % 10}"}}},
    ]
    spec = {
        "podSelector": {"matchLabels": {"app": f"a{number % 20}"}},
        "ingress": [{"from": peers, "ports": [{"port": 8000 + number % 50}]}],
        "policyTypes": ["Ingress"],
    }
    return _meta(f"policy-{number}", f"ns-{namespace}") | {"spec": spec}


def _edited(allowed: bool) -> Json:
    client = {"podSelector": {"matchLabels": {"edited": "p0"}}}
    rules = [{"from": [client], "ports": [{"port": _PORT, "protocol": "UDP"}]}] if allowed else []
    spec = {"podSelector": {"matchLabels": {"edited": "p1"}}, "policyTypes": ["Ingress"], "ingress": rules}
    return _meta("edited", "ns-0") | {"spec": spec}
