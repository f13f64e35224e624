"""The deny log: rules that tell the agent which packets are dropped, and by which rule.

Every DROP of ours stands behind an NFLOG rule with a prefix of its own. The prefix is written by us into the
rule and carried by the kernel, so that nothing in a packet or in a policy's text can forge or change it. Whatever
needs a match to be dropped is sent to a chain that only dropped packets enter: no packet that is let through is
compared once more than without the log.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from felix_py.plan.layout import CHAIN_PREFIX, COMMENT_PREFIX
from felix_py.records import Words
from policy.model import Direction

COPIED_BYTES = 128
"""Of a packet: IP header, some IPv6 extension headers and the ports."""

_BURST_SECONDS = 5
"""So many seconds' worth may come at once: a connection that is tried now and then is always logged."""

DROP: Words = ("-j", "DROP")
INVALID = CHAIN_PREFIX + "INVALID"
MIDSTREAM = CHAIN_PREFIX + "MIDSTREAM"
ASTRAY = CHAIN_PREFIX + "ASTRAY"
PROXIED = CHAIN_PREFIX + "PROXIED"
ERROR = CHAIN_PREFIX + "ERROR"

_LETTER = {Direction.INGRESS: "I", Direction.EGRESS: "E"}
_DIRECTION = {letter: direction for direction, letter in _LETTER.items()}
_MOST_INDEX = 99
"""A deny chain's name has room for two digits: FELIX-DE-0123456789abcdef-99 are the kernel's 28 characters."""


class DropKind(enum.StrEnum):
    """What kind of rule drops a packet."""

    ISOLATED = "isolated"
    """The end of a class chain: policies isolate the pod, and none allows the packet."""
    POLICY = "policy"
    """A Deny rule of a cluster-scoped policy."""
    SOURCE = "source"
    """The source address is not the one of the interface that the packet came from."""
    INVALID = "invalid"
    """Connection tracking calls the packet INVALID."""
    MIDSTREAM = "midstream"
    """TCP of which connection tracking has not seen the beginning."""
    ASTRAY = "astray"
    """To a pod of the node, by an interface that is not one of ours."""
    PROXIED = "proxied"
    """Sent by the node itself in the name of somebody whom, or to whom, policy restricts."""
    ERROR = "error"
    """An ICMP error about a packet that was not sent to the pod it came from."""
    CLASS = "class"
    """The packet's class number is one that no dispatch rule knows."""
    HOST = "host"
    """Packets from pods to their node are dropped by configuration."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What a prefix says.

    ``chain``: the class chain or the policy's chain. ``rule``: index in the policy's list, -1 if not known.
    """

    kind: DropKind
    direction: Direction | None = None
    chain: str = ""
    rule: int = -1

    def prefix(self) -> str:
        """The ``--nflog-prefix``: at most 33 characters (the kernel takes 63)."""
        match self.kind:
            case DropKind.ISOLATED | DropKind.POLICY:
                rule = f":{self.rule}" if 0 <= self.rule <= _MOST_INDEX else ""
                return COMMENT_PREFIX + self.chain.removeprefix(CHAIN_PREFIX) + rule
            case DropKind.CLASS:
                assert self.direction is not None
                return f"{COMMENT_PREFIX}CLASS-{_LETTER[self.direction]}"
        return COMMENT_PREFIX + self.kind.upper()


SOURCE_DROP = Drop(DropKind.SOURCE, Direction.EGRESS)
INVALID_DROP = Drop(DropKind.INVALID)
MIDSTREAM_DROP = Drop(DropKind.MIDSTREAM)
ASTRAY_DROP = Drop(DropKind.ASTRAY, Direction.INGRESS)
PROXIED_DROP = Drop(DropKind.PROXIED)
ERROR_DROP = Drop(DropKind.ERROR, Direction.EGRESS)
HOST_DROP = Drop(DropKind.HOST, Direction.EGRESS)
_PLAIN = {
    drop.kind.upper(): drop
    for drop in (SOURCE_DROP, INVALID_DROP, MIDSTREAM_DROP, ASTRAY_DROP, PROXIED_DROP, ERROR_DROP, HOST_DROP)
}
_PREFIX = re.compile(
    re.escape(COMMENT_PREFIX) + r"(?:(C)([EI])-[0-9a-f]{16}|(P)([EI])-[0-9a-f]{16}(?::([0-9]{1,2}))?"
    rf"|({'|'.join(_PLAIN)})|CLASS-([EI]))",
    re.ASCII,
)


def parse_prefix(text: str) -> Drop | None:
    """What a prefix of ours says; None for anybody else's."""
    found = _PREFIX.fullmatch(text)
    if found is None:
        return None
    _, class_of, policy, policy_of, rule, plain, unknown = found.groups()
    if plain:
        return _PLAIN[plain]
    if unknown:
        return Drop(DropKind.CLASS, _DIRECTION[unknown])
    chain = CHAIN_PREFIX + text.removeprefix(COMMENT_PREFIX).partition(":")[0]
    if policy:
        return Drop(DropKind.POLICY, _DIRECTION[policy_of], chain, int(rule) if rule else -1)
    return Drop(DropKind.ISOLATED, _DIRECTION[class_of], chain)


def deny_chain(policy_chain: str, rule: int) -> str:
    """The chain that a Deny rule of a policy sends its packets to: logged and dropped there."""
    name = f"{CHAIN_PREFIX}D{policy_chain.removeprefix(CHAIN_PREFIX)[1:]}"
    return f"{name}-{rule}" if 0 <= rule <= _MOST_INDEX else name


@dataclass(frozen=True, slots=True)
class DenyLog:
    """NFLOG ``group``, and the ``rate`` (packets a second) that one rule logs at most; all are dropped."""

    group: int
    rate: int

    def words(self, drop: Drop) -> Words:
        """The rule that logs; it matches every packet that reaches it, up to the limit, and drops none."""
        return (
            *("-m", "limit", "--limit", f"{self.rate}/second", "--limit-burst", str(self.rate * _BURST_SECONDS)),
            *("-j", "NFLOG", "--nflog-group", str(self.group), "--nflog-prefix", drop.prefix()),
            *("--nflog-size", str(COPIED_BYTES)),
        )


def dropping(log: DenyLog | None, drop: Drop) -> tuple[Words, ...]:
    """The rules that drop whatever reaches them, logged if there is a log."""
    return (log.words(drop), DROP) if log else (DROP,)
