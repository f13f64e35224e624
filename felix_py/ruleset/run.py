"""The simulator: one packet through a decoded ruleset.

It follows the kernel's order of hooks (nf_ip_hook_priorities; nat is left out, since policy applies to addresses
after service translation and our nat rules decide nothing). An unknown match or target is tried both ways. If the
verdicts differ, the result is UNKNOWN, and ``doubts`` has the rules on which it depends.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from felix_py.layout import INTERFACE_PREFIX, LINK_GROUP
from felix_py.ruleset import model as m
from felix_py.ruleset.sets import Ends, IPSet, find
from felix_py.ruleset.words import brief
from policy.model import Family, Packet, Protocol

Sets = Callable[[str], IPSet | None]
"""IP sets by name; None: there is none."""

_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_SYN, _ACK = 0x02, 0x10
_CONNECTION_STATES = frozenset({"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"})

_GO_ON = frozenset(
    {
        *("LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "TEE", "LED", "IDLETIMER", "RATEEST"),  # look
        *("CONNMARK", "CT", "NOTRACK", "CONNSECMARK", "SECMARK", "SET", "CLASSIFY", "HMARK"),  # note something
        *("TCPMSS", "TCPOPTSTRIP", "DSCP", "TOS", "ECN", "TTL", "HL", "CHECKSUM"),  # change the packet
    }
)
"""Non-terminating targets: the next rule follows (iptables-extensions(8))."""

_MOST_RUNS = 64
"""Combinations of answers to try for unknown rules."""

_MOST_DEPTH = 100
"""Jumps within jumps: more than any kernel allows on its stack."""


class Path(enum.Enum):
    """A packet's path through a node; the value is its (table, chain) in order."""

    FORWARD = (
        ("raw", "PREROUTING"),
        ("mangle", "PREROUTING"),
        ("mangle", "FORWARD"),
        ("filter", "FORWARD"),
        ("security", "FORWARD"),
        ("mangle", "POSTROUTING"),
    )
    INPUT = (
        ("raw", "PREROUTING"),
        ("mangle", "PREROUTING"),
        ("mangle", "INPUT"),
        ("filter", "INPUT"),
        ("security", "INPUT"),
    )
    OUTPUT = (
        ("raw", "OUTPUT"),
        ("mangle", "OUTPUT"),
        ("filter", "OUTPUT"),
        ("security", "OUTPUT"),
        ("mangle", "POSTROUTING"),
    )


