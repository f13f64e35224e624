"""Reads of the API on a node that seems to be gone, and the deletion of what it has left of its blocks."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from felix_py.datastore import wire
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.decode import Kind, Unreadable
from felix_py.datastore.kinds import IPAM_BLOCKS, NODES, PODS, block_affinities
from felix_py.ipam.resources import AffinityState, BlockAffinity, IPAMBlock

R = TypeVar("R")

_MERGE_PATCH = "application/merge-patch+json"
_AFFINITIES = block_affinities()


def stands(api: Api, node: str, uid: str, patience: float) -> bool:
    """Whether the Node of that name and uid, or a pod that is bound to the name, is in the API at this moment.

    Pods in the host's network have no address of a block, and finished ones none any more: they do not count. An
    object that cannot be read counts. ``uid`` empty: any.

    Raises:
        ApiError: refused.
        Unreachable: no answer, or not a list.
    """
    nodes = _list(api, NODES, f"metadata.name={node}", patience)
    if any(getattr(one, "uid", uid) == uid or not uid for one in nodes):
        return True
    pods = _list(api, PODS, f"spec.nodeName={node}", patience)
    return any(getattr(one, "active", True) and not getattr(one, "host_network", False) for one in pods)


def _list(api: Api, kind: Kind[R], selector: str, patience: float) -> list[Any]:
    """All that there is, read from the store itself: no resourceVersion is asked for."""
    with api.request("GET", kind.path, {"fieldSelector": selector}, read_timeout=patience) as answer:
        body = answer.read()
    try:
        return list(kind.listing(body).found)
    except Unreadable as error:
        raise Unreachable(str(error)) from error


def give_up(api: Api, affinity: BlockAffinity, patience: float) -> str:
    """Mark an affinity as pendingDeletion, if it is as it was read; returns its new resourceVersion.

    Raises:
        ApiError: refused; 409: it has changed; 404: it is gone.
        Unreachable: no answer.
    """
    body = {
        "metadata": {"resourceVersion": affinity.resource_version, "uid": affinity.uid},
        "spec": {"state": AffinityState.PENDING_DELETION.value},
    }
    found = _send(api, "PATCH", _path(_AFFINITIES, affinity.name), body, _MERGE_PATCH, patience)
    try:
        return msgspec.json.decode(found, type=wire.Named).metadata.resource_version
    except wire.UNDECODABLE as error:
        raise Unreachable(f"not a BlockAffinity: {error}") from error


def delete_block(api: Api, block: IPAMBlock, patience: float) -> None:
    """Delete a block that is as it was read; one that is gone already is right. Raises as :func:`give_up`."""
    _delete(api, _path(IPAM_BLOCKS, block.name), block.uid, block.resource_version, patience)


def delete_affinity(api: Api, affinity: BlockAffinity, version: str, patience: float) -> None:
    """Delete an affinity that has this resourceVersion; one that is gone already is right. Raises as
    :func:`give_up`."""
    _delete(api, _path(_AFFINITIES, affinity.name), affinity.uid, version, patience)


def _delete(api: Api, path: str, uid: str, version: str, patience: float) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": uid, "resourceVersion": version},
    }
    try:
        _send(api, "DELETE", path, body, "application/json", patience)
    except ApiError as error:
        if error.status != 404:
            raise


def _path(kind: Kind[Any], name: str) -> str:
    return f"{kind.path}/{quote(name, safe='')}"


def _send(api: Api, method: str, path: str, body: object, content_type: str, patience: float) -> bytes:
    raw = msgspec.json.encode(body)
    with api.request(method, path, body=raw, content_type=content_type, read_timeout=patience) as answer:
        return answer.read()
