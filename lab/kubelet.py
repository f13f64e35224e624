"""``python -m lab.kubelet STATE_ROOT NAME``: the lab's scheduler and the kubelets of all its nodes.

It also answers as the world outside, on the router's addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp

from felix_py import log
from lab import topology
from lab.apiclient import STRATEGIC, ApiClient, ApiError, Obj
from lab.event_recorder import EventRecorder, now
from lab.machines import CNI_BIN_DIR
from lab.namespaces import NETNS_DIR
from lab.podserver import PodServer
from lab.runtime import CNIRuntime, Place, PluginError
from lab.sandbox import Host, Sandbox, remove_left_over
from lab.sandbox_store import SandboxStore
from lab.scheduler import Scheduler
from lab.state import Record, StateDir
from lab.topology import TOR, Node, machine_netns
from policy.model import Family

_CNI_POLL = 0.2
_logger = log.get("kubelet")


class Kubelet:
    """One node: registers it, and runs the pods that are bound to it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sandboxes: dict[str, Sandbox] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def register(self) -> None:
        """Make the Node object, not ready yet; one that is there already is this node's from an earlier life."""
        node = self._host.node
        addresses = [{"type": "InternalIP", "address": address} for address in node.addresses.values()]
        cidrs = list(node.pod_cidrs.values())
        labels = {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"}
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": labels},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {
                "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
                "conditions": [_ready(False)],
                "capacity": _capacity(),
                "allocatable": _capacity(),
                "nodeInfo": {"kubeletVersion": "felix-py-lab", "operatingSystem": "linux"},
            },
        }
        try:
            await self._host.api.create("/api/v1/nodes", body)
        except ApiError as error:
            if error.code != 409:
                raise

    async def remove_left_overs(self) -> None:
        """Remove what pods have left that were deleted while no kubelet ran."""
        # Before the list is asked for: what a pod that begins meanwhile notes is not left over.
        left = [one for one in self._host.store.all() if one.node == self._host.node.name]
        pods = (await self._host.api.get("/api/v1/pods"))["items"]
        there = {pod["metadata"]["uid"] for pod in pods}
        await asyncio.gather(*(remove_left_over(self._host, one) for one in left if one.uid not in there))

    async def follow_network(self) -> None:
        """Keep the Ready condition: a node is ready while there is a CNI network list, as with a real kubelet."""
        was: bool | None = None
        while True:
            is_ready = self._host.runtime.network() is not None
            if is_ready != was:
                with contextlib.suppress(ApiError, aiohttp.ClientError):
                    path = f"/api/v1/nodes/{self._host.node.name}/status"
                    await self._host.api.patch(path, {"status": {"conditions": [_ready(is_ready)]}}, STRATEGIC)
                    was = is_ready
            await asyncio.sleep(_CNI_POLL)

    def pod_changed(self, kind: str, pod: Obj) -> None:
        """A pod of this node came, went or changed."""
        uid = pod["metadata"]["uid"]
        sandbox = self._sandboxes.get(uid)
        if sandbox is None:
            if kind != "DELETED":
                self._start(uid, Sandbox(self._host, pod))
        elif kind == "DELETED":
            sandbox.gone()
        else:
            sandbox.update(pod)

    def _start(self, uid: str, sandbox: Sandbox) -> None:
        self._sandboxes[uid] = sandbox
        task = asyncio.create_task(self._run(uid, sandbox))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, uid: str, sandbox: Sandbox) -> None:
        try:
            await sandbox.run()
        except Exception:
            _logger.exception("pod lost", uid=uid)
        finally:
            del self._sandboxes[uid]


