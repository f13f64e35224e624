"""CNI ADD and DEL as a runtime sees them: felix-py's whole way beside Debian's ptp + host-local, without and with
its firewall plugin. With CNI_CONF_DIR=FOLDER and CNI_PATH=FOLDERS also beside the plugins (Calico's, say) that
the network list in that folder names; what they need must be running.

The felix-py side is the real client, socket, address store on disk, interfaces, policy engine, planner and
kernel; an ADD returns with the lease durable and the pod's policy (a class with ingress and egress rules, which
other pods of the node are in already) in force. The reference has no policy. Each call executes the plugin's
program, as a runtime does; a program that does nothing (true) shows what that alone takes: it is in every figure.
One call at a time, then 50 at once (per pod), IPv4 and dual stack.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.harness import Row, show
from felix_py import log
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
OTHER_LIST = "CNI_CONF_DIR"
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
    """One network: how to do each command for pod number N, and the CPU seconds that it has taken so far."""

    what: str
    calls: dict[str, Callable[[int], Awaitable[object]]]
    host: NetworkNamespace | None = None
    """The node's namespace; None: ours."""
    agent: Callable[[], float] = lambda: 0.0
    base: bool = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """In its node's namespace, with nothing left to collect."""
        gc.collect()
        with self.host.enter() if self.host else nullcontext():
            yield


def _run(folder: Path, families: tuple[Family, ...], many: int, rounds: int) -> None:
    sysctl.set_up_host(families)
    with ExitStack() as stack:
        resident = stack.enter_context(closing(NetworkNamespace("resident")))
        pid, runtime = stack.enter_context(agent(folder / "felix-py", families, many + 1))
        asyncio.run(runtime.add("resident", resident.path, args=pod_args(f"pod-{many}")))
        ptp, wall = network(folder / "ptp", families), network(folder / "wall", families, "firewall")
        sides = [
            _side("ptp + host-local", ptp, many, stack, host="host1", base=True),
            _side("ptp + host-local + firewall", wall, many, stack, host="host2"),
            _side("felix-py", runtime, many, stack, agent=lambda: _agent_cpu(pid)),
            _side("a program that does nothing", _nothing(folder / "nothing"), many, stack),
        ]
        if listed := os.environ.get(OTHER_LIST):
            plugins = [Path(one) for one in os.environ["CNI_PATH"].split(os.pathsep)]
            sides.append(_side(listed, CNIRuntime(Path(listed), plugins), many, stack, host="host3"))
        tables = asyncio.run(_one_by_one(sides, many))
        tables |= asyncio.run(_at_once(sides, many, rounds))
    stack_name = "dual stack" if len(families) > 1 else "IPv4"
    for title, rows in tables.items():
        show(f"cni, {stack_name}: {title}", rows)


def _side(
    what: str,
    runtime: CNIRuntime,
    many: int,
    stack: ExitStack,
    *,
    host: str = "",
    agent: Callable[[], float] = lambda: 0.0,
    base: bool = False,
) -> _Side:
    """``host``: the name of a node of its own; our agent must not be told of others' interfaces and rules."""
    node = stack.enter_context(closing(NetworkNamespace(host))) if host else None
    places = []
    for number in range(many):
        place = stack.enter_context(closing(NetworkNamespace(f"{host}pod{number}")))
        # DAD would make the references' IPv6 ADD wait for more than a second: their work is what we compare with.
        place.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        places.append(place.path)
    calls: dict[str, Callable[[int], Awaitable[object]]] = {
        "ADD": lambda n: runtime.add(f"c{n}", places[n], args=pod_args(f"pod-{n}")),
        "DEL": lambda n: runtime.delete(f"c{n}"),
    }
    return _Side(what, calls, node, agent, base)


async def _one_by_one(sides: list[_Side], many: int) -> dict[str, list[Row]]:
    """Side by side, first all ADDs, then all DELs; wall time and CPU time of each call.

    What an agent does between its calls is part of the next one.
    """
    tables: dict[str, list[Row]] = {}
    for command in ("ADD", "DEL"):
        wall, work = _rows(sides), _rows(sides)
        spent = [side.agent() for side in sides]
        for number in range(many):
            # Whoever comes after another finds the kernel still busy with that one's interface: take turns.
            for place in range(len(sides)):
                index = (place + number) % len(sides)
                side = sides[index]
                with side.at_work():
                    before = _children_cpu()
                    wall[index].values.append(await _seconds(side.calls[command](number)))
                    children, agent = _children_cpu() - before, side.agent()
                work[index].values.append(children + agent - spent[index])
                spent[index] = agent
        tables |= {command: wall, f"{command}, CPU of all processes": work}
        for row in work:
            row.values = [statistics.mean(row.values)]  # work that is shared by several calls counts in all
    return tables


