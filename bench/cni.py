"""CNI ADD and DEL as a runtime sees them: felix-py's whole way beside Debian's ptp + host-local.

The felix-py side is the real client, socket, address store on disk, interfaces, policy engine, planner and
kernel; an ADD returns with the lease durable and the pod's policy (a class with ingress and egress rules, which
other pods of the node are in already) in force. The reference has no policy. Each call executes the plugin's
program, as a runtime does. One call at a time, then 50 at once (per pod), IPv4 and dual stack.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness import Row, show
from felix_py.agent.flows import Flows
from felix_py.agent.forgetting import Forgetting
from felix_py.agent.network import PodNetwork
from felix_py.cni.conflist import conflist, install_client, install_conflist
from felix_py.cni.plugin import Plugin
from felix_py.cni.server import CNIServer
from felix_py.cni.workers import Interfaces, Leases
from felix_py.dataplane import sysctl
from felix_py.dataplane.conntrack import Conntrack
from felix_py.dataplane.elsewhere import ElsewhereLookup
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.monitor import Monitor
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.ipam.store import AddressStore
from felix_py.metrics import Metrics
from felix_py.notices import Notices
from felix_py.pending import Pending
from felix_py.reconcile import Reconciler
from felix_py.records import Backend, NodeRecord
from lab.runtime import CNIRuntime
from policy.model import (
    Family,
    IPBlock,
    Namespace,
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    PolicyRule,
    Port,
    Protocol,
    Requirement,
    Selector,
)
from tests.support.cni import STANDARD_PLUGINS, built_client, pod_args
from tests.support.isolate import NetworkNamespace, new_netns
from tests.support.told import ToldFacts

BURST = 50
_POD_CIDRS = {Family.V4: "10.65.0.0/24", Family.V6: "fd65::/64"}
_WEB = Selector((Requirement("app", Operator.IN, ("web",)),))
_DISK = "/var/tmp"
"""Not /tmp, which may be memory: both sides must pay for their files."""


def main(quick: bool) -> None:
    """Both families, each in a network namespace of its own."""
    many = 5 if quick else BURST
    for families in ((Family.V4,), tuple(Family)):
        with new_netns(), TemporaryDirectory(dir=_DISK) as folder:
            _run(Path(folder), families, many, rounds=1 if quick else 3)


@dataclass
class _Side:
    """One of the two: per command, how to do it for pod number N."""

    what: str
    calls: dict[str, Callable[[int], Awaitable[object]]]
    base: bool = False


def _run(folder: Path, families: tuple[Family, ...], many: int, rounds: int) -> None:
    sysctl.set_up_host(families)
    places = [[NetworkNamespace(f"{side}{number}") for number in range(many)] for side in ("ptp", "felix")]
    resident = NetworkNamespace("resident")
    try:
        # DAD would make the reference's IPv6 ADD wait for more than a second: its work is what we compare with.
        for place in places[0]:
            place.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        reference = ptp(folder / "ptp", families)
        with agent(folder / "felix-py", families, many + 1) as (pid, runtime):
            asyncio.run(runtime.add("resident", resident.path, args=pod_args(f"pod-{many}")))
            sides = [
                _Side(
                    "ptp + host-local",
                    {
                        "ADD": lambda n: reference.add(f"c{n}", places[0][n].path),
                        "DEL": lambda n: reference.delete(f"c{n}"),
                    },
                    base=True,
                ),
                _Side(
                    "felix-py",
                    {
                        "ADD": lambda n: runtime.add(f"c{n}", places[1][n].path, args=pod_args(f"pod-{n}")),
                        "DEL": lambda n: runtime.delete(f"c{n}"),
                    },
                ),
            ]
            tables = asyncio.run(_one_by_one(sides, many, lambda: _cpu(pid)))
            tables |= asyncio.run(_at_once(sides, many, rounds))
        stack = "dual stack" if len(families) > 1 else "IPv4"
        for title, rows in tables.items():
            show(f"cni, {stack}: {title}", rows)
    finally:
        for place in (resident, *places[0], *places[1]):
            place.close()


async def _one_by_one(sides: list[_Side], many: int, cpu: Callable[[], float]) -> dict[str, list[Row]]:
    """Side by side, first all ADDs, then all DELs; wall time and CPU time of each call."""
    tables: dict[str, list[Row]] = {}
    for command in ("ADD", "DEL"):
        wall, work = _rows(sides), _rows(sides)
        for number in range(many):
            gc.collect()
            # Whoever comes second finds the kernel still busy with the first one's interface: take turns.
            for index in (0, 1) if number % 2 else (1, 0):
                cpu_before = cpu()
                wall[index].values.append(await _seconds(sides[index].calls[command](number)))
                work[index].values.append(cpu() - cpu_before)
        tables |= {command: wall, f"{command}, CPU of all processes": work}
    return tables


def _rows(sides: list[_Side]) -> list[Row]:
    return [Row(side.what, base=side.base) for side in sides]


def _cpu(agent: int) -> float:
    """CPU seconds of the agent and of every plugin that was executed: steady where wall time is not."""
    plugins = resource.getrusage(resource.RUSAGE_CHILDREN)
    agent_clock = ~agent << 3 | 2  # clock_getcpuclockid(3): all threads of another process
    return plugins.ru_utime + plugins.ru_stime + time.clock_gettime(agent_clock)


async def _at_once(sides: list[_Side], many: int, rounds: int) -> dict[str, list[Row]]:
    tables = {command: _rows(sides) for command in ("ADD", "DEL")}
    for _ in range(rounds):
        for command, rows in tables.items():
            for row, side in zip(rows, sides, strict=True):
                gc.collect()
                calls = asyncio.gather(*map(side.calls[command], range(many)))
                row.values.append(await _seconds(calls) / many)
    return {f"{many} {command}s at once, each": rows for command, rows in tables.items()}


async def _seconds(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


# --- the two sides ----------------------------------------------------------------------------------------------


def ptp(folder: Path, families: tuple[Family, ...]) -> CNIRuntime:
    """A runtime with Debian's reference plugins."""
    pools = {Family.V4: ("10.70.0.0/24", "0.0.0.0/0"), Family.V6: ("fd70::/64", "::/0")}
    ipam = {
        "type": "host-local",
        "dataDir": str(folder / "leases"),
        "ranges": [[{"subnet": pools[family][0]}] for family in families],
        "routes": [{"dst": pools[family][1]} for family in families],
    }
    network = {"cniVersion": "1.0.0", "name": "reference", "plugins": [{"type": "ptp", "ipam": ipam}]}
    folder.mkdir()
    (folder / "reference.conflist").write_text(json.dumps(network))
    return CNIRuntime(folder, [STANDARD_PLUGINS])


