"""BGP configuration of this node: the speaker, its peers, and the user's configuration file.

Field names of the file follow Calico's BGPConfiguration and BGPPeer (projectcalico.org/v3) where the meaning is
the same. All values in ExaBGP's configuration or command line are checked here or in
:mod:`bgp.fields`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bgp import fields
from bgp.fields import BGP_PORT, BGPConfigError
from bgp.prefixes import version
from bgp.resources import Bfd, BGPFilter, NextHopMode

HOLD_TIME = 90
RESTART_TIME = 120
MAX_PATHS = 16

_CONFIG_FIELDS = ("asNumber", "routerID", "listenPort", "maxPaths", "peers")
_PEER_FIELDS = (
    "peerIP",
    "asNumber",
    "localASNumber",
    "sourceAddress",
    "password",
    "passwordFile",
    "ttlSecurity",
    "holdTime",
    "maxRestartTime",
    "numAllowedLocalASNumbers",
    "passive",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One configured BGP session.

    ``address`` and ``source_address`` are canonical texts; an empty ``source_address`` is chosen by the kernel's
    route to the peer. ``ttl_security`` is the peer's greatest distance in hops (RFC 5082), 0: off.
    ``max_restart_time`` (seconds): how long the peer is asked to keep our routes, and we keep its. A path with
    more than ``allowed_own_asns`` occurrences of our own AS number is a loop.

    Only of a peer that the API declares: ``keepalive_time`` (seconds), 0: a third of the hold time; ``name``, its
    BGPPeer's or mesh node's; ``families`` (4, 6), empty: that of its address; ``next_hops``, our addresses of
    these families; ``interface``, that of a link-local address; ``reachable_by``, the gateway to the peer;
    ``cluster_id``: the peer is a client of this route reflector (RFC 4456); ``filters``, asked one after the
    other; ``prefix_limit``, 0: that of :data:`bgp.rib.PREFIX_LIMIT`.
    """

    address: str
    asn: int
    local_asn: int
    port: int = BGP_PORT
    source_address: str = ""
    password: str = field(default="", repr=False)
    ttl_security: int = 0
    hold_time: int = HOLD_TIME
    keepalive_time: int = 0
    max_restart_time: int = RESTART_TIME
    allowed_own_asns: int = 0
    passive: bool = False
    name: str = ""
    families: tuple[int, ...] = ()
    next_hops: tuple[str, ...] = ()
    interface: str = ""
    reachable_by: str = ""
    cluster_id: str = ""
    next_hop_mode: NextHopMode = NextHopMode.AUTO
    keep_original_next_hop: bool = False
    filters: tuple[BGPFilter, ...] = ()
    prefix_limit: int = 0
    bfd: Bfd | None = None

    @property
    def key(self) -> str:
        """What the session is named by, and told apart from all others: ``10.0.0.1``, ``[fe80::1%eth0]:1179``."""
        return fields.peer_name(self.address, self.port, self.interface)

    @property
    def version(self) -> int:
        """IP version of the session: 4 or 6."""
        return version(self.address)

    @property
    def carried(self) -> tuple[int, ...]:
        """The families of the prefixes on the session."""
        return self.families or (self.version,)

    @property
    def extended_next_hop(self) -> bool:
        """Whether IPv4 prefixes may have IPv6 next hops (RFC 8950)."""
        return self.version == 6 and 4 in self.carried

    def next_hop(self, family: int) -> str:
        """Our own address as next hop of a family: an address, or ``self``, that of the session.

        A link-local peer may reach nothing but the address of the session.
        """
        if family == self.version:
            return "self"
        known = () if self.interface else self.next_hops
        return next((hop for hop in known if version(hop) == family), self.source_address)

    @property
    def external(self) -> bool:
        """Whether the session is eBGP, not iBGP."""
        return self.asn != self.local_asn


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerConfig:
    """This node's BGP speaker. ``listen_port`` 0: connect only. ``max_paths``: limit of next hops of a route.

    ``listen_addresses``: where to accept sessions; empty: on all addresses.
    """

    asn: int
    router_id: str
    listen_port: int = BGP_PORT
    listen_addresses: tuple[str, ...] = ()
    max_paths: int = MAX_PATHS
    peers: tuple[Peer, ...] = ()


