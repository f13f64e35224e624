"""Discovery documents: /api, /apis, /apis/GROUP, the resource lists, and /version."""

from __future__ import annotations

import platform

from lab.apiserver.kinds import Obj, Resource, Version
from lab.apiserver.registry import Registry

KUBERNETES_MINOR = "32"
"""The minor version whose behaviour this server follows."""

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_CREATE_ONLY = {"binding": "Binding", "eviction": "Eviction"}


def version_info() -> Obj:
    """GET /version."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "major": "1",
        "minor": KUBERNETES_MINOR,
        "gitVersion": f"v1.{KUBERNETES_MINOR}.0-felix-py-lab",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "python",
        "platform": f"linux/{machine}",
    }


def core_versions(address: str) -> Obj:
    """GET /api."""
    clients = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": clients}


def group_list(registry: Registry) -> Obj:
    """GET /apis."""
    groups = [_group(name, versions) for name, versions in registry.groups().items() if name]
    groups += [_group("authorization.k8s.io", ["v1"])]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(registry: Registry, name: str) -> Obj | None:
    """GET /apis/GROUP; None when there is no such group."""
    versions = registry.groups().get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)} if versions else None


def _group(name: str, versions: list[str]) -> Obj:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def resource_list(registry: Registry, group_name: str, version_name: str) -> Obj | None:
    """GET /api/v1 or /apis/GROUP/VERSION; None when there is no such version."""
    found = registry.of_group_version(group_name, version_name)
    resources = [entry for pair in found for entry in _entries(*pair)]
    if (group_name, version_name) == ("authorization.k8s.io", "v1"):
        resources = [_review("selfsubjectaccessreviews", "SelfSubjectAccessReview")]
    if not resources:
        return None
    full = f"{group_name}/{version_name}" if group_name else version_name
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": full, "resources": resources}


def _entries(resource: Resource, version: Version) -> list[Obj]:
    entry: Obj = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": _VERBS,
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    entries = [entry]
    if version.status:
        entries.append(_subresource(resource, "status", resource.kind, ["get", "patch", "update"]))
    return entries + [
        _subresource(resource, name, _CREATE_ONLY[name], ["create"]) for name in resource.subresources
    ]


def _subresource(resource: Resource, name: str, kind: str, verbs: list[str]) -> Obj:
    return {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": verbs,
    }


def _review(plural: str, kind: str) -> Obj:
    return {"name": plural, "singularName": kind.lower(), "namespaced": False, "kind": kind, "verbs": ["create"]}
