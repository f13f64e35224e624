"""BGP configuration of this node: the speaker, its peers, and the user's configuration file.

Field names of the file follow Calico's BGPConfiguration and BGPPeer (projectcalico.org/v3) where the meaning is
the same. All values in ExaBGP's configuration or command line are checked here.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bgp.prefixes import version
from bgp.resources import Bfd, BGPFilter, NextHopMode

BGP_PORT = 179
HOLD_TIME = 90
RESTART_TIME = 120
MAX_PATHS = 16

_MAX_ASN = 2**32 - 1
_MAX_RESTART_TIME = 4095  # RFC 4724: twelve bits of seconds
_MAX_HOLD_TIME = 65535
_MAX_PASSWORD = 80  # TCP_MD5SIG_MAXKEYLEN
_PASSWORD_OK = re.compile(r"[!#$%&()*+,\-./0-9:;<=>?@A-Z\[\]^_a-z{|}~]+")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")

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


class BGPConfigError(ValueError):
    """The configuration is invalid; the message starts with the field's path, such as ``peers[1].asNumber``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One configured BGP session.

    ``address`` and ``source_address`` are canonical texts; an empty ``source_address`` is chosen by the kernel's
    route to the peer. ``ttl_security`` is the peer's greatest distance in hops (RFC 5082), 0: off.
    ``max_restart_time`` (seconds): how long the peer is asked to keep our routes, and we keep its. A path with
    more than ``allowed_own_asns`` occurrences of our own AS number is a loop.

    Only of a peer that the API declares: ``name``, its BGPPeer's or mesh node's; ``families`` (4, 6), empty: that
    of its address; ``next_hops``, our addresses of these families; ``interface``, that of a link-local address;
    ``reachable_by``, the gateway to the peer; ``cluster_id``: the peer is a client of this route reflector
    (RFC 4456); ``filters``, asked one after the other; ``prefix_limit``, 0: none.
    """

    address: str
    asn: int
    local_asn: int
    port: int = BGP_PORT
    source_address: str = ""
    password: str = field(default="", repr=False)
    ttl_security: int = 0
    hold_time: int = HOLD_TIME
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
    config = _mapping("", document, _CONFIG_FIELDS)
    asn = _asn("asNumber", _required("", config, "asNumber"))
    listen_port = _integer("listenPort", config.get("listenPort", BGP_PORT), 0, 65535)
    peers = tuple(
        _peer(f"peers[{index}]", entry, asn, read_text)
        for index, entry in enumerate(_sequence("peers", config.get("peers") or ()))
    )
    seen: set[str] = set()
    for index, peer in enumerate(peers):
        if peer.address in seen:
            raise BGPConfigError(f"peers[{index}].peerIP: {peer.address} is listed twice")
        if peer.passive and not listen_port:
            raise BGPConfigError(f"peers[{index}].passive: nobody could connect, listenPort is 0")
        seen.add(peer.address)
    return SpeakerConfig(
        asn=asn,
        router_id=_router_id(config.get("routerID", router_id), node),
        listen_port=listen_port,
        max_paths=_integer("maxPaths", config.get("maxPaths", MAX_PATHS), 1, 256),
        peers=peers,
    )


def _peer(path: str, entry: object, asn: int, read_text: Callable[[str], str] | None) -> Peer:
    peer = _mapping(path, entry, _PEER_FIELDS)
    address, port = _address_and_port(f"{path}.peerIP", _required(path, peer, "peerIP"))
    source = peer.get("sourceAddress")
    return Peer(
        address=address,
        port=port,
        asn=_asn(f"{path}.asNumber", _required(path, peer, "asNumber")),
        local_asn=_asn(f"{path}.localASNumber", peer.get("localASNumber", asn)),
        source_address="" if source is None else _source(f"{path}.sourceAddress", source, address),
        password=_password(path, peer, read_text),
        ttl_security=_integer(f"{path}.ttlSecurity", peer.get("ttlSecurity", 0), 0, 254),
        hold_time=_hold_time(f"{path}.holdTime", peer.get("holdTime", HOLD_TIME)),
        max_restart_time=_seconds(f"{path}.maxRestartTime", peer.get("maxRestartTime", RESTART_TIME)),
        allowed_own_asns=_integer(
            f"{path}.numAllowedLocalASNumbers", peer.get("numAllowedLocalASNumbers", 0), 0, 255
        ),
        passive=_boolean(f"{path}.passive", peer.get("passive", False)),
    )


def _mapping(path: str, value: object, known: Sequence[str]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise BGPConfigError(f"{path or 'configuration'}: must be a mapping, not {_kind(value)}")
    for key in value:
        if key not in known:
            where = f"{path}.{key}" if path else str(key)
            raise BGPConfigError(f"{where}: unknown field; known are {', '.join(known)}")
    return value


def _sequence(path: str, value: object) -> Sequence[object]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BGPConfigError(f"{path}: must be a list, not {_kind(value)}")
    return value


def _required(path: str, mapping: Mapping[str, object], key: str) -> object:
    value = mapping.get(key)
    if value is None:
        raise BGPConfigError(f"{path}.{key}: is missing" if path else f"{key}: is missing")
    return value


def _integer(path: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BGPConfigError(f"{path}: must be a number, not {_kind(value)}")
    if not least <= value <= most:
        raise BGPConfigError(f"{path}: {value} is not in {least} to {most}")
    return value


def _boolean(path: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BGPConfigError(f"{path}: must be true or false, not {_kind(value)}")
    return value


def _text(path: str, value: object) -> str:
    if not isinstance(value, str):
        raise BGPConfigError(f"{path}: must be text, not {_kind(value)}")
    return value


def _asn(path: str, value: object) -> int:
    """Plain (65001) or dotted (1.10) notation (RFC 5396)."""
    if isinstance(value, str):
        high, dot, low = value.partition(".")
        if not (high + low).isdecimal() or not value.isascii() or (dot and not (high and low)):
            raise BGPConfigError(f"{path}: {value!r} is not an AS number")
        value = int(high)
        if dot:
            value = _integer(path, value, 0, 65535) * 65536 + _integer(path, int(low), 0, 65535)
    return _integer(path, value, 1, _MAX_ASN)


def _router_id(value: object, node: str) -> str:
    if value is None:
        raise BGPConfigError(
            'routerID: is missing and this node has no IPv4 address to take it from; "hash" makes one of its name'
        )
    if value == "hash" and node:
        return hashed_router_id(node)
    try:
        address = ipaddress.IPv4Address(_text("routerID", value))
    except ValueError:
        raise BGPConfigError(f"routerID: {value!r} is not of the form 192.0.2.1") from None
    if not int(address):
        raise BGPConfigError("routerID: must not be 0.0.0.0 (RFC 6286)")
    return str(address)


def hashed_router_id(node: str) -> str:
    """A router ID of a node's name, as Calico's ``CALICO_ROUTER_ID=hash``.

    It need only be unique in the AS and not 0 (RFC 6286), but some speakers refuse one of class D or E.
    """
    digest = hashlib.sha256(node.encode()).digest()
    return str(ipaddress.IPv4Address(bytes([1 + digest[0] % 223, *digest[1:4]])))


def _address(path: str, value: object) -> str:
    text = _text(path, value)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BGPConfigError(f"{path}: {text!r} is not an IP address") from None
    if address.is_link_local or "%" in text:
        raise BGPConfigError(f"{path}: {text} is link-local; give an address that needs no interface name")
    if address.is_multicast or address.is_unspecified or address == ipaddress.IPv4Address("255.255.255.255"):
        raise BGPConfigError(f"{path}: {text} is not the address of one host")
    return str(address)


def _address_and_port(path: str, value: object) -> tuple[str, int]:
    """``192.0.2.1``, ``192.0.2.1:1179``, ``2001:db8::1`` or ``[2001:db8::1]:1179``, as in Calico's ``peerIP``."""
    text = _text(path, value)
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d{1,5}))?", text, re.ASCII)
    plain = re.fullmatch(r"([^:]*):(\d{1,5})", text, re.ASCII)
    match = bracketed or plain
    if not match:
        return _address(path, text), BGP_PORT
    return _address(path, match[1]), _integer(path, int(match[2] or BGP_PORT), 1, 65535)


