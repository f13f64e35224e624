"""How a lab comes up, step by step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import yaml

from lab import machines, topology
from lab.apiclient import ApiClient, ApiError, Obj
from lab.namespaces import CommandError, run
from lab.processes import start
from lab.state import LabError, LabProgram, Listener, Phase, Record, Shape, StateDir
from lab.topology import TOR, machine_netns

EXAMPLES = Path(__file__).resolve().parents[1] / "manifests" / "examples"
"""The manifests of a checkout."""

DEFINITIONS = EXAMPLES.parent / "crds"
"""CustomResourceDefinitions; those of our own kinds are in every lab."""

EXAMPLE_PODS = "00-pods.yaml"
_POLL = 0.05
_PATIENCE = 60.0
_ANSWER = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to bring up. ``shape`` None: as it is, or else two nodes. ``manifest`` None: no pods."""

    shape: Shape | None = None
    manifest: Path | None = EXAMPLES / EXAMPLE_PODS
    keep_failed: bool = False


class Builder:
    """Makes one lab, or starts again what of it has died.

    The record is on disk before anything that it describes exists.
    """

    def __init__(self, state: StateDir, record: Record, say: Callable[[str], None]) -> None:
        self._state = state
        self._say = say
        self._nodes = topology.nodes(record.shape.nodes, record.shape.address_families)
        self._record = record
        self._fail_fast = True

    async def build(self, manifest: Path | None) -> None:
        """Make everything and wait until it works.

        Raises:
            LabError: something does not; the message has what its log says.
        """
        objects = _load(manifest)
        self._state.write(self._record)
        try:
            self._say("router, links and nodes")
            machines.make_network(self._record.name, self._nodes)
            self._add_machine(TOR, machines.prepare_router(self._state, self._record, self._nodes))
            await self._start_keeper()
            self._say("API server")
            self._add_apiserver()
            await self._wait("the API server", self._apiserver_ready, "apiserver")
            async with ApiClient(self._state.kubeconfig) as api:
                for definition in sorted(DEFINITIONS.glob("felixpy.io_*.yaml")):
                    for obj in _load(definition):
                        await api.apply(obj)
            kubeconfig = _node_kubeconfig(self._state.kubeconfig, self._nodes[0])
            for node in self._nodes:
                self._add_machine(node.name, machines.prepare_node(self._state, self._record, node, kubeconfig))
            await self._wait("the nodes' mounts", self._machines_ready)
            self._add("kubelet", "lab.kubelet", str(self._state.root), self._state.name)
            async with ApiClient(self._state.kubeconfig) as api:
                await self._populate(api, objects)
        except (CommandError, OSError) as error:
            raise LabError(str(error)) from error
        self._note(phase=Phase.UP)

    async def revive(self) -> None:
        """Start the keeper if it has died, which starts what else has, and wait until all of it works.

        Raises:
            LabError: something does not; the lab stays as it is.
        """
        self._fail_fast = False
        await self._start_keeper()
        await self._wait_until_none("programs start:", self._ended)
        await self._wait("the API server", self._apiserver_ready, "apiserver")
        await self._wait("the nodes' mounts", self._machines_ready)
        async with ApiClient(self._state.kubeconfig) as api:
            await self._wait_until_none("nodes become Ready", lambda: _unready_nodes(api, self._nodes), "kubelet")

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

    async def _start_keeper(self) -> None:
        if self._keeper_pid():
            return
        argv = [sys.executable, "-m", "lab.keeper", str(self._state.root), self._state.name]
        child = start(self._state.path, argv, self._state.log("keeper"))

        async def missing() -> list[str]:
            if child.poll() is not None:
                raise LabError(f"the keeper died:\n{_tail(self._state.log('keeper'))}")
            return [] if self._keeper_pid() else ["the keeper"]

        await self._wait_until_none("", missing)
        child.returncode = 0  # it stays behind on purpose: no warning when this object goes

    def _keeper_pid(self) -> int:
        state = self._state.read_keeper()
        return state.keeper.pid if state and state.keeper.alive else 0

    def _add(self, name: str, module: str, *argv: str, listen: tuple[Listener, ...] = ()) -> None:
        program = LabProgram(name, (sys.executable, "-m", module, *argv), listen)
        self._note((*self._record.programs, program))
        if keeper := self._keeper_pid():
            os.kill(keeper, signal.SIGHUP)

    def _add_machine(self, name: str, spec: Path) -> None:
        self._add(name, "lab.machine", str(spec))

    def _note(self, programs: tuple[LabProgram, ...] = (), phase: Phase | None = None) -> None:
        self._record = msgspec.structs.replace(
            self._record, programs=programs or self._record.programs, phase=phase or self._record.phase
        )
        self._state.write(self._record)

    def _add_apiserver(self) -> None:
        """On a free loopback port for kubectl, and on the router's address for the nodes."""
        family = self._nodes[0].families[0]
        # The order counts: the first address is that of the administrator's kubeconfig.
        listen = (
            Listener("", "127.0.0.1", 0),
            Listener(machine_netns(self._record.name, TOR), topology.API_ADDRESS[family], topology.API_PORT),
        )
        self._state.apiserver.mkdir()
        services = ",".join(topology.SERVICE_CIDRS[family] for family in self._nodes[0].families)
        assets = os.environ.get("KUBEBUILDER_ASSETS")
        module = "lab.kube_apiserver" if assets else "lab.apiserver"
        more = ("--assets", str(Path(assets).absolute())) if assets else ("--keep", "--lab")
        argv = ("--state-dir", str(self._state.apiserver), "--service-cidr", services, *more)
        self._add("apiserver", module, *argv, listen=listen)

    # --- waiting -----------------------------------------------------------------------------------------

    async def _ended(self) -> list[str]:
        """Programs that do not run."""
        state = self._state.read_keeper()
        kept = state.programs if state else {}
        return [
            program.name
            for program in self._record.programs
            if not (program.name in kept and (process := kept[program.name].process) and process.alive)
        ]

    async def _apiserver_ready(self) -> bool:
        if not (self._state.apiserver / "ready").exists():
            return False
        with contextlib.suppress(aiohttp.ClientError, ApiError, TimeoutError):
            async with asyncio.timeout(_ANSWER), ApiClient(self._state.kubeconfig) as api:
                await api.raw("/readyz")
                return True
        return False

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
        """Poll until ``missing`` is empty; fail after a minute, or when a program of a new lab has died."""
        deadline = time.monotonic() + _PATIENCE
        while left := await missing():
            if self._fail_fast and (dead := self._died()):
                raise LabError(f"{dead} died:\n{_tail(self._state.log(dead))}")
            if time.monotonic() > deadline:
                shown = f"{what} {', '.join(left)}".strip()
                raise LabError(f"after {_PATIENCE:.0f} s still waiting for: {shown}{self._hints(log)}")
            await asyncio.sleep(_POLL)

    def _died(self) -> str:
        state = self._state.read_keeper()
        return next((name for name, kept in state.programs.items() if kept.restarts), "") if state else ""

    def _hints(self, log: str) -> str:
        """The last lines of what is likely to know why."""
        files = [self._state.log(log)] if log else []
        for node in self._nodes:
            files += [self._state.machine(node.name) / "log" / f"{name}.log" for name in ("agent", "bgp")]
        return "".join(f"\n{file}:\n{_tail(file)}" for file in files if file.exists())


def _tail(path: Path, lines: int = 5) -> str:
    return "\n".join(f"  {line}" for line in path.read_text(errors="replace").splitlines()[-lines:])


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's reads our definitions in an eighth of the time, where PyYAML comes with it."""


def _load(manifest: Path | None) -> list[Obj]:
    if manifest is None:
        return []
    try:
        return [obj for obj in yaml.load_all(manifest.read_text(), _LOADER) if obj]
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
