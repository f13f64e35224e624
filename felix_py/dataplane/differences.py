"""Differences between rules, in words for a log line. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from felix_py.dataplane.iptables_text import Rule
from felix_py.ruleset.places import hinders_above, hinders_behind
from felix_py.ruleset.seal import SEAL
from felix_py.ruleset.words import target_of

_MOST_RULES = 3
_MOST_CHARACTERS = 120


def chain_difference(wanted: Sequence[Rule], actual: Sequence[Rule] | None, altered: Sequence[Rule] = ()) -> str:
    """How a chain of ours differs from the wanted one; empty if it does not.

    ``altered``: the actual rules that do something else than their hash stands for.
    """
    if actual is None:
        return "missing"
    right = _hashes(wanted) == _hashes(actual)
    wanted, actual = ([rule for rule in rules if not rule.is_seal] for rules in (wanted, actual))
    if not right and [rule.text for rule in wanted] == [rule.text for rule in actual]:
        return f"{SEAL.why} is missing or another one"
    parts = _counted(wanted, actual)
    if not parts and _hashes(wanted) != _hashes(actual):
        matcher = SequenceMatcher(None, _hashes(wanted), _hashes(actual), autojunk=False)
        moved = len(wanted) - sum(block.size for block in matcher.get_matching_blocks())
        parts = [f"{moved} {_rules(moved)} moved"]
    parts += _altered(altered)
    return "; ".join(parts)


def in_the_way(
    table: str, top: Sequence[Rule], end: Sequence[Rule], actual: Sequence[Rule]
) -> tuple[list[Rule], list[Rule]]:
    """Rules of others that hinder ours: above those that must be first, behind those that must be last."""
    tops, ends = set(_hashes(top)), set(_hashes(end))
    last_top = max((at for at, rule in enumerate(actual) if rule.hash in tops), default=0)
    first_end = min((at for at, rule in enumerate(actual) if rule.hash in ends), default=len(actual))
    above = [r for r in actual[:last_top] if not r.hash and hinders_above(table, target_of(r.text))]
    return above, [r for r in actual[first_end:] if not r.hash and hinders_behind(table, target_of(r.text))]


def hook_difference(
    table: str, top: Sequence[Rule], end: Sequence[Rule], actual: Sequence[Rule], altered: Sequence[Rule] = ()
) -> str:
    """How our rules in a built-in chain differ from being first and last in it. Never empty."""
    wanted = [*top, *end]
    hashes = set(_hashes(wanted))
    ours = [rule for rule in actual if rule.hash in hashes]
    parts = _counted(wanted, ours)
    above, below = in_the_way(table, top, end, actual)
    parts += [
        f"{_some(rules)} of others {where} ours"
        for rules, where in ((above, "above"), (below, "behind"))
        if rules
    ]
    parts += _altered(altered)
    return "; ".join(parts) or "in another order"


def stray_chain(actual: Sequence[Rule]) -> str:
    """Text about a chain with our prefix that is not wanted."""
    return f"nobody asked for it ({_some(actual)})" if actual else "nobody asked for it"


def stray_rules(actual: Sequence[Rule]) -> str:
    """Text about rules of ours in a built-in chain that are not wanted."""
    return f"{_some(actual)} that nobody asked for"


def _altered(rules: Sequence[Rule]) -> list[str]:
    return [f"{_some(rules)} altered"] if rules else []


def _counted(wanted: Sequence[Rule], actual: Sequence[Rule]) -> list[str]:
    counted = (_less(wanted, actual), "missing"), (_less(actual, wanted), "too many")
    return [f"{_some(rules)} {word}" for rules, word in counted if rules]


def _less(rules: Sequence[Rule], others: Sequence[Rule]) -> list[Rule]:
    """``rules`` less one for each rule of ``others`` with the same hash; a rule without a hash equals none."""
    left = Counter(rule.hash for rule in others if rule.hash)
    found = []
    for rule in rules:
        if left[rule.hash] > 0:
            left[rule.hash] -= 1
        else:
            found.append(rule)
    return found


def _some(rules: Sequence[Rule]) -> str:
    """``2 rules (-j DROP, -j ACCEPT)``; only the first few are shown."""
    texts = map(str, rules[:_MOST_RULES])
    shown = [text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…" for text in texts]
    if len(rules) > _MOST_RULES:
        shown.append(f"and {len(rules) - _MOST_RULES} more")
    return f"{len(rules)} {_rules(len(rules))} ({', '.join(shown)})"


def _rules(count: int) -> str:
    return "rule" if count == 1 else "rules"


def _hashes(rules: Sequence[Rule]) -> list[str]:
    return [rule.hash for rule in rules]
