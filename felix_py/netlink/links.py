"""Links and their addresses as rtnetlink messages: packing and parsing. No I/O.

Source: rtnetlink(7), the kernel's include/uapi/linux/{if_link,if_addr,rtnetlink}.h.
"""

from __future__ import annotations

import socket
import struct

from msgspec import Struct

from felix_py.netlink.wire import (
    AF,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attr,
    attributes,
    message,
    nested,
    some_attributes,
)
from policy.model import Family

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 10, 18, 20
IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD = 26, 27, 28
_IFLA_INET6_CONF = 2
_READ = frozenset((IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_IFALIAS, IFLA_GROUP))
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS = 29, 8
IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02

_RTM_NEWNEIGH, _NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 28, 1, 2, 0x80

IFINFO = struct.Struct("=BxHiII")
IFADDR = struct.Struct("=BBBBI")
_NEIGH = struct.Struct("=BxxxiHBB")
U32 = struct.Struct("=I")
_WITHOUT_STATISTICS = attr(_IFLA_EXT_MASK, U32.pack(_RTEXT_FILTER_SKIP_STATS))


class Link(Struct, frozen=True):
    """An interface. ``mac`` is packed; ``master``: index of the bridge or the like that it is a port of, or 0."""

    index: int
    flags: int
    name: str
    mac: bytes
    alias: str = ""
    group: int = 0
    master: int = 0

    @property
    def up(self) -> bool:
        """Whether it is set up (IFF_UP), regardless of its carrier."""
        return bool(self.flags & IFF_UP)


def read_link(body: memoryview) -> Link:
    """Parse the body of an RTM_NEWLINK or RTM_DELLINK.

    Raises:
        struct.error: the body is too short.
    """
    _family, _type, index, flags, _change = IFINFO.unpack_from(body)
    found = some_attributes(body[IFINFO.size :], _READ)
    texts = (bytes(found.get(kind, b"")).rstrip(b"\0") for kind in (IFLA_IFNAME, IFLA_IFALIAS))
    name, alias = (text.decode(errors="replace") for text in texts)
    group, master = (U32.unpack(found[kind])[0] if kind in found else 0 for kind in (IFLA_GROUP, IFLA_MASTER))
    return Link(index, flags, name, bytes(found.get(IFLA_ADDRESS, b"")), alias, group, master)


def _link(kind: int, index: int, attrs: bytes, flags: int = 0, mask: int = 0) -> bytes:
    return message(kind, 0, IFINFO.pack(0, 0, index, flags, mask) + attrs)


def get_link(name: str) -> bytes:
    """RTM_GETLINK for one interface, without its statistics."""
    return _link(RTM_GETLINK, 0, name_attr(name) + _WITHOUT_STATISTICS)


def get_link_at(index: int) -> bytes:
    """RTM_GETLINK for the interface with an index, without its statistics."""
    return _link(RTM_GETLINK, index, _WITHOUT_STATISTICS)


def read_ipv6_settings(body: memoryview) -> tuple[int, ...]:
    """IPv6's settings of an interface in the order of DEVCONF_…, of the body of its RTM_NEWLINK.

    Empty if it has no IPv6.
    """
    held = body[IFINFO.size :]
    for kind in (IFLA_AF_SPEC, socket.AF_INET6, _IFLA_INET6_CONF):
        if (inner := attributes(held).get(kind)) is None:
            return ()
        held = inner
    return struct.unpack(f"={len(held) // 4}i", held)


def dump_links() -> bytes:
    """RTM_GETLINK for all interfaces, without their statistics."""
    return _link(RTM_GETLINK, 0, _WITHOUT_STATISTICS)


def new_veth(host: bytes, peer: bytes) -> bytes:
    """RTM_NEWLINK for a veth pair with the attributes of its two ends."""
    data = nested(_IFLA_INFO_DATA, attr(_VETH_INFO_PEER, IFINFO.pack(0, 0, 0, 0, 0) + peer))
    info = nested(IFLA_LINKINFO, attr(_IFLA_INFO_KIND, b"veth\0"), data)
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, IFINFO.pack(0, 0, 0, 0, 0) + host + info)


def delete_link(index: int, attrs: bytes = b"") -> bytes:
    """RTM_DELLINK for one interface, or (index 0) for those of a group."""
    return _link(RTM_DELLINK, index, attrs)


def change(index: int, attrs: bytes) -> bytes:
    """RTM_SETLINK: give an interface attributes."""
    return _link(RTM_SETLINK, index, attrs)


def set_up(index: int, *attrs: bytes) -> bytes:
    """RTM_SETLINK: set an interface up, with further attributes."""
    return _link(RTM_SETLINK, index, b"".join(attrs), IFF_UP, IFF_UP)


def name_attr(name: str) -> bytes:
    """IFLA_IFNAME."""
    return attr(IFLA_IFNAME, name.encode() + b"\0")


def mac_attr(mac: bytes) -> bytes:
    """IFLA_ADDRESS."""
    return attr(IFLA_ADDRESS, mac)


def mtu_attr(mtu: int) -> bytes:
    """IFLA_MTU, in bytes."""
    return attr(IFLA_MTU, U32.pack(mtu))


def namespace_attr(namespace: int) -> bytes:
    """IFLA_NET_NS_FD: the file descriptor of a network namespace."""
    return attr(IFLA_NET_NS_FD, U32.pack(namespace))


def group_attr(group: int) -> bytes:
    """IFLA_GROUP."""
    return attr(IFLA_GROUP, U32.pack(group))


def no_master() -> bytes:
    """IFLA_MASTER that removes the interface from a bridge or the like."""
    return attr(IFLA_MASTER, U32.pack(0))


def set_down(index: int) -> bytes:
    """RTM_SETLINK: set an interface down."""
    return _link(RTM_SETLINK, index, b"", 0, IFF_UP)


def alias_attr(text: str) -> bytes:
    """IFLA_IFALIAS; an empty text removes the alias."""
    return attr(IFLA_IFALIAS, text.encode())


def new_address(index: int, family: Family, address: str, length: int) -> bytes:
    """RTM_NEWADDR without duplicate address detection: no other host can be on the link of a pod."""
    raw = socket.inet_pton(AF[family], address)
    body = IFADDR.pack(AF[family], length, 0, 0, index) + attr(_IFA_LOCAL, raw) + attr(_IFA_ADDRESS, raw)
    if family is Family.V6:
        body += attr(_IFA_FLAGS, U32.pack(_IFA_F_NODAD))
    return message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def new_neighbour(index: int, family: Family, address: str, mac: bytes) -> bytes:
    """RTM_NEWNEIGH for a permanent neighbour entry."""
    head = _NEIGH.pack(AF[family], index, _NUD_PERMANENT, 0, 0)
    body = head + attr(_NDA_DST, socket.inet_pton(AF[family], address)) + attr(_NDA_LLADDR, mac)
    return message(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def dump_addresses(family: Family, index: int = 0) -> bytes:
    """RTM_GETADDR for one interface, or for all (0)."""
    return message(RTM_GETADDR, 0, IFADDR.pack(AF[family], 0, 0, 0, index))


def read_address(body: memoryview) -> tuple[int, str]:
    """Interface index and address text (may be empty) in the body of an RTM_NEWADDR or RTM_DELADDR.

    Raises:
        struct.error: the body is too short.
    """
    family, _, _, _, index = IFADDR.unpack_from(body)
    found = attributes(body[IFADDR.size :])
    raw = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    return index, socket.inet_ntop(family, bytes(raw)) if raw is not None else ""
