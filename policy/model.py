"""The records of pods, namespaces and policies that all other parts use, with the API's meaning.

They are frozen and hashable, so that equal objects can be shared (a cluster of 100,000 pods has a few thousand
distinct label sets) and a change is found by one comparison.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]
"""Label pairs sorted by key. A tuple, because pods are grouped by it."""

ObjectKey = tuple[str, str]
"""(namespace, name) of a namespaced object."""


class Family(enum.IntEnum):
    """Address family; the value is the IP version."""

    V4 = 4
    V6 = 6

    @property
    def bits(self) -> int:
        """Width of an address, in bits."""
        return 32 if self is Family.V4 else 128


class Protocol(enum.StrEnum):
    """Transport protocols of ``NetworkPolicyPort.protocol`` (API: core/v1 Protocol)."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class PolicyKind(enum.StrEnum):
    """The kinds of policy objects, as the API names them."""

    NETWORK = "NetworkPolicy"
    CLUSTER = "ClusterNetworkPolicy"
    ADMIN = "AdminNetworkPolicy"
    BASELINE_ADMIN = "BaselineAdminNetworkPolicy"


class PolicyRef(NamedTuple):
    """Reference to a policy object. ``namespace`` is empty for the cluster-scoped kinds."""

    kind: PolicyKind
    namespace: str
    name: str

    def __str__(self) -> str:
        """As kubectl prints it: ``NetworkPolicy shop/db``, ``ClusterNetworkPolicy guard``."""
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    def rule(self, direction: str, index: int, name: str = "") -> str:
        """One rule, as ``NetworkPolicy shop/db ingress[0]`` or ``ClusterNetworkPolicy guard egress[1] "x"``."""
        return f"{self} {direction.lower()}[{index}]" + (f' "{name}"' if name else "")


class Tier(enum.StrEnum):
    """A policy's tier, in the order of evaluation (policy.networking.k8s.io)."""

    ADMIN = "Admin"
    NETWORK = "NetworkPolicy"
    BASELINE = "Baseline"


class RuleAction(enum.StrEnum):
    """Action of a rule in the Admin or Baseline tier: Accept and Deny decide, Pass skips the rest of the tier."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"


class Direction(enum.StrEnum):
    """Direction of traffic at the endpoint: ingress enters the pod, egress leaves it."""

    INGRESS = "Ingress"
    EGRESS = "Egress"


@dataclass(frozen=True, slots=True)
class Namespace:
    """The fields of a Namespace that policy needs. ``annotations``: those on its pods' addresses alone."""

    name: str
    labels: Labels = ()
    annotations: Labels = ()


@dataclass(frozen=True, slots=True)
class Node:
    """The fields of a Node that policy needs. ``addresses`` are canonical texts of both families."""

    name: str
    labels: Labels = ()
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedPort:
    """One named entry of ``pod.spec.containers[*].ports``."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Pod:
    """The fields of a Pod that policy needs.

    ``uid`` is that of the kubelet and the runtime: of a static pod its own, not its mirror pod's. ``addresses``
    are canonical texts of both families. ``active`` is false for Succeeded and Failed pods, and for deleted ones
    whose containers have all ended: their addresses may belong to another pod already, so they leave every set at
    once. ``since``: creation or start by the kubelet, whichever is later (RFC 3339 UTC text, to the second;
    empty: unknown). ``deleted``: it has a deletion timestamp. ``announced``: addresses that an annotation claims
    and the status does not have; policy knows ``addresses`` only, which those that are believed are added to.
    ``annotations``: those on its addresses alone, and of pods of the agent's own node alone: no policy depends on
    them.
    """

    namespace: str
    name: str
    uid: str = ""
    node: str = ""
    labels: Labels = ()
    addresses: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    host_network: bool = False
    active: bool = True
    since: str = ""
    deleted: bool = False
    announced: tuple[str, ...] = ()
    annotations: Labels = ()

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)

    def claim(self, address: str) -> tuple[bool, str, bool, str, ObjectKey]:
        """Sort key: of two pods that claim an address, the one with the greater key, the newer one, has it; but
        an annotation's claim is none against one of a status.

        It depends on the objects alone, so that every node decides alike in whatever order events arrive. Within
        a second a pod that is not being deleted wins; the rest is arbitrary, but the same everywhere.
        """
        return (address not in self.announced, self.since, not self.deleted, self.uid, self.key)


class Operator(enum.StrEnum):
    """Operators of ``LabelSelectorRequirement`` (API: meta/v1)."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a label selector. ``values`` is sorted; empty for Exists and DoesNotExist."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector in canonical form (matchLabels become ``In`` with one value). Empty: everything."""

    requirements: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class PodPeer:
    """``NetworkPolicyPeer`` with selectors. ``namespaces`` None: the policy's own; ``pods`` None: all pods."""

    namespaces: Selector | None
    pods: Selector | None


