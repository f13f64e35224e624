"""The built-in kinds: names, schemas, columns and strategies."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lab.apiserver import columns, defaults, events, validate_core, validate_networking
from lab.apiserver.kinds import Column, GroupResource, Obj, Resource, Strategy, Version
from lab.apiserver.metadata import dns1035_label, dns_label, path_segment
from lab.apiserver.schema import ModelSchemas
from lab.apiserver.services import ServiceAllocator

PODS = GroupResource("", "pods")
NAMESPACES = GroupResource("", "namespaces")
SERVICES = GroupResource("", "services")
SERVICE_ACCOUNTS = GroupResource("", "serviceaccounts")
CRDS = GroupResource("apiextensions.k8s.io", "customresourcedefinitions")

FieldLabels = Mapping[str, Callable[[Obj], str]]


def field_labels(*paths: str) -> FieldLabels:
    """Readers for field selectors on plain paths (``spec.nodeName``); an absent field is an empty text."""

    def reader(path: str) -> Callable[[Obj], str]:
        parts = path.split(".")

        def read(obj: Obj) -> str:
            value: Any = obj
            for part in parts:
                value = value.get(part) if isinstance(value, dict) else None
            return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)

        return read

    return {path: reader(path) for path in ("metadata.name", "metadata.namespace", *paths)}


class _Groups:
    """Makes versions; the kinds of one group and version share their components."""

    def __init__(self) -> None:
        self._schemas: dict[str, ModelSchemas] = {}

    def version(self, group: str, model: str, table: Sequence[Column], status: bool = False) -> Version:
        package = f"io.k8s.api.{group.partition('.')[0] or 'core'}.v1"
        schemas = self._schemas.setdefault(group, ModelSchemas(package))
        return Version("v1", schemas.ref(model), schemas.components, columns=table, status=status)


def builtin_resources(services: ServiceAllocator, crd: Strategy) -> list[Resource]:
    """All built-in kinds; Services need an allocator, definitions a strategy of their own (see crd.py)."""
    groups = _Groups()
    return [*_core(groups, services), *_named_groups(groups, crd)]


def _namespace_prepare(new: Obj, old: Obj | None) -> None:
    if old is not None:
        new["spec"] = old.get("spec", {})


def _pod_prepare(new: Obj, old: Obj | None) -> None:
    if old is None:
        new["status"] = {}


def _core(groups: _Groups, services: ServiceAllocator) -> list[Resource]:
    core = functools.partial(_resource, groups, "")
    return [
        core("namespaces", "Namespace", columns.NAMESPACE, ("ns",), namespaced=False, status=True,
             strategy=Strategy(defaults.namespace, _namespace_prepare, name_check=dns_label, generation=False,
                               field_labels=field_labels("status.phase"))),
        core("pods", "Pod", columns.POD, ("po",), status=True, categories=("all",),
             subresources=("binding", "eviction"),
             strategy=Strategy(defaults.pod, _pod_prepare, validate_core.pod, graceful=True,
                               field_labels=field_labels(
                                   "spec.nodeName", "spec.restartPolicy", "spec.schedulerName",
                                   "spec.hostNetwork", "spec.serviceAccountName", "status.phase",
                                   "status.podIP", "status.nominatedNodeName"))),
        core("nodes", "Node", columns.NODE, ("no",), namespaced=False, status=True,
             strategy=Strategy(defaults.node, None, validate_core.node, generation=False,
                               keeps_status_on_create=True,
                               field_labels=field_labels("spec.unschedulable"))),
        core("services", "Service", columns.SERVICE, ("svc",), status=True, categories=("all",),
             strategy=Strategy(services.default, services.keep, services.validate,
                               name_check=dns1035_label, generation=False,
                               field_labels=field_labels("spec.clusterIP", "spec.type"))),
        core("endpoints", "Endpoints", columns.ENDPOINTS, ("ep",), singular="endpoints",
             strategy=Strategy(defaults.endpoints, None, validate_networking.endpoints, generation=False)),
        core("configmaps", "ConfigMap", columns.CONFIG_MAP, ("cm",),
             strategy=Strategy(validate=validate_core.config_map, generation=False)),
        core("secrets", "Secret", columns.SECRET,
             strategy=Strategy(defaults.secret, None, validate_core.secret, generation=False,
                               field_labels=field_labels("type"))),
        core("serviceaccounts", "ServiceAccount", columns.SERVICE_ACCOUNT, ("sa",),
             strategy=Strategy(generation=False)),
        core("events", "Event", columns.EVENT, ("ev",), model="CoreV1Event",
             strategy=Strategy(defaults.event, name_check=path_segment, generation=False,
                               field_labels=field_labels(*events.CORE_FIELDS))),
    ]  # fmt: skip


def _named_groups(groups: _Groups, crd: Strategy) -> list[Resource]:
    def of(group: str, *args: Any, **options: Any) -> Resource:
        return _resource(groups, group, *args, **options)

    owner = Strategy(defaults.pod_template_owner, None, validate_core.pod_template_owner)
    return [
        of("networking.k8s.io", "networkpolicies", "NetworkPolicy", columns.NETWORK_POLICY, ("netpol",),
           strategy=Strategy(defaults.network_policy, None, validate_networking.network_policy)),
        of("discovery.k8s.io", "endpointslices", "EndpointSlice", columns.ENDPOINT_SLICE,
           strategy=Strategy(defaults.endpoint_slice, None, validate_networking.endpoint_slice)),
        of("coordination.k8s.io", "leases", "Lease", columns.LEASE, strategy=Strategy(generation=False)),
        of("apps", "deployments", "Deployment", columns.DEPLOYMENT, ("deploy",), status=True, categories=("all",),
           strategy=owner),
        of("apps", "daemonsets", "DaemonSet", columns.DAEMON_SET, ("ds",), status=True, categories=("all",),
           strategy=owner),
        of("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition", columns.CRD,
           ("crd", "crds"), namespaced=False, status=True, categories=("api-extensions",), strategy=crd),
        _modern_events(groups),
    ]  # fmt: skip


def _modern_events(groups: _Groups) -> Resource:
    """events.k8s.io serves the objects of core events in another form."""
    table = [replace(column, cell=_through_core(column)) for column in columns.EVENT]
    resource = _resource(
        groups,
        "events.k8s.io",
        "events",
        "Event",
        table,
        ("ev",),
        model="EventsV1Event",
        strategy=Strategy(
            defaults.event, name_check=path_segment, generation=False, field_labels=events.modern_field_labels()
        ),
    )
    version = replace(resource.versions[0], to_storage=events.to_core, from_storage=events.from_core)
    return replace(resource, versions=[version], stored_as=GroupResource("", "events"))


def _through_core(column: Column) -> Callable[[Obj], object]:
    return lambda obj: column.cell(events.to_core(obj))


def _resource(
    groups: _Groups,
    group: str,
    plural: str,
    kind: str,
    table: Sequence[Column],
    short_names: tuple[str, ...] = (),
    *,
    strategy: Strategy,
    namespaced: bool = True,
    status: bool = False,
    model: str = "",
    singular: str = "",
    categories: tuple[str, ...] = (),
    subresources: tuple[str, ...] = (),
) -> Resource:
    if not strategy.field_labels:
        strategy = replace(strategy, field_labels=field_labels())
    return Resource(
        group=group,
        plural=plural,
        singular=singular or kind.lower(),
        kind=kind,
        namespaced=namespaced,
        versions=[groups.version(group, model or f"V1{kind}", table, status)],
        storage_version="v1",
        strategy=strategy,
        short_names=short_names,
        categories=categories,
        list_kind=f"{kind}List",
        subresources=subresources,
    )
