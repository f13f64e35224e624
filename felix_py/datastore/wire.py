"""The API's JSON types, reduced to the fields that the agent needs.

The parser skips other fields without making Python objects: that, not its speed alone, is why a pod of 6 KB costs
microseconds. ``gc=False``: instances are short-lived and never form cycles. JSON ``null`` stands for an absent
field wherever Go leaves an empty slice or map.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from msgspec import Raw, Struct, field

T = TypeVar("T")

UNDECODABLE = (ValueError, RecursionError)
"""Raised by decoding bytes that are not JSON, of another type, not UTF-8 (a plain UnicodeDecodeError, unlike the
other errors, which are MsgspecErrors), or nested a thousand times."""


class Wire(Struct, gc=False, rename="camel"):
    """Base class with the API's camelCase names."""


class PoolAnnotations(Wire):
    """The annotations of a namespace or a pod that choose pools (:mod:`felix_py.ipam.asked`)."""

    ipv4_pools: str = field(default="", name="felixpy.io/ipv4-pools")
    ipv6_pools: str = field(default="", name="felixpy.io/ipv6-pools")
    calico_ipv4_pools: str = field(default="", name="cni.projectcalico.org/ipv4pools")
    calico_ipv6_pools: str = field(default="", name="cni.projectcalico.org/ipv6pools")


class AddressAnnotations(PoolAnnotations):
    """The annotations of a pod that choose its addresses."""

    addresses: str = field(default="", name="felixpy.io/ip-addresses")
    mac: str = field(default="", name="felixpy.io/mac")
    keep: str = field(default="", name="felixpy.io/keep-address")
    calico_addresses: str = field(default="", name="cni.projectcalico.org/ipAddrs")
    calico_mac: str = field(default="", name="cni.projectcalico.org/hwAddr")


class PodAnnotations(AddressAnnotations):
    """Those, and the annotations by which a mirror pod names its static pod, and an agent a pod's addresses."""

    mirror: str = field(default="", name="kubernetes.io/config.mirror")
    hash: str = field(default="", name="kubernetes.io/config.hash")
    announced: str = field(default="", name="felixpy.io/pod-ips")


class PolicyMetadata(Wire):
    """meta/v1 ObjectMeta of a policy. Labels are not read, so that malformed ones cannot make it unusable."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class Metadata(PolicyMetadata):
    """meta/v1 ObjectMeta."""

    labels: dict[str, str] | None = None


class NamespaceMetadata(Metadata):
    """meta/v1 ObjectMeta of a namespace."""

    annotations: PoolAnnotations | None = None


class PodMetadata(Metadata):
    """meta/v1 ObjectMeta of a pod."""

    annotations: PodAnnotations | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class NodeMetadata(Metadata):
    """meta/v1 ObjectMeta of a node, whose annotations have settings of BGP."""

    annotations: dict[str, str] | None = None


class ContainerPort(Wire):
    """core/v1 ContainerPort."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(Wire):
    """core/v1 Container. ``restartPolicy: Always`` makes an init container a sidecar (KEP-753)."""

    ports: list[ContainerPort] | None = None
    restart_policy: str = ""


class PodSpec(Wire):
    """core/v1 PodSpec."""

    node_name: str = ""
    host_network: bool = False
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodIP(Wire):
    """core/v1 PodIP."""

    ip: str = ""


class Terminated(Wire):
    """core/v1 ContainerStateTerminated: only its presence matters."""


class ContainerState(Wire):
    """core/v1 ContainerState."""

    terminated: Terminated | None = None


class ContainerStatus(Wire):
    """core/v1 ContainerStatus."""

    state: ContainerState | None = None


class PodStatus(Wire):
    """core/v1 PodStatus."""

    phase: str = ""
    start_time: str | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    ephemeral_container_statuses: list[ContainerStatus] | None = None
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PodIP] | None = field(default=None, name="podIPs")


class WirePod(Wire):
    """core/v1 Pod."""

    metadata: PodMetadata
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)


class WireNamespace(Wire):
    """core/v1 Namespace."""

    metadata: NamespaceMetadata


