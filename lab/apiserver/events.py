"""The two forms of an Event: core/v1 (as stored) and events.k8s.io/v1 (KEP-383)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lab.apiserver.kinds import Obj

_CORE_TO_MODERN = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_MODERN_TO_CORE = {modern: core for core, modern in _CORE_TO_MODERN.items()}
_REFERENCE = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")

CORE_FIELDS = (*(f"involvedObject.{name}" for name in _REFERENCE), "reason", "reportingComponent", "type")


def to_core(obj: Obj) -> Obj:
    """events.k8s.io/v1 to core/v1; a new document."""
    return {_MODERN_TO_CORE.get(key, key): value for key, value in obj.items()} | {"apiVersion": "v1"}


def from_core(obj: Obj) -> Obj:
    """core/v1 to events.k8s.io/v1; a new document."""
    return {_CORE_TO_MODERN.get(key, key): value for key, value in obj.items()} | {
        "apiVersion": "events.k8s.io/v1"
    }


def modern_field_labels() -> Mapping[str, Callable[[Obj], str]]:
    """Field selectors of events.k8s.io, read from the stored form."""

    def reader(name: str) -> Callable[[Obj], str]:
        return lambda obj: str((obj.get("involvedObject") or {}).get(name) or "")

    labels = {f"regarding.{name}": reader(name) for name in _REFERENCE}
    return labels | {
        "metadata.name": lambda obj: str(obj["metadata"]["name"]),
        "metadata.namespace": lambda obj: str(obj["metadata"].get("namespace", "")),
        "reason": lambda obj: str(obj.get("reason") or ""),
        "type": lambda obj: str(obj.get("type") or ""),
        "reportingController": lambda obj: str(obj.get("reportingComponent") or ""),
    }
