"""The BGP sessions of one node, out of the nodes and the resources of the API.

Calico's rules (its confd and the templates for BIRD), so that a cluster's resources mean the same here. Both ends
of a session between nodes compute it from the same objects, and agree on it:

- A BGPPeer selects nodes (``node``, else ``nodeSelector``, else all) and their peers: nodes by ``peerSelector``,
  or one by ``peerIP``, which may be a node's. Of several for one session the more specific one counts, then the
  first by name.
- With ``reversePeering`` Auto the selected peers have the session without a BGPPeer of their own. Where each end
  has its own, password, families, TTL security and BFD are those of the one that counts.
- Nodes that are no route reflectors are joined by the node-to-node mesh, unless a BGPPeer joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from bgp.fields import BGP_PORT, BGPConfigError, check_password, hashed_router_id, peer_name
from bgp.model import HOLD_TIME, MAX_PATHS, RESTART_TIME, Peer, SpeakerConfig
from bgp.prefixes import FAMILIES, version
from bgp.prefixes import parse as parse_prefix
from bgp.resources import (
    BGPConfiguration,
    BGPFilter,
    BGPNode,
    BGPPeer,
    Problem,
    SecretKey,
    SourceAddress,
)
from bgp.selector import parse as parse_selector

DEFAULT = "default"
DEFAULT_AS_NUMBER = 64512
_OF_ALL_NODES = {
    "node_to_node_mesh_enabled": "nodeToNodeMeshEnabled",
    "node_mesh_password": "nodeMeshPassword",
    "node_mesh_max_restart_time": "nodeMeshMaxRestartTime",
}
"""Attribute -> field of a BGPConfiguration that both ends of a session must know."""

_OF_BOTH_ENDS = {"password": "password", "families": "families", "ttl_security": "ttlSecurity", "bfd": "bfd"}
"""The same of a BGPPeer."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A node's speaker, None without BGP in the API, and what cannot be used as it stands there."""

    speaker: SpeakerConfig | None
    problems: tuple[Problem, ...] = ()


def topology(
    node_name: str,
    nodes: Collection[BGPNode],
    configurations: Collection[BGPConfiguration],
    peers: Collection[BGPPeer],
    filters: Collection[BGPFilter],
    passwords: Mapping[SecretKey, str],
) -> Topology:
    """The sessions of a node. The order of the inputs does not matter.

    ``passwords``: the known keys of Secrets. A session whose password or filter is missing is left out, with a
    problem. No speaker without configurations and peers, nor for a node that is not among ``nodes``.
    """
    cluster = _Cluster(nodes, configurations, peers, filters, passwords)
    node = cluster.nodes.get(node_name)
    if node is None or not (configurations or peers):
        return Topology(None)
    own = merged(node_name, configurations)
    sessions = [*cluster.sessions_with_routers(node), *cluster.sessions_with_nodes(node)]
    speaker = SpeakerConfig(
        asn=cluster.asn(node),
        router_id=cluster.router_id(node),
        listen_port=cluster.port(node),
        listen_addresses=node.addresses if own.bind_mode == "NodeIP" else (),
        max_paths=MAX_PATHS if own.max_paths is None else own.max_paths,
        peers=tuple(sorted(sessions, key=lambda peer: (parse_prefix(peer.address), peer.key))),
    )
    return Topology(speaker, tuple(sorted(cluster.problems)))


def merged(node_name: str, configurations: Iterable[BGPConfiguration]) -> BGPConfiguration:
    """A node's configuration: ``node.NAME``, field by field, over ``default``. The mesh is ``default``'s."""
    by_name = {configuration.name: configuration for configuration in configurations}
    default = by_name.get(DEFAULT, BGPConfiguration(name=DEFAULT))
    own = by_name.get(f"node.{node_name}")
    if own is None:
        return default
    values = {f.name: getattr(own, f.name) for f in fields(own) if f.name not in _OF_ALL_NODES}
    return replace(default, **{name: value for name, value in values.items() if value not in (None, "", {})})


@dataclass(frozen=True, slots=True)
class _End:
    """One end of a session between nodes: the BGPPeer that has its settings.

    ``own``: it selects this end as the node, and not only as the peer.
    """

    node: BGPNode
    peer: BGPPeer
    own: bool

    @property
    def rank(self) -> tuple[int, str]:
        return _rank(self.peer)


