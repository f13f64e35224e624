"""A node's agent from CNI call to kernel, for real, that listens to the kernel: for tests of drift."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from types import TracebackType

from structlog.testing import capture_logs

from felix_py.agent.forgetting import Forgetting
from felix_py.agent.network import PodNetwork
from felix_py.dataplane import sysctl
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.links import Links, PodLink, random_mac
from felix_py.dataplane.monitor import Monitor
from felix_py.dataplane.protocols import EVERYTHING, Look, RulesSnapshot
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.layout import interface_name
from felix_py.metrics import Metrics
from felix_py.pending import Pending
from felix_py.reconcile import Reconciler
from felix_py.records import Backend, Lease, NodeRecord
from policy.model import Family, IPBlock, Namespace, NetworkPolicy, Pod, PolicyRule
from policy.selectors import EVERYTHING as ALL_PODS
from tests.support.builders import lease
from tests.support.isolate import NetworkNamespace, run, veth
from tests.support.told import ToldFacts
from tests.support.waiting import until

CIDRS = {Family.V4: "10.1.0.0/24", Family.V6: "fd00:1::/64"}
GATEWAY = {Family.V4: "192.0.2.2", Family.V6: "2001:db8::2"}
LEARNED = {Family.V4: "10.1.1.0/24", Family.V6: "fd00:1:0:1::/64"}
POLICY = NetworkPolicy("shop", "db", ALL_PODS, ingress=(PolicyRule((IPBlock("10.9.0.0/16"),)),))


class LookedAt(Kernel):
    """Remembers what was read back."""

    looks: list[Look]

    def load(self, look: Look = EVERYTHING, rules: RulesSnapshot | None = None) -> None:
        self.looks.append(look)
        super().load(look, rules)


class _NoConnections:
    """Connections are not looked at here."""

    async def forget(self, addresses: Collection[str]) -> None:
        pass

    async def busy(self, _networks: Collection[str]) -> set[str]:
        return set()


class WatchedNode:
    """An agent without API server, BGP and health, in the current network namespace, with an uplink.

    ``pods`` by container id. ``logged``: all log lines so far.
    """

    def __init__(self, backend: Backend, *, refresh: float = 3600.0, listen: bool = True) -> None:
        self.backend = backend
        self._refresh = refresh
        self._listen = listen
        self.pods: dict[str, Lease] = {}

    async def __aenter__(self) -> WatchedNode:
        families = tuple(Family)
        sysctl.set_up_host(families)
        veth("up0", "tor0", "192.0.2.1/24", "2001:db8::1/64")
        self._logs = capture_logs()
        self.logged = self._logs.__enter__()
        self.metrics = Metrics()
        self.kernel = LookedAt(families, self.backend)
        self.kernel.looks = []
        self.kernel.load()
        self.pending = Pending()
        self.facts = ToldFacts("n1", families, changed=self.pending.note)
        planner = Planner(families, StaticOptions(Marks.from_mask(0xFFFF0000)), {})
        self.reconciler = Reconciler(
            *(self.pending, planner, self.kernel, self.facts.collect, self.metrics),
            refresh_interval=self._refresh,
            is_leaving=self.facts.is_leaving,
        )
        self.network = PodNetwork(self.facts, self.reconciler, lambda: 1500, Forgetting(_NoConnections()))
        self.facts.show_pods(self.network)
        self.facts.upsert(NodeRecord("n1", "", ("192.0.2.1", "2001:db8::1"), tuple(CIDRS.values())))
        self.facts.upsert(Namespace("shop"))
        self.facts.upsert(POLICY)
        self.facts.learned({LEARNED[family]: (GATEWAY[family],) for family in Family})
        self._task = asyncio.create_task(self.reconciler.run())
        await self.reconciler.settled()
        self.network.set_ready()
        self.reconciler.sweep()
        await self.reconciler.settled()
        self.monitor = Monitor(self.kernel, self.facts.held.has_interface, self.pending.look, self.pending.retry)
        if self._listen:
            self.monitor.start()
        self.kernel.looks = []
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.monitor.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.kernel.close()
        self._logs.__exit__(None, None, None)

    def know_pod(self, namespace: str, name: str) -> None:
        """The API server has told of a pod that the runtime will connect."""
        pod = Pod(namespace, name, f"uid-{name}", "n1")
        self.facts.upsert(pod)

    async def add_pod(self, container: str, place: NetworkNamespace) -> Lease:
        """What a CNI ADD does, less the lease's store."""
        number = len(self.pods) + 2
        addresses = {Family.V4: f"10.1.0.{number}", Family.V6: f"fd00:1::{number:x}"}
        host = interface_name(container, "eth0")
        pod = Pod("shop", container, "u", "n1", (), tuple(addresses.values()))
        self.facts.upsert(pod)
        held = lease(pod, created=float(number))
        with Links() as links:
            links.create(PodLink(host, place.path, "eth0", addresses, random_mac(), 1500))
        await self.network.enforce(held)
        self.pods[container] = held
        return held

    async def remove_pod(self, container: str) -> None:
        """What a CNI DEL does."""
        lease = self.pods.pop(container)
        self.network.leaving(lease)
        with Links() as links:
            links.delete([lease.interface])
        await self.network.release(lease)

    def drift(self) -> dict[str, int]:
        """The metric, less what is 0."""
        (metric,) = self.metrics.drift.collect()
        return {sample.labels["kind"]: int(sample.value) for sample in metric.samples if sample.value}

    async def drifted(self, **expected: int) -> None:
        """Until so much was noticed and is mended; fails if it is anything else."""
        await until(lambda: sum(self.drift().values()) >= sum(expected.values()))
        assert self.drift() == expected, self.found()
        await self.reconciler.settled(lambda: ())
        assert await self.reconciler.differences() == []

    def found(self) -> list[str]:
        """What the log says of drift."""
        lines: list[str] = []
        for line in self.logged:
            if line["event"].startswith("somebody else has changed"):
                assert line["log_level"] == "warning"
                lines += line["found"]
        return lines


@asynccontextmanager
async def node_with_pod(
    make_netns: Callable[[str], NetworkNamespace], backend: Backend, *, refresh: float = 3600.0
) -> AsyncIterator[WatchedNode]:
    """A node on which the pod c1 runs."""
    async with WatchedNode(backend, refresh=refresh) as node:
        await node.add_pod("c1", make_netns("c1"))
        yield node


def execute(commands: str, **names: str) -> None:
    """Run commands, separated by semicolons, with names filled in, as another program would."""
    for command in commands.format(**names).split(";"):
        run(*command.split())