def _source(path: str, value: object, peer: str) -> str:
    source = _address(path, value)
    if (":" in source) != (":" in peer):
        raise BGPConfigError(f"{path}: {source} is not of the same family as peerIP {peer}")
    return source


def _password(path: str, peer: Mapping[str, object], read_text: Callable[[str], str] | None) -> str:
    """The TCP MD5 password (RFC 2385) of printable characters that need no escape in ExaBGP's configuration."""
    if "password" in peer and "passwordFile" in peer:
        raise BGPConfigError(f"{path}.passwordFile: give password or passwordFile, not both")
    if "password" in peer:
        where, password = f"{path}.password", _text(f"{path}.password", peer["password"])
    elif "passwordFile" in peer:
        where = f"{path}.passwordFile"
        name = _text(where, peer["passwordFile"])
        if read_text is None:
            raise BGPConfigError(f"{where}: cannot be used here")
        try:
            password = read_text(name).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BGPConfigError(f"{where}: {error}") from None
    else:
        return ""
    return check_password(where, password)


def check_password(where: str, password: str) -> str:
    """Return the password if TCP MD5 and ExaBGP's configuration can hold it, else raise BGPConfigError."""
    if len(password) > _MAX_PASSWORD:
        raise BGPConfigError(f"{where}: {len(password)} characters, TCP MD5 takes {_MAX_PASSWORD} at most")
    if not _PASSWORD_OK.fullmatch(password):
        raise BGPConfigError(
            f"{where}: must not be empty nor hold spaces, quotes, backslashes or characters outside ASCII"
        )
    return password


def _hold_time(path: str, value: object) -> int:
    seconds = _seconds(path, value, most=_MAX_HOLD_TIME)
    if seconds < 3:
        raise BGPConfigError(f"{path}: {seconds} s; RFC 4271 wants 3 s at least")
    return seconds


def _seconds(path: str, value: object, *, most: int = _MAX_RESTART_TIME) -> int:
    """Whole seconds, as a number or as a Kubernetes duration: 90s, 2m, 1m30s."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if not value or not match:
            raise BGPConfigError(f"{path}: {value!r} is not a duration such as 90s or 2m")
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        value = hours * 3600 + minutes * 60 + seconds
    return _integer(path, value, 1, most)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
