"""One pod on its node, from its network namespace to its removal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from felix_py import log
from lab.apiclient import ApiClient, ApiError, Obj
from lab.event_recorder import EventRecorder, now
from lab.namespaces import (
    ANSWER_ALL,
    NETNS_DIR,
    CommandError,
    add_netns,
    delete_netns,
    is_netns,
    write_sysctls,
)
from lab.podserver import PodServer, Port
from lab.runtime import CNIRuntime, PluginError
from lab.sandbox_store import Remembered, SandboxStore
from lab.topology import Node, machine_netns, pod_netns

_BACKOFF = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts. A kubelet starts with about one second."""

_TERMINATED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class Host:
    """What a pod needs of its node."""

    lab: str
    node: Node
    api: ApiClient
    runtime: CNIRuntime
    events: EventRecorder
    store: SandboxStore
    who: Callable[[str], str] = str
    """A name for an address."""


class Sandbox:
    """Runs one pod (one uid) as the task :meth:`run`; :meth:`update` tells it what the API says of the pod."""

    def __init__(self, host: Host, pod: Obj) -> None:
        self._host = host
        self._pod = pod
        self._over = asyncio.Event()
        metadata = pod["metadata"]
        self._name = f"{metadata['namespace']}/{metadata['name']}"
        self._path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._uid: str = metadata["uid"]
        self._host_network = bool(pod["spec"].get("hostNetwork"))
        self._netns = NETNS_DIR / (
            machine_netns(host.lab, host.node.name)
            if self._host_network
            else pod_netns(host.lab, metadata["namespace"], metadata["name"], self._uid)
        )
        self._earlier = host.store.find(self._uid)
        self._container = self._earlier.container if self._earlier else ""
        self._server: PodServer | None = None
        self._logger = log.get("kubelet").bind(node=host.node.name, pod=self._name)

    def update(self, pod: Obj) -> None:
        """The pod has changed."""
        self._pod = pod
        phase = pod.get("status", {}).get("phase")
        if pod["metadata"].get("deletionTimestamp") or phase in _TERMINATED:
            self._over.set()

    def gone(self) -> None:
        """The pod's object is gone (a forced deletion)."""
        self._over.set()

    async def run(self) -> None:
        """Start the pod, wait until it is to end, end it."""
        self.update(self._pod)
        addresses = await self._start()
        if addresses and not self._over.is_set():
            if not _is_running(self._pod, addresses):
                await self._report(_running(self._pod, self._host.node, addresses))
            self._logger.info("pod runs", addresses=addresses)
        await self._over.wait()
        await self._stop()
        if self._pod["metadata"].get("deletionTimestamp"):
            await self._delete_object()
        self._host.events.forget(self._pod)
        self._logger.info("pod ended")

    # --- start -------------------------------------------------------------------------------------------

    async def _start(self) -> list[str]:
        """Addresses of the pod, once it has some; empty when it was to end before."""
        attempt = 0
        if self._earlier is not None and not self._over.is_set():
            if addresses := await self._resume(self._earlier):
                return addresses
            attempt = self._earlier.attempt + 1
        while not self._over.is_set():
            self._container = f"{self._uid}-{attempt}"
            try:
                self._remember(attempt)
                await self._listen()
                if self._host_network:
                    return list(self._host.node.addresses.values())
                addresses = await self._connect()
                self._remember(attempt, addresses)
                return addresses
            except (PluginError, CommandError, OSError) as error:
                self._logger.warning("pod not started", reason=str(error), attempt=attempt)
                await self._host.events.warn(self._pod, "FailedCreatePodSandBox", str(error))
                await self._undo()
            await self._pause(attempt)
            attempt += 1
        return []

    async def _resume(self, earlier: Remembered) -> list[str]:
        """Go on with what an earlier kubelet left; if it left no whole pod, remove that: no addresses."""
        if earlier.addresses and is_netns(self._netns):
            try:
                await self._listen()
                return list(earlier.addresses)
            except OSError as error:
                self._logger.warning("pod not resumed", reason=str(error))
        await self._undo()
        if not self._over.is_set():
            delete_netns(self._netns)
        return []

    def _remember(self, attempt: int, addresses: Sequence[str] = ()) -> None:
        if not self._host_network:
            kept = Remembered(
                self._uid, self._host.node.name, self._netns.name, self._container, attempt, tuple(addresses)
            )
            self._host.store.write(kept)

    async def _undo(self) -> None:
        """Take back what a failed attempt left; the next one would find the interface there already."""
        attempt = 0
        while not (self._host_network or self._over.is_set() or await self._disconnect()):
            await self._pause(attempt)
            attempt += 1

    async def _listen(self) -> None:
        """The server listens before the interface comes: the pod's very first packet finds somebody to answer."""
        if self._server is not None:
            return
        if not self._host_network and not is_netns(self._netns):
            await asyncio.to_thread(_make_netns, self._netns.name)
        families, who = self._host.node.families, self._host.who
        server = PodServer(self._name, self._netns, _served(self._pod), families, who=who)
        try:
            await server.start()
        except OSError:
            if not self._host_network:
                delete_netns(self._netns)
            raise
        self._server = server

    async def _connect(self) -> list[str]:
        metadata = self._pod["metadata"]
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": metadata["namespace"],
            "K8S_POD_NAME": metadata["name"],
            "K8S_POD_INFRA_CONTAINER_ID": self._container,
            # A static pod's own uid is not its mirror's (a real kubelet notes it here).
            "K8S_POD_UID": metadata.get("annotations", {}).get("kubernetes.io/config.hash", self._uid),
        }
        result = await self._host.runtime.add(
            self._container, str(self._netns), "eth0", args, {"portMappings": _port_mappings(self._pod)}
        )
        return [ip["address"].partition("/")[0] for ip in result.get("ips", [])]

    async def _pause(self, attempt: int) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), _BACKOFF[min(attempt, len(_BACKOFF) - 1)])

    # --- end ---------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
        if self._host_network:
            return
        attempt = 0
        while not await self._disconnect():
            await asyncio.sleep(_BACKOFF[min(attempt, len(_BACKOFF) - 1)])
            attempt += 1
        delete_netns(self._netns)
        self._host.store.forget(self._uid)

    async def _disconnect(self) -> bool:
        """CNI DEL; false when it has to be tried again."""
        if not self._container:
            return True
        try:
            await self._host.runtime.delete(self._container, "eth0", str(self._netns))
        except PluginError as error:
            self._logger.warning("CNI DEL failed", reason=str(error))
            await self._host.events.warn(self._pod, "FailedKillPod", str(error))
            return False
        return True

    async def _delete_object(self) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}}
        with contextlib.suppress(ApiError, aiohttp.ClientError):
            await self._host.api.delete(self._path, options)

    async def _report(self, status: dict[str, Any]) -> None:
        """Until the server takes it: a pod without its address in the API is in nobody's policy."""
        attempt = 0
        while not self._over.is_set():
            try:
                await self._host.api.patch(f"{self._path}/status", {"status": status})
                return
            except (ApiError, aiohttp.ClientError) as error:
                self._logger.warning("status not written", reason=str(error))
            await self._pause(attempt)
            attempt += 1


