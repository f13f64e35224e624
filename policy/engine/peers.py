"""IP sets of compiled policy: members of a rule's peers and named ports, kept up to date."""

from __future__ import annotations

from collections.abc import Callable

from policy import cidr
from policy.engine.index import ALL_PODS, NODES, PodIndex, Scope, Watched
from policy.engine.output import Output
from policy.ir import SetKind
from policy.model import (
    ClusterPeer,
    ClusterPolicy,
    Family,
    IPBlock,
    NamedPort,
    NetworkPolicy,
    NodePeer,
    Pod,
    PodPeer,
    Port,
)
from policy.names import set_id
from policy.selectors import EVERYTHING

AnyPolicy = NetworkPolicy | ClusterPolicy

NamedPortKey = tuple[str, str]
"""(port name, protocol)."""


class PeerSet:
    """One IP set of the pods in scopes and of networks; its id depends on the content alone.

    With ``named``, the members are (address, port) pairs of the pods that have a port of that name.
    """

    def __init__(
        self,
        family: Family,
        scopes: frozenset[Scope],
        nets: tuple[cidr.Span, ...] = (),
        named: NamedPortKey | None = None,
    ) -> None:
        self.family = family
        self.scopes = scopes
        self.nets = nets
        self.named = named
        self.references = 0
        self._watched: list[Watched] = []
        self._everywhere: Watched | None = None
        plain = SetKind.NETWORKS if nets else SetKind.ADDRESSES
        self.kind = SetKind.ADDRESS_PORTS if named else plain
        self.id = set_id(repr((sorted(scope.text() for scope in scopes), nets, named)))

    @property
    def empty(self) -> bool:
        """Whether it can never have members."""
        return not self.scopes and not self.nets

    def open(self, index: PodIndex, output: Output, addresses: Callable[[Pod], tuple[str, ...]]) -> None:
        """Create and fill the set; ``addresses`` returns all addresses of a pod."""
        output.open_set(self.id, self.kind)
        self._watched = [index.watch(scope, self) for scope in self.scopes]
        if self.named and self.nets:
            # A named port belongs to a pod, so the blocks are matched against all pods.
            self._everywhere = index.watch(ALL_PODS, self)
            self._watched.append(self._everywhere)
        if not self.named:
            for member in cidr.to_cidrs(self.nets, self.family):
                output.count(self.id, member, 1)
        for watched in self._watched:
            for pod in watched.pods():
                self.add(output, watched, pod, addresses(pod), 1)

    def close(self, index: PodIndex, output: Output) -> None:
        """Remove the set."""
        for watched in self._watched:
            index.unwatch(watched, self)
        output.close_set(self.id)

    def add(self, output: Output, watched: Watched, pod: Pod, addresses: tuple[str, ...], sign: int) -> None:
        """Count a pod that joins (``sign`` 1) or leaves (-1) one of the set's scopes."""
        ports = [] if self.named is None else _named(pod, self.named)
        if self.named is not None and not ports:
            return
        for address in addresses:
            if (":" in address) is (self.family is Family.V4):
                continue
            if self.named is None:
                output.count(self.id, address, sign)
            elif watched is not self._everywhere or cidr.covers(self.nets, address):
                for port in ports:
                    output.count(self.id, f"{address},{port.protocol.lower()}:{port.port}", sign)


def _named(pod: Pod, key: NamedPortKey) -> list[NamedPort]:
    # A port that containers list twice is counted twice, both when the pod joins and when it leaves.
    return [port for port in pod.ports if (port.name, port.protocol) == key]


def peer_set(family: Family, policy: AnyPolicy, peers: tuple[ClusterPeer, ...]) -> PeerSet:
    """The set of all addresses that a peer list means."""
    return PeerSet(family, _scopes(policy, peers), _nets(family, peers))


def named_port_peers(
    family: Family, policy: AnyPolicy, peers: tuple[ClusterPeer, ...] | None, port: Port
) -> PeerSet:
    """Egress: the (address, port) pairs of all pods that the peers mean and that have the named port."""
    named = (str(port.port), port.protocol.value)
    if peers is None:
        return PeerSet(family, frozenset({ALL_PODS}), (), named)
    return PeerSet(family, _scopes(policy, peers), _nets(family, peers), named)


def named_port_subjects(family: Family, policy: AnyPolicy, port: Port) -> PeerSet:
    """Ingress: the (address, port) pairs of the pods that the policy itself selects."""
    if isinstance(policy, NetworkPolicy):
        scope = Scope(policy.namespace, None, policy.selector)
    else:
        scope = _scope(policy, policy.subject)
    return PeerSet(family, frozenset({scope}), (), (str(port.port), port.protocol.value))


def _scopes(policy: AnyPolicy, peers: tuple[ClusterPeer, ...]) -> frozenset[Scope]:
    return frozenset(_scope(policy, peer) for peer in peers if not isinstance(peer, IPBlock))


def _scope(policy: AnyPolicy, peer: PodPeer | NodePeer) -> Scope:
    if isinstance(peer, NodePeer):
        return Scope(NODES, None, peer.nodes)
    pods = peer.pods if peer.pods is not None else EVERYTHING
    if peer.namespaces is None:
        return Scope(policy.ref.namespace, None, pods)
    return Scope(None, peer.namespaces, pods)


def _nets(family: Family, peers: tuple[ClusterPeer, ...]) -> tuple[cidr.Span, ...]:
    return cidr.nets((peer for peer in peers if isinstance(peer, IPBlock)), family)
