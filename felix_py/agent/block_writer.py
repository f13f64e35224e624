"""Writes IPAMBlocks and BlockAffinities (felixpy.io/v1alpha1): one request a step, with its preconditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never
from urllib.parse import quote

import msgspec

from felix_py.datastore.client import Api, ApiError
from felix_py.datastore.kinds import IPAM_BLOCKS, block_affinities
from felix_py.ipam.blocks import Act, Step
from felix_py.ipam.names import NODE_LABEL, affinity_name, block_name, node_label
from felix_py.ipam.resources import AffinityState, BlockAffinity, IPAMBlock, Loan, LoanRequest

_ANSWER = 10.0
_MERGE_PATCH = "application/merge-patch+json"
_AFFINITIES = block_affinities()


class BlockWriter:
    """Does steps of one node. Thread-safe."""

    def __init__(self, api: Api, node_name: str) -> None:
        self._api = api
        self._node = node_name

    def carry_out(self, act: Act, node_uid: str) -> None:
        """Do one step, but CLOSE and RECLAIM, which are the node's own.

        Raises:
            ApiError: refused, or taken without fields that its definition of the kind does not know; 409: the
                object is there already, or has changed.
            Unreachable: it may have happened, or may happen yet.
        """
        match act.step:
            case Step.WANT:
                self._create_affinity(act.cidr)
            case Step.TAKE:
                spec = {"cidr": act.cidr, "node": self._node, "nodeUID": node_uid}
                self._create("IPAMBlock", IPAM_BLOCKS.path, {"name": block_name(act.cidr)}, spec)
            case Step.CONFIRM:
                self._patch(_AFFINITIES.path, act.affinity, {"state": AffinityState.CONFIRMED.value})
            case Step.MARK:
                self._patch(_AFFINITIES.path, act.affinity, {"state": AffinityState.PENDING_DELETION.value})
            case Step.ADOPT:
                self._patch(IPAM_BLOCKS.path, act.block, {"nodeUID": node_uid})
            case Step.DELETE:
                self._delete(IPAM_BLOCKS.path, act.block)
            case Step.FORGET:
                self._delete(_AFFINITIES.path, act.affinity)
            case Step.ASK | Step.LEND | Step.WITHDRAW | Step.RETURN:
                loans = loans_spec(act.lent, act.requests)
                _refuse_pruned(loans, self._patch(IPAM_BLOCKS.path, act.block, loans))
            case Step.CLOSE | Step.RECLAIM:
                raise ValueError("not a step of the API's")
            case other:
                assert_never(other)

    def _create_affinity(self, cidr: str) -> None:
        name, labels = affinity_name(self._node, cidr), {NODE_LABEL: node_label(self._node)}
        spec = {"cidr": cidr, "node": self._node, "state": AffinityState.PENDING.value}
        try:
            self._create("BlockAffinity", _AFFINITIES.path, {"name": name, "labels": labels}, spec)
        except ApiError as error:
            if error.status == 409:
                # It is there, and not seen: somebody has changed the label, by which an agent finds its own.
                self._send("PATCH", f"{_AFFINITIES.path}/{quote(name)}", {"metadata": {"labels": labels}})
            raise

    def _create(self, kind: str, path: str, metadata: Mapping[str, Any], spec: Mapping[str, str]) -> None:
        head = {"apiVersion": IPAM_BLOCKS.api_version, "kind": kind}
        self._send("POST", path, {**head, "metadata": metadata, "spec": spec})

    def _patch(self, path: str, seen: IPAMBlock | BlockAffinity | None, spec: Mapping[str, Any]) -> bytes:
        assert seen is not None
        return self._send("PATCH", f"{path}/{quote(seen.name)}", {"metadata": _identity(seen), "spec": spec})

    def _delete(self, path: str, seen: IPAMBlock | BlockAffinity | None) -> None:
        assert seen is not None
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": _identity(seen)}
        self._send("DELETE", f"{path}/{quote(seen.name)}", options)

    def _send(self, method: str, path: str, body: Mapping[str, Any]) -> bytes:
        """Returns the answer's body."""
        content_type = _MERGE_PATCH if method == "PATCH" else "application/json"
        raw = msgspec.json.encode(body)
        with self._api.request(method, path, body=raw, content_type=content_type, read_timeout=_ANSWER) as answer:
            return answer.read()


def loans_spec(lent: Iterable[Loan], requests: Iterable[LoanRequest]) -> dict[str, list[dict[str, Any]]]:
    """Loans and requests of a block as its spec has them."""
    return {
        "lent": [one.fields for one in lent],
        "requests": [{"node": one.node, "nodeUID": one.node_uid, "count": one.count} for one in requests],
    }


class _Written(msgspec.Struct):
    spec: dict[str, Any] = {}


def _refuse_pruned(spec: Mapping[str, Sequence[object]], answer: bytes) -> None:
    """An API server prunes what its definition does not know, and says 200. Raises ApiError then."""
    written = msgspec.json.decode(answer, type=_Written).spec
    if missing := [name for name, entries in spec.items() if entries and written.get(name) != entries]:
        fields = " and ".join(missing)
        reason = f"the definition of IPAMBlock does not know {fields}: apply the definitions of this version"
        raise ApiError(200, "Pruned", reason)


def _identity(seen: IPAMBlock | BlockAffinity) -> dict[str, str]:
    return {"uid": seen.uid, "resourceVersion": seen.resource_version}
