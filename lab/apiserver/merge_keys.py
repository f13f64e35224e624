"""How lists and maps of built-in kinds merge: the Go struct tags, which the official models do not carry.

Source: the ``patchStrategy``, ``patchMergeKey``, ``listType``, ``listMapKey`` and ``structType`` markers in
k8s.io/api and k8s.io/apimachinery. Whatever is not here is replaced as a whole, as the API's default is.
"""

from __future__ import annotations

from lab.apiserver.kinds import Schema


def _by(merge_key: str, *map_keys: str, strategy: str = "merge") -> Schema:
    """A list of objects merged by key; server-side apply may use more keys than strategic merge does."""
    return {
        "x-kubernetes-patch-strategy": strategy,
        "x-kubernetes-patch-merge-key": merge_key,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": list(map_keys or (merge_key,)),
    }


_SET: Schema = {"x-kubernetes-patch-strategy": "merge", "x-kubernetes-list-type": "set"}
_RETAIN = "merge,retainKeys"

LISTS: dict[tuple[str, str], Schema] = {
    ("ObjectMeta", "ownerReferences"): _by("uid"),
    ("ObjectMeta", "finalizers"): _SET,
    ("PodSpec", "containers"): _by("name"),
    ("PodSpec", "initContainers"): _by("name"),
    ("PodSpec", "ephemeralContainers"): _by("name"),
    ("PodSpec", "volumes"): _by("name", strategy=_RETAIN),
    ("PodSpec", "resourceClaims"): _by("name", strategy=_RETAIN),
    ("PodSpec", "imagePullSecrets"): _by("name"),
    ("PodSpec", "hostAliases"): _by("ip"),
    ("PodSpec", "schedulingGates"): _by("name"),
    ("PodSpec", "topologySpreadConstraints"): _by("topologyKey", "topologyKey", "whenUnsatisfiable"),
    ("PodStatus", "conditions"): _by("type"),
    ("PodStatus", "podIPs"): _by("ip"),
    ("Container", "ports"): _by("containerPort", "containerPort", "protocol"),
    ("Container", "env"): _by("name"),
    ("Container", "volumeMounts"): _by("mountPath"),
    ("Container", "volumeDevices"): _by("devicePath"),
    ("ServiceSpec", "ports"): _by("port", "port", "protocol"),
    ("ServiceStatus", "conditions"): _by("type"),
    ("ServiceAccount", "secrets"): _by("name"),
    ("NodeSpec", "podCIDRs"): _SET,
    ("NodeStatus", "addresses"): _by("type"),
    ("NodeStatus", "conditions"): _by("type"),
    ("NamespaceStatus", "conditions"): _by("type"),
    ("DeploymentStatus", "conditions"): _by("type"),
    ("DaemonSetStatus", "conditions"): _by("type"),
    ("CustomResourceDefinitionStatus", "conditions"): _by("type"),
}

ATOMIC_STRUCTS = frozenset(
    {
        "LabelSelector",
        "LocalObjectReference",
        "NodeSelector",
        "NodeSelectorTerm",
        "ObjectFieldSelector",
        "ObjectReference",
        "OwnerReference",
        "ResourceFieldSelector",
        "SecretKeySelector",
        "ConfigMapKeySelector",
        "SecretReference",
        "TypedLocalObjectReference",
        "EndpointAddress",
        "EndpointPort",
    }
)

ATOMIC_MAPS = frozenset({("PodSpec", "nodeSelector"), ("ServiceSpec", "selector"), ("DaemonSetSpec", "selector")})

QUANTITY_MAPS = frozenset({"limits", "requests", "capacity", "allocatable", "allocatedResources", "overhead"})
"""``resource.Quantity`` is a plain string in the models; the API takes numbers for it as well."""