def _rows(sides: list[_Side]) -> list[Row]:
    return [Row(side.what, base=side.base) for side in sides]


def _children_cpu() -> float:
    """CPU seconds of every plugin that was executed: steady where wall time is not."""
    plugins = resource.getrusage(resource.RUSAGE_CHILDREN)
    return plugins.ru_utime + plugins.ru_stime


def _agent_cpu(agent: int) -> float:
    agent_clock = ~agent << 3 | 2  # clock_getcpuclockid(3): all threads of another process
    return time.clock_gettime(agent_clock)


async def _at_once(sides: list[_Side], many: int, rounds: int) -> dict[str, list[Row]]:
    """All at the same time: a share of the time for all of them, and the slowest one in a hundred."""
    shares, slowest = ({command: _rows(sides) for command in ("ADD", "DEL")} for _ in range(2))
    for number in range(rounds):
        for command in shares:
            for place in range(len(sides)):
                index = (place + number) % len(sides)
                side = sides[index]
                with side.at_work():
                    started = time.perf_counter()
                    calls = [_seconds(side.calls[command](n)) for n in range(many)]
                    each = await asyncio.gather(*calls)
                    shares[command][index].values.append((time.perf_counter() - started) / many)
                slowest[command][index].values.append(statistics.quantiles(each, n=100)[-1])
    tables = {f"{many} {command}s at once, each": rows for command, rows in shares.items()}
    return tables | {f"{many} {command}s at once, p99 of one": rows for command, rows in slowest.items()}


async def _seconds(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


# --- the sides ----------------------------------------------------------------------------------------------


def network(folder: Path, families: tuple[Family, ...], *chained: str) -> CNIRuntime:
    """A runtime with Debian's reference plugins: ptp with host-local, and others behind it."""
    pools = {Family.V4: ("10.70.0.0/24", "0.0.0.0/0"), Family.V6: ("fd70::/64", "::/0")}
    ipam = {
        "type": "host-local",
        "dataDir": str(folder / "leases"),
        "ranges": [[{"subnet": pools[family][0]}] for family in families],
        "routes": [{"dst": pools[family][1]} for family in families],
    }
    plugins: list[dict[str, object]] = [{"type": "ptp", "ipam": ipam}]
    plugins += ({"type": name} for name in chained)
    return _listed(folder, plugins, STANDARD_PLUGINS)


def _nothing(folder: Path) -> CNIRuntime:
    return _listed(folder, [{"type": "true"}], Path("/usr/bin"))


def _listed(folder: Path, plugins: list[dict[str, object]], programs: Path) -> CNIRuntime:
    folder.mkdir()
    listed = {"cniVersion": "1.0.0", "name": folder.name, "plugins": plugins}
    (folder / "reference.conflist").write_text(json.dumps(listed))
    return CNIRuntime(folder, [programs])


@contextmanager
def agent(folder: Path, families: tuple[Family, ...], pods: int) -> Iterator[tuple[int, CNIRuntime]]:
    """A node's agent in a process of its own, with pods pod-0, pod-1, …; yields its pid and a runtime for it."""
    install_client(folder / "bin", folder / "cni.sock", built_client())
    install_conflist(folder / "net.d", conflist())
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    said = folder / "log"
    process = fork.Process(target=lambda: _process(said, _agent(folder, families, pods, ready.set)))
    process.start()
    try:
        if not ready.wait(10):
            raise RuntimeError(f"the agent did not get ready: {said.read_text()}")
        assert process.pid is not None
        yield process.pid, CNIRuntime(folder / "net.d", [folder / "bin", STANDARD_PLUGINS])
    finally:
        process.terminate()
        process.join()


def _process(said: Path, work: Coroutine[Any, Any, None]) -> None:
    """Log to a file, and collect garbage, as the agent's command does (:mod:`felix_py.cli.agent`)."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT, 0o600), 2)
    log.configure(log.LogLevel.INFO, log.LogFormat.JSON, node="node")
    gc.collect()
    gc.freeze()
    asyncio.run(work)


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
