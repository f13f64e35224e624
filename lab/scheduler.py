"""The stand-in for the scheduler: pods in turn to ready nodes."""

from __future__ import annotations

import aiohttp

from felix_py import log
from lab.apiclient import ApiClient, ApiError, Obj
from lab.event_recorder import EventRecorder

_logger = log.get("scheduler")


class Scheduler:
    """Binds pending pods round-robin to nodes that are Ready, not cordoned, and carry the pod's nodeSelector."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._events = EventRecorder(api, "felix-py-lab-scheduler")
        self._nodes: dict[str, Obj] = {}
        self._pending: dict[str, Obj] = {}
        self._turn = 0

    async def node_changed(self, kind: str, node: Obj) -> None:
        """A node came, went or changed: pods that wait may fit now."""
        name = node["metadata"]["name"]
        if kind == "DELETED":
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
            for pod in list(self._pending.values()):
                await self._schedule(pod)

    async def pod_changed(self, kind: str, pod: Obj) -> None:
        """A pod came, went or changed."""
        uid = pod["metadata"]["uid"]
        bound = pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp")
        if kind == "DELETED" or bound:
            self._pending.pop(uid, None)
        elif uid not in self._pending:
            self._pending[uid] = pod
            await self._schedule(pod)

    async def _schedule(self, pod: Obj) -> None:
        wanted = (pod["spec"].get("nodeSelector") or {}).items()
        ready = [name for name, node in sorted(self._nodes.items()) if _usable(node)]
        fitting = [
            name for name in ready if wanted <= (self._nodes[name]["metadata"].get("labels") or {}).items()
        ]
        if not fitting:
            if ready:
                message = (
                    f"0/{len(self._nodes)} nodes are available: none of the ready ones match the nodeSelector."
                )
                await self._events.warn(pod, "FailedScheduling", message)
            return
        node = fitting[self._turn % len(fitting)]
        self._turn += 1
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/binding"
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": metadata["name"]}, "target": target}
        try:
            await self._api.create(path, body)
        except (ApiError, aiohttp.ClientError) as error:
            # Gone, or bound by somebody else, and an event follows; or the server is away, and tells of all pods
            # again once it is back.
            _logger.info("not bound", pod=f"{metadata['namespace']}/{metadata['name']}", reason=str(error))
        self._pending.pop(metadata["uid"], None)


def _usable(node: Obj) -> bool:
    conditions = node.get("status", {}).get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not node.get("spec", {}).get("unschedulable")
