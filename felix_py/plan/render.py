"""Compiled policy (``policy.ir``) as words of iptables rules.

The accept verdict is a mark, not ACCEPT, so that other people's rules still count. A policy rule that allows
does ``-g FELIX-ALLOW``: a goto returns to the chain that *jumped* here last, so one rule both sets the mark and
leaves the policy chain. The class chain then only asks whether the mark is set. A rule that passes does the same
with ``-g FELIX-PASS`` and another bit, which only the chain of its tier looks at. A rule that denies some packets
sends them to a chain of their own where drops are logged (:mod:`felix_py.plan.deny_log`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from felix_py.layout import INTERFACE_PREFIX, set_prefix
from felix_py.plan.deny_log import DROP, DenyLog, Drop, DropKind, dropping
from felix_py.plan.marks import LEAF_BITS, OVERFLOW, Marks
from felix_py.plan.names import (
    ALLOW,
    PASS,
    SETS_LEAF,
    DenyChain,
    DispatchChain,
    chain_name,
    class_set_name,
    parse_chain_name,
    set_name,
)
from felix_py.records import Words
from policy.ir import (
    Allow,
    Chain,
    ChainId,
    ChainKind,
    Deny,
    Jump,
    Match,
    Pass,
    PortRange,
    Rule,
    SetKind,
    SetMatch,
    Side,
)
from policy.model import Direction, Family

_FLAGS = {Side.SOURCE: "src", Side.DESTINATION: "dst"}
_MULTIPORT_SLOTS = 15
"""``-m multiport`` takes 15 ports; a range counts as two (iptables-extensions(8))."""


def mark_match(value: int, mask: int) -> Words:
    """``-m mark`` on some bits."""
    return ("-m", "mark", "--mark", f"{value:#x}/{mask:#x}")


def set_mark(value: int, mask: int) -> Words:
    """``-j MARK`` on some bits."""
    return ("-j", "MARK", "--set-xmark", f"{value:#x}/{mask:#x}")


def render_chain(
    family: Family, chain: Chain, marks: Marks, log: DenyLog | None = None
) -> dict[str, tuple[Words, ...]]:
    """All rules of one compiled chain, and of the chains in which what it denies is logged; by name."""
    clear: tuple[Words, ...] = ()
    done = mark_match(marks.accept, marks.accept)
    if chain.id.kind is ChainKind.TIER:
        # That the Admin tier was passed says nothing about the Baseline tier.
        clear = (set_mark(0, marks.passed),)
        done = ("-m", "mark", "!", "--mark", f"0x0/{marks.accept | marks.passed:#x}")
    denials: dict[str, tuple[Words, ...]] = {}
    rules = [
        words
        for rule in chain.rules
        for words in _render_rule(family, rule, done, _deny(chain, rule, log, denials))
    ]
    return {chain_name(chain.id): (*clear, *rules), **denials}


def _deny(
    chain: Chain, rule: Rule, log: DenyLog | None, denials: dict[str, tuple[Words, ...]]
) -> tuple[Words, ...]:
    """What drops the packets that a Deny rule matches, one line after the other."""
    if log is None or not isinstance(rule.action, Deny):
        return (DROP,)
    if rule.match == Match() and rule.index < 0:
        return dropping(log, Drop(DropKind.ISOLATED, chain=chain.id))
    # Two rules with the match would cost the packets that it does not match a second comparison.
    name = chain_name(DenyChain.of(chain.id, rule.index))
    denials[name] = dropping(log, Drop(DropKind.POLICY, chain=chain.id, rule=rule.index))
    return (("-g", name),)


def _render_rule(family: Family, rule: Rule, done: Words, deny: tuple[Words, ...]) -> Iterator[Words]:
    """``done`` matches once a chain that was jumped to has decided; ``deny`` ends the rules that deny."""
    comment = ("-m", "comment", "--comment", rule.about) if rule.about else ()
    for match in _render_match(family, rule.match):
        match rule.action:
            case Allow():
                yield (*match, *comment, "-g", ALLOW)
            case Pass():
                yield (*match, *comment, "-g", PASS)
            case Deny():
                yield from ((*match, *comment, *words) for words in deny)
            case Jump(target):
                yield (*match, *comment, "-j", chain_name(target))
    if isinstance(rule.action, Jump):
        yield (*done, "-j", "RETURN")


def _render_match(family: Family, match: Match) -> Iterator[Words]:
    """One or more alternatives: a long list of ports does not fit one rule."""
    if match.itself:
        # Through a service: the destination is bound to the interface that the packet came from.
        bound = ("-m", "set", "--match-set", f"{set_prefix(family)}source", "dst,src")
        yield ("-i", f"{INTERFACE_PREFIX}+", "-o", f"{INTERFACE_PREFIX}+", *bound)
        return
    sets = tuple(word for s in match.sets for word in _render_set(family, s))
    if match.protocol is None:
        yield sets
        return
    protocol = ("-p", match.protocol.lower())
    if not match.ports:
        yield (*protocol, *sets)
        return
    for chunk in _chunks(match.ports):
        yield (*protocol, "-m", "multiport", "--dports", ",".join(chunk), *sets)


def _render_set(family: Family, match: SetMatch) -> Words:
    flags = "dst,dst" if match.kind is SetKind.ADDRESS_PORTS else _FLAGS[match.side]
    return ("-m", "set", "--match-set", set_name(family, match.id), flags)


def _chunks(ports: Sequence[PortRange]) -> Iterator[list[str]]:
    chunk: list[str] = []
    used = 0
    for port in ports:
        slots = 1 if port.first == port.last else 2
        if used + slots > _MULTIPORT_SLOTS:
            yield chunk
            chunk, used = [], 0
        chunk.append(str(port.first) if slots == 1 else f"{port.first}:{port.last}")
        used += slots
    yield chunk


def dispatch_chains(
    family: Family,
    direction: Direction,
    numbers: Mapping[ChainId, int],
    marks: Marks,
    log: DenyLog | None = None,
) -> dict[str, tuple[Words, ...]]:
    """The tree from class number to class chain: two levels of mark matches, then set matches.

    A number that no rule knows is dropped: better a lost packet than one that no policy has judged.
    """
    mask = marks.class_mask(direction)
    side = "src" if direction is Direction.EGRESS else "dst"
    leaves: dict[str, list[Words]] = {}
    root: dict[str, Words] = {}
    named = {chain_name(chain): chain for chain in numbers}
    for name, chain in sorted(named.items(), key=lambda item: (numbers[item[1]], item[0])):
        number = numbers[chain]
        if number == OVERFLOW:
            leaf = chain_name(DispatchChain(direction, SETS_LEAF))
            root[leaf] = (*mark_match(marks.class_mark(direction, OVERFLOW), mask), "-g", leaf)
            rule: Words = ("-m", "set", "--match-set", class_set_name(family, chain), side, "-g", name)
        else:
            branch = number >> LEAF_BITS
            leaf = chain_name(DispatchChain(direction, str(branch)))
            value = marks.class_mark(direction, branch << LEAF_BITS)
            branch_mask = marks.class_mark(direction, OVERFLOW >> LEAF_BITS << LEAF_BITS)
            # The overflow number shares its branch with the highest numbers and must not reach them.
            root.setdefault(leaf, (*mark_match(value, branch_mask), "-g", leaf))
            rule = (*mark_match(marks.class_mark(direction, number), mask), "-g", name)
        leaves.setdefault(leaf, []).append(rule)
    drop = dropping(log, Drop(DropKind.CLASS, direction))
    chains = {leaf: (*rules, *drop) for leaf, rules in leaves.items()}
    sets = chain_name(DispatchChain(direction, SETS_LEAF))
    ordered = sorted(root.items(), key=lambda item: (item[0] != sets, item[0]))
    unclassed = (*mark_match(0, mask), "-j", "RETURN")
    chains[chain_name(DispatchChain(direction))] = (unclassed, *(words for _, words in ordered), *drop)
    return chains


def class_numbers(rules: Sequence[str], direction: Direction, marks: Marks) -> dict[ChainId, int]:
    """Class chain -> number, read back from the saved rules of this direction's dispatch leaves."""
    found: dict[ChainId, int] = {}
    for rule in rules:
        words = rule.split()
        chain = parse_chain_name(words[-1]) if words[-2:-1] == ["-g"] else None
        if not isinstance(chain, ChainId) or (chain.kind, chain.direction) != (ChainKind.CLASS, direction):
            continue
        if "--mark" in words:
            value = int(words[words.index("--mark") + 1].split("/")[0], 16)
            found[chain] = value >> marks.shift(direction)
        else:
            found[chain] = OVERFLOW
    return found
