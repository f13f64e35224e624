"""A change of the cluster: from the API write to the right verdict, and what a storm of changes costs.

A pod of another node comes, as the kubelet tells of it: first without an address, then, 5 ms later, with one that
a policy of this node lets in. The clock runs from that second write to the moment when the kernel's IP set has
the address; the agent is a real one, the API server a stand-in that speaks real HTTP in this process. The least
that any agent needs is the other row: a watch of the same server, and its line decoded. Between two pods it is
quiet.

The same pods' processor time: of the agent for one that comes and for one that goes again, until a second
after the verdict, so that the work behind it counts (the connections of who is let in no longer must end:
half a second after the last such change the table of connections is looked through once); beside ipset(8),
which adds and deletes one member.

Then a storm: for some seconds a thousand times a second a pod changes in something that no policy asks for, and
the agent's way from event to kernel, in this process, is charged with the processor time that it takes. The other
row rests 50 ms after every apply, as after those that write.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.harness import Row, show
from bench.processes import Cost
from felix_py import reconcile
from felix_py.dataplane.ipset_commands import Commands
from felix_py.dataplane.kernel import Kernel
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.metrics import Metrics
from felix_py.pending import Pending
from felix_py.reconcile import Reconciler
from felix_py.records import Backend, NodeRecord
from policy.model import Family, Namespace, Pod
from tests.support.agent_program import NODE, AgentProgram
from tests.support.cni import pod_args
from tests.support.fakeapi import NAMESPACES, NODES, PODS, POLICIES, FakeApi
from tests.support.isolate import NetworkNamespace, new_netns, run
from tests.support.told import ToldFacts

_AFTER = 1.0
"""Seconds in which the work behind a verdict is done."""

_STORM = 1000
"""Changes a second."""

Json = dict[str, Any]


def main(quick: bool) -> None:
    """Both, each in a network namespace of its own."""
    with new_netns(), TemporaryDirectory() as folder, FakeApi() as api:
        reactions, costs = _reactions(Path(folder), api, 3 if quick else 30)
        show("react: from the API write to the verdict", reactions)
        show("react: processor time of a pod of another node", costs)
    with new_netns():
        rows = [
            Row("50 ms of rest after every apply", base=True),
            Row("felix-py: hardly any after one that wrote nothing"),
        ]
        for _ in range(1 if quick else 3):
            for row, least in zip(rows, (reconcile._REST, reconcile._REST_LEAST), strict=True):
                row.values.append(asyncio.run(_storm(1.0 if quick else 3.0, least)))
        show(f"react: processor time of a second with {_STORM} changes that matter to nobody", rows)


# --- from write to verdict ---------------------------------------------------------------------------


def _reactions(folder: Path, api: FakeApi, times: int) -> tuple[list[Row], list[Row]]:
    cidr = {"podCIDRs": ["10.65.0.0/24"]}
    address = {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}
    api.put(NODES, {"metadata": {"name": NODE}, "spec": cidr, "status": address})
    api.put(NAMESPACES, {"metadata": {"name": "default"}})
    peers = [{"podSelector": {"matchLabels": {"app": "client"}}}]
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}]}
    api.put(POLICIES, {"metadata": {"name": "clients", "namespace": "default"}, "spec": spec})
    api.put(PODS, _pod("target", NODE, ""))
    place = NetworkNamespace("target")
    bare, agents = Row("a bare watch of the same server", base=True), Row("felix-py agent")
    costs = [
        Row("ipset add, ipset del", base=True),
        Row("felix-py agent: it comes"),
        Row("felix-py agent: it goes"),
        Row("felix-py agent: nothing happens"),
    ]
    try:
        with AgentProgram(folder, api.url, "--backend=nft") as agent, closing(Commands()) as sets:
            agent.start()
            agent.wait_ready()
            asyncio.run(agent.runtime.add("target", place.path, args=pod_args("target")))
            with _watching(api) as seen:
                for number in range(times + 1):
                    name, ip = f"client-{number}", f"10.66.0.{number + 1}"
                    used = Cost([agent.pid])
                    values = _comes(api, sets, seen, name, ip)
                    took = [_by_tool(), _rested(used)]
                    used = Cost([agent.pid])
                    _goes(api, sets, name, ip)
                    took += [_rested(used), _rested(Cost([agent.pid]))]
                    if number:
                        for row, value in zip((bare, agents, *costs), (*values, *took), strict=True):
                            row.values.append(value)
    finally:
        place.close()
    return [bare, agents], costs


def _rested(used: Cost) -> float:
    time.sleep(_AFTER)
    return used.seconds()


def _by_tool() -> float:
    """CPU seconds."""
    run("ipset", "-exist", "create", "bench", "hash:ip")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for verb in ("add", "del"):
        run("ipset", verb, "bench", "10.66.0.1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _pod(name: str, node: str, address: str) -> Json:
    labels = {"app": "client" if address or node != NODE else "target"}
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": labels}
    status: Json = {"phase": "Running", "podIPs": [{"ip": address}]} if address else {"phase": "Pending"}
    return {"metadata": metadata, "spec": {"nodeName": node, "containers": []}, "status": status}


def _comes(api: FakeApi, sets: Commands, seen: dict[str, float], name: str, address: str) -> tuple[float, float]:
    """Seconds until a bare watch has seen it, and until it is in the kernel's set."""
    api.put(PODS, _pod(name, "another", ""))
    time.sleep(0.005)
    started = time.perf_counter()
    api.put(PODS, _pod(name, "another", address))
    _await(sets, address, there=True)
    reached = time.perf_counter() - started
    while address not in seen:
        time.sleep(0.0001)
    return seen[address] - started, reached


