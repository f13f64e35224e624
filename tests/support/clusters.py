"""Random clusters for property tests of policy. The alphabets are small, so that everything collides."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st

from policy.model import (
    ClusterPeer,
    ClusterPolicy,
    ClusterRule,
    Family,
    IPBlock,
    Labels,
    LocalEndpoint,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Node,
    NodePeer,
    ObjectKey,
    Operator,
    Packet,
    Peer,
    Pod,
    PodPeer,
    PolicyKind,
    PolicyRef,
    PolicyRule,
    Port,
    Protocol,
    Requirement,
    RuleAction,
    Selector,
    Tier,
)
from policy.oracle.evaluate import Snapshot

T = TypeVar("T")

NAMESPACES = ("a", "b")
NUMBERS = range(1, 7)
NODE = ("192.168.0.1", "fdff::1")
NODES = {"n1": NODE, "n2": ("192.168.0.2",)}
WORLD = ("10.0.0.99", "fd00::99", "198.51.100.7", "2001:db8::7")
PORTS = (53, 80, 81, 82)


def v4(number: int) -> str:
    return f"10.0.0.{number}"


def v6(number: int) -> str:
    return f"fd00::{number:x}"


@dataclass(frozen=True)
class Cluster:
    """One state of a cluster, and the endpoints of one of its nodes."""

    namespaces: dict[str, Namespace]
    pods: dict[ObjectKey, Pod]
    policies: dict[PolicyRef, NetworkPolicy | ClusterPolicy]
    endpoints: dict[ObjectKey, LocalEndpoint]
    nodes: dict[str, Node]

    def snapshot(self) -> Snapshot:
        """What the oracle looks at."""
        return Snapshot(
            self.namespaces.values(),
            self.pods.values(),
            self.policies.values(),
            self.nodes.values(),
            self.endpoints.values(),
        )


# --- labels and selectors ------------------------------------------------------------------------------------

labels: st.SearchStrategy[Labels] = st.dictionaries(
    st.sampled_from(("app", "tier")), st.sampled_from(("x", "y")), max_size=1
).map(lambda found: tuple(sorted(found.items())))

_values = st.sets(st.sampled_from(("x", "y", "z")), min_size=1, max_size=2).map(lambda v: tuple(sorted(v)))
_keys = st.sampled_from(("app", "tier"))
requirements: st.SearchStrategy[Requirement] = st.one_of(
    st.builds(Requirement, _keys, st.sampled_from((Operator.IN, Operator.NOT_IN)), _values),
    st.builds(Requirement, _keys, st.sampled_from((Operator.EXISTS, Operator.DOES_NOT_EXIST))),
)


def _some(items: st.SearchStrategy[T], sizes: tuple[int | None, ...]) -> st.SearchStrategy[tuple[T, ...] | None]:
    """A tuple of one of the sizes, or None; a size that is there twice is twice as likely."""
    return st.sampled_from(sizes).flatmap(
        lambda size: st.none() if size is None else st.lists(items, min_size=size, max_size=size).map(tuple)
    )


selectors: st.SearchStrategy[Selector] = _some(requirements, (0, 0, 0, 1, 1, 2)).map(
    lambda found: Selector(tuple(sorted(set(found or ()), key=lambda r: (r.key, r.operator, r.values))))
)

# --- policies ------------------------------------------------------------------------------------------------

_BLOCKS = (
    ("0.0.0.0/0", ("10.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.2/32")),
    ("10.0.0.0/29", ("10.0.0.0/30", "10.0.0.4/30", "10.0.0.2/31", "10.0.0.3/32", "10.0.0.5/32")),
    ("10.0.0.4/30", ("10.0.0.4/32", "10.0.0.6/31")),
    ("10.0.0.2/32", ()),
    ("10.0.0.3/32", ()),
    ("192.168.0.0/16", ("192.168.0.1/32",)),
    ("::/0", ("fd00::/8", "::/1", "8000::/1", "fd00::2/128")),
    ("fd00::/125", ("fd00::/126", "fd00::4/126", "fd00::2/127", "fd00::3/128")),
    ("fd00::2/128", ()),
)
blocks: st.SearchStrategy[IPBlock] = st.sampled_from(_BLOCKS).flatmap(
    lambda block: st.builds(
        IPBlock,
        st.just(block[0]),
        (st.lists(st.sampled_from(block[1]), max_size=3) if block[1] else st.just([])).map(tuple),
    )
)
pod_peers: st.SearchStrategy[PodPeer] = st.one_of(
    st.builds(PodPeer, st.none(), selectors),
    st.builds(PodPeer, selectors, st.none()),
    st.builds(PodPeer, selectors, selectors),
)
peers: st.SearchStrategy[Peer] = st.one_of(blocks, pod_peers)
_protocols = st.sampled_from(Protocol)
ports: st.SearchStrategy[Port] = st.one_of(
    st.builds(Port, _protocols),
    st.builds(Port, _protocols, st.sampled_from(PORTS)),
    st.builds(Port, _protocols, st.just(80), st.sampled_from((80, 81, 65535))),
    st.builds(Port, _protocols, st.sampled_from(("web", "dns"))),
)
rules: st.SearchStrategy[PolicyRule] = st.builds(
    PolicyRule,
    _some(peers, (1, 1, 1, 1, 2, 2, 2, 3, None, 0)),
    _some(ports, (None, None, 1, 1, 2, 0)),
)
_directions = _some(rules, (1, 1, 2, None, 0))
policies: st.SearchStrategy[NetworkPolicy] = st.builds(
    NetworkPolicy,
    namespace=st.sampled_from(NAMESPACES),
    name=st.sampled_from(("p", "q")),
    selector=selectors,
    ingress=_directions,
    egress=_directions,
)

# --- policies of the cluster tiers ---------------------------------------------------------------------------

subjects: st.SearchStrategy[PodPeer] = st.builds(PodPeer, selectors, st.none() | selectors)
cluster_peers: st.SearchStrategy[ClusterPeer] = st.one_of(
    subjects, blocks.map(lambda block: IPBlock(block.cidr)), st.builds(NodePeer, selectors)
)
cluster_rules: st.SearchStrategy[ClusterRule] = st.builds(
    ClusterRule,
    st.sampled_from(RuleAction),
    _some(cluster_peers, (1, 1, 1, 2, 3, None)),
    _some(ports, (None, None, 1, 2)),
)
_cluster_directions = _some(cluster_rules, (0, 1, 1, 2, 3)).map(lambda found: found or ())


_TIERS = (Tier.ADMIN, Tier.BASELINE)


def _cluster_policy(
    place: tuple[PolicyKind, str, Tier], priority: int, subject: PodPeer, rules: list[Any]
) -> ClusterPolicy:
    kind, name, tier = place
    return ClusterPolicy(kind, name, tier, priority, subject, *rules)


cluster_policies: st.SearchStrategy[ClusterPolicy] = st.builds(
    _cluster_policy,
    st.one_of(
        st.tuples(
            st.just(PolicyKind.CLUSTER), st.sampled_from("cd"), st.sampled_from((Tier.ADMIN, Tier.BASELINE))
        ),
        st.just((PolicyKind.ADMIN, "c", Tier.ADMIN)),
        st.just((PolicyKind.BASELINE_ADMIN, "default", Tier.BASELINE)),
    ),
    st.sampled_from((0, 1, 1000)),
    subjects,
    st.lists(_cluster_directions, min_size=2, max_size=2),
)

# --- pods and clusters ---------------------------------------------------------------------------------------

named_ports: st.SearchStrategy[NamedPort] = st.builds(
    NamedPort, st.sampled_from(("web", "dns")), _protocols, st.sampled_from(PORTS)
)


UIDS = st.sampled_from(("", "u1", "u1", "u1", "u2"))
"""Of a pod, and of the pod that an interface was made for: mostly the same, but names are used again."""


@st.composite
def pods(draw: st.DrawFn, number: int, place: int) -> Pod:
    """Pod ``number`` with address ``place``, mostly its alone. Finished pods have given theirs back, and others
    may do as if they had it still."""
    host_network = draw(st.integers(0, 7)) == 0
    active = draw(st.integers(0, 5)) > 0
    place = place if active and draw(st.integers(0, 4)) else draw(st.sampled_from(NUMBERS))
    own = draw(st.sampled_from(((v4(place), v6(place)), (v4(place),), (v6(place),), ())))
    return Pod(
        namespace=NAMESPACES[number % len(NAMESPACES)],
        name=f"pod{number}",
        uid=draw(UIDS),
        labels=draw(labels),
        addresses=NODE if host_network else own,
        ports=tuple(draw(st.lists(named_ports, max_size=2))),
        host_network=host_network,
        active=active,
        since=draw(st.sampled_from(("", "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"))),
        deleted=draw(st.booleans()),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    namespaces = [
        Namespace(name, draw(labels)) for name in NAMESPACES if draw(st.integers(0, 4)) > 0
    ]  # the others are not known (yet)
    numbers = sorted(draw(st.sets(st.sampled_from(NUMBERS), min_size=3, max_size=5)))
    # From one state to another, addresses go from pod to pod.
    turn = draw(st.sampled_from((0, 0, 0, 1)))
    places = {number: NUMBERS[(index + turn) % len(NUMBERS)] for index, number in enumerate(NUMBERS)}
    found = [draw(pods(number, places[number])) for number in numbers]
    endpoints = [
        LocalEndpoint(
            NAMESPACES[number % len(NAMESPACES)],
            f"pod{number}",
            draw(st.sampled_from(((v4(places[number]), v6(places[number])), (v4(places[number]),)))),
            draw(UIDS),
        )
        for number in NUMBERS
        # Mostly pods' own, but the runtime may know a pod before or after the API server does.
        if draw(st.integers(0, 9)) < (7 if number in numbers else 1)
    ]
    drawn: list[NetworkPolicy | ClusterPolicy] = [
        *draw(st.lists(policies, max_size=3)),
        *draw(st.lists(cluster_policies, max_size=3)),
    ]
    return Cluster(
        {namespace.name: namespace for namespace in namespaces},
        {pod.key: pod for pod in found},
        {policy.ref: policy for policy in drawn},
        {endpoint.key: endpoint for endpoint in endpoints},
        {name: Node(name, draw(labels), addresses) for name, addresses in NODES.items() if draw(st.booleans())},
    )


def packets() -> list[Packet]:
    """Every packet between two different addresses of one family that a cluster may have, to every port."""
    nodes = [address for addresses in NODES.values() for address in addresses]
    places = [*(v4(n) for n in NUMBERS), *(v6(n) for n in NUMBERS), *nodes, *WORLD]
    return [
        Packet(source, destination, protocol, port)
        for source in places
        for destination in places
        if ipaddress.ip_address(source).version == ipaddress.ip_address(destination).version
        for protocol in Protocol
        for port in PORTS
    ]


def family(address: str) -> Family:
    return Family.V6 if ":" in address else Family.V4
