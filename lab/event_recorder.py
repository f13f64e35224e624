"""Events on objects, as the scheduler and the kubelet write them."""

from __future__ import annotations

import contextlib
import uuid
from datetime import UTC, datetime

import aiohttp

from lab.apiclient import ApiClient, ApiError, Obj


def now() -> str:
    """The time as the API writes it (meta/v1 Time)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class EventRecorder:
    """Writes each message about an object once; the next one only when it says something else."""

    def __init__(self, api: ApiClient, component: str) -> None:
        self._api = api
        self._component = component
        self._last: dict[str, tuple[str, str]] = {}

    async def warn(self, obj: Obj, reason: str, message: str) -> None:
        """Record a Warning. A server that does not take it costs the Event, nothing else."""
        metadata = obj["metadata"]
        if self._last.get(metadata["uid"]) == (reason, message):
            return
        self._last[metadata["uid"]] = (reason, message)
        time = now()
        namespace = metadata.get("namespace", "default")
        about = {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", **about},
            "reason": reason,
            "message": message,
            "type": "Warning",
            "source": {"component": self._component},
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        with contextlib.suppress(ApiError, aiohttp.ClientError):
            await self._api.create(f"/api/v1/namespaces/{namespace}/events", event)

    def forget(self, obj: Obj) -> None:
        """The object is gone."""
        self._last.pop(obj["metadata"]["uid"], None)
