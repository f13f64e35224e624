"""Reads what :mod:`felix_py.diagnose.cluster_status` judges from the API server."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from felix_py.datastore.client import READ_TIMEOUT, Api, ApiError, Unreachable
from felix_py.datastore.leases import Leases
from felix_py.datastore.wire import UNDECODABLE
from felix_py.diagnose.cluster_status import Seen, part
from felix_py.layout import LEASE

LABEL = "app.kubernetes.io/name"
"""Label of felix-py's pods, with :data:`NAME`."""

NAME = "felix-py"

STATUSES = "/apis/felixpy.io/v1alpha1/nodenetworkstatuses"

_PAGE = 500


class _List(msgspec.Struct):
    items: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] | None = None


def read(api: Api, namespace: str) -> Seen:
    """List the Nodes, the NodeNetworkStatus objects, and felix-py's pods in a namespace; read who leads.

    Raises:
        ApiError: the server refuses Nodes or status objects.
        Unreachable: no answer, or not a list.
    """
    nodes = _list(api, "/api/v1/nodes")
    statuses: list[dict[str, Any]] | None
    try:
        statuses = _list(api, STATUSES)
    except ApiError as error:
        if error.status != 404:
            raise
        statuses = None
    pods: list[dict[str, Any]] | None
    why = ""
    try:
        found = _list(api, f"/api/v1/namespaces/{quote(namespace)}/pods", labelSelector=f"{LABEL}={NAME}")
        pods = [pod for pod in found if part(part(pod, "metadata"), "labels").get(LABEL) == NAME]
    except ApiError as error:
        if error.status != 403:
            raise
        pods, why = None, "forbidden"
    return Seen(nodes, statuses, pods, namespace, why, _leader(api, namespace))


def _leader(api: Api, namespace: str) -> str:
    """The node whose agent leads; empty: none, or it cannot be read."""
    try:
        lease = Leases(api, namespace, LEASE, READ_TIMEOUT).read()
    except ApiError:
        return ""
    return lease.holder.rpartition("_")[0] if lease else ""


def _list(api: Api, path: str, **query: str) -> list[dict[str, Any]]:
    """All objects of a collection, page by page; from the beginning if a page has expired (410)."""
    for _ in range(3):
        found: list[dict[str, Any]] = []
        token = ""
        try:
            while True:
                page = _page(api, path, {**query, "limit": str(_PAGE), **({"continue": token} if token else {})})
                found += page.items or ()
                token = str((page.metadata or {}).get("continue") or "")
                if not token:
                    return found
        except ApiError as error:
            if error.status != 410 or not token:
                raise
    raise Unreachable(f"{path}: the list changes faster than it can be read")


def _page(api: Api, path: str, query: dict[str, str]) -> _List:
    with api.request("GET", path, query) as answer:
        body = answer.read()
    try:
        return msgspec.json.decode(body, type=_List)
    except UNDECODABLE as error:
        raise Unreachable(f"{path}: not a list: {error}") from error
