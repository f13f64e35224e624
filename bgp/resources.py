"""BGP as declared in the API: BGPConfiguration, BGPPeer and BGPFilter (felixpy.io/v1alpha1), as records.

Kinds and fields have the names and the meaning of Calico's (projectcalico.org/v3), unless docs/bgp.md says
otherwise. ``None``, or an empty text or tuple, is a field that the object does not have. Addresses and CIDRs are
canonical texts, times are whole seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key of a Secret in the agent's own namespace (``secretKeyRef``)."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class PrefixAdvertisement:
    """``prefixAdvertisements``: what is announced with a prefix and all inside it.

    ``communities``: names out of :attr:`BGPConfiguration.communities`, or values. ``local_preference`` and
    ``med`` are ours.
    """

    cidr: str
    communities: tuple[str, ...] = ()
    local_preference: int | None = None
    med: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BGPConfiguration:
    """``default``: of all nodes; ``node.NAME``: of one, field by field over the default."""

    name: str
    as_number: int | None = None
    node_to_node_mesh_enabled: bool | None = None
    node_mesh_password: SecretKey | None = None
    node_mesh_max_restart_time: int | None = None
    listen_port: int | None = None
    bind_mode: str = ""
    """``None`` (all addresses) or ``NodeIP``."""
    service_cluster_ips: tuple[str, ...] | None = None
    service_external_ips: tuple[str, ...] | None = None
    service_load_balancer_ips: tuple[str, ...] | None = None
    service_load_balancer_aggregation: str = ""
    """``Enabled`` or ``Disabled``."""
    communities: Mapping[str, str] = field(default_factory=dict)
    """Name -> ``65000:1`` or ``65000:1:2``."""
    prefix_advertisements: tuple[PrefixAdvertisement, ...] | None = None
    ignored_interfaces: tuple[str, ...] | None = None
    static_prefixes: tuple[str, ...] | None = None
    """``staticPrefixes``, ours: CIDRs that are announced as they are."""
    max_paths: int | None = None
    """Ours: the limit of next hops of one route."""


class SourceAddress(Enum):
    """``sourceAddress``: the address that a session comes from."""

    USE_NODE_IP = "UseNodeIP"
    NONE = "None"


class NextHopMode(Enum):
    """``nextHopMode``: the next hop of what is announced to a peer.

    AUTO: our own address to eBGP peers, unchanged to iBGP peers (RFC 4271, 5.1.3). SELF: our own. KEEP:
    unchanged.
    """

    AUTO = "Auto"
    SELF = "Self"
    KEEP = "Keep"


@dataclass(frozen=True, slots=True)
class Bfd:
    """``bfd`` of a peer (ours): RFC 5880. Intervals in milliseconds."""

    interval: int = 300
    detect_multiplier: int = 3
    multihop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BGPPeer:
    """One object: which nodes (``node``, else ``node_selector``, else all) have a session with whom.

    The peers are the one at ``peer_ip``, or the nodes that ``peer_selector`` selects. ``interface``: of a
    link-local ``peer_ip``. ``families``: 4 and 6; empty: that of the addresses of the session.
    """

    name: str
    node: str = ""
    node_selector: str = ""
    peer_ip: str = ""
    port: int = 179
    interface: str = ""
    peer_selector: str = ""
    as_number: int | None = None
    local_as_number: int | None = None
    num_allowed_local_as_numbers: int = 0
    password: SecretKey | None = None
    source_address: SourceAddress = SourceAddress.USE_NODE_IP
    keepalive_time: int | None = None
    hold_time: int | None = None
    max_restart_time: int | None = None
    ttl_security: int = 0
    reachable_by: str = ""
    next_hop_mode: NextHopMode = NextHopMode.AUTO
    keep_original_next_hop: bool = False
    filters: tuple[str, ...] = ()
    reverse_peering: bool = True
    """``reversePeering: Auto``: the nodes that ``peer_selector`` selects have the session, too, without a BGPPeer
    of their own; ``Manual``: they need one."""
    families: tuple[int, ...] = ()
    bfd: Bfd | None = None
    prefix_limit: int | None = None
    """Ours: as many prefixes of this peer are taken at most."""


@dataclass(frozen=True, slots=True)
class Operations:
    """``operations`` of an accepting rule: what changes about a route.

    ``prepend``: AS numbers, the first one foremost.
    """

    add_communities: tuple[str, ...] = ()
    prepend: tuple[int, ...] = ()
    priority: int | None = None
    """``setPriority``: the metric of the kernel's route."""
    med: int | None = None
    local_preference: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRule:
    """One rule; what is not given matches everything. ``prefix_length``: (least, most)."""

    accept: bool
    cidr: str = ""
    match_operator: str = ""
    """``Equal``, ``NotEqual``, ``In`` or ``NotIn``, of ``cidr``."""
    prefix_length: tuple[int | None, int | None] = (None, None)
    source: str = ""
    """``RemotePeers``: what was learned, and not what the node itself announces."""
    peer_type: str = ""
    """``eBGP`` or ``iBGP``."""
    interface: str = ""
    communities: tuple[str, ...] = ()
    """All of them are on the route."""
    as_path_prefix: tuple[int, ...] = ()
    priority: int | None = None
    operations: Operations = Operations()


@dataclass(frozen=True, slots=True, kw_only=True)
class BGPFilter:
    """The first rule that matches decides; a route that none matches is accepted (as in Calico)."""

    name: str
    export_v4: tuple[FilterRule, ...] = ()
    export_v6: tuple[FilterRule, ...] = ()
    import_v4: tuple[FilterRule, ...] = ()
    import_v6: tuple[FilterRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BGPNode:
    """A node, as far as BGP goes. ``addresses``: at most one of each family, those that sessions use."""

    name: str
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    as_number: int | None = None
    """By annotation; else that of the BGPConfiguration."""
    router_id: str = ""
    cluster_id: str = ""
    """The node is a route reflector of this cluster (RFC 4456); such nodes are not in the mesh."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Why an object, or a field of it, cannot be used; the rest is."""

    kind: str
    name: str
    field: str
    reason: str