@dataclass(frozen=True, slots=True)
class IPBlock:
    """``NetworkPolicyPeer.ipBlock``: canonical CIDR texts, all of one family, each except inside ``cidr``."""

    cidr: str
    excepts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodePeer:
    """``nodes`` of an egress peer in the cluster tiers: the addresses of the selected nodes."""

    nodes: Selector


Peer = PodPeer | IPBlock
ClusterPeer = PodPeer | IPBlock | NodePeer


@dataclass(frozen=True, slots=True)
class Port:
    """``NetworkPolicyPort``. ``port`` None: every port; a str: a named port of the destination pod.

    A named port of the cluster tiers has no protocol; it becomes one Port for each protocol.
    """

    protocol: Protocol = Protocol.TCP
    port: int | str | None = None
    end_port: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One ingress or egress rule. None means "any" (the field was absent or empty); () matches nothing.

    () means that all entries were rejected: what is malformed must not widen a rule.
    """

    peers: tuple[Peer, ...] | None = None
    ports: tuple[Port, ...] | None = None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """A NetworkPolicy (networking.k8s.io/v1). A direction of None is not in policyTypes: not restricted.

    ``problems`` names each malformed part as "field: reason". Such a part allows nothing.
    """

    namespace: str
    name: str
    selector: Selector
    ingress: tuple[PolicyRule, ...] | None = None
    egress: tuple[PolicyRule, ...] | None = None
    uid: str = ""
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)

    @property
    def ref(self) -> PolicyRef:
        return PolicyRef(PolicyKind.NETWORK, self.namespace, self.name)

    def rules(self, direction: Direction) -> tuple[PolicyRule, ...] | None:
        """The rules of one direction; None when the policy does not restrict it."""
        return self.ingress if direction is Direction.INGRESS else self.egress


@dataclass(frozen=True, slots=True)
class ClusterRule:
    """One rule of a cluster-scoped policy. ``peers`` and ``ports`` None mean "any", as in PolicyRule.

    ``peers`` is None only for a malformed Deny or Pass rule, which then denies everything.
    """

    action: RuleAction
    peers: tuple[ClusterPeer, ...] | None
    ports: tuple[Port, ...] | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """A ClusterNetworkPolicy, or an AdminNetworkPolicy or BaselineAdminNetworkPolicy mapped onto its tiers.

    ``namespaces`` of ``subject`` is never None. Rules are tried in order; a direction without rules is not
    affected. ``problems`` as in NetworkPolicy: a malformed part accepts nothing, and denies everything where it
    would have denied or passed.
    """

    kind: PolicyKind
    name: str
    tier: Tier
    priority: int
    subject: PodPeer
    ingress: tuple[ClusterRule, ...] = ()
    egress: tuple[ClusterRule, ...] = ()
    uid: str = ""
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return ("", self.name)

    @property
    def ref(self) -> PolicyRef:
        return PolicyRef(self.kind, "", self.name)

    @property
    def precedence(self) -> tuple[int, PolicyRef]:
        """Sorts the policies of one tier. At equal priority, which the API leaves open, the name decides, so that
        every node decides alike."""
        return (self.priority, self.ref)

    def rules(self, direction: Direction) -> tuple[ClusterRule, ...]:
        """The rules of one direction, in the order in which they are tried."""
        return self.ingress if direction is Direction.INGRESS else self.egress


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A pod interface on this node, known as soon as its addresses are leased.

    Its addresses are the pod's, whatever the API server has. ``uid``: of the pod that it was made for, from the
    runtime (empty: unknown): an interface left by an earlier pod of the same name is not the later pod's.

    A pod may have several interfaces: ``addresses`` are those of all of them. ``namespace`` empty: a container
    that is no pod's (``name`` is its id), so no policy selects it and no pod has its addresses.
    """

    namespace: str
    name: str
    addresses: tuple[str, ...]
    uid: str = ""

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)

    def stands_for(self, pod: Pod) -> bool:
        """Whether the interface was made for this pod, and not for another one of its name."""
        return not self.uid or not pod.uid or self.uid == pod.uid


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet for the oracle and the interpreter, with addresses after service translation.

    ``by_service``: a pod's packet to a service that was balanced back to the same pod (hairpin); a packet to its
    own address never leaves the pod.
    """

    source: str
    destination: str
    protocol: Protocol
    port: int
    by_service: bool = False