def parse_bgp_config(
    document: object,
    *,
    router_id: str | None = None,
    node: str = "",
    read_text: Callable[[str], str] | None = None,
) -> SpeakerConfig:
    """Check the user's configuration (a decoded YAML or JSON document).

    ``router_id`` is used if the document has no ``routerID``, and ``node``, the node's name, if that is ``hash``
    (without a name this is refused). ``read_text`` reads a ``passwordFile``; without it
    the field is refused. Raises BGPConfigError for the first invalid field.
    """
    config = fields.mapping("", document, _CONFIG_FIELDS)
    asn = fields.asn("asNumber", fields.required("", config, "asNumber"))
    listen_port = fields.integer("listenPort", config.get("listenPort", BGP_PORT), 0, 65535)
    peers = tuple(
        _peer(f"peers[{index}]", entry, asn, read_text)
        for index, entry in enumerate(fields.sequence("peers", config.get("peers") or ()))
    )
    seen: set[str] = set()
    ports = Counter(peer.address for peer in peers)
    for index, peer in enumerate(peers):
        if peer.key in seen:
            raise BGPConfigError(f"peers[{index}].peerIP: {peer.key} is listed twice")
        if peer.passive and not listen_port:
            raise BGPConfigError(f"peers[{index}].passive: nobody could connect, listenPort is 0")
        if peer.passive and ports[peer.address] > 1:
            raise BGPConfigError(
                f"peers[{index}].passive: {peer.address} is listed with several ports, and none shows in a "
                "connection from there"
            )
        seen.add(peer.key)
    return SpeakerConfig(
        asn=asn,
        router_id=fields.router_id(config.get("routerID", router_id), node),
        listen_port=listen_port,
        max_paths=fields.integer("maxPaths", config.get("maxPaths", MAX_PATHS), 1, 256),
        peers=peers,
    )


def _peer(path: str, entry: object, asn: int, read_text: Callable[[str], str] | None) -> Peer:
    peer = fields.mapping(path, entry, _PEER_FIELDS)
    address, port = fields.address_and_port(f"{path}.peerIP", fields.required(path, peer, "peerIP"))
    source = peer.get("sourceAddress")
    return Peer(
        address=address,
        port=port,
        asn=fields.asn(f"{path}.asNumber", fields.required(path, peer, "asNumber")),
        local_asn=fields.asn(f"{path}.localASNumber", peer.get("localASNumber", asn)),
        source_address="" if source is None else _source(f"{path}.sourceAddress", source, address),
        password=_password(path, peer, read_text),
        ttl_security=fields.integer(f"{path}.ttlSecurity", peer.get("ttlSecurity", 0), 0, 254),
        hold_time=fields.hold_time(f"{path}.holdTime", peer.get("holdTime", HOLD_TIME)),
        max_restart_time=fields.seconds(f"{path}.maxRestartTime", peer.get("maxRestartTime", RESTART_TIME)),
        allowed_own_asns=fields.integer(
            f"{path}.numAllowedLocalASNumbers", peer.get("numAllowedLocalASNumbers", 0), 0, 255
        ),
        passive=fields.boolean(f"{path}.passive", peer.get("passive", False)),
    )


def _source(path: str, value: object, peer: str) -> str:
    source = fields.address(path, value)
    if (":" in source) != (":" in peer):
        raise BGPConfigError(f"{path}: {source} is not of the same family as peerIP {peer}")
    return source


def _password(path: str, peer: Mapping[str, object], read_text: Callable[[str], str] | None) -> str:
    """The password, or empty."""
    if "password" in peer and "passwordFile" in peer:
        raise BGPConfigError(f"{path}.passwordFile: give password or passwordFile, not both")
    if "password" in peer:
        where, password = f"{path}.password", fields.text(f"{path}.password", peer["password"])
    elif "passwordFile" in peer:
        where = f"{path}.passwordFile"
        name = fields.text(where, peer["passwordFile"])
        if read_text is None:
            raise BGPConfigError(f"{where}: cannot be used here")
        try:
            password = read_text(name).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BGPConfigError(f"{where}: {error}") from None
    else:
        return ""
    return fields.check_password(where, password)
