"""Compiled policy (``policy.ir``) as words of iptables rules.

The accept verdict is a mark, not ACCEPT, so that other people's rules still count. A policy rule that allows
does ``-g FELIX-ALLOW``: a goto returns to the chain that *jumped* here last, so one rule both sets the mark and
leaves the policy chain. The class chain then only asks whether the mark is set. A rule that passes does the same
with ``-g FELIX-PASS`` and another bit, which only the chain of its tier looks at. A rule that denies some packets
sends them to a chain of their own where drops are logged (:mod:`felix_py.plan.deny_log`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from felix_py.plan.deny_log import DROP, DenyLog, Drop, DropKind, deny_chain, dropping
from felix_py.plan.layout import CHAIN_PREFIX, INTERFACE_PREFIX, set_prefix
from felix_py.plan.marks import LEAF_BITS, OVERFLOW, Marks
from felix_py.records import Words
from policy.ir import Allow, Chain, Deny, Jump, Match, Pass, PortRange, Rule, SetKind, SetMatch
from policy.model import Direction, Family

ALLOW = CHAIN_PREFIX + "ALLOW"
PASS = CHAIN_PREFIX + "PASS"
DISPATCH = {Direction.EGRESS: CHAIN_PREFIX + "EGRESS", Direction.INGRESS: CHAIN_PREFIX + "INGRESS"}

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
    if chain.tier:
        # That the Admin tier was passed says nothing about the Baseline tier.
        clear = (set_mark(0, marks.passed),)
        done = ("-m", "mark", "!", "--mark", f"0x0/{marks.accept | marks.passed:#x}")
    denials: dict[str, tuple[Words, ...]] = {}
    rules = [
        words
        for rule in chain.rules
        for words in _render_rule(family, rule, done, _deny(chain, rule, log, denials))
    ]
    return {chain.name: (*clear, *rules), **denials}


def _deny(
    chain: Chain, rule: Rule, log: DenyLog | None, denials: dict[str, tuple[Words, ...]]
) -> tuple[Words, ...]:
    """What drops the packets that a Deny rule matches, one line after the other."""
    if log is None or not isinstance(rule.action, Deny):
        return (DROP,)
    if rule.match == Match() and rule.index < 0:
        return dropping(log, Drop(DropKind.ISOLATED, chain=chain.name))
    # Two rules with the match would cost the packets that it does not match a second comparison.
    name = deny_chain(chain.name, rule.index)
    denials[name] = dropping(log, Drop(DropKind.POLICY, chain=chain.name, rule=rule.index))
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
                yield (*match, *comment, "-j", target)
    if isinstance(rule.action, Jump):
        yield (*done, "-j", "RETURN")


def _render_match(family: Family, match: Match) -> Iterator[Words]:
    """One or more alternatives: a long list of ports does not fit one rule."""
    if match.itself:
        # Through a service: the destination is bound to the interface that the packet came from.
        bound = ("-m", "set", "--match-set", f"{set_prefix(family)}source", "dst,src")
        yield ("-i", f"{INTERFACE_PREFIX}+", "-o", f"{INTERFACE_PREFIX}+", *bound)
        return
    sets = tuple(word for s in match.sets for word in _render_set(s))
    if match.protocol is None:
        yield sets
        return
    protocol = ("-p", match.protocol.lower())
    if not match.ports:
        yield (*protocol, *sets)
        return
    for chunk in _chunks(match.ports):
        yield (*protocol, "-m", "multiport", "--dports", ",".join(chunk), *sets)


def _render_set(match: SetMatch) -> Words:
    flags = "dst,dst" if match.kind is SetKind.ADDRESS_PORTS else match.side.value
    return ("-m", "set", "--match-set", match.name, flags)


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


def class_set(family: Family, chain: str) -> str:
    """IP set of the endpoints of a class that has no number of its own."""
    return f"felix{int(family)}-{chain.removeprefix(CHAIN_PREFIX).lower()}"


def dispatch_chains(
    family: Family,
    direction: Direction,
    numbers: dict[str, int],
    marks: Marks,
    log: DenyLog | None = None,
) -> dict[str, tuple[Words, ...]]:
    """The tree from class number to class chain: two levels of mark matches, then set matches.

    A number that no rule knows is dropped: better a lost packet than one that no policy has judged.
    """
    root_name = DISPATCH[direction]
    mask = marks.class_mask(direction)
    side = "src" if direction is Direction.EGRESS else "dst"
    leaves: dict[str, list[Words]] = {}
    root: dict[str, Words] = {}
    for chain, number in sorted(numbers.items(), key=lambda item: (item[1], item[0])):
        if number == OVERFLOW:
            leaf = f"{root_name}-SETS"
            root[leaf] = (*mark_match(marks.class_mark(direction, OVERFLOW), mask), "-g", leaf)
            rule: Words = ("-m", "set", "--match-set", class_set(family, chain), side, "-g", chain)
        else:
            branch = number >> LEAF_BITS
            leaf = f"{root_name}-{branch}"
            value = marks.class_mark(direction, branch << LEAF_BITS)
            branch_mask = marks.class_mark(direction, OVERFLOW >> LEAF_BITS << LEAF_BITS)
            # The overflow number shares its branch with the highest numbers and must not reach them.
            root.setdefault(leaf, (*mark_match(value, branch_mask), "-g", leaf))
            rule = (*mark_match(marks.class_mark(direction, number), mask), "-g", chain)
        leaves.setdefault(leaf, []).append(rule)
    drop = dropping(log, Drop(DropKind.CLASS, direction))
    chains = {leaf: (*rules, *drop) for leaf, rules in leaves.items()}
    ordered = sorted(root.items(), key=lambda item: (not item[0].endswith("-SETS"), item[0]))
    chains[root_name] = ((*mark_match(0, mask), "-j", "RETURN"), *(words for _, words in ordered), *drop)
    return chains


def class_numbers(rules: Sequence[str], direction: Direction, marks: Marks) -> dict[str, int]:
    """Class chain -> number, read back from the saved rules of this direction's dispatch leaves."""
    found: dict[str, int] = {}
    suffix = "E" if direction is Direction.EGRESS else "I"
    for rule in rules:
        words = rule.split()
        if len(words) < 4 or words[-2] != "-g" or not words[-1].startswith(f"{CHAIN_PREFIX}C{suffix}-"):
            continue
        if "--mark" in words:
            value = int(words[words.index("--mark") + 1].split("/")[0], 16)
            found[words[-1]] = value >> marks.shift(direction)
        else:
            found[words[-1]] = OVERFLOW
    return found
