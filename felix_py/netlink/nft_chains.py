"""Base chains of nftables as nfnetlink messages: the request, and reading a dump back. No I/O.

Source: the kernel's include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from felix_py.netlink.wire import attributes, message
from policy.model import Family

_GET_CHAIN = 10 << 8 | 4
_TABLE, _NAME, _HOOK, _POLICY, _USE, _TYPE = 1, 3, 4, 5, 6, 7
_HOOK_NUMBER = 1
_GENMSG = 4
_BE32 = struct.Struct(">I")
_FAMILIES = {
    1: ("inet", frozenset(Family)),
    2: ("ip", frozenset({Family.V4})),
    10: ("ip6", frozenset({Family.V6})),
}
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_ACCEPT = 1
_OF_IPTABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})


class BaseChain(NamedTuple):
    """A chain with a hook that packets of ``families`` meet. ``idle``: it has no rule, and accepts."""

    kind: str
    table: str
    name: str
    families: frozenset[Family]
    hook: str
    type: str
    idle: bool

    @property
    def of_iptables(self) -> bool:
        """Whether iptables-nft made it, so that iptables-nft-save prints it."""
        return self.kind != "inet" and self.table in _OF_IPTABLES and self.name == self.hook

    def __str__(self) -> str:
        return f"{self.kind} {self.table} {self.name}"


def dump() -> bytes:
    """NFT_MSG_GETCHAIN for all chains of all families."""
    return message(_GET_CHAIN, 0, bytes(_GENMSG))


def read(answer: memoryview) -> BaseChain | None:
    """The base chain in a dump's answer; None: it has no hook, or not one that IP packets on their way meet."""
    found = attributes(answer[_GENMSG:])
    if answer[0] not in _FAMILIES or _HOOK not in found:
        return None
    number = _number(attributes(found[_HOOK]), _HOOK_NUMBER)
    if number >= len(_HOOKS):
        return None
    kind, families = _FAMILIES[answer[0]]
    idle = _number(found, _USE) == 0 and _number(found, _POLICY) == _ACCEPT
    table, name, of_type = (_text(found, attribute) for attribute in (_TABLE, _NAME, _TYPE))
    return BaseChain(kind, table, name, families, _HOOKS[number], of_type, idle)


def _number(found: dict[int, memoryview], kind: int) -> int:
    return int(_BE32.unpack(found[kind])[0]) if kind in found else 0


def _text(found: dict[int, memoryview], kind: int) -> str:
    return bytes(found.get(kind, b"")).rstrip(b"\0").decode("ascii", "replace")
