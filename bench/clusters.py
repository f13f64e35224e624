"""Synthetic clusters for benchmarks: pods, namespaces, nodes and policies, regular, and as large as one likes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policy.model import (
    ClusterPolicy,
    ClusterRule,
    IPBlock,
    Labels,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Node,
    NodePeer,
    Operator,
    Pod,
    PodPeer,
    PolicyKind,
    PolicyRule,
    Port,
    Protocol,
    Requirement,
    RuleAction,
    Selector,
    Tier,
)

LOCAL_PODS = 110
"""Pods of the node that is looked at; as many as a kubelet takes by default."""

LOCAL_NAMESPACES = 10
"""Namespaces of which the node has pods."""

STAGES = 100
"""Cluster policies are for the namespaces of a stage: one in a hundred."""

TIERS, APPS = ("web", "api", "db", "queue"), 20
PORTS = (NamedPort("http", Protocol.TCP, 8080), NamedPort("metrics", Protocol.TCP, 9090))


@dataclass(frozen=True, slots=True)
class Size:
    """How large a cluster is. ``crowds``: the pods of each namespace; the first ten have the node's own pods.

    ``local_policies`` of the NetworkPolicies select the node's pods.
    """

    crowds: tuple[int, ...]
    policies: int
    local_policies: int
    cluster_policies: int = 0
    teams: int = 10

    @property
    def pods(self) -> int:
        """All pods."""
        return sum(self.crowds)


def even(pods: int, policies: int, local_policies: int) -> Size:
    """Namespaces of 1,000 pods, or ten of them where there are fewer than 10,000."""
    crowd = min(1000, pods // LOCAL_NAMESPACES)
    return Size((crowd,) * (pods // crowd), policies, local_policies)


class Cluster:
    """Records of a cluster. Equal labels are one object, as the informers keep them."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.namespaces = [self._namespace(n) for n in range(len(size.crowds))]
        self._labels: dict[Labels, Labels] = {}
        self.pods: list[Pod] = []
        self._starts = [0]
        for namespace, crowd in enumerate(size.crowds):
            first = len(self.pods)
            self.pods += [self._pod(namespace, place, first + place) for place in range(crowd)]
            self._starts.append(len(self.pods))
        self._labels.clear()  # it would count as memory of what is measured
        each = LOCAL_PODS // LOCAL_NAMESPACES
        self.local = [pod for namespace in range(LOCAL_NAMESPACES) for pod in self.of(namespace)[:each]]
        self.policies = list(self._policies())
        self.cluster_policies = [self._cluster_policy(number) for number in range(size.cluster_policies)]

    def of(self, namespace: int) -> list[Pod]:
        """The pods of a namespace."""
        return self.pods[self._starts[namespace] : self._starts[namespace + 1]]

    def nodes(self) -> list[Node]:
        """The nodes that the pods run on, in three zones."""
        return [
            Node(name, (("zone", f"zone-{n % 3}"),), (f"192.168.{n >> 8}.{n & 255}", f"fdff::{n + 1:x}"))
            for n, name in enumerate(dict.fromkeys(pod.node for pod in self.pods))
        ]

    def _namespace(self, number: int) -> Namespace:
        name = f"ns-{number}"
        team = f"team-{number % self.size.teams}"
        stage = f"stage-{number % STAGES}"
        return Namespace(name, (("kubernetes.io/metadata.name", name), ("stage", stage), ("team", team)))

    def _pod(self, namespace: int, place: int, number: int) -> Pod:
        # Large namespaces have as many replicas as it takes; Deployments of the small ones have two.
        app = place % APPS if self.size.crowds[namespace] >= 5 * APPS else place // 2 % APPS
        labels: Labels = (
            ("app", f"app-{app}"),
            ("pod-template-hash", f"{namespace:04x}{app:04x}"),
            ("tier", TIERS[app % len(TIERS)]),
        )
        addresses = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", f"fd00::{number + 1:x}")
        return Pod(
            self.namespaces[namespace].name,
            f"app-{app}-{place}",
            f"00000000-0000-0000-0000-{number:012}",
            f"node-{number // LOCAL_PODS}",
            self._labels.setdefault(labels, labels),
            addresses,
            PORTS,
        )

    def _policies(self) -> Iterator[NetworkPolicy]:
        apps = LOCAL_PODS // LOCAL_NAMESPACES  # an app of its own for each local pod of a namespace
        for number in range(self.size.policies):
            if number < self.size.local_policies:
                namespace, app = number % LOCAL_NAMESPACES, number // LOCAL_NAMESPACES % apps
            else:
                namespace = number % len(self.namespaces)
                app = apps + number % (APPS - apps) if namespace < LOCAL_NAMESPACES else number % APPS
            yield self._policy(number, self.namespaces[namespace].name, app)

    def _policy(self, number: int, namespace: str, app: int) -> NetworkPolicy:
        team, tier = f"team-{number % self.size.teams}", TIERS[number % len(TIERS)]
        near = PodPeer(None, labelled("app", f"app-{(app + 1) % APPS}"))
        far = PodPeer(labelled("team", team), labelled("tier", tier))
        ports = (Port(Protocol.TCP, 443), Port(Protocol.TCP, 8000, 8099))
        dns = PolicyRule((PodPeer(Selector(), labelled("app", "app-0")),), (Port(Protocol.UDP, 53),))
        outside = PolicyRule((IPBlock("0.0.0.0/0", ("10.0.0.0/8",)), IPBlock("2000::/3")), ports)
        return NetworkPolicy(
            namespace,
            f"policy-{number}",
            labelled("app", f"app-{app}"),
            ingress=(PolicyRule((near, far), ports), PolicyRule((far,), (Port(Protocol.TCP, "http"),))),
            egress=(dns, outside) if number % 2 else None,
        )

    def _cluster_policy(self, number: int) -> ClusterPolicy:
        """Of one stage: who may monitor it, who may not reach it, and where it may go outside."""
        other = f"team-{(number + 7) % self.size.teams}"
        web = (Port(Protocol.TCP, 443), Port(Protocol.TCP, 8000, 8099))
        monitor = PodPeer(labelled("team", other), labelled("app", "app-0"))
        refused = PodPeer(labelled("team", other), labelled("tier", TIERS[number % len(TIERS)]))
        outside = IPBlock(f"198.{18 + number % 2}.{number % 256}.0/24")
        return ClusterPolicy(
            PolicyKind.CLUSTER,
            f"policy-{number}",
            Tier.BASELINE if number % 3 == 0 else Tier.ADMIN,
            number % 1001,
            PodPeer(labelled("stage", f"stage-{number % STAGES}"), None),
            ingress=(
                ClusterRule(RuleAction.ACCEPT, (monitor,), (Port(Protocol.TCP, 9090),)),
                ClusterRule(RuleAction.DENY, (refused,), web),
            ),
            egress=(
                ClusterRule(RuleAction.ACCEPT, (outside, NodePeer(labelled("zone", f"zone-{number % 3}"))), web),
                ClusterRule(RuleAction.PASS, None, (Port(Protocol.UDP, 53),)),
            ),
        )


def labelled(key: str, value: str) -> Selector:
    """A selector of one label."""
    return Selector((Requirement(key, Operator.IN, (value,)),))
