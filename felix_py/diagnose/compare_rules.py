"""Comparison of the kernel's chains and hooks with the intended ones, rule by rule and in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from felix_py.dataplane.iptables_text import BUILTIN_CHAINS, TABLES, BadRule, render, render_chain
from felix_py.diagnose.difference import Difference, Problem
from felix_py.diagnose.owners import Owners
from felix_py.layout import CHAIN_PREFIX
from felix_py.records import Hook, Update
from felix_py.refs import ChainRef, HookRef
from felix_py.ruleset.compare import Likeness, compare
from felix_py.ruleset.encode import shown
from felix_py.ruleset.model import Body, OpaqueMatch, Rule, Rules, Ruleset, RuleSpec
from felix_py.ruleset.places import hinders_above, hinders_behind
from felix_py.ruleset.seal import SEAL, is_seal
from felix_py.ruleset.words import brief, target_of
from policy.model import Family


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A wanted rule, or the seal of a chain; ``body`` is compared."""

    spec: RuleSpec
    body: Body
    hash: str

    @classmethod
    def of(cls, spec: RuleSpec) -> _Wanted:
        try:
            digest = render(spec).hash
        except BadRule:
            digest = ""  # the agent cannot write it either, and says so
        return cls(spec, spec.body, digest)

    @classmethod
    def of_chain(cls, rules: Rules) -> list[_Wanted]:
        """The rules of a chain of ours as they are written, with its seal."""
        try:
            written = render_chain(rules)
        except BadRule:
            return [cls(spec, spec.body, "") for spec in rules]
        return [cls(r.spec, _seal(r.hash) if r.is_seal else r.body, r.hash) for r in written if r.spec]

    @property
    def text(self) -> str:
        """For people, without the comment, whose content is shown elsewhere."""
        return shown(self.spec) or str(self.spec.why)