async def remove_left_over(host: Host, sandbox: Remembered) -> None:
    """Remove the sandbox of a pod that was deleted while no kubelet ran."""
    logger = log.get("kubelet").bind(node=host.node.name, uid=sandbox.uid)
    netns = NETNS_DIR / sandbox.netns
    attempt = 0
    while True:
        try:
            await host.runtime.delete(sandbox.container, "eth0", str(netns))
            break
        except PluginError as error:
            logger.warning("CNI DEL failed", reason=str(error))
        await asyncio.sleep(_BACKOFF[min(attempt, len(_BACKOFF) - 1)])
        attempt += 1
    delete_netns(netns)
    host.store.forget(sandbox.uid)
    logger.info("pod of an earlier kubelet ended")


def _make_netns(name: str) -> None:
    write_sysctls(add_netns(name), ANSWER_ALL)


# --- what the pod's object says ----------------------------------------------------------------------


def ports(pod: Obj) -> list[Port]:
    """All TCP and UDP container ports, in order."""
    found = [
        (port.get("protocol", "TCP"), port["containerPort"])
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
    ]
    return [port for port in dict.fromkeys(found) if port[0] in {"TCP", "UDP"}]


def _served(pod: Obj) -> list[Port]:
    """Port 80, which everybody tries first, and the container ports; those alone where pods share a network."""
    if pod["spec"].get("hostNetwork"):
        return ports(pod)
    return list(dict.fromkeys([*ports(pod), ("TCP", 80)]))


def _port_mappings(pod: Obj) -> list[dict[str, Any]]:
    """CNI's capability ``portMappings`` (CNI conventions), from hostPort."""
    return [
        {
            "hostPort": port["hostPort"],
            "containerPort": port["containerPort"],
            "protocol": port.get("protocol", "TCP").lower(),
            "hostIP": port.get("hostIP", ""),
        }
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
        if port.get("hostPort")
    ]


def _is_running(pod: Obj, addresses: Sequence[str]) -> bool:
    status = pod.get("status") or {}
    told = [entry["ip"] for entry in status.get("podIPs") or []]
    return status.get("phase") == "Running" and told == list(addresses)


def _running(pod: Obj, node: Node, addresses: Sequence[str]) -> dict[str, Any]:
    time = now()
    hosts = list(node.addresses.values())
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "hostIP": hosts[0],
        "hostIPs": [{"ip": address} for address in hosts],
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
        "startTime": time,
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": time} for kind in kinds],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container.get("image", ""),
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": time}},
            }
            for container in pod["spec"]["containers"]
        ],
    }
