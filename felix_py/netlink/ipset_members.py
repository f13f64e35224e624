"""Members of IP sets, as text and as netlink attributes. No I/O.

A member's *key* is its attributes as the kernel prints them in a dump, without the mark. So wanted members and
dumped ones are compared as bytes, without decoding a hundred thousand members that are right.

Source: the kernel's include/uapi/linux/netfilter/ipset/ip_set.h and ip_set_hash_*.c.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

from felix_py.netlink.wire import AF, attr, attributes, nested
from felix_py.records import SetType
from policy.model import Family

ATTR_DATA = 7

_IP, _CIDR, _PORT, _PROTO, _FLAGS = 1, 3, 4, 7, 8
_IFACE, _SKBMARK = 23, 27
_IPADDR = {Family.V4: 1, Family.V6: 2}
_NET_BYTEORDER = 0x4000
_IFNAMSIZ = 16

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}

_TLV = struct.Struct("=HH")
_MARK = struct.Struct(">Q")
_ADDRESS_HEADER = {
    family: nested(_IP, attr(_IPADDR[family], bytes(family.bits // 8)))[: -family.bits // 8] for family in Family
}
_PREFIX_LENGTHS = tuple(attr(_CIDR, bytes((bits,))) for bits in range(129))
_MARK_HEADER = _TLV.pack(12, _SKBMARK | _NET_BYTEORDER)


def encode(kind: SetType, family: Family, text: str) -> bytes:
    """The key of a member: an address or CIDR, ``ADDRESS,tcp:80``, or ``CIDR,INTERFACE``.

    Raises:
        ValueError: the text is no member of such a set; the message says why.
    """
    first, _, second = text.partition(",")
    match kind:
        case SetType.IP:
            return _address(family, first, second)
        case SetType.NET:
            address, prefix = _network(family, first, second)
            return address + prefix
        case SetType.IP_PORT:
            return _address(family, first) + _port(text, second)
        case SetType.NET_IFACE:
            address, prefix = _network(family, first)
            return address + prefix + _interface(text, second)


def _address(family: Family, text: str, rest: str = "") -> bytes:
    if rest:
        raise ValueError(f"{rest!r} behind an address")
    try:
        packed = socket.inet_pton(AF[family], text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is not an IPv{int(family)} address") from None
    return _ADDRESS_HEADER[family] + packed


def _network(family: Family, text: str, rest: str = "") -> tuple[bytes, bytes]:
    """Address and prefix length attributes; host bits are cleared, as by the kernel."""
    address, slash, length = text.partition("/")
    bits = family.bits
    if slash:
        if not length.isdecimal() or not 0 < int(length) <= bits:
            raise ValueError(f"prefix length {length!r} in {text!r}; a set takes 1 to {bits}")
        bits = int(length)
        if bits < family.bits:
            try:
                address = str(ipaddress.ip_network(text, strict=False).network_address)
            except ValueError:
                raise ValueError(f"{text!r} is not an IPv{int(family)} network") from None
    return _address(family, address, rest), _PREFIX_LENGTHS[bits]


def _port(text: str, spec: str) -> bytes:
    protocol, _, port = spec.partition(":")
    if protocol not in _PROTOCOLS or not port.isdecimal() or not 0 <= int(port) <= 0xFFFF:
        raise ValueError(f"{text!r} is not ADDRESS,PROTOCOL:PORT with one of {', '.join(_PROTOCOLS)}")
    number = struct.pack(">H", int(port))
    return attr(_PORT | _NET_BYTEORDER, number) + attr(_PROTO, bytes((_PROTOCOLS[protocol],)))


def _interface(text: str, name: str) -> bytes:
    raw = name.encode()
    if not 0 < len(raw) < _IFNAMSIZ or b"\0" in raw or b"/" in raw or any(map(str.isspace, name)):
        raise ValueError(f"{text!r}: not an interface name")
    return attr(_IFACE, raw + b"\0")


def decode(key: bytes) -> str:
    """The text of a key."""
    found = attributes(memoryview(key))
    parts = [_text(found[_IP], found.get(_CIDR))]
    if _IFACE in found:
        parts.append(bytes(found[_IFACE]).rstrip(b"\0").decode(errors="replace"))
    if _PORT in found:
        protocol = found[_PROTO][0]
        parts.append(f"{_PROTOCOL_NAMES.get(protocol, protocol)}:{int.from_bytes(found[_PORT], 'big')}")
    return ",".join(parts)


def _text(address: memoryview, prefix: memoryview | None) -> str:
    ((_, packed),) = attributes(address).items()
    text = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    return text if prefix is None or prefix[0] == len(packed) * 8 else f"{text}/{prefix[0]}"


def writable(key: bytes, value: int) -> bytes:
    """Attributes to write a member: its key and its mark (``mark << 32 | mask``; 0 for none).

    The kernel requires NLA_F_NET_BYTEORDER on an address, but omits it in dumps and so in keys.
    """
    address = key[:7] + b"\x40" + key[8:]
    return address + attr(_SKBMARK | _NET_BYTEORDER, _MARK.pack(value)) if value else address


def dumped(members: memoryview, *, marked: bool) -> Iterator[tuple[bytes, int]]:
    """Keys and values (see :func:`writable`) of the members in one IPSET_ATTR_ADT of a dump."""
    offset, end = 0, len(members)
    unpack = _TLV.unpack_from
    while offset + 4 <= end:
        length, _ = unpack(members, offset)
        raw = bytes(members[offset + 4 : offset + length])
        yield _unmark(raw) if marked else (raw, 0)
        offset += (length + 3) & ~3


def _unmark(raw: bytes) -> tuple[bytes, int]:
    if len(raw) > 12 and raw[-12:-8] == _MARK_HEADER:
        value: int = _MARK.unpack_from(raw, len(raw) - 8)[0]
        return raw[:-12], value
    return raw, 0


def has_flags(raw: bytes) -> bool:
    """Whether a dumped member has flags; the only one is ``nomatch``."""
    return _FLAGS in attributes(memoryview(raw))


def canonical(kind: SetType, family: Family, raw: bytes) -> bytes:
    """The key that :func:`encode` makes for a dumped member; ``raw`` itself if it makes none."""
    try:
        return encode(kind, family, decode(raw))
    except (ValueError, KeyError):
        return raw
