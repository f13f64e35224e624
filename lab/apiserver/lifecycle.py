"""How objects end: grace periods, finalizers, and namespaces that take their content with them."""

from __future__ import annotations

from collections.abc import Callable

from lab.apiserver import errors as api
from lab.apiserver.builtin import NAMESPACES, PODS
from lab.apiserver.journal import ObjectKey
from lab.apiserver.kinds import Obj, Resource
from lab.apiserver.metadata import now
from lab.apiserver.registry import Registry
from lab.apiserver.store import Store, Stored

IMMORTAL_NAMESPACES = frozenset({"default", "kube-system", "kube-public"})
_NAMESPACE_FINALIZER = "kubernetes"


class Lifecycle:
    """Deletes. ``after_delete`` hears of every object that is gone."""

    def __init__(
        self, store: Store, registry: Registry, after_delete: Callable[[Resource, Stored], None]
    ) -> None:
        self._store = store
        self._registry = registry
        self._after_delete = after_delete

    def check_namespace_accepts(self, resource: Resource, namespace: str, name: str) -> None:
        """404 when the namespace of a new object is absent, 403 when it is being deleted."""
        if not resource.namespaced:
            return
        found = self._store.get(NAMESPACES, ("", namespace))
        if found is None:
            raise api.not_found(NAMESPACES, namespace)
        if found.obj["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            error = api.forbidden_request(resource.group_resource, name, why)
            error.details["causes"] = [
                {"reason": "NamespaceTerminating", "message": f"namespace {namespace} is being terminated",
                 "field": "metadata.namespace"}
            ]  # fmt: skip
            raise error

    def put(self, resource: Resource, key: ObjectKey, obj: Obj) -> Stored:
        """Store an updated object; one that was only waiting for its last finalizer goes."""
        waits = obj["metadata"].get("deletionTimestamp") and not self._holds(resource, obj)
        if waits and not obj["metadata"].get("deletionGracePeriodSeconds"):
            self._store.put(resource.storage, key, obj)
            return self._remove(resource, key)
        return self._store.put(resource.storage, key, obj)

    @staticmethod
    def _holds(resource: Resource, obj: Obj) -> bool:
        """Finalizers keep the object; a Namespace has some in its spec as well."""
        if obj["metadata"].get("finalizers"):
            return True
        return resource.storage == NAMESPACES and bool((obj.get("spec") or {}).get("finalizers"))

    def delete(self, resource: Resource, stored: Stored, grace: int | None, dry_run: bool) -> tuple[Obj, bool]:
        """Begin or finish a deletion: (last state, is it gone?)."""
        if resource.storage == NAMESPACES and stored.key[1] in IMMORTAL_NAMESPACES:
            raise api.forbidden_request(NAMESPACES, stored.key[1], "this namespace may not be deleted")
        obj = stored.copy()
        seconds = _grace_period(resource, obj, grace)
        if seconds == 0 and not self._holds(resource, obj):
            if dry_run:
                return obj, True
            return self._remove(resource, stored.key).obj, True
        if not _mark(obj, seconds if resource.strategy.graceful else None) or dry_run:
            return obj, False
        if resource.storage == NAMESPACES:
            obj.setdefault("status", {})["phase"] = "Terminating"
        marked = self._store.put(resource.storage, stored.key, obj)
        if resource.storage != NAMESPACES:
            return marked.obj, False
        self.empty(stored.key[1])
        return marked.obj, self._store.get(NAMESPACES, stored.key) is None

    def _remove(self, resource: Resource, key: ObjectKey) -> Stored:
        last = self._store.remove(resource.storage, key)
        self._after_delete(resource, last)
        if resource.namespaced:
            if resource.storage == PODS and self._is_ending(key[0]):
                self.empty(key[0])
            self._finish_namespace(key[0])
        return last

    def empty(self, namespace: str) -> None:
        """Delete all content of a namespace; what needs time finishes it later.

        Pods go first, and nothing else while there are any (KEP-5080).
        """
        for resource in sorted(self._owned(), key=lambda resource: resource.storage != PODS):
            if resource.storage != PODS and self._store.has_any(PODS, namespace):
                return
            for stored in self._store.list(resource.storage, namespace):
                current = self._store.get(resource.storage, stored.key)
                if current is not None:
                    self.delete(resource, current, None, dry_run=False)
        self._finish_namespace(namespace)

    def _owned(self) -> list[Resource]:
        return [r for r in self._registry if r.namespaced and r.stored_as is None]

    def _is_ending(self, namespace: str) -> bool:
        found = self._store.get(NAMESPACES, ("", namespace))
        return found is not None and bool(found.obj["metadata"].get("deletionTimestamp"))

    def _finish_namespace(self, namespace: str) -> None:
        found = self._store.get(NAMESPACES, ("", namespace))
        if found is None or not self._is_ending(namespace):
            return
        if any(self._store.has_any(resource.storage, namespace) for resource in self._owned()):
            return
        obj = found.copy()
        spec = obj.setdefault("spec", {})
        spec["finalizers"] = [name for name in spec.get("finalizers") or [] if name != _NAMESPACE_FINALIZER]
        resource = self._registry.get("", "namespaces")
        if resource is not None and not self._holds(resource, obj):
            self._after_delete(resource, self._store.remove(NAMESPACES, found.key))


def _grace_period(resource: Resource, obj: Obj, asked: int | None) -> int:
    """Seconds to wait: only a pod that runs on a node has a kubelet that needs them."""
    if not resource.strategy.graceful:
        return 0
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in {"Succeeded", "Failed"}:
        return 0
    seconds = spec.get("terminationGracePeriodSeconds", 30) if asked is None else asked
    return max(0, int(seconds)) if seconds >= 0 else 1


def _mark(obj: Obj, seconds: int | None) -> bool:
    """Set deletionTimestamp, or bring it forward; false when nothing changed. ``seconds`` None: no kubelet."""
    metadata = obj["metadata"]
    later = seconds is None or seconds >= metadata.get("deletionGracePeriodSeconds", 0)
    if metadata.get("deletionTimestamp") and later:
        return False
    metadata["deletionTimestamp"] = now(seconds or 0)
    metadata["deletionGracePeriodSeconds"] = seconds or 0
    if "generation" in metadata:
        metadata["generation"] += 1
    return True