def _goes(api: FakeApi, sets: Commands, name: str, address: str) -> None:
    api.delete(PODS, "default", name)
    _await(sets, address, there=False)


def _await(sets: Commands, address: str, *, there: bool) -> None:
    packed, since = socket.inet_aton(address), time.perf_counter()
    while there != any(packed in key for set_name in _peers(sets) for key in _members(sets, set_name)):
        if time.perf_counter() - since > 10:
            raise RuntimeError(f"{address} was not {'in' if there else 'out of'} the set within 10 seconds")


def _peers(sets: Commands) -> list[str]:
    return [name for name in sets.names() if name.startswith("felix4-")]


def _members(sets: Commands, name: str) -> list[bytes]:
    found = sets.read(name)
    return list(found[1]) if found else []


@contextmanager
def _watching(api: FakeApi) -> Iterator[dict[str, float]]:
    """When a plain client saw each address, by the same clock."""
    seen: dict[str, float] = {}
    answer = urllib.request.urlopen(f"{api.url}{PODS}?watch=true&resourceVersion={api.version}")

    def read() -> None:
        for line in answer:
            for entry in json.loads(line)["object"].get("status", {}).get("podIPs", ()):
                seen[entry["ip"]] = time.perf_counter()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        api.end_watches()
        thread.join()
        answer.close()


# --- a storm -----------------------------------------------------------------------------------------


async def _storm(seconds: float, least: float) -> float:
    """Processor time of one second of it."""
    usual, reconcile._REST_LEAST = reconcile._REST_LEAST, least
    try:
        with Kernel((Family.V4,), Backend.NFT) as kernel:
            kernel.load()
            pending = Pending()
            facts = ToldFacts("node", (Family.V4,), changed=pending.note)
            planner = Planner((Family.V4,), StaticOptions(Marks.from_mask(0xFFFF0000)), {})
            reconciler = Reconciler(pending, planner, kernel, facts.collect, Metrics(), refresh_interval=3600)
            facts.upsert(NodeRecord("node", "", ("192.0.2.1",), ("10.65.0.0/24",)))
            facts.upsert(Namespace("default"))
            work = asyncio.create_task(reconciler.run())
            await reconciler.settled()
            used = await _events(facts, seconds)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            return used / seconds
    finally:
        reconcile._REST_LEAST = usual


async def _events(facts: ToldFacts, seconds: float) -> float:
    started, before, number = time.monotonic(), time.process_time(), 0
    while (now := time.monotonic() - started) < seconds:
        while number < now * _STORM:
            facts.upsert(Pod("default", "busy", "u", "another", (("beat", str(number)),), ("10.66.0.1",)))
            number += 1
        await asyncio.sleep(0.001)
    return time.process_time() - before