class Outcome(enum.StrEnum):
    """The fate of the packet."""

    ACCEPT = "accept"
    DROP = "drop"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Transit:
    """A packet on its way through one node. ``state`` is conntrack's; ``mark`` is its mark on arrival."""

    packet: Packet
    in_interface: str = ""
    out_interface: str = ""
    state: str = "NEW"
    mark: int = 0

    @property
    def family(self) -> Family:
        """The packet's family."""
        return Family.V6 if ":" in self.packet.source else Family.V4


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that matched. ``number`` from 1, as ``iptables -L`` counts; 0: a built-in chain's policy.

    ``ours``: its comment has a hash of ours.
    """

    table: str
    chain: str
    number: int
    text: str
    ours: bool = False

    def __str__(self) -> str:
        what = f"rule {self.number}" if self.number else "its policy"
        foreign = "" if self.ours or not self.number else " (not a rule of ours)"
        return f"{self.table} {self.chain} {what}: {brief(self.text)}{foreign}"


@dataclass(frozen=True, slots=True)
class Result:
    """``trace``: the rules that matched, in order; unknown rules are taken as not matching.

    ``doubts``: unknown rules that decide. ``mark``: the packet mark at the end.
    """

    outcome: Outcome
    trace: tuple[Step, ...]
    doubts: tuple[Step, ...] = ()
    mark: int = 0

    @property
    def decided_by(self) -> Step | None:
        """The last rule that matched: of a dropped packet, the rule that dropped it."""
        return self.trace[-1] if self.trace else None


def simulate(rules: m.Ruleset, sets: Sets, flow: Transit, path: Path) -> Result:
    """Run a packet through all tables of its path."""
    first = _Run(rules, sets, flow, ())
    outcome = first.go(path)
    pending = [[*first.assumed[:at], True] for at in range(len(first.assumed))]
    for _ in range(_MOST_RUNS):
        if not pending:
            return Result(outcome, tuple(first.trace), (), first.mark)
        given = pending.pop()
        other = _Run(rules, sets, flow, given)
        if other.go(path) is not outcome:
            doubts = [step for step, answer in zip(other.asked, other.assumed, strict=True) if answer]
            return Result(Outcome.UNKNOWN, tuple(first.trace), tuple(doubts), first.mark)
        pending += [[*other.assumed[:at], True] for at in range(len(given), len(other.assumed))]
    return Result(Outcome.UNKNOWN, tuple(first.trace), tuple(first.asked), first.mark)


@dataclass(slots=True)
class _Run:
    """One run. ``given`` are the answers for the first unknown rules; all others are taken as not matching."""

    rules: m.Ruleset
    sets: Sets
    flow: Transit
    given: Sequence[bool]
    mark: int = 0
    trace: list[Step] = field(default_factory=list)
    asked: list[Step] = field(default_factory=list)
    assumed: list[bool] = field(default_factory=list)
    _place: tuple[str, str] = ("", "")

    def go(self, path: Path) -> Outcome:
        self.mark = self.flow.mark
        for table, hook in path.value:
            chain = self.rules.chain(table, hook)
            if chain is None:
                continue
            self._place = (table, hook)
            verdict = self._walk(chain, 0)
            if verdict is None:
                verdict = chain.policy or "ACCEPT"
                if verdict != "ACCEPT":
                    self.trace.append(Step(table, hook, 0, verdict))
            if verdict == "DROP":
                return Outcome.DROP
        return Outcome.ACCEPT

    def _walk(self, chain: m.Chain, depth: int) -> str | None:
        """ACCEPT or DROP, or None at the chain's end."""
        if depth > _MOST_DEPTH:
            return "DROP"  # no kernel holds such rules: it refuses loops
        table = self._place[0]
        for number, rule in enumerate(chain.rules, 1):
            step = Step(table, chain.name, number, rule.text, bool(rule.hash))
            matched = self._matches(rule.body)
            if matched is False or (matched is None and (self._is_idle(rule.body) or not self._ask(step))):
                continue
            self.trace.append(step)
            match rule.body.target:
                case m.Verdict("RETURN"):
                    return None
                case m.Verdict(name):
                    return name
                case m.Goto(name):
                    target = self.rules.chain(table, name)
                    return self._walk(target, depth + 1) if target else None
                case m.Jump(name):
                    target = self.rules.chain(table, name)
                    verdict = self._walk(target, depth + 1) if target else self._extension(name, step)
                    if verdict is not None:
                        return verdict
                case m.OpaqueTarget(name, _):
                    verdict = self._extension(name, step)
                    if verdict is not None:
                        return verdict
                case m.SetMark(value, mask):
                    self.mark = (self.mark & ~mask) ^ value
                case m.MapSet():
                    self._map(rule.body.target)
        return None

    def _extension(self, name: str, step: Step) -> str | None:
        """A target that is neither a verdict nor a chain."""
        if name in _GO_ON:
            return None
        return "DROP" if name == "REJECT" or self._ask(step) else None

    def _is_idle(self, body: m.Body) -> bool:
        """Whether a rule has no effect on later rules, so that its match does not matter."""
        match body.target:
            case None | m.Log():
                return True
            case m.Jump(name) | m.OpaqueTarget(name, _):
                return name in _GO_ON and self.rules.chain(self._place[0], name) is None
        return False

    def _ask(self, step: Step) -> bool:
        """Whether an unknown rule is taken as matching in this run."""
        at = len(self.assumed)
        self.asked.append(step)
        self.assumed.append(self.given[at] if at < len(self.given) else False)
        return self.assumed[-1]

    def _map(self, target: m.MapSet) -> None:
        """Apply the kernel's ``mark = (mark & ~mask) ^ value`` with the member's values (xt_set.c)."""
        ipset = self.sets(target.name)
        if ipset is None or "mark" not in target.what:
            return
        try:
            value = find(ipset, target.flags, self._ends(), self.flow.family)
        except LookupError:
            return
        if value is not None:
            self.mark = (self.mark & ~(value & 0xFFFFFFFF)) ^ (value >> 32)

    # --- matches -------------------------------------------------------------------------------------

    def _matches(self, body: m.Body) -> bool | None:
        """None: an unknown part decides."""
        unknown = False
        for match in body.matches:
            holds = self._holds(match)
            if holds is False:
                return False
            unknown = unknown or holds is None
        return None if unknown else True

    def _holds(self, match: m.Match) -> bool | None:
        packet = self.flow.packet
        match match:
            case m.InterfaceIs(side, name, prefix, negated):
                interface = self._in if side == m.IN else self._out
                return (interface.startswith(name) if prefix else interface == name) is not negated
            case m.AddressIn(side, network, negated):
                address = packet.source if side == m.SOURCE else packet.destination
                return (ipaddress.ip_address(address) in ipaddress.ip_network(network)) is not negated
            case m.ProtocolIs(number, negated):
                return (_NUMBERS[packet.protocol] == number) is not negated
            case m.PortIn():
                return self._port(match)
            case m.TCPFlags(mask, wanted, negated):
                if packet.protocol is not Protocol.TCP:
                    return False
                flags = _SYN if self.flow.state == "NEW" else _ACK
                return (flags & mask == wanted) is not negated
            case m.InSet(name, _, negated):
                found = self._in_set(match)
                return None if found is None else found is not negated
            case m.MarkIs(value, mask, negated):
                return (self.mark & mask == value) is not negated
            case m.StateIn(states, negated):
                if self.flow.state in states:
                    return not negated
                return negated if _CONNECTION_STATES.issuperset(states) else None
            case m.AddressType(side, types, negated):
                # Only the node's own addresses are known: sources in OUTPUT, destinations in INPUT.
                own = "OUTPUT" if side == m.SOURCE else "INPUT"
                return not negated if types == ("LOCAL",) and self._place[1] == own else None
            case m.ICMPType():
                return False
            case m.InGroup(side, group, _, negated):
                # Only names are known: interfaces of pods, and no others, have our group.
                interface = self._in if side == m.IN else self._out
                return interface.startswith(INTERFACE_PREFIX) is not negated if group == LINK_GROUP else None
            case m.Limit() | m.HopLimit() | m.Bytecode() | m.ReversePath() | m.OpaqueMatch():
                return None

    @property
    def _in(self) -> str:
        """Empty where the hook has no such interface."""
        return "" if self._place[1] in ("OUTPUT", "POSTROUTING") else self.flow.in_interface

    @property
    def _out(self) -> str:
        return "" if self._place[1] in ("PREROUTING", "INPUT") else self.flow.out_interface

    def _port(self, match: m.PortIn) -> bool | None:
        destination = any(first <= self.flow.packet.port <= last for first, last in match.ranges)
        if match.side == m.DESTINATION:
            return destination is not match.negated
        if (match.side == m.EITHER and destination) or match.ranges == ((0, 65535),):
            return not match.negated
        return None  # a client's source port may be any

    def _in_set(self, match: m.InSet) -> bool | None:
        ipset = self.sets(match.name)
        if ipset is None:
            return None
        try:
            return find(ipset, match.flags, self._ends(), self.flow.family) is not None
        except LookupError:
            return None

    def _ends(self) -> Ends:
        ip = self.flow.packet
        return Ends(ip.source, ip.destination, ip.protocol.lower(), None, ip.port, self._in, self._out)
