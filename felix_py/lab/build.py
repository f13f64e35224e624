"""How a lab comes up, step by step."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml  # type: ignore[import-untyped]

from felix_py.lab import machines, topology
from felix_py.lab.apiclient import ApiClient, Obj
from felix_py.lab.namespaces import NETNS_DIR, CommandError, run
from felix_py.lab.state import LabError, Phase, Process, Record, Shape, StateDir, start
from felix_py.lab.topology import TOR, machine_netns

EXAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "examples"
"""The manifests of a checkout."""

EXAMPLE_PODS = "00-pods.yaml"
_POLL = 0.05
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to bring up. ``manifest`` None: no pods."""

    shape: Shape = field(default_factory=Shape)
    manifest: Path | None = EXAMPLES / EXAMPLE_PODS
    keep_failed: bool = False


class Builder:
    """Makes one lab. The record is on disk before anything it describes exists."""

    def __init__(self, state: StateDir, options: Options, say: Callable[[str], None]) -> None:
        self._state = state
        self._shape = options.shape
        self._manifest = options.manifest
        self._say = say
        self._nodes = topology.nodes(options.shape.nodes, options.shape.address_families)
        self._record = Record(name=state.name, token=secrets.token_hex(16), shape=options.shape)

    async def build(self) -> None:
        """Make everything and wait until it works.

        Raises:
            LabError: something does not; the message has what its log says.
        """
        objects = _load(self._manifest)
        self._state.write(self._record)
        try:
            self._say("router, links and nodes")
            machines.make_network(self._record.name, self._nodes)
            self._start_machine(TOR, machines.prepare_router(self._state, self._record, self._nodes))
            self._say("API server")
            self._start_apiserver()
            await self._wait("the API server", self._apiserver_ready, "apiserver")
            kubeconfig = _node_kubeconfig(self._state.kubeconfig, self._nodes[0])
            for node in self._nodes:
                self._start_machine(node.name, machines.prepare_node(self._state, self._record, node, kubeconfig))
            await self._wait("the nodes' mounts", self._machines_ready)
            self._start("kubelet", "felix_py.lab.kubelet", str(self._state.root), self._state.name)
            async with ApiClient(self._state.kubeconfig) as api:
                await self._populate(api, objects)
        except (CommandError, OSError) as error:
            raise LabError(str(error)) from error
        self._note(phase=Phase.UP)

    async def _populate(self, api: ApiClient, objects: list[Obj]) -> None:
        pods = [obj for obj in objects if obj["kind"] == "Pod"]
        for obj in objects:
            if obj not in pods:
                await api.apply(obj)
        self._say("agents")
        await self._wait_until_none("nodes become Ready", lambda: _unready_nodes(api, self._nodes), "kubelet")
        # Not before every node can take some: the first one ready would get them all.
        for pod in pods:
            await api.apply(pod)
        self._say("BGP")
        await self._wait_until_none("routes to the pods of", self._missing_routes)
        if pods:
            self._say(f"{len(pods)} pods")
            await self._wait_until_none("pods run:", lambda: _waiting_pods(api), "kubelet")

    # --- processes ---------------------------------------------------------------------------------------

    def _start(self, name: str, module: str, *argv: str, pass_fds: tuple[int, ...] = ()) -> None:
        command = [sys.executable, "-m", module, *argv]
        self._note(name, start(self._record, command, self._state.log(name), pass_fds))

    def _start_machine(self, name: str, spec: Path) -> None:
        self._start(name, "felix_py.lab.machine", str(spec))

    def _note(self, name: str = "", process: Process | None = None, phase: Phase | None = None) -> None:
        processes = self._record.processes | ({name: process} if process else {})
        self._record = msgspec.structs.replace(
            self._record, processes=processes, phase=phase or self._record.phase
        )
        self._state.write(self._record)

    def _start_apiserver(self) -> None:
        """On the router's address for the nodes, and on a free loopback port for kubectl."""
        family = self._nodes[0].families[0]
        netns = NETNS_DIR / machine_netns(self._record.name, TOR)
        with (
            socket.create_server(("127.0.0.1", 0), backlog=512) as outside,
            machines.listen_in(netns, topology.API_ADDRESS[family], topology.API_PORT) as inside,
        ):
            fds = (outside.fileno(), inside.fileno())
            # The order counts: the first address is that of the administrator's kubeconfig.
            options = [word for fd in fds for word in ("--fd", str(fd))]
            self._state.apiserver.mkdir()
            services = ",".join(topology.SERVICE_CIDRS[family] for family in self._nodes[0].families)
            assets = os.environ.get("KUBEBUILDER_ASSETS")
            module = "felix_py.lab.kube_apiserver" if assets else "felix_py.lab.apiserver"
            argv = ["--state-dir", str(self._state.apiserver), "--service-cidr", services, *options]
            self._start("apiserver", module, *argv, pass_fds=fds)

    # --- waiting -----------------------------------------------------------------------------------------

    async def _apiserver_ready(self) -> bool:
        return (self._state.apiserver / "ready").exists()

    async def _machines_ready(self) -> bool:
        names = [TOR, *(node.name for node in self._nodes)]
        return all((self._state.machine(name) / "status.json").exists() for name in names)

    async def _missing_routes(self) -> list[str]:
        """Pod CIDRs that the router's kernel does not have, or that a node has not learned from it."""
        missing = []
        for machine in (TOR, *(node.name for node in self._nodes)):
            found = await asyncio.to_thread(self._kernel_routes, machine)
            missing += [
                f"{node.name} on {machine}"
                for node in self._nodes
                for cidr in node.pod_cidrs.values()
                if node.name != machine and cidr not in found
            ]
        return missing

    def _kernel_routes(self, machine: str) -> set[str]:
        netns = machine_netns(self._record.name, machine)
        lists = [
            run("ip", "-json", f"-{int(family)}", "-n", netns, "route") for family in self._nodes[0].families
        ]
        return {route["dst"] for text in lists for route in json.loads(text)}

    async def _wait(self, what: str, ready: Callable[[], Awaitable[bool]], log: str = "") -> None:
        async def missing() -> list[str]:
            return [] if await ready() else [what]

        await self._wait_until_none("", missing, log)

    async def _wait_until_none(
        self, what: str, missing: Callable[[], Awaitable[list[str]]], log: str = ""
    ) -> None:
        """Poll until ``missing`` is empty; fail when a process of the lab died, or after a minute."""
        deadline = time.monotonic() + _PATIENCE
        while left := await missing():
            dead = [name for name, process in self._record.processes.items() if not process.alive]
            if dead:
                raise LabError(f"{dead[0]} died:\n{_tail(self._state.log(dead[0]))}")
            if time.monotonic() > deadline:
                shown = f"{what} {', '.join(left)}".strip()
                raise LabError(f"after {_PATIENCE:.0f} s still waiting for: {shown}{self._hints(log)}")
            await asyncio.sleep(_POLL)

    def _hints(self, log: str) -> str:
        """The last lines of what is likely to know why."""
        files = [self._state.log(log)] if log else []
        for node in self._nodes:
            files += [self._state.machine(node.name) / "log" / f"{name}.log" for name in ("agent", "bgp")]
        return "".join(f"\n{file}:\n{_tail(file)}" for file in files if file.exists())