class RuleComparison:
    """Comparison of one family's rules."""

    def __init__(self, family: Family, wanted: Update, found: Ruleset, owners: Owners) -> None:
        self._family = family
        self._found = found
        self._owners = owners
        self._chains = {
            (key.table, key.name): _Wanted.of_chain(rules)
            for key, rules in wanted.chains.items()
            if key.family is family and rules is not None
        }
        self._hooks: dict[tuple[str, str], list[Hook]] = {}
        for hook in sorted(wanted.hooks, key=lambda hook: hook.rank):
            if hook.family is family:
                self._hooks.setdefault((hook.table, hook.chain), []).append(hook)

    @property
    def counted(self) -> tuple[int, int]:
        """Number of chains and of rules that are compared."""
        rules = sum(one.spec != SEAL for wanted in self._chains.values() for one in wanted)
        return len(self._chains), sum(map(len, self._hooks.values())) + rules

    def differences(self, *, strays: bool) -> Iterator[Difference]:
        """All differences. ``strays``: also our chains and hooks that are not intended."""
        for place, wanted in sorted(self._chains.items()):
            yield from self._chain(place, wanted)
        for table in TABLES:
            found = self._found.tables.get(table)
            for name, chain in sorted(found.chains.items() if found else ()):
                if name in BUILTIN_CHAINS:
                    yield from self._builtin((table, name), chain.rules, strays=strays)
                elif strays and name.startswith(CHAIN_PREFIX) and (table, name) not in self._chains:
                    yield Difference(self._ref((table, name)), Problem.EXTRA, self._owners.chain(name))
        for place in sorted(self._hooks):
            if self._found.chain(*place) is None:
                yield from self._builtin(place, (), strays=strays)

    def _ref(self, place: tuple[str, str]) -> ChainRef:
        return ChainRef(self._family, *place)

    def _rule(self, place: tuple[str, str], at: int) -> str:
        return f"rule {at + 1} of {self._ref(place)}"

    # --- our own chains ------------------------------------------------------------------------------

    def _chain(self, place: tuple[str, str], wanted: Sequence[_Wanted]) -> Iterator[Difference]:
        chain = self._found.chain(*place)
        if chain is None:
            yield Difference(self._ref(place), Problem.MISSING, self._owners.chain(place[1]))
            return
        bodies = [one.body for one in wanted]
        actual = [_as_wanted(rule, wanted) for rule in chain.rules]
        gone: list[int] = []
        new: list[int] = []
        for what, a, b, c, d in SequenceMatcher(None, bodies, actual, autojunk=False).get_opcodes():
            if what == "equal":
                continue
            paired = min(b - a, d - c)
            for at in range(paired):
                yield self._altered(place, a + at, wanted[a + at], chain.rules[c + at])
            gone += range(a + paired, b)
            new += range(c + paired, d)
        yield from self._moved_missing_extra(place, wanted, chain.rules, actual, gone, new)

    def _altered(self, place: tuple[str, str], at: int, wanted: _Wanted, found: Rule) -> Difference:
        about = self._owners.wanted_rule(place[1], wanted.spec)
        texts = wanted.text, brief(found.text)
        return Difference(self._ref(place), Problem.ALTERED, about, *texts, self._rule(place, at))

    def _moved_missing_extra(
        self,
        place: tuple[str, str],
        wanted: Sequence[_Wanted],
        rules: Sequence[Rule],
        actual: Sequence[Body],
        gone: Sequence[int],
        new: list[int],
    ) -> Iterator[Difference]:
        for at in gone:
            about = self._owners.wanted_rule(place[1], wanted[at].spec)
            ref, where = self._ref(place), self._rule(place, at)
            there = next((number for number in new if actual[number] == wanted[at].body), None)
            if there is None:
                yield Difference(ref, Problem.MISSING, about, wanted[at].text, place=where)
            else:
                new.remove(there)
                yield Difference(ref, Problem.MISPLACED, about, wanted[at].text, f"as rule {there + 1}", where)
        for at in new:
            about, found = self._owners.found_rule(place[1], rules[at]), brief(rules[at].text)
            yield Difference(self._ref(place), Problem.EXTRA, about, "", found, self._rule(place, at))

    # --- hooks ---------------------------------------------------------------------------------------

    def _builtin(self, place: tuple[str, str], rules: Sequence[Rule], *, strays: bool) -> Iterator[Difference]:
        hooks, ref = self._hooks.get(place, []), HookRef(self._family, *place)
        wanted = [_Wanted.of(hook.rule) for hook in hooks]
        actual = [_as_wanted(rule, wanted) for rule in rules]
        used: set[int] = set()
        right = True
        for hook, one in zip(hooks, wanted, strict=True):
            about, where = self._hook(place, hook), f"hook in {self._ref(place)}"
            at = next((n for n, body in enumerate(actual) if body == one.body and n not in used), None)
            if at is not None:
                used.add(at)
                continue
            right = False
            other = next((n for n, rule in enumerate(rules) if rule.hash == one.hash and n not in used), None)
            if other is None:
                yield Difference(ref, Problem.MISSING, about, one.text, place=where)
            else:
                used.add(other)
                yield Difference(ref, Problem.ALTERED, about, one.text, brief(rules[other].text), where)
        if right:
            yield from self._order(place, hooks, wanted, rules, actual)
        for at, rule in enumerate(rules):
            if strays and rule.hash and at not in used:
                about = self._owners.found_rule(place[1], rule)
                yield Difference(ref, Problem.EXTRA, about, "", brief(rule.text), self._rule(place, at))

    def _hook(self, place: tuple[str, str], hook: Hook) -> str:
        """The purpose of a hook."""
        return self._owners.wanted_rule(hook.rule.leads_to or place[1], hook.rule)

    def _order(
        self,
        place: tuple[str, str],
        hooks: Sequence[Hook],
        wanted: Sequence[_Wanted],
        rules: Sequence[Rule],
        actual: Sequence[Body],
    ) -> Iterator[Difference]:
        """Hooks with ``first`` stand at the top and the others at the end, without foreign rules in their way."""
        order = [body for body in actual if any(body == one.body for one in wanted)]
        top = [one.body for hook, one in zip(hooks, wanted, strict=True) if hook.first]
        end = [one.body for hook, one in zip(hooks, wanted, strict=True) if not hook.first]
        for hook, one in zip(hooks, wanted, strict=True):
            at = actual.index(one.body)
            if hook.first:
                right, expected, word = order[: len(top)] == top, "first", "above"
                beside, hinders = rules[:at], hinders_above
            else:
                right, expected, word = order[len(order) - len(end) :] == end, "last", "behind"
                beside, hinders = rules[at:], hinders_behind
            others = [rule for rule in beside if not rule.hash and hinders(place[0], target_of(rule.text))]
            if others or not right:
                about, ref = self._hook(place, hook), HookRef(self._family, *place)
                found = f"{word} it: {'; '.join(brief(rule.text) for rule in others[:3])}" if others else ""
                where = f"hook {one.text} in {self._ref(place)}"
                yield Difference(ref, Problem.MISPLACED, about, expected, found, where)


def _seal(hash_: str) -> Body:
    """What a seal is compared by."""
    return Body((OpaqueMatch("comment", (hash_,)),))


def _as_wanted(rule: Rule, wanted: Iterable[_Wanted]) -> Body:
    """The body to compare: the wanted one if the rule has its hash and differs only in unknown words."""
    if is_seal(rule.text):
        return _seal(rule.hash)
    for one in wanted:
        if rule.hash and one.hash == rule.hash and compare(one.body, rule.body) is Likeness.UNKNOWN:
            return one.body
    return rule.body
