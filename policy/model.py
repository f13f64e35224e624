"""The records every other part reasons with: pods, namespaces and policies, as the API means them.

All of them are frozen and hashable, so that equal objects can be shared (a cluster of 100,000 pods has a few
thousand distinct label sets) and "did it change?" is one comparison.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]
"""Label pairs sorted by key. A tuple, because it is the key under which pods are grouped."""

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
    """Which policy object. ``namespace`` is empty for the cluster-scoped kinds."""

    kind: PolicyKind
    namespace: str
    name: str

    def __str__(self) -> str:
        """As kubectl's users write it: ``NetworkPolicy shop/db``, ``ClusterNetworkPolicy guard``."""
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    def rule(self, direction: str, index: int, name: str = "") -> str:
        """One of its rules, by the API field and place (from 0): ``NetworkPolicy shop/db ingress[0]``.

        ``name``: that of a cluster-scoped policy's rule, ``ClusterNetworkPolicy guard egress[1] "no-metadata"``.
        """
        return f"{self} {direction.lower()}[{index}]" + (f' "{name}"' if name else "")


class Tier(enum.StrEnum):
    """Where a policy stands in the order of evaluation, which is the order here (policy.networking.k8s.io)."""

    ADMIN = "Admin"
    NETWORK = "NetworkPolicy"
    BASELINE = "Baseline"


class RuleAction(enum.StrEnum):
    """What a rule of the Admin or the Baseline tier does with what it matches.

    Accept and Deny end the direction; Pass skips the rest of the tier.
    """

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"


class Direction(enum.StrEnum):
    """Seen from the endpoint: ingress enters the pod, egress leaves it."""

    INGRESS = "Ingress"
    EGRESS = "Egress"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A Namespace: all that policy needs of it."""

    name: str
    labels: Labels = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A Node: all that policy needs of it. ``addresses`` are canonical texts of both families."""

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
    """A Pod: all that policy needs of it.

    ``uid`` is the one by which the kubelet and the runtime know it: of a static pod its own, not its mirror's.
    ``addresses`` are canonical texts of both families. ``active`` is false for Succeeded and Failed pods, and for
    deleted ones whose containers have all ended: their addresses may already belong to another pod, so they leave
    every set at once. ``since``: when it was created or its kubelet took it on, whichever is later (RFC 3339 UTC
    text, to the second; empty: not known). ``deleted``: it is to end.
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

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)

    @property
    def claim(self) -> tuple[str, bool, str, ObjectKey]:
        """Of two pods that claim one address, the one with the greater of these has it: the newer one.

        A function of the objects alone, so that every node decides alike, whatever it heard of first. Within a
        second the one that is not being deleted comes first; what then follows is arbitrary, but the same
        everywhere.
        """
        return (self.since, not self.deleted, self.uid, self.key)


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
    """``NetworkPolicyPeer`` with selectors. ``namespaces`` None: the policy's own namespace only.

    ``pods`` None is the API's "namespaceSelector alone": every pod of those namespaces.
    """

    namespaces: Selector | None
    pods: Selector | None


@dataclass(frozen=True, slots=True)
class IPBlock:
    """``NetworkPolicyPeer.ipBlock``: canonical CIDR texts, all of one family, each except inside ``cidr``."""

    cidr: str
    excepts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodePeer:
    """``nodes`` of an egress peer of the cluster tiers: the addresses of the nodes with such labels."""

    nodes: Selector


Peer = PodPeer | IPBlock
ClusterPeer = PodPeer | IPBlock | NodePeer


@dataclass(frozen=True, slots=True)
class Port:
    """``NetworkPolicyPort``. ``port`` None: every port; a str: a named port of the destination pod.

    The cluster tiers name ports without a protocol; there is then one of these for each protocol.
    """

    protocol: Protocol = Protocol.TCP
    port: int | str | None = None
    end_port: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One ingress or egress rule. None means "any" (the field was absent or empty); () matches nothing.

    () only arises where every entry was rejected: what cannot be understood must not widen a rule.
    """

    peers: tuple[Peer, ...] | None = None
    ports: tuple[Port, ...] | None = None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """A NetworkPolicy (networking.k8s.io/v1). A direction of None is not in policyTypes: not restricted.

    ``problems`` names each part that could not be understood, as "field: reason". Such a part allows nothing.
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

    ``peers`` None only arises where a Deny or Pass rule was not understood: it then denies everything.
    """

    action: RuleAction
    peers: tuple[ClusterPeer, ...] | None
    ports: tuple[Port, ...] | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """A ClusterNetworkPolicy, or an AdminNetworkPolicy or BaselineAdminNetworkPolicy mapped onto its tiers.

    ``subject`` selects pods of the namespaces it names (its ``namespaces`` is never None). Rules are tried in
    order; no rules in a direction: the policy says nothing of that direction. ``problems`` as in NetworkPolicy:
    what is not understood accepts nothing, and denies everything where it would have denied or passed.
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
        """Sorts the policies of one tier. The API leaves open what comes first at equal priority; here it is the
        name, so that every node answers alike."""
        return (self.priority, self.ref)

    def rules(self, direction: Direction) -> tuple[ClusterRule, ...]:
        """The rules of one direction, in the order in which they are tried."""
        return self.ingress if direction is Direction.INGRESS else self.egress


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A pod interface on this node, known from the moment its addresses are leased.

    Its addresses are the pod's, whatever the API server says of them. ``uid``: of the very pod that it was made
    for (the runtime's word; empty: not known): an interface that an earlier pod of the same name has left is not
    the later one's.
    """

    namespace: str
    name: str
    addresses: tuple[str, ...]
    uid: str = ""

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)

    def stands_for(self, pod: Pod) -> bool:
        """Whether a pod of this name is the one that the interface was made for, and no other of that name."""
        return not self.uid or not pod.uid or self.uid == pod.uid


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet, as the oracle and the interpreter see it: addresses after service translation.

    ``by_service``: a pod's packet to itself that left the pod for a service, and came back; one that it sends to
    its own address never leaves it.
    """

    source: str
    destination: str
    protocol: Protocol
    port: int
    by_service: bool = False