def _tail(path: Path, lines: int = 5) -> str:
    return "\n".join(f"  {line}" for line in path.read_text(errors="replace").splitlines()[-lines:])


def _load(manifest: Path | None) -> list[Obj]:
    if manifest is None:
        return []
    try:
        return [obj for obj in yaml.safe_load_all(manifest.read_text()) if obj]
    except FileNotFoundError:
        raise LabError(f"{manifest} is not there: the example pods are in a checkout; try --no-pods") from None
    except (OSError, yaml.YAMLError) as error:
        raise LabError(f"{manifest}: {error}") from error


def _node_kubeconfig(admin: Path, node: topology.Node) -> str:
    """The administrator's credentials with the address at which nodes find the API server."""
    document = yaml.safe_load(admin.read_text())
    cluster = document["clusters"][0]["cluster"]
    scheme = cluster["server"].partition("://")[0]
    address = topology.API_ADDRESS[node.families[0]]
    host = f"[{address}]" if ":" in address else address
    cluster["server"] = f"{scheme}://{host}:{topology.API_PORT}"
    return str(yaml.safe_dump(document, sort_keys=False))


async def _unready_nodes(api: ApiClient, nodes: list[topology.Node]) -> list[str]:
    listed = await api.get("/api/v1/nodes")
    ready = {
        item["metadata"]["name"]
        for item in listed["items"]
        for condition in item.get("status", {}).get("conditions") or []
        if condition["type"] == "Ready" and condition["status"] == "True"
    }
    return [node.name for node in nodes if node.name not in ready]


async def _waiting_pods(api: ApiClient) -> list[str]:
    listed = await api.get("/api/v1/pods")
    return [
        f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        for item in listed["items"]
        if item.get("status", {}).get("phase") != "Running"
    ]