@contextmanager
def agent(folder: Path, families: tuple[Family, ...], pods: int) -> Iterator[tuple[int, CNIRuntime]]:
    """A node's agent in a process of its own, with pods pod-0, pod-1, …; yields its pid and a runtime for it."""
    install_client(folder / "bin", folder / "cni.sock", built_client())
    install_conflist(folder / "net.d", conflist())
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    process = fork.Process(target=lambda: asyncio.run(_agent(folder, families, pods, ready.set)))
    process.start()
    try:
        if not ready.wait(10):
            raise RuntimeError("the agent did not get ready")
        assert process.pid is not None
        yield process.pid, CNIRuntime(folder / "net.d", [folder / "bin", STANDARD_PLUGINS])
    finally:
        process.terminate()
        process.join()


async def _agent(folder: Path, families: tuple[Family, ...], pods: int, ready: Callable[[], None]) -> None:
    """The agent's way from call to kernel until SIGTERM, without informers, BGP and health."""
    metrics = Metrics()
    with Kernel(families, Backend.NFT) as kernel:
        kernel.load()
        pending = Pending()
        facts = ToldFacts("node", families, changed=pending.note)
        planner = Planner(families, StaticOptions(Marks.from_mask(0xFFFF0000)), {})
        reconciler = Reconciler(pending, planner, kernel, facts.collect, metrics, refresh_interval=3600)
        flows = Flows(Conntrack(), Conntrack(), metrics)
        network = PodNetwork(facts, reconciler, lambda: 1500, Forgetting(flows))
        facts.show_pods(network)
        _fill(facts, families, pods)
        work = asyncio.create_task(reconciler.run())
        await reconciler.settled()
        network.set_ready()
        Monitor(kernel, facts.held.has_interface, pending.look, pending.retry).start()
        store = AddressStore(folder / "leases.db", ElsewhereLookup())
        plugin = Plugin(Leases(store), Interfaces(), network, Notices(metrics))
        server = CNIServer(plugin, folder / "cni.sock", metrics)
        await server.start()
        ready()
        await work


def _fill(facts: ToldFacts, families: tuple[Family, ...], pods: int) -> None:
    """A policy, and pods that it selects, known but without addresses, as when the kubelet starts them."""
    cidrs = tuple(_POD_CIDRS[family] for family in families)
    facts.upsert(NodeRecord("node", "", ("192.0.2.1", "2001:db8::1"), cidrs))
    facts.upsert(Namespace("default"))
    near = PolicyRule((PodPeer(None, _WEB),), (Port(Protocol.TCP, 80), Port(Protocol.UDP, 53)))
    far = PolicyRule((IPBlock("0.0.0.0/0", ("10.0.0.0/8",)), IPBlock("2000::/3")), None)
    facts.upsert(NetworkPolicy("default", "web", _WEB, ingress=(near,), egress=(near, far)))
    for number in range(pods):
        pod = Pod("default", f"pod-{number}", f"uid-pod-{number}", "node", (("app", "web"),))
        facts.upsert(pod)