class WirePolicy(Wire):
    """A policy of any of the four kinds; its spec is decoded separately and checked by :mod:`policy`."""

    metadata: PolicyMetadata
    spec: Raw = field(default_factory=Raw)


class OwnMetadata(PolicyMetadata):
    """meta/v1 ObjectMeta of a kind of ours."""

    creation_timestamp: str | None = None


class WireOwn(Wire):
    """An object of a kind of ours; its spec is decoded separately."""

    metadata: OwnMetadata
    spec: Raw = field(default_factory=Raw)


class JudgedMetadata(Wire):
    """The fields of meta/v1 ObjectMeta that a condition depends on."""

    resource_version: str = ""
    generation: int = 0


class ConditionedStatus(Wire):
    """The status of a cluster-scoped policy: all meta/v1 Conditions, also others'."""

    conditions: list[dict[str, Any]] | None = None


class Judged(Wire):
    """The parts of a policy that its condition depends on, besides the spec."""

    metadata: JudgedMetadata
    status: ConditionedStatus | None = None


class Taint(Wire):
    """core/v1 Taint, whatever its effect."""

    key: str = ""


class NodeSpec(Wire):
    """core/v1 NodeSpec."""

    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    unschedulable: bool = False
    taints: list[Taint] | None = None


class NodeAddress(Wire):
    """core/v1 NodeAddress."""

    type: str = ""
    address: str = ""


class NodeStatus(Wire):
    """core/v1 NodeStatus."""

    addresses: list[NodeAddress] | None = None


class WireNode(Wire):
    """core/v1 Node."""

    metadata: NodeMetadata
    spec: NodeSpec = field(default_factory=NodeSpec)
    status: NodeStatus = field(default_factory=NodeStatus)


class WireSecret(Wire):
    """core/v1 Secret; the values are in base64."""

    metadata: PolicyMetadata
    data: dict[str, str] | None = None


class Name(Wire):
    """The part of ObjectMeta that is still read if the rest of an object is undecodable."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class Named(Wire):
    """An object with nothing but its name."""

    metadata: Name


class ListMeta(Wire):
    """meta/v1 ListMeta. ``continue_`` is non-empty if there are more pages."""

    resource_version: str = ""
    continue_: str = field(default="", name="continue")


class ObjectList(Wire, Generic[T]):
    """Any list."""

    metadata: ListMeta
    items: list[T] | None = None


class BookmarkMeta(Wire):
    """meta/v1 ObjectMeta of a bookmark."""

    resource_version: str = ""
    annotations: dict[str, str] | None = None


class Bookmark(Wire):
    """The object of a BOOKMARK event."""

    metadata: BookmarkMeta


class WatchLine(Wire, Generic[T]):
    """One line of a watch: meta/v1 WatchEvent."""

    type: str
    object: T


class DefinitionVersion(Wire):
    """apiextensions/v1 CustomResourceDefinitionVersion."""

    name: str = ""
    served: bool = False


class DefinitionSpec(Wire):
    """apiextensions/v1 CustomResourceDefinitionSpec."""

    versions: list[DefinitionVersion] | None = None


class DefinitionCondition(Wire):
    """apiextensions/v1 CustomResourceDefinitionCondition."""

    type: str = ""
    status: str = ""


class DefinitionStatus(Wire):
    """apiextensions/v1 CustomResourceDefinitionStatus."""

    conditions: list[DefinitionCondition] | None = None


class Definition(Wire):
    """apiextensions/v1 CustomResourceDefinition: which versions of a kind the server serves."""

    spec: DefinitionSpec = field(default_factory=DefinitionSpec)
    status: DefinitionStatus = field(default_factory=DefinitionStatus)


class GroupVersion(Wire):
    """meta/v1 GroupVersionForDiscovery."""

    version: str = ""


class APIGroup(Wire):
    """meta/v1 APIGroup: the discovery document of a group."""

    versions: list[GroupVersion] | None = None


class StatusCause(Wire):
    """meta/v1 StatusCause."""

    reason: str = ""


class StatusDetails(Wire):
    """meta/v1 StatusDetails."""

    causes: list[StatusCause] | None = None
    retry_after_seconds: int = 0


class Status(Wire):
    """meta/v1 Status: the server's refusals."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails | None = None
