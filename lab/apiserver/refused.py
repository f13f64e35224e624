"""What a lab refuses, with a sentence on what there is instead: it would be accepted and never happen."""

from __future__ import annotations

from lab.apiserver import columns
from lab.apiserver.errors import ApiError, bad_request, no_such_path
from lab.apiserver.kinds import GroupResource, Resource, Schema, Strategy, Version
from lab.apiserver.registry import Registry
from lab.apiserver.requests import ApiPath
from lab.apiserver.schema import ANY, REF

_WHAT_THERE_IS = (
    "It has nodes, pods and policies, a scheduler and kubelets, and no controllers. "
    "Start a pod with `kubectl run NAME --image=any --port=80`"
)
_NO_PROXY = (
    "There is no kube-proxy: pods are reached by their own addresses (`kubectl get pods -A -o wide`), "
    "on port 80 and on their container ports"
)
_SERVED = {
    GroupResource("apps", "deployments"): _WHAT_THERE_IS,
    GroupResource("apps", "daemonsets"): _WHAT_THERE_IS,
    GroupResource("", "services"): _NO_PROXY,
    GroupResource("", "endpoints"): _NO_PROXY,
    GroupResource("discovery.k8s.io", "endpointslices"): _NO_PROXY,
}
"""Kinds of the API server that nothing in a lab acts on."""

_KNOWN = (
    ("", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc"),
    ("", "replicationcontrollers", "ReplicationController", "rc"),
    ("", "resourcequotas", "ResourceQuota", "quota"),
    ("apps", "replicasets", "ReplicaSet", "rs"),
    ("apps", "statefulsets", "StatefulSet", "sts"),
    ("batch", "cronjobs", "CronJob", "cj"),
    ("batch", "jobs", "Job", ""),
    ("networking.k8s.io", "ingresses", "Ingress", "ing"),
    ("policy", "poddisruptionbudgets", "PodDisruptionBudget", "pdb"),
    ("rbac.authorization.k8s.io", "roles", "Role", ""),
    ("rbac.authorization.k8s.io", "rolebindings", "RoleBinding", ""),
)
"""Kinds that only a lab knows, and only to refuse them: kubectl sends nothing of a kind that it does not find."""

_NO_CONTAINERS = {
    "attach": "and nothing to attach to",
    "ephemeralcontainers": "and none can be added",
    "exec": "to run a command in",
    "log": "and no logs",
    "portforward": "to forward to",
    "proxy": "behind a proxy",
}
"""Subresources of pods that need a container."""


_INSTEAD = {GroupResource(group, plural): _WHAT_THERE_IS for group, plural, *_ in _KNOWN} | _SERVED
"""Kinds that nothing in a lab acts on: what there is in their place."""


def known_only() -> list[Resource]:
    """Kinds that are found, and never hold anything."""
    return [_resource(*names) for names in _KNOWN]


def _resource(group: str, plural: str, kind: str, short: str) -> Resource:
    name = f"io.k8s.api.{group.partition('.')[0] or 'core'}.v1.{kind}"
    components: dict[str, Schema] = {name: ANY}
    return Resource(
        group=group,
        plural=plural,
        singular=kind.lower(),
        kind=kind,
        namespaced=True,
        versions=[Version("v1", {"$ref": REF + name}, components, columns=columns.DEFAULT)],
        storage_version="v1",
        strategy=Strategy(),
        short_names=(short,) if short else (),
        list_kind=f"{kind}List",
    )


def check(registry: Registry, method: str, path: ApiPath) -> None:
    """Raises:
    ApiError: this is a request that a lab cannot do anything with.
    """
    parts = path.parts[2:] if path.parts[0] == "namespaces" and len(path.parts) > 2 else path.parts
    if path.group == "" and parts[0] == "pods" and len(parts) > 2 and parts[2] in _NO_CONTAINERS:
        where = f"{path.parts[1]}/{parts[1]}"
        raise bad_request(
            f"the pods of this lab have no containers {_NO_CONTAINERS[parts[2]]}. "
            f"`felix-py lab exec {where} -- COMMAND` runs a command of this machine with the pod's network"
        )
    if method not in {"POST", "PUT", "PATCH"} or path.group == "authorization.k8s.io":
        return
    wanted = GroupResource(path.group, parts[0])
    instead = _INSTEAD.get(wanted, "")
    resource = registry.get(path.group, parts[0])
    if instead and resource:
        raise ApiError(403, "Forbidden", f"nothing in this lab acts on {resource.plural}. {instead}")
    if resource is None:
        error = no_such_path()
        raise ApiError(error.code, error.reason, f"this lab does not have {wanted}. {_WHAT_THERE_IS}")
