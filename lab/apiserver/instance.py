"""The whole state of one API server: store, kinds, verbs, and what a new cluster holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.apiserver.builtin import CRDS, NAMESPACES, SERVICE_ACCOUNTS, SERVICES, builtin_resources
from lab.apiserver.crd import crd_strategy, resource_of
from lab.apiserver.journal import Journal
from lab.apiserver.kinds import Obj, Resource
from lab.apiserver.lifecycle import Lifecycle
from lab.apiserver.registry import Registry
from lab.apiserver.rest import Rest, Target, WriteOptions
from lab.apiserver.services import ServiceAllocator
from lab.apiserver.store import Store, Stored

_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
_OURS = WriteOptions(manager="kube-apiserver")


class Instance:
    """``start`` is the first resourceVersion; ``service_cidrs`` at most one per family, the primary first."""

    def __init__(
        self, start: int, log_size: int, service_cidrs: Sequence[str], journal: Path | None = None
    ) -> None:
        """``journal``: a file that keeps all objects for the next server.

        Raises:
            OSError, RuntimeError: it cannot be read or written.
        """
        self.store = Store(start, log_size, Journal(journal) if journal else None)
        services = ServiceAllocator(service_cidrs, lambda: [s.obj for s in self.store.list(SERVICES)])
        self.registry = Registry(builtin_resources(services, crd_strategy()))
        self.lifecycle = Lifecycle(self.store, self.registry, self._after_delete)
        self.rest = Rest(self.store, self.lifecycle, self._after_write)
        if self.store.list(NAMESPACES):
            self._go_on()
        else:
            self._bootstrap(services.first_address)

    def _go_on(self) -> None:
        """What the server before this one knew, or was about to do."""
        for stored in self.store.list(CRDS):
            self.registry.add(resource_of(stored.obj))
        for stored in self.store.list(NAMESPACES):
            if stored.obj["metadata"].get("deletionTimestamp"):
                self.lifecycle.empty(stored.key[1])

    def _bootstrap(self, address: str) -> None:
        for name in _NAMESPACES:
            self._create("namespaces", "", {"metadata": {"name": name}})
        self._create(
            "services",
            "default",
            {
                "metadata": {
                    "name": "kubernetes",
                    "labels": {"component": "apiserver", "provider": "kubernetes"},
                },
                "spec": {
                    "clusterIP": address,
                    "ports": [{"name": "https", "port": 443, "targetPort": 6443, "protocol": "TCP"}],
                },
            },
        )

    def _create(self, plural: str, namespace: str, body: Obj) -> None:
        found = self.registry.find("", "v1", plural)
        if found is not None:
            self.rest.create(Target(*found, namespace), body, _OURS)

    def _after_write(self, resource: Resource, stored: Stored) -> None:
        """What a real cluster's controllers do: serve definitions, give each namespace its ServiceAccount."""
        if resource.storage == CRDS and not stored.obj["metadata"].get("deletionTimestamp"):
            self.registry.add(resource_of(stored.obj))
        is_new = resource.storage == NAMESPACES and not stored.obj["metadata"].get("deletionTimestamp")
        if is_new and self.store.get(SERVICE_ACCOUNTS, (stored.key[1], "default")) is None:
            self._create("serviceaccounts", stored.key[1], {"metadata": {"name": "default"}})

    def _after_delete(self, resource: Resource, last: Stored) -> None:
        """Objects of a definition that is gone are gone as well."""
        if resource.storage != CRDS:
            return
        defined = resource_of(last.obj)
        self.registry.remove(defined.group, defined.plural)
        for stored in self.store.list(defined.storage):
            self.store.remove(defined.storage, stored.key)
