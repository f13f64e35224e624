"""One Lease (coordination.k8s.io/v1), by which one of several programs leads."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

from felix_py.datastore import wire
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.records import LeaderLease

_MERGE_PATCH = "application/merge-patch+json"


class _Spec(wire.Wire):
    """coordination.k8s.io/v1 LeaseSpec."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(wire.Wire):
    metadata: wire.PolicyMetadata
    spec: _Spec | None = None


def micro_time() -> str:
    """Now, as meta/v1 MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Leases:
    """The Lease of a name. Blocking; for any thread."""

    def __init__(self, api: Api, namespace: str, name: str, patience: float) -> None:
        """``patience``: seconds for an answer."""
        self._api = api
        self._name = name
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace, safe='')}/leases"
        self._patience = patience

    def read(self) -> LeaderLease | None:
        """The Lease as it is; None: there is none.

        Raises:
            ApiError: refused.
            Unreachable: no answer, or not a Lease.
        """
        try:
            return self._send("GET", self._path, None)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def write(self, lease: LeaderLease) -> LeaderLease:
        """Replace the version that ``lease`` has, or create it if it has none; returns what is there by now.

        Raises:
            ApiError: refused; 404 or 409: another version is there.
            Unreachable: no answer: it may be written or not.
        """
        spec = {
            "holderIdentity": lease.holder,
            "leaseDurationSeconds": round(lease.duration),
            "acquireTime": lease.acquired,
            "renewTime": lease.renewed,
            "leaseTransitions": lease.transitions,
        }
        if not lease.version:
            head = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}}
            return self._send("POST", self._collection, {**head, "spec": spec})
        # Not PUT: the API server lets that create a Lease that has been deleted meanwhile.
        metadata = {"resourceVersion": lease.version, "uid": lease.uid}
        return self._send("PATCH", self._path, {"metadata": metadata, "spec": spec})

    @property
    def _path(self) -> str:
        return f"{self._collection}/{self._name}"

    def _send(self, method: str, path: str, body: object) -> LeaderLease:
        content_type = _MERGE_PATCH if method == "PATCH" else "application/json"
        raw = None if body is None else msgspec.json.encode(body)
        patience = self._patience
        with self._api.request(
            method, path, body=raw, content_type=content_type, read_timeout=patience
        ) as answer:
            found = answer.read()
        return lease_of(found)


def lease_of(body: bytes) -> LeaderLease:
    """A Lease out of its JSON. Raises Unreachable if it is none."""
    try:
        found = msgspec.json.decode(body, type=_Lease)
    except wire.UNDECODABLE as error:
        raise Unreachable(f"not a Lease: {error}") from error
    spec = found.spec or _Spec()
    return LeaderLease(
        spec.holder_identity or "",
        float(spec.lease_duration_seconds or 0),
        spec.acquire_time or "",
        spec.renew_time or "",
        spec.lease_transitions or 0,
        found.metadata.resource_version,
        found.metadata.uid,
    )
