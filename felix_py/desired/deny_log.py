"""The deny log: NFLOG rules that report dropped packets, and the rule that drops them, to the agent.

Each of our DROP rules follows an NFLOG rule with a prefix of its own. The prefix is part of the rule, so that no
packet or policy text can forge or change it. A drop that needs matches has a chain that only dropped packets
enter, so that the log costs accepted packets no further comparison.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from felix_py.desired.names import DenyChain, chain_name, parse_chain_name
from felix_py.layout import CHAIN_PREFIX, COMMENT_PREFIX
from felix_py.ruleset.model import DROP, Limit, Log, Rules, RuleSpec
from policy.ir import ChainId, ChainKind
from policy.model import Direction

COPIED_BYTES = 128
"""Enough of a packet for the IP header, some IPv6 extension headers and the ports."""

_BURST_SECONDS = 5
"""The burst is the rate of so many seconds, so that a connection that is tried rarely is always logged."""

DROP_ALL = RuleSpec((), DROP)


class DropKind(enum.StrEnum):
    """Kind of the rule that drops a packet."""

    ISOLATED = "isolated"
    """The end of a class chain: NetworkPolicies isolate the pod, and none allows the packet."""
    POLICY = "policy"
    """A Deny rule of a cluster-scoped policy."""
    SOURCE = "source"
    """The source address is not the one of the interface that the packet came from."""
    INVALID = "invalid"
    """Connection tracking calls the packet INVALID."""
    MIDSTREAM = "midstream"
    """TCP without a SYN seen by connection tracking."""
    ASTRAY = "astray"
    """To a pod of the node, by an interface that is not one of ours."""
    PROXIED = "proxied"
    """Sent by the node with a foreign source address, where policy restricts the source or the destination."""
    ERROR = "error"
    """An ICMP error that quotes a packet which was not sent to the error's source."""
    CLASS = "class"
    """The packet's class number has no dispatch rule."""
    HOST = "host"
    """Packets from pods to their node are dropped by configuration."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The content of a log prefix.

    ``chain``: the class chain or the policy's chain. ``rule``: index in the policy's list, -1 if not known.
    """

    kind: DropKind
    direction: Direction | None = None
    chain: ChainId | None = None
    rule: int = -1

    def prefix(self) -> str:
        """The ``--nflog-prefix``: at most 33 characters (the kernel takes 63)."""
        if self.chain is not None:
            # An index that does not fit the deny chain's name is left out here, too.
            rule = DenyChain.of(self.chain, self.rule).rule
            chain = chain_name(self.chain).removeprefix(CHAIN_PREFIX)
            return f"{COMMENT_PREFIX}{chain}:{rule}" if rule >= 0 else COMMENT_PREFIX + chain
        if self.kind is DropKind.CLASS and self.direction is not None:
            return f"{COMMENT_PREFIX}CLASS-{self.direction[0]}"
        return COMMENT_PREFIX + self.kind.upper()


SOURCE_DROP = Drop(DropKind.SOURCE, Direction.EGRESS)
INVALID_DROP = Drop(DropKind.INVALID)
MIDSTREAM_DROP = Drop(DropKind.MIDSTREAM)
ASTRAY_DROP = Drop(DropKind.ASTRAY, Direction.INGRESS)
PROXIED_DROP = Drop(DropKind.PROXIED)
ERROR_DROP = Drop(DropKind.ERROR, Direction.EGRESS)
HOST_DROP = Drop(DropKind.HOST, Direction.EGRESS)
_PLAIN = {
    drop.prefix(): drop
    for drop in (
        *(SOURCE_DROP, INVALID_DROP, MIDSTREAM_DROP, ASTRAY_DROP, PROXIED_DROP, ERROR_DROP, HOST_DROP),
        *(Drop(DropKind.CLASS, direction) for direction in Direction),
    )
}


def parse_prefix(text: str) -> Drop | None:
    """Returns the content of a prefix, or None if it is not ours."""
    if text in _PLAIN or not text.startswith(COMMENT_PREFIX):
        return _PLAIN.get(text)
    name, _, rule = text.removeprefix(COMMENT_PREFIX).partition(":")
    match parse_chain_name(CHAIN_PREFIX + name):
        case ChainId(ChainKind.CLASS, direction) as chain:
            drop = Drop(DropKind.ISOLATED, direction, chain)
        case ChainId(ChainKind.POLICY, direction) as chain:
            drop = Drop(DropKind.POLICY, direction, chain, int(rule) if rule.isdecimal() else -1)
        case _:
            return None
    return drop if drop.prefix() == text else None


@dataclass(frozen=True, slots=True)
class DenyLog:
    """NFLOG ``group``, and the highest ``rate`` (packets a second) that one rule logs; all are dropped."""

    group: int
    rate: int

    def rule(self, drop: Drop) -> RuleSpec:
        """The NFLOG rule: it matches every packet up to the limit, and drops none."""
        limit = Limit.a_second(self.rate, self.rate * _BURST_SECONDS)
        return RuleSpec((limit,), Log(self.group, drop.prefix(), (("--nflog-size", str(COPIED_BYTES)),)))


def dropping(log: DenyLog | None, drop: Drop) -> Rules:
    """The rules that drop every packet, logged if there is a log."""
    return (log.rule(drop), DROP_ALL) if log else (DROP_ALL,)
