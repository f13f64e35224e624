"""Chains and hooks of one family: what is wanted, what the kernel has, and the difference.

One ``iptables-restore --noflush`` run carries a whole apply. Only chains that differ are in it, each written anew
as a whole; the kernel swaps each table in one step, so that no packet sees half of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from felix_py.dataplane.backend import ToolError, save
from felix_py.dataplane.iptables_restore import (
    Change,
    Place,
    Restore,
    by_table,
    in_dependency_order,
    is_hopeless,
)
from felix_py.dataplane.iptables_text import (
    BUILTIN_CHAINS,
    TABLES,
    BadRule,
    Rule,
    check_chain,
    parse_save,
    render,
)
from felix_py.dataplane.rule_bodies import RuleBodies
from felix_py.records import Backend, ChainKey, Failure, Hook, Report, Words
from policy.model import Family


class Iptables:
    """One family's tables. Nothing but chains with our prefix and rules with our comment is ever written."""

    def __init__(self, family: Family, backend: Backend) -> None:
        """
        Raises:
            ToolError: the backend's commands are not installed.
        """
        self._family = family
        self._backend = backend
        self._restore = Restore(family, backend)
        self._wanted: dict[Place, tuple[Rule, ...]] = {}
        self._hooks: dict[Place, dict[Hook, Rule]] = {}
        self._rejected: dict[ChainKey | Hook, Failure] = {}
        self._actual: dict[Place, tuple[Rule, ...]] = {}
        self._dirty: set[Place] = set()
        self._doomed: set[Place] = set()
        self._doomed_hooks: dict[Place, set[str]] = {}
        self._swept = False
        self._bodies = RuleBodies()

    # --- what is wanted ------------------------------------------------------------------------------

    def chain(self, key: ChainKey, rules: tuple[Words, ...] | None) -> None:
        """Note a chain's wanted content; None: it must not exist.

        A chain that cannot be written keeps the content it has, and every apply reports it.
        """
        place = (key.table, key.name)
        self._rejected.pop(key, None)
        try:
            check_chain(*place)
            rendered = tuple(map(render, rules)) if rules is not None else None
        except BadRule as error:
            self._rejected[key] = Failure(self._name(place), str(error))
            self._wanted.pop(place, None)
            self._settled(place)
            return
        self._dirty.add(place)
        if rendered is None:
            self._wanted.pop(place, None)
            self._doomed.add(place)
        else:
            self._wanted[place] = rendered
            self._doomed.discard(place)

    def hook(self, hook: Hook, wanted: bool) -> None:
        """Note whether a rule of ours must be in a built-in chain. Several in one place are in order of words."""
        place = (hook.table, hook.chain)
        self._rejected.pop(hook, None)
        try:
            if hook.table not in TABLES or hook.chain not in BUILTIN_CHAINS:
                raise BadRule(f"there is no chain {hook.chain!r} in a table {hook.table!r} to hook into")
            rule = render(hook.words)
        except BadRule as error:
            self._rejected[hook] = Failure(f"hook in {self._name(place)}", str(error))
            return
        self._dirty.add(place)
        doomed = self._doomed_hooks.setdefault(place, set())
        if wanted:
            self._hooks.setdefault(place, {}).setdefault(hook, rule)
            doomed.discard(rule.hash)
        else:
            self._hooks.get(place, {}).pop(hook, None)
            doomed.add(rule.hash)

    # --- what there is -------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the kernel's tables.

        Raises:
            ToolError: they cannot be read.
        """
        self._actual = self._read()
        self._bodies.keep(rule.text for rules in self._actual.values() for rule in rules)
        self._dirty = self._wanted.keys() | self._hooks.keys() | self._doomed | self._doomed_hooks.keys()
        self._swept = False

    def _read(self) -> dict[Place, tuple[Rule, ...]]:
        saved = parse_save(save(self._family, self._backend))
        return {
            (name, chain): tuple(rules)
            for name, table in saved.items()
            if name in TABLES
            for chain, rules in (*table.chains.items(), *table.builtins.items())
        }

    def rules(self, table: str, prefix: str) -> list[str]:
        """The rules of all our chains of a table whose names begin so, as iptables-save spells them."""
        return [
            f"-A {chain} {rule.text}"
            for (in_table, chain), rules in sorted(self._actual.items())
            if in_table == table and chain.startswith(prefix) and chain not in BUILTIN_CHAINS
            for rule in rules
        ]

    def differences(self) -> list[str]:
        """Wanted chains and hooks that the kernel, as last seen, does not have."""
        return [change.what for change in self._changes(sweep=False)]

    def owned(self) -> list[str]:
        """A line for each chain and each hook of ours in the kernel."""
        lines: list[str] = []
        for place, rules in sorted(self._actual.items()):
            if place[1] in BUILTIN_CHAINS:
                lines += [f"hook in {self._name(place)}: {rule.text}" for rule in rules if rule.hash]
            else:
                lines.append(f"{self._name(place)}: {len(rules)} rules")
        return lines

    # --- the difference ------------------------------------------------------------------------------

    def apply(self, *, sweep: bool) -> Report:
        """Write the difference; what fails is reported and stays pending."""
        runs = self._restore.runs
        failures = list(self._rejected.values())
        changes = self._changes(sweep)
        error = self._restore.run(changes)
        if error is None:
            written = self._done(changes)
            self._read_back(changes)
        elif is_hopeless(error):
            written = 0
            failures += [Failure(change.what, error) for change in changes]
        else:
            written = self._salvage(changes, sweep, failures)
        return Report(self._restore.runs - runs, written, tuple(failures))

    def _salvage(self, changes: list[Change], sweep: bool, failures: list[Failure]) -> int:
        """After a failed transaction: read what there is now, and write all that can be written."""
        try:
            self.load()
        except ToolError as unreadable:
            failures += [Failure(change.what, str(unreadable)) for change in changes]
            return 0
        written = 0
        for _, members in by_table(self._changes(sweep)):
            for part, error in self._restore.isolate(in_dependency_order(members)):
                if error is None:
                    written += self._done(part)
                else:
                    failures += [Failure(change.what, error) for change in part]
        return written

    def _done(self, changes: Iterable[Change]) -> int:
        """Note that some changes are in the kernel; how many."""
        count = 0
        for change in changes:
            if change.after is None:
                self._actual.pop(change.place, None)
            else:
                self._actual[change.place] = change.after
            self._settled(change.place)
            count += 1
        return count

    def _read_back(self, changes: Iterable[Change]) -> None:
        """Look at the rules that were mended for what they did, not for their hash.

        If this kernel's tools print them in a way that we take for another rule, they would be mended for ever.
        """
        mended = [change for change in changes if self._altered(change.before, change.after or ())]
        if not mended:
            return
        try:
            found = self._read()
        except ToolError:
            return  # the next load says so again
        for change in mended:
            wanted = {rule.hash: rule for rule in change.after or () if rule.hash}
            for rule in found.get(change.place, ()):
                if rule.hash in wanted:
                    self._bodies.learn(wanted[rule.hash], rule)

    def _altered(self, actual: Iterable[Rule], wanted: Iterable[Rule]) -> bool:
        """Whether a rule that carries a wanted one's hash does something else."""
        by_hash = {rule.hash: rule for rule in wanted if rule.hash}
        return any(rule.hash in by_hash and self._bodies.altered(by_hash[rule.hash], rule) for rule in actual)

    def _settled(self, place: Place) -> None:
        self._dirty.discard(place)
        self._doomed.discard(place)
        self._doomed_hooks.pop(place, None)

    def _changes(self, sweep: bool) -> list[Change]:
        if sweep and not self._swept:
            self._doom_strays()
        changes: list[Change] = []
        for place in sorted(self._dirty):
            change = self._hook_change(place) if place[1] in BUILTIN_CHAINS else self._chain_change(place)
            if change:
                changes.append(change)
            else:
                self._settled(place)
        return changes

    def _doom_strays(self) -> None:
        """Everything of ours in the kernel that nobody asked for must go. Strays only ever come with a load."""
        asked = {(key.table, key.name) for key in self._rejected if isinstance(key, ChainKey)}
        for place, rules in self._actual.items():
            if place[1] in BUILTIN_CHAINS:
                wanted = {rule.hash for rule in self._hooks.get(place, {}).values()}
                if strays := {rule.hash for rule in rules if rule.hash} - wanted:
                    self._doomed_hooks.setdefault(place, set()).update(strays)
                    self._dirty.add(place)
            elif place not in self._wanted and place not in asked:
                self._doomed.add(place)
                self._dirty.add(place)
        self._swept = True

    def _chain_change(self, place: Place) -> Change | None:
        wanted, actual = self._wanted.get(place), self._actual.get(place)
        if wanted is None:
            return Change(place, self._name(place), (), actual, None) if actual is not None else None
        if actual is not None and _hashes(wanted) == _hashes(actual) and not self._altered(actual, wanted):
            return None
        lines = tuple(f"-A {place[1]} {rule.text}" for rule in wanted)
        return Change(place, self._name(place), lines, actual or (), wanted)

    def _hook_change(self, place: Place) -> Change | None:
        """Our rules of a built-in chain to their places: the first ones at its top, the others at its end.

        They are deleted by their text, never by their number: other programs may change the chain at any time.
        """
        hooks = sorted(self._hooks.get(place, {}).items(), key=lambda item: item[0].words)
        top = tuple(rule for hook, rule in hooks if hook.first)
        end = tuple(rule for hook, rule in hooks if not hook.first)
        wanted = {*_hashes(top), *_hashes(end)}
        actual = self._actual.get(place, ())
        doomed = self._doomed_hooks.get(place, set()) - wanted
        leaving = [rule for rule in actual if rule.hash in doomed]
        others = [rule for rule in actual if rule.hash not in doomed and rule.hash not in wanted]
        # Ours that this process has not heard of (from before an upgrade) are not in the way until the sweep.
        foreign = sum(not rule.hash for rule in others)
        seen = [rule.hash for rule in actual if not rule.hash or rule.hash in wanted]
        in_place = seen == [*_hashes(top), *[""] * foreign, *_hashes(end)]
        if in_place and not self._altered(actual, (*top, *end)):
            if not leaving:
                return None
            after = tuple(rule for rule in actual if rule.hash not in doomed)
            inserts: list[str] = []
        else:
            leaving += [rule for rule in actual if rule.hash in wanted]
            after = (*top, *others, *end)
            inserts = [f"-I {place[1]} 1 {rule.text}" for rule in reversed(top)]
            inserts += [f"-A {place[1]} {rule.text}" for rule in end]
        deletes = [f"-D {place[1]} {rule.text}" for rule in leaving]
        return Change(place, f"hooks in {self._name(place)}", (*deletes, *inserts), actual, after)

    def _name(self, place: Place) -> str:
        table, chain = place
        return f"chain {chain} ({table}, IPv{int(self._family)})"


def _hashes(rules: Iterable[Rule]) -> list[str]:
    return [rule.hash for rule in rules]
