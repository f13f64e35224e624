"""Checks of single fields, of the configuration file and of API objects alike.

Each takes the field's path and its decoded value, returns what the value means, and raises BGPConfigError.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence

from bgp import selector

BGP_PORT = 179

UNKNOWN = "this version does not know the field"
"""Why a field of an object has no effect."""

_MAX_ASN = 2**32 - 1
_MAX_RESTART_TIME = 4095  # RFC 4724: twelve bits of seconds
_MAX_HOLD_TIME = 65535
_MAX_PASSWORD = 80  # TCP_MD5SIG_MAXKEYLEN
_MOST_SHOWN = 80
_MOST_UNKNOWN = 50
_PASSWORD_OK = re.compile(r"[!#$%&()*+,\-./0-9:;<=>?@A-Z\[\]^_a-z{|}~]+")
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)
_ASN = re.compile(r"(\d{1,10})(?:\.(\d{1,10}))?", re.ASCII)
_INTERFACE = re.compile(r"[\w.-]{1,15}", re.ASCII)
_COMMUNITY = re.compile(r"\d{1,10}(:\d{1,10}){1,2}", re.ASCII)


class BGPConfigError(ValueError):
    """The configuration is invalid; the message starts with the field's path, such as ``peers[1].asNumber``."""


def mapping(path: str, value: object, known: Sequence[str]) -> Mapping[str, object]:
    """A mapping without other keys than the known ones."""
    found = any_mapping(path, value)
    for key in found:
        if key not in known:
            shown = str(key)[:_MOST_SHOWN]
            where = f"{path}.{shown}" if path else shown
            raise BGPConfigError(f"{where}: unknown field; known are {', '.join(known)}")
    return found


def any_mapping(path: str, value: object) -> Mapping[str, object]:
    """A mapping with any keys."""
    if not isinstance(value, Mapping):
        raise BGPConfigError(f"{path or 'configuration'}: must be a mapping, not {kind_of(value)}")
    return value


def unknown(spec: object, known: Sequence[str]) -> list[str]:
    """The fields of a spec that are not known, 50 at most. An API server lets only those through that its
    definition knows, so it is of a later version than we are, and what else it says counts."""
    names = [str(name) for name in spec if name not in known] if isinstance(spec, Mapping) else []
    return [name[:_MOST_SHOWN] for name in sorted(names)[:_MOST_UNKNOWN]]


def sequence(path: str, value: object) -> Sequence[object]:
    """A list of anything."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BGPConfigError(f"{path}: must be a list, not {kind_of(value)}")
    return value


def required(path: str, values: Mapping[str, object], key: str) -> object:
    """The value of a key that must be there."""
    value = values.get(key)
    if value is None:
        raise BGPConfigError(f"{path}.{key}: is missing" if path else f"{key}: is missing")
    return value


def integer(path: str, value: object, least: int, most: int) -> int:
    """A whole number in ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BGPConfigError(f"{path}: must be a number, not {kind_of(value)}")
    if not least <= value <= most:
        # Python refuses to write numbers of thousands of digits.
        shown = str(value) if abs(value) < 10**20 else "the number"
        raise BGPConfigError(f"{path}: {shown} is not in {least} to {most}")
    return value


def boolean(path: str, value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise BGPConfigError(f"{path}: must be true or false, not {kind_of(value)}")
    return value


def text(path: str, value: object) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise BGPConfigError(f"{path}: must be text, not {kind_of(value)}")
    return value


def asn(path: str, value: object) -> int:
    """Plain (65001) or dotted (1.10) notation (RFC 5396)."""
    if isinstance(value, str):
        match = _ASN.fullmatch(value)
        if match is None:
            raise BGPConfigError(f"{path}: {value[:_MOST_SHOWN]!r} is not an AS number")
        value = int(match[1])
        if match[2]:
            value = integer(path, value, 0, 65535) * 65536 + integer(path, int(match[2]), 0, 65535)
    return integer(path, value, 1, _MAX_ASN)


def router_id(value: object, node: str) -> str:
    """A BGP identifier (RFC 6286); ``hash`` makes one of the node's name, if that is given."""
    if value is None:
        raise BGPConfigError(
            'routerID: is missing and this node has no IPv4 address to take it from; "hash" makes one of its name'
        )
    if value == "hash" and node:
        return hashed_router_id(node)
    return identifier("routerID", value)


def identifier(path: str, value: object) -> str:
    """Four bytes of a BGP or cluster identifier, in dotted notation."""
    given = text(path, value)
    try:
        address = ipaddress.IPv4Address(given)
    except ValueError:
        raise BGPConfigError(f"{path}: {given[:_MOST_SHOWN]!r} is not of the form 192.0.2.1") from None
    if not int(address):
        raise BGPConfigError(f"{path}: must not be 0.0.0.0 (RFC 6286)")
    return str(address)


def hashed_router_id(node: str) -> str:
    """A router ID of a node's name, as Calico's ``CALICO_ROUTER_ID=hash``.

    It need only be unique in the AS and not 0 (RFC 6286), but some speakers refuse one of class D or E.
    """
    digest = hashlib.sha256(node.encode()).digest()
    return str(ipaddress.IPv4Address(bytes([1 + digest[0] % 223, *digest[1:4]])))


def address(path: str, value: object) -> str:
    """The address of one host, which needs no interface name; as canonical text."""
    given = text(path, value)
    try:
        parsed = ipaddress.ip_address(given)
    except ValueError:
        raise BGPConfigError(f"{path}: {given[:_MOST_SHOWN]!r} is not an IP address") from None
    if parsed.is_link_local or "%" in given:
        raise BGPConfigError(f"{path}: {given} is link-local; give an address that needs no interface name")
    if parsed.is_multicast or parsed.is_unspecified or parsed == ipaddress.IPv4Address("255.255.255.255"):
        raise BGPConfigError(f"{path}: {given} is not the address of one host")
    return str(parsed)


def split_port(path: str, value: object) -> tuple[str, int | None]:
    """``192.0.2.1``, ``192.0.2.1:1179``, ``2001:db8::1`` or ``[2001:db8::1]:1179``, as in Calico's ``peerIP``:
    the address, which is not checked yet, and the port.
    """
    given = text(path, value)
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d{1,5}))?", given, re.ASCII)
    plain = re.fullmatch(r"([^:]*):(\d{1,5})", given, re.ASCII)
    match = bracketed or plain
    if not match:
        return given, None
    return match[1], integer(path, int(match[2]), 1, 65535) if match[2] else None


