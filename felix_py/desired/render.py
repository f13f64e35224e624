"""Compiled policy (``policy.ir``) as rules.

The accept verdict is a mark, not ACCEPT, so that foreign rules still apply. An Allow rule does
``-g FELIX-ALLOW``: a goto returns to the chain that *jumped* last, so one rule both sets the mark and leaves the
policy chain. The class chain then only tests the mark. A Pass rule does the same with ``-g FELIX-PASS`` and
another bit, which only its tier's chain tests. A Deny rule with matches goes to a chain of its own, where drops
are logged (:mod:`felix_py.desired.deny_log`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from felix_py.desired.deny_log import DROP_ALL, DenyLog, Drop, DropKind, dropping
from felix_py.desired.marks import BRANCH_BITS, LEAF_BITS, OVERFLOW, Marks
from felix_py.desired.names import (
    SETS_BRANCH,
    DenyChain,
    DispatchChain,
    Fixed,
    SetNames,
    chain_name,
    class_set_name,
    parse_chain_name,
    set_name,
)
from felix_py.layout import INTERFACE_PREFIX
from felix_py.ruleset import model as m
from felix_py.ruleset.model import RETURN, Goto, InSet, Jump, MarkIs, Match, Rules, RuleSpec
from policy import ir
from policy.ir import ChainId, ChainKind, SetKind, Side
from policy.model import Direction, Family, Protocol

FROM_POD = m.InterfaceIs(m.IN, INTERFACE_PREFIX, prefix=True)
TO_POD = m.InterfaceIs(m.OUT, INTERFACE_PREFIX, prefix=True)

_ALLOWS, _PASSES = RuleSpec((), Goto(Fixed.ALLOW)), RuleSpec((), Goto(Fixed.PASS))
_PROTOCOLS = {Protocol.TCP: m.ProtocolIs(6), Protocol.UDP: m.ProtocolIs(17), Protocol.SCTP: m.ProtocolIs(132)}
_FLAGS = {Side.SOURCE: ("src",), Side.DESTINATION: ("dst",)}
_ENDPOINT = {Direction.EGRESS: ("src",), Direction.INGRESS: ("dst",)}

_MOST_IN_A_ROW = 6
"""Classes that are matched one after the other; more are divided into branches."""

_MULTIPORT_SLOTS = 15
"""``-m multiport`` takes 15 ports; a range counts as two (iptables-extensions(8))."""


def render_chain(family: Family, chain: ir.Chain, marks: Marks, log: DenyLog | None = None) -> dict[str, Rules]:
    """Returns chain name -> rules: the compiled chain, and the chains that log and drop what it denies."""
    clear: Rules = ()
    done = MarkIs(marks.accept, marks.accept)
    if chain.id.kind is ChainKind.TIER:
        # A Pass in the Admin tier must not count in the Baseline tier.
        clear = (RuleSpec((), m.SetMark(0, marks.passed)),)
        done = MarkIs(0, marks.accept | marks.passed, negated=True)
    decided = RuleSpec((done,), RETURN)
    denials: dict[str, Rules] = {}
    rules: list[RuleSpec] = []
    for rule in chain.rules:
        ends = _ends(chain, rule, log, denials)
        why = rule.origin or ""
        for match in _matches(family, rule.match):
            rules += [RuleSpec((*match, *end.matches), end.target, why) for end in ends]
        if isinstance(rule.action, ir.Jump):
            rules.append(decided)
    return {chain_name(chain.id): (*clear, *rules), **denials}


def _ends(chain: ir.Chain, rule: ir.Rule, log: DenyLog | None, denials: dict[str, Rules]) -> Rules:
    """The rules for packets that ``rule`` matches, still without its match; deny chains go to ``denials``."""
    match rule.action:
        case ir.Allow():
            return (_ALLOWS,)
        case ir.Pass():
            return (_PASSES,)
        case ir.Jump(target):
            return (RuleSpec((), Jump(chain_name(target))),)
        case ir.Deny() if log is None:
            return (DROP_ALL,)
        case ir.Deny() if rule.match == ir.Match() and rule.origin is None:
            return dropping(log, Drop(DropKind.ISOLATED, chain=chain.id))
    # A log rule and a drop rule, each with the match, would compare every other packet twice.
    index = rule.origin.index if rule.origin else -1
    name = chain_name(DenyChain.of(chain.id, index))
    denials[name] = dropping(log, Drop(DropKind.POLICY, chain=chain.id, rule=index))
    return (RuleSpec((), Goto(name)),)


def _matches(family: Family, match: ir.Match) -> Iterator[tuple[Match, ...]]:
    """The alternatives of a match: a long port list does not fit one rule."""
    if match.itself:
        # Hairpin through a Service: the destination is bound to the interface that the packet came from.
        yield (FROM_POD, TO_POD, InSet(SetNames.of(family).source, ("dst", "src")))
        return
    sets = tuple(_set(family, one) for one in match.sets)
    if match.protocol is None:
        yield sets
        return
    protocol = _PROTOCOLS[match.protocol]
    if not match.ports:
        yield (protocol, *sets)
        return
    for ports in _chunks(match.ports):
        yield (protocol, m.PortIn(m.DESTINATION, ports), *sets)


def _set(family: Family, match: ir.SetMatch) -> InSet:
    flags = ("dst", "dst") if match.kind is SetKind.ADDRESS_PORTS else _FLAGS[match.side]
    return InSet(set_name(family, match.id), flags)


def _chunks(ports: Sequence[ir.PortRange]) -> Iterator[tuple[tuple[int, int], ...]]:
    chunk: list[tuple[int, int]] = []
    used = 0
    for port in ports:
        slots = 1 if port.first == port.last else 2
        if used + slots > _MULTIPORT_SLOTS:
            yield tuple(chunk)
            chunk, used = [], 0
        chunk.append((port.first, port.last))
        used += slots
    yield tuple(chunk)


def dispatch_chains(
    family: Family, direction: Direction, numbers: Mapping[ChainId, int], marks: Marks, log: DenyLog | None = None
) -> dict[str, Rules]:
    """The dispatch tree from class number to class chain: mark matches in up to three levels, then set matches.

    Each rule costs a packet some 20 ns, so many classes are divided into branches. A packet with an unknown class
    number is dropped, since no policy has judged it.
    """
    ordered = sorted(numbers.items(), key=lambda item: (item[1], chain_name(item[0])))
    drop = dropping(log, Drop(DropKind.CLASS, direction))
    chains: dict[str, Rules] = {}

    def branch(name: str, bits: int, value: int, rules: Iterable[RuleSpec]) -> RuleSpec:
        """Make a branch of the numbers that are ``value`` above the lowest ``bits``; returns the rule to it."""
        chain = chain_name(DispatchChain(direction, name))
        chains[chain] = (*rules, *drop)
        mark, mask = (marks.class_mark(direction, one << bits) for one in (value, OVERFLOW >> bits))
        return RuleSpec((MarkIs(mark, mask),), Goto(chain))

    def row(among: _Numbers) -> list[RuleSpec]:
        return [class_rule(family, direction, marks, chain, number) for chain, number in among]

    def classes(among: _Numbers) -> list[RuleSpec]:
        """The rules to classes: in a row, or by branches of rows."""
        if len(among) <= _MOST_IN_A_ROW:
            return row(among)
        above = BRANCH_BITS - LEAF_BITS
        return [
            branch(f"{value >> above}-{value}", LEAF_BITS, value, row(few))
            for value, few in _divided(among, LEAF_BITS)
        ]

    # In no class: by the mark, and by the map, since a rule of others behind ours may have overwritten the mark.
    unmapped = InSet(SetNames.of(family).class_map(direction), _ENDPOINT[direction], negated=True)
    root = [RuleSpec((MarkIs(0, marks.class_mask(direction)), unmapped), RETURN)]
    # The overflow number shares a branch with the highest numbers, so its own branch is matched first.
    if overflow := [item for item in ordered if item[1] == OVERFLOW]:
        root.append(branch(SETS_BRANCH, 0, OVERFLOW, row(overflow)))
    # Every endpoint depends on the root: one class that cannot be written must not hold it up. So it has branches
    # alone, and seldom changes.
    for value, few in _divided([item for item in ordered if item[1] != OVERFLOW], BRANCH_BITS):
        root.append(branch(str(value), BRANCH_BITS, value, classes(few)))
    chains[chain_name(DispatchChain(direction))] = (*root, *drop)
    return chains


_Numbers = Sequence[tuple[ChainId, int]]


def _divided(numbers: _Numbers, bits: int) -> list[tuple[int, _Numbers]]:
    """Classes by the bits of their numbers above the lowest ``bits``."""
    found: dict[int, list[tuple[ChainId, int]]] = {}
    for chain, number in numbers:
        found.setdefault(number >> bits, []).append((chain, number))
    return list(found.items())


def class_rule(family: Family, direction: Direction, marks: Marks, chain: ChainId, number: int) -> RuleSpec:
    """The dispatch rule that leads to a class chain."""
    match: Match = MarkIs(marks.class_mark(direction, number), marks.class_mask(direction))
    if number == OVERFLOW:
        match = InSet(class_set_name(family, chain), _ENDPOINT[direction])
    return RuleSpec((match,), Goto(chain_name(chain)))


def class_number(rule: m.Body, direction: Direction, marks: Marks) -> tuple[ChainId, int] | None:
    """Returns the class chain that a dispatch rule leads to and the number that it matches (0: none is given)."""
    chain = parse_chain_name(rule.target.chain) if isinstance(rule.target, Goto) else None
    if not isinstance(chain, ChainId) or (chain.kind, chain.direction) != (ChainKind.CLASS, direction):
        return None
    match rule.matches:
        case (MarkIs(value, mask, False),) if mask == marks.class_mask(direction):
            return chain, value >> marks.shift(direction)
        case (InSet(_, _, False),):
            return chain, OVERFLOW
    return chain, 0


def class_numbers(rules: Iterable[m.Body], direction: Direction, marks: Marks) -> dict[ChainId, int]:
    """Returns class chain -> number, read back from the rules of one direction's dispatch leaves."""
    found = (class_number(rule, direction, marks) for rule in rules)
    return {chain: number for chain, number in filter(None, found) if number}
