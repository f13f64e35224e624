"""Routing rules as rtnetlink messages: packing, and reading a dump back. No I/O.

Source: rtnetlink(7), ip-rule(8), the kernel's include/uapi/linux/fib_rules.h.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from felix_py.netlink.wire import AF, NLM_F_CREATE, NLM_F_EXCL, attr, attributes, message
from policy.model import Family

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
_SRC, _IIFNAME, _PRIORITY, _SUPPRESS, _TABLE, _PROTOCOL = 2, 3, 6, 14, 15, 21
_TO_TABLE, _COMPAT = 1, 252
_NOTHING = 0xFFFFFFFF
_HEAD = struct.Struct("=BBBBBBBBI")
_U32 = struct.Struct("=I")


class Rule(NamedTuple):
    """A rule that looks into a table. ``source``: of packets from this address alone, or empty.

    ``own_packets``: of the host's own packets alone (``iif lo``). ``suppress``: it takes no route of this prefix
    length or less; -1: it takes any.
    """

    family: Family
    priority: int
    table: int
    own_packets: bool = False
    suppress: int = -1
    source: str = ""

    def __str__(self) -> str:
        whose = f" from {self.source}" if self.source else " iif lo" if self.own_packets else ""
        but = f" suppress_prefixlength {self.suppress}" if self.suppress >= 0 else ""
        return f"IPv{int(self.family)} rule {self.priority}:{whose} lookup {self.table}{but}"


def pack(rule: Rule, protocol: int, kind: int) -> bytes:
    """RTM_NEWRULE (EEXIST if it is there) or RTM_DELRULE for a rule with a protocol number."""
    table = rule.table if rule.table < _COMPAT else _COMPAT
    source = socket.inet_pton(AF[rule.family], rule.source) if rule.source else b""
    parts = [
        _HEAD.pack(AF[rule.family], 0, 8 * len(source), 0, table, 0, 0, _TO_TABLE, 0),
        attr(_PRIORITY, _U32.pack(rule.priority)),
        attr(_TABLE, _U32.pack(rule.table)),
        attr(_PROTOCOL, bytes([protocol])),
    ]
    if source:
        parts.append(attr(_SRC, source))
    if rule.own_packets:
        parts.append(attr(_IIFNAME, b"lo\0"))
    if rule.suppress >= 0:
        parts.append(attr(_SUPPRESS, _U32.pack(rule.suppress)))
    return message(kind, NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWRULE else 0, b"".join(parts))


def dump(family: Family) -> bytes:
    """RTM_GETRULE for all rules of a family."""
    return message(RTM_GETRULE, 0, _HEAD.pack(AF[family], 0, 0, 0, 0, 0, 0, 0, 0))


def read(family: Family, answer: memoryview, protocol: int) -> Rule | None:
    """The rule of a dump's answer; None if it has another protocol number."""
    found = attributes(answer[_HEAD.size :])
    if bytes(found.get(_PROTOCOL, b"")) != bytes([protocol]):
        return None

    def number(kind: int, otherwise: int = 0) -> int:
        return int(_U32.unpack(found[kind])[0]) if kind in found else otherwise

    suppress = number(_SUPPRESS, _NOTHING)
    return Rule(
        family,
        number(_PRIORITY),
        number(_TABLE),
        bytes(found.get(_IIFNAME, b"")) == b"lo\0",
        -1 if suppress == _NOTHING else suppress,
        socket.inet_ntop(AF[family], bytes(found[_SRC])) if _SRC in found else "",
    )