def _capacity() -> dict[str, str]:
    """What kubectl divides by. It is the whole machine's for each node: pods of a lab need next to nothing."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    return {"cpu": str(os.cpu_count() or 1), "memory": f"{memory}Ki", "pods": "110"}


def _ready(is_ready: bool) -> Obj:
    message = (
        "kubelet is posting ready status" if is_ready else "container runtime network not ready: no CNI network"
    )
    return {
        "type": "Ready",
        "status": "True" if is_ready else "False",
        "reason": "KubeletReady" if is_ready else "KubeletNotReady",
        "message": message,
        "lastHeartbeatTime": now(),
        "lastTransitionTime": now(),
    }


class _People:
    """Whose address it is: pods as the API has them, nodes and the world."""

    def __init__(self, nodes: list[Node]) -> None:
        self._fixed = {address: node.name for node in nodes for address in node.addresses.values()}
        for name, addresses in topology.WORLD.items():
            self._fixed |= dict.fromkeys(addresses.values(), name)
        self._pods: dict[str, tuple[str, ...]] = {}
        self._names: dict[str, str] = {}

    def pod_changed(self, kind: str, pod: Obj) -> None:
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for address in self._pods.pop(pod["metadata"]["uid"], ()):
            if self._names.get(address) == name:
                del self._names[address]
        if kind != "DELETED" and not pod["spec"].get("hostNetwork"):
            addresses = tuple(entry["ip"] for entry in (pod.get("status") or {}).get("podIPs") or [])
            self._pods[pod["metadata"]["uid"]] = addresses
            self._names |= dict.fromkeys(addresses, name)

    def who(self, address: str) -> str:
        return self._fixed.get(address) or self._names.get(address) or "somebody"


def _world(lab: str, families: tuple[Family, ...], who: Callable[[str], str]) -> list[PodServer]:
    netns = NETNS_DIR / machine_netns(lab, TOR)
    return [
        PodServer(name, netns, topology.WORLD_PORTS, families, [addresses[family] for family in families], who)
        for name, addresses in topology.WORLD.items()
    ]


def _kubelets(
    state: StateDir, nodes: list[Node], api: ApiClient, who: Callable[[str], str]
) -> dict[str, Kubelet]:
    events = EventRecorder(api, "felix-py-lab-kubelet")
    store = SandboxStore(state.sandboxes)
    kubelets = {}
    for node in nodes:
        cache = state.machine(node.name) / "cni-cache"
        for folder in (state.sandboxes, cache):
            folder.mkdir(exist_ok=True)
        conf_dir = state.machine(node.name) / "cni-conf"
        runtime = CNIRuntime(conf_dir, [Path(CNI_BIN_DIR)], functools.partial(place_of, state, node.name), cache)
        kubelets[node.name] = Kubelet(Host(state.name, node, api, runtime, events, store, who))
    return kubelets


def place_of(state: StateDir, node: str) -> Place:
    """Inside a node, whose supervisor may be another one than a moment ago.

    Raises:
        PluginError: it does not run.
    """
    keeper = state.read_keeper()
    kept = keeper.programs.get(node) if keeper else None
    if kept is None or kept.process is None or not kept.process.alive:
        raise PluginError("runtime", 11, f"{node} does not run")
    pid = str(kept.process.pid)
    return Place(("nsenter", "-t", pid, "-m", "-n", "--"), Path(f"/proc/{pid}/root"))


async def _serve(state: StateDir, record: Record) -> None:
    families = record.shape.address_families
    async with ApiClient(state.kubeconfig) as api, asyncio.TaskGroup() as tasks:
        nodes = topology.nodes(record.shape.nodes, families)
        people = _People(nodes)
        kubelets = _kubelets(state, nodes, api, people.who)
        scheduler = Scheduler(api)
        for server in _world(record.name, families, people.who):
            await server.start()
        await asyncio.gather(*(kubelet.register() for kubelet in kubelets.values()))
        for kubelet in kubelets.values():
            tasks.create_task(kubelet.follow_network())
            tasks.create_task(kubelet.remove_left_overs())
        tasks.create_task(_follow_nodes(api, scheduler))
        tasks.create_task(_follow_pods(api, scheduler, kubelets, people))


async def _follow_nodes(api: ApiClient, scheduler: Scheduler) -> None:
    async for kind, node in api.follow("/api/v1/nodes"):
        await scheduler.node_changed(kind, node)


async def _follow_pods(
    api: ApiClient, scheduler: Scheduler, kubelets: dict[str, Kubelet], people: _People
) -> None:
    async for kind, pod in api.follow("/api/v1/pods"):
        people.pod_changed(kind, pod)
        await scheduler.pod_changed(kind, pod)
        kubelet = kubelets.get(pod["spec"].get("nodeName", ""))
        if kubelet is not None:
            kubelet.pod_changed(kind, pod)


async def _run(state: StateDir, record: Record) -> None:
    task = asyncio.create_task(_serve(state, record))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> None:
    """Be scheduler and kubelets until SIGTERM."""
    state = StateDir(Path(sys.argv[1]), sys.argv[2])
    record = state.read()
    if record is None:
        raise SystemExit(f"no lab in {state.path}")
    log.configure(log.LogLevel.INFO, log.LogFormat.JSON)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_run(state, record))


if __name__ == "__main__":
    main()
