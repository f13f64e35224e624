"""A small asynchronous client of the Kubernetes API for the lab's own programs: plain JSON objects.

The lab's scheduler, kubelet and matrix use it; the agent has its own informers.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

Obj = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

_RETRY = 0.2
_LINE_LIMIT = 1 << 24


class ApiError(Exception):
    """The server's refusal (API: meta/v1 Status); ``code`` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ApiClient:
    """A connection to the API server that a kubeconfig names; use as an asynchronous context manager."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        server, headers, tls = _credentials(self._kubeconfig)
        self._session = aiohttp.ClientSession(
            server,
            headers=headers,
            connector=aiohttp.TCPConnector(ssl=tls or False, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            read_bufsize=_LINE_LIMIT,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def raw(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """GET: the answer's bytes.

        Raises:
            ApiError: the server refused; so do all methods here.
            aiohttp.ClientError: there was no answer; so do all methods here.
        """
        return await self._request("GET", path, params=params)

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Obj:
        """GET: one object or a list."""
        return _decode(await self.raw(path, params))

    async def create(self, path: str, obj: Obj) -> Obj:
        """POST an object to its collection (or a subresource such as ``binding``)."""
        return _decode(await self._request("POST", path, obj))

    async def patch(
        self, path: str, body: Obj, kind: str = MERGE, params: Mapping[str, str] | None = None
    ) -> Obj:
        """PATCH; ``kind`` is the patch's media type."""
        return _decode(await self._request("PATCH", path, body, kind, params))

    async def delete(self, path: str, options: Obj | None = None) -> None:
        """DELETE with DeleteOptions."""
        await self._request("DELETE", path, options or {})

    async def apply(self, obj: Obj, manager: str = "felix-py-lab") -> Obj:
        """Server-side apply of an object."""
        return await self.patch(object_path(obj), obj, APPLY, {"fieldManager": manager, "force": "true"})

    async def follow(self, path: str) -> AsyncIterator[tuple[str, Obj]]:
        """Every object of a collection as ("ADDED", object), then changes for ever, also across lost connections.

        After a lost connection objects may come again; what vanished meanwhile comes as "DELETED".
        """
        known: dict[str, Obj] = {}
        while True:
            try:
                listed = await self.get(path)
                fresh = {item["metadata"]["uid"]: item for item in listed["items"]}
                for uid in known.keys() - fresh.keys():
                    yield "DELETED", known.pop(uid)
                for uid, obj in fresh.items():
                    known[uid] = obj
                    yield "ADDED", obj
                async for kind, obj in self._watch(path, listed["metadata"]["resourceVersion"]):
                    if kind == "DELETED":
                        known.pop(obj["metadata"]["uid"], None)
                    else:
                        known[obj["metadata"]["uid"]] = obj
                    yield kind, obj
            except (aiohttp.ClientError, ApiError, OSError):
                pass
            await asyncio.sleep(_RETRY)

    async def _watch(self, path: str, version: str) -> AsyncIterator[tuple[str, Obj]]:
        params = {"watch": "true", "resourceVersion": version}
        assert self._session is not None
        async with self._session.get(path, params=params) as answer:
            await _check(answer)
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(
                        event["object"].get("code", 500), event["object"].get("message", "watch ended")
                    )
                yield event["type"], event["object"]

    async def _request(
        self,
        method: str,
        path: str,
        body: Obj | None = None,
        kind: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> bytes:
        assert self._session is not None
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind} if data is not None else {}
        async with self._session.request(method, path, data=data, params=params, headers=headers) as answer:
            await _check(answer)
            return await answer.read()


_PLURALS = {"NetworkPolicy": "networkpolicies", "EndpointSlice": "endpointslices"}
_CLUSTER_SCOPED = frozenset({"Namespace", "Node", "CustomResourceDefinition"})


def object_path(obj: Obj) -> str:
    """Where an object of a built-in kind lives."""
    version, kind, metadata = obj["apiVersion"], obj["kind"], obj["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = _PLURALS.get(kind, kind.lower() + "s")
    if kind in _CLUSTER_SCOPED:
        return f"{root}/{plural}/{metadata['name']}"
    return f"{root}/namespaces/{metadata.get('namespace', 'default')}/{plural}/{metadata['name']}"


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 400:
        return
    text = await answer.text()
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    raise ApiError(answer.status, message)


def _decode(body: bytes) -> Obj:
    found: Obj = json.loads(body)
    return found


def _credentials(kubeconfig: Path) -> tuple[str, dict[str, str], ssl.SSLContext | None]:
    """Server, headers and TLS of the kubeconfigs that the lab's API servers write: one cluster, one user."""
    document = yaml.safe_load(kubeconfig.read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
    tls = None
    if "certificate-authority-data" in cluster:
        tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    return cluster["server"], headers, tls
