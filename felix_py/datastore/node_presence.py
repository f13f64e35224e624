"""Whether a node that seems to be gone is."""

from __future__ import annotations

from typing import Any, TypeVar

from felix_py.datastore.client import Api, Unreachable
from felix_py.datastore.decode import Kind, Unreadable
from felix_py.datastore.kinds import NODES, PODS

R = TypeVar("R")


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