class _Cluster:
    """All nodes and resources, looked up in the ways that sessions need. What is wrong is in ``problems``."""

    def __init__(
        self,
        nodes: Collection[BGPNode],
        configurations: Collection[BGPConfiguration],
        peers: Collection[BGPPeer],
        filters: Collection[BGPFilter],
        passwords: Mapping[SecretKey, str],
    ) -> None:
        self.problems: set[Problem] = set()
        self.nodes = {node.name: node for node in sorted(nodes, key=lambda node: node.name)}
        self._configurations = {configuration.name: configuration for configuration in configurations}
        self._default = self._configurations.get(DEFAULT, BGPConfiguration(name=DEFAULT))
        self._filters = {each.name: each for each in filters}
        self._passwords = passwords
        self._owners: dict[str, BGPNode] = {}
        for node in self.nodes.values():
            for address in node.addresses:
                self._owners.setdefault(address, node)
        self._selects: dict[str, Callable[[BGPNode], bool]] = {}
        self._joined: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        self._peers = [peer for peer in sorted(peers, key=_rank) if self._select(peer)]
        self._joining = [peer for peer in self._peers if peer.name in self._joined]

    # --- nodes -------------------------------------------------------------------------------------------

    def asn(self, node: BGPNode) -> int:
        """The node's AS number: of its annotation, its BGPConfiguration, or all nodes'."""
        given = (node.as_number, self._own(node).as_number, self._default.as_number)
        return next((asn for asn in given if asn is not None), DEFAULT_AS_NUMBER)

    def port(self, node: BGPNode) -> int:
        """The port that the node listens on."""
        given = (self._own(node).listen_port, self._default.listen_port)
        return next((port for port in given if port is not None), BGP_PORT)

    def router_id(self, node: BGPNode) -> str:
        """The node's BGP identifier: as given, else its IPv4 address, else made of its name (RFC 6286)."""
        mine = _router_id(node)
        for other in self.nodes.values():
            if other.name != node.name and _router_id(other) == mine:
                self._problem("Node", node.name, "routerID", f"node {other.name} has the router ID {mine}, too")
        return mine

    def _own(self, node: BGPNode) -> BGPConfiguration:
        name = f"node.{node.name}"
        return self._configurations.get(name, BGPConfiguration(name=name))

    # --- sessions ----------------------------------------------------------------------------------------

    def sessions_with_routers(self, node: BGPNode) -> Iterator[Peer]:
        """The node's sessions with addresses that no node has."""
        winners: dict[tuple[str, int, str], BGPPeer] = {}
        for peer in self._peers:
            if not peer.peer_ip or peer.peer_ip in self._owners or not self._selects[peer.name](node):
                continue
            by_kernel = bool(peer.interface) or peer.source_address is SourceAddress.NONE
            source = "" if by_kernel else _address(node, version(peer.peer_ip))
            if not source and not by_kernel:
                continue  # as in Calico: a node without IPv6 addresses has no sessions over IPv6
            winner = winners.setdefault((peer.peer_ip, peer.port, peer.interface), peer)
            if winner is not peer:
                reason = (
                    f"BGPPeer {winner.name} has the session with "
                    f"{peer_name(peer.peer_ip, peer.port, peer.interface)}"
                )
                self._problem("BGPPeer", peer.name, "peerIP", reason)
            elif peer.as_number is None:
                self._problem(
                    "BGPPeer", peer.name, "asNumber", f"is missing; {peer.peer_ip} is no node's address"
                )
            else:
                end = _End(node, peer, own=True)
                local_asn = self._session_asn(end)
                session = Peer(
                    address=peer.peer_ip,
                    asn=peer.as_number,
                    local_asn=local_asn,
                    port=peer.port,
                    source_address=source,
                    families=self._families(peer, version(peer.peer_ip), node),
                    cluster_id=node.cluster_id if peer.as_number == local_asn else "",
                )
                yield from self._complete(session, end, peer)

    def sessions_with_nodes(self, node: BGPNode) -> Iterator[Peer]:
        """The node's sessions with other nodes."""
        mesh = self._mesh(node)
        for other in self.nodes.values():
            if other.name == node.name or not set(node.addresses).isdisjoint(other.addresses):
                continue
            joined = {ip: ends for ip in FAMILIES if (ends := self._ends(node, other, ip))}
            for ip, (here, there) in joined.items():
                yield from self._between(here, there, ip)
            if mesh and not other.cluster_id:
                named = replace(mesh, name=other.name)
                covered = {f for ip, ends in joined.items() for f in (ip, *_counting(*ends).families)}
                for ip in FAMILIES:
                    if ip not in covered and _address(node, ip) and _address(other, ip):
                        yield from self._between(_End(node, named, own=False), _End(other, named, own=False), ip)

    def _mesh(self, node: BGPNode) -> BGPPeer | None:
        """What the node's sessions of the mesh are like; None: it has none."""
        own = self._own(node)
        for attribute, field in _OF_ALL_NODES.items():
            if getattr(own, attribute) is not None:
                self._problem("BGPConfiguration", own.name, field, "only BGPConfiguration default can say that")
        if self._default.node_to_node_mesh_enabled is False or node.cluster_id:
            return None
        mesh = BGPPeer(
            name=DEFAULT,
            password=self._default.node_mesh_password,
            max_restart_time=self._default.node_mesh_max_restart_time,
        )
        usable = self._password("BGPConfiguration", DEFAULT, "nodeMeshPassword", mesh.password) is not None
        return mesh if usable else None

    def _ends(self, node: BGPNode, other: BGPNode, ip: int) -> tuple[_End, _End] | None:
        """Both ends of the session over IP version ``ip`` that BGPPeers give two nodes."""
        here, there = self._end(node, other, ip), self._end(other, node, ip)
        if here and not there:
            reason = "is Manual, and a node that is a peer by it has no BGPPeer for it"
            self._problem("BGPPeer", here.peer.name, "reversePeering", reason)
        return (here, there) if here and there else None

    def _end(self, node: BGPNode, other: BGPNode, ip: int) -> _End | None:
        """A node's end: of its own BGPPeers the first, else of those that reach it in reverse."""
        own = [peer for peer in self._joining if self._joins(peer, node, other, ip)]
        for loser in own[1:]:
            reason = f"where BGPPeer {own[0].name} joins the same nodes, that counts"
            self._problem("BGPPeer", loser.name, "", reason)
        if own:
            return _End(node, own[0], own=True)
        reverse = (p for p in self._joining if p.reverse_peering and self._joins(p, other, node, ip))
        return next((_End(node, peer, own=False) for peer in reverse), None)

    def _joins(self, peer: BGPPeer, node: BGPNode, other: BGPNode, ip: int) -> bool:
        """Whether a BGPPeer gives ``node`` a session with ``other`` over an IP version."""
        nodes, others = self._joined[peer.name]
        if node.name not in nodes or other.name not in others:
            return False
        if peer.peer_ip:
            return version(peer.peer_ip) == ip and bool(_address(node, ip))
        common = [v for v in FAMILIES if _address(node, v) and _address(other, v)]
        if peer.families:
            # One session, over a family that it carries if that can be.
            common = sorted(common, key=lambda v: (v not in peer.families, v))[:1]
        return ip in common

    def _between(self, here: _End, there: _End, ip: int) -> Iterator[Peer]:
        counting = _counting(here, there)
        for end in (here, there):
            for attribute, field in _OF_BOTH_ENDS.items():
                if getattr(end.peer, attribute) != getattr(counting, attribute):
                    reason = f"where BGPPeer {counting.name} joins the same nodes, its {field} counts"
                    self._problem("BGPPeer", end.peer.name, field, reason)
        # What one end cannot have, the other must not wait for.
        if self._resolved(there.peer) is None:
            return
        source, address = _address(here.node, ip), _address(there.node, ip)
        asn, local_asn = self._session_asn(there), self._session_asn(here)
        reflects = asn == local_asn and here.node.cluster_id != there.node.cluster_id
        session = Peer(
            address=address,
            asn=asn,
            local_asn=local_asn,
            port=self.port(there.node),
            source_address=source,
            # One end connects, as in Calico: of two connections at once each might end the other.
            passive=parse_prefix(address) > parse_prefix(source),
            families=self._families(counting, ip, here.node, there.node),
            cluster_id=here.node.cluster_id if reflects else "",
        )
        yield from self._complete(session, here, counting)

    def _session_asn(self, end: _End) -> int:
        local = end.peer.local_as_number if end.own else None
        return self.asn(end.node) if local is None else local

    def _families(self, peer: BGPPeer, ip: int, *nodes: BGPNode) -> tuple[int, ...]:
        """The families on a session over IP version ``ip``: those for which our ends have a next hop.

        That is an address of the family, or for IPv4 the IPv6 address of the session (RFC 8950).
        """
        wanted = set(peer.families) or {ip}
        if ip == 4 and 6 in wanted and not all(_address(node, 6) for node in nodes):
            self._problem("BGPPeer", peer.name, "families", "a node without an IPv6 address cannot announce IPv6")
            wanted.remove(6)
        return tuple(sorted(wanted))

    def _complete(self, session: Peer, end: _End, counting: BGPPeer) -> Iterator[Peer]:
        """The session with its BGPPeer's settings, unless one of them is missing.

        ``counting``: the BGPPeer with those that both ends share.
        """
        peer = end.peer
        filters = self._resolved(peer)
        password = self._password("BGPPeer", counting.name, "password", counting.password)
        if filters is None or password is None or not session.families:
            return
        yield replace(
            session,
            password=password,
            ttl_security=counting.ttl_security,
            hold_time=self._hold_time(peer),
            keepalive_time=peer.keepalive_time or 0,
            max_restart_time=RESTART_TIME if peer.max_restart_time is None else peer.max_restart_time,
            allowed_own_asns=peer.num_allowed_local_as_numbers,
            name=peer.name,
            next_hops=tuple(hop for family in session.families if (hop := _address(end.node, family))),
            interface=peer.interface,
            reachable_by=peer.reachable_by,
            next_hop_mode=peer.next_hop_mode,
            keep_original_next_hop=peer.keep_original_next_hop,
            filters=filters,
            prefix_limit=peer.prefix_limit or 0,
            bfd=counting.bfd,
        )

    # --- references --------------------------------------------------------------------------------------

    def _select(self, peer: BGPPeer) -> bool:
        """Note the nodes and the peers that a BGPPeer selects; false if it can select none."""
        if not (peer.peer_selector or peer.peer_ip):
            self._problem("BGPPeer", peer.name, "peerIP", "is missing, and so is peerSelector")
            return False
        selects = _named(peer.node) if peer.node else self._matches(peer, "nodeSelector", peer.node_selector)
        is_peer = None if peer.peer_ip else self._matches(peer, "peerSelector", peer.peer_selector)
        if selects is None or not (peer.peer_ip or is_peer):
            return False
        self._selects[peer.name] = selects
        if others := self._all(is_peer) if is_peer else self._at(peer):
            self._joined[peer.name] = self._all(selects), others
        return True

    def _all(self, matches: Callable[[BGPNode], bool]) -> frozenset[str]:
        return frozenset(name for name, node in self.nodes.items() if matches(node))

    def _matches(self, peer: BGPPeer, field: str, selector: str) -> Callable[[BGPNode], bool] | None:
        """Whether a selector selects a node, an empty one every node; None if it cannot be read."""
        try:
            parsed = parse_selector(selector)
        except ValueError as error:
            self._problem("BGPPeer", peer.name, field, str(error))
            return None
        return lambda node: parsed.matches(node.labels)

    def _at(self, peer: BGPPeer) -> frozenset[str]:
        """The node that a BGPPeer's ``peer_ip`` means."""
        node = self._owners.get(peer.peer_ip)
        if node is None:
            return frozenset()
        # A port that is not given is the node's own, whichever that is.
        if peer.port not in (BGP_PORT, self.port(node)):
            self._problem("BGPPeer", peer.name, "peerIP", f"node {node.name} listens on port {self.port(node)}")
            return frozenset()
        if peer.as_number not in (None, self.asn(node)):
            self._problem("BGPPeer", peer.name, "asNumber", f"node {node.name} has AS number {self.asn(node)}")
            return frozenset()
        return frozenset({node.name})

    def _resolved(self, peer: BGPPeer) -> tuple[BGPFilter, ...] | None:
        missing = [name for name in peer.filters if name not in self._filters]
        for name in missing:
            self._problem("BGPPeer", peer.name, "filters", f"there is no BGPFilter {name}")
        return None if missing else tuple(self._filters[name] for name in peer.filters)

    def _password(self, kind: str, name: str, field: str, key: SecretKey | None) -> str | None:
        """The password, empty if there is none to be; None if it is not known or cannot be used."""
        if key is None:
            return ""
        password = self._passwords.get(key)
        if password is None:
            self._problem(kind, name, field, f"there is no key {key.key} in a Secret {key.name}")
            return None
        try:
            return check_password(f"key {key.key} of Secret {key.name}", password)
        except BGPConfigError as error:
            self._problem(kind, name, field, str(error))
            return None

    def _hold_time(self, peer: BGPPeer) -> int:
        """A keepalive is sent in each third of the hold time at least (RFC 4271, 4.4)."""
        if peer.hold_time is None:
            return max(HOLD_TIME, 3 * (peer.keepalive_time or 0))
        if peer.keepalive_time and peer.hold_time // 3 < peer.keepalive_time:
            reason = f"is {peer.hold_time // 3} s, a third of the hold time"
            self._problem("BGPPeer", peer.name, "keepaliveTime", reason)
        return peer.hold_time

    def _problem(self, kind: str, name: str, field: str, reason: str) -> None:
        self.problems.add(Problem(kind, name, field, reason))


def _named(name: str) -> Callable[[BGPNode], bool]:
    return lambda node: node.name == name


def _rank(peer: BGPPeer) -> tuple[int, str]:
    """The more specific BGPPeer first, then by name."""
    return 0 if peer.node else 1 if peer.node_selector else 2, peer.name


def _counting(here: _End, there: _End) -> BGPPeer:
    """Of two ends' BGPPeers, the one whose settings both ends use."""
    return min(here, there, key=lambda end: end.rank).peer


def _address(node: BGPNode, ip: int) -> str:
    """The node's address of an IP version; empty: it has none."""
    return next((address for address in node.addresses if version(address) == ip), "")


def _router_id(node: BGPNode) -> str:
    return node.router_id or _address(node, 4) or hashed_router_id(node.name)
