"""A classic BPF match of ICMP errors from pods that quote packets not sent to them.

conntrack relates an error to the connection that it quotes, whatever its source, and related packets pass policy.
So an error must quote a packet that was sent to the error's source (RFC 792, RFC 4443).
"""

from __future__ import annotations

from felix_py.ruleset.model import Bytecode, ICMPType, Match, ProtocolIs
from policy.model import Family

PROTOCOL = {Family.V4: ProtocolIs(1), Family.V6: ProtocolIs(58)}
"""ICMP and ICMPv6."""

_OTHERS_V4 = (
    (0xB1, 0, 0, 0),  # X = length of the IP header
    (0x50, 0, 0, 0),  # A = ICMP type
    *((0x15, 5 - n, 0, kind) for n, kind in enumerate((3, 4, 5, 11, 12))),  # an error: go on below
    (0x06, 0, 0, 0),  # no error: no match
    (0x40, 0, 0, 24),  # A = destination of the packet that it quotes
    (0x02, 0, 0, 0),
    (0x20, 0, 0, 12),  # A = source of the error
    (0x61, 0, 0, 0),  # X = that destination
    (0x1D, 0, 1, 0),  # equal?
    (0x06, 0, 0, 0),  # no match
    (0x06, 0, 0, 1),  # match
)
_OTHERS_V6 = (
    (0x30, 0, 0, 6),  # A = next header: extension headers are not parsed
    (0x15, 0, 19, 58),  # ICMPv6, or match
    (0x30, 0, 0, 40),  # A = ICMPv6 type
    (0x35, 16, 0, 128),  # no error: no match
    *(
        step
        for word in range(4)
        for step in (
            (0x20, 0, 0, 8 + 4 * word),  # source of the error
            (0x07, 0, 0, 0),
            (0x20, 0, 0, 72 + 4 * word),  # destination of the packet that it quotes
            (0x1D, 0, 13 - 4 * word, 0),  # equal, or match
        )
    ),
    (0x06, 0, 0, 0),  # no match
    (0x06, 0, 0, 1),  # match
)


def about_others(family: Family) -> tuple[Match, ...]:
    """Matches errors that quote a packet to another address than the error's source."""
    return (PROTOCOL[family], Bytecode(_OTHERS_V4 if family is Family.V4 else _OTHERS_V6))


def all_but_echo(family: Family) -> tuple[Match, ...]:
    """Matches all but echo request and reply, without ``-m bpf``.

    No other match can tell the ICMPv6 errors (to conntrack, all types below 128).
    """
    protocol = PROTOCOL[family]
    kinds = (8, 0) if family is Family.V4 else (128, 129)
    return (protocol, *(ICMPType(protocol.number, kind, negated=True) for kind in kinds))