def peer_name(address: str, port: int, interface: str = "") -> str:
    """How a session is named, as :func:`split_port` reads it: the peer's address, with the interface of a
    link-local one, and its port if that is not 179.
    """
    host = f"{address}%{interface}" if interface else address
    if port == BGP_PORT:
        return host
    return f"[{host}]:{port}" if ":" in address else f"{host}:{port}"


def named_address(name: str) -> str:
    """The peer's address in what :func:`peer_name` makes."""
    return split_port("", name)[0].partition("%")[0]


def address_and_port(path: str, value: object) -> tuple[str, int]:
    """An address as :func:`split_port` takes it, and its port, 179 unless given."""
    given, port = split_port(path, value)
    return address(path, given), port or BGP_PORT


def peer_address(path: str, value: object) -> tuple[str, int, str]:
    """As :func:`address_and_port`, and the interface of a link-local IPv6 address (``fe80::1%eth0``, RFC 4007),
    which no other address has.
    """
    given, port = split_port(path, value)
    plain, percent, name = given.partition("%")
    if percent:
        if not _is_link_local(plain):
            raise BGPConfigError(f"{path}: {plain[:_MOST_SHOWN]!r} is not link-local, so it has no interface")
        return str(ipaddress.IPv6Address(plain)), port or BGP_PORT, interface(path, name)
    if _is_link_local(plain):
        raise BGPConfigError(f"{path}: {plain} is link-local; say on which interface, as in {plain}%eth0")
    return address(path, plain), port or BGP_PORT, ""


def _is_link_local(given: str) -> bool:
    try:
        return ipaddress.IPv6Address(given).is_link_local
    except ValueError:
        return False


def interface(path: str, value: object) -> str:
    """The name of a network interface, of characters that need no quotes anywhere."""
    given = text(path, value)
    if not _INTERFACE.fullmatch(given) or given in (".", ".."):
        raise BGPConfigError(f"{path}: {given[:_MOST_SHOWN]!r} is not the name of an interface")
    return given


def cidr(path: str, value: object, family: int | None = None) -> str:
    """A canonical CIDR, of IP version ``family`` if that is given."""
    given = text(path, value)
    try:
        network = ipaddress.ip_network(given)
    except ValueError:
        network = None
    if network is None or "/" not in given:
        raise BGPConfigError(
            f"{path}: {given[:_MOST_SHOWN]!r} is not a CIDR such as 10.64.0.0/16 or fd00::/48, without host bits"
        )
    if family is not None and network.version != family:
        raise BGPConfigError(f"{path}: {network} is not of IPv{family}")
    return str(network)


def community(path: str, value: object) -> str:
    """A standard (``65000:1``, RFC 1997) or large (``65000:1:2``, RFC 8092) community."""
    given = text(path, value)
    parts = [int(part) for part in given.split(":")] if _COMMUNITY.fullmatch(given) else []
    if not parts or max(parts) > (65535 if len(parts) == 2 else _MAX_ASN):
        raise BGPConfigError(
            f"{path}: {given[:_MOST_SHOWN]!r} is not a community: two numbers up to 65535, as 65000:1, or three "
            "up to 4294967295, as 65000:1:2"
        )
    return ":".join(map(str, parts))


def check_password(path: str, password: str) -> str:
    """A TCP MD5 password (RFC 2385) of printable characters that need no escape in ExaBGP's configuration."""
    if len(password) > _MAX_PASSWORD:
        raise BGPConfigError(f"{path}: {len(password)} characters, TCP MD5 takes {_MAX_PASSWORD} at most")
    if not _PASSWORD_OK.fullmatch(password):
        raise BGPConfigError(
            f"{path}: must not be empty nor hold spaces, quotes, backslashes or characters outside ASCII"
        )
    return password


def hold_time(path: str, value: object) -> int:
    """Seconds of RFC 4271's Hold Time."""
    found = seconds(path, value, most=_MAX_HOLD_TIME)
    if found < 3:
        raise BGPConfigError(f"{path}: {found} s; RFC 4271 wants 3 s at least")
    return found


def seconds(path: str, value: object, *, most: int = _MAX_RESTART_TIME) -> int:
    """Whole seconds, as a number or as a Kubernetes duration: 90s, 2m, 1m30s."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if not value or not match:
            raise BGPConfigError(f"{path}: {value[:_MOST_SHOWN]!r} is not a duration such as 90s or 2m")
        hours, minutes, rest = (int(part or 0) for part in match.groups())
        value = hours * 3600 + minutes * 60 + rest
    return integer(path, value, 1, most)


def label_selector(path: str, value: object) -> str:
    """Calico's selector of labels (:mod:`bgp.selector`). Raises BGPConfigError."""
    given = text(path, value)
    try:
        selector.parse(given)
    except ValueError as error:
        raise BGPConfigError(f"{path}: {error}") from None
    return given


def kind_of(value: object) -> str:
    """What a value of the wrong type is, in a message."""
    return "nothing" if value is None else type(value).__name__
