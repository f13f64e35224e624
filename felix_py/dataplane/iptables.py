"""Chains and hooks of one family: wanted, actual, and the difference.

One ``iptables-restore --noflush`` run carries a whole apply. It holds only chains that differ, each rewritten
whole; the kernel replaces each table atomically, so that no packet sees half of the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct

from felix_py.dataplane.backend import OwnProcesses, ToolError, save
from felix_py.dataplane.delta import Delta, Found
from felix_py.dataplane.differences import chain_difference, hook_difference, in_the_way, stray_chain, stray_rules
from felix_py.dataplane.iptables_restore import Change, Place, Restore, by_table, in_dependency_order, is_hopeless
from felix_py.dataplane.iptables_text import (
    BUILTIN_CHAINS,
    TABLES,
    BadRule,
    Rule,
    SavedTable,
    check_chain,
    parse_save,
    render,
    render_chain,
)
from felix_py.dataplane.order import Step
from felix_py.dataplane.part import Part, Sweep
from felix_py.dataplane.protocols import Look
from felix_py.dataplane.rule_bodies import RuleBodies
from felix_py.desired.names import DispatchChain, is_class_chain, parse_chain_name
from felix_py.layout import CHAIN_PREFIX
from felix_py.records import Backend, Drift, Failure, Hook, Report, Update
from felix_py.refs import ChainRef, HookRef, Ref
from felix_py.ruleset.model import DROP, RETURN, Body, Rules, RuleSpec
from policy.model import Family

_OUR_TARGETS = frozenset({"DROP", "RETURN", "MARK", "NFLOG", "SET", "MASQUERADE"})
"""Targets of the rules in our chains that are no chains."""

_CLOSED = render_chain((RuleSpec((), DROP),))

_AHEAD_SECONDS = 10.0
"""Timeout for reading the rules ahead, while nothing waits for it."""

_AGAIN_SECONDS = 2.0
"""Timeout for reading them again after a write of ours: new pods wait for that."""


class TablesRead(Struct, frozen=True):
    """One family's tables, and the epoch at which they were read."""

    epoch: int
    tables: Mapping[str, SavedTable]


class Iptables(Part):
    """One family's tables. Only chains with our prefix and rules with our comment are ever written."""

    looks = Look.RULES

    def __init__(
        self,
        family: Family,
        backend: Backend,
        own: OwnProcesses | None = None,
        has_set: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        """``own`` gets the pids of processes that write for us; ``has_set``: whether the kernel has an IP set.

        Raises:
            ToolError: the backend's commands are not installed.
        """
        self.steps = {Step.WRITE_CHAINS: self.write}
        self._has_set = has_set
        self._read: TablesRead | None = None
        self._family = family
        self._backend = backend
        self._restore = Restore(family, backend, own)
        self._chains: Delta[Place, tuple[Rule, ...], tuple[Rule, ...]] = Delta(self._is_right)
        self._builtins: dict[Place, tuple[Rule, ...]] = {}
        self._hooks: dict[Place, dict[Hook, Rule]] = {}
        self._dirty_hooks: set[Place] = set()
        self._doomed_hooks: dict[Place, set[str]] = {}
        self._rejected: dict[ChainRef | Hook, Failure] = {}
        self._swept = False
        self._bodies = RuleBodies()
        self._loaded = False
        self._drift: list[Drift] = []

    # --- wanted --------------------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        for key, rules in update.chains.items():
            if key.family is self._family:
                self._chain(key, rules)
        for hook, wanted in update.hooks.items():
            if hook.family is self._family:
                self._hook(hook, wanted)

    def _chain(self, key: ChainRef, rules: Rules | None) -> None:
        """Note a chain's wanted content or absence. One that cannot be rendered keeps its content: a failure."""
        place = (key.table, key.name)
        self._rejected.pop(key, None)
        try:
            check_chain(*place)
            rendered = render_chain(rules) if rules is not None else None
        except BadRule as error:
            self._rejected[key] = Failure(key, str(error))
            self._chains.forget(place)
            return
        if rendered is None:
            self._chains.dismiss(place)
        else:
            self._chains.desire(place, rendered)

    def _hook(self, hook: Hook, wanted: bool) -> None:
        place = (hook.table, hook.chain)
        self._rejected.pop(hook, None)
        try:
            if hook.table not in TABLES or hook.chain not in BUILTIN_CHAINS:
                raise BadRule(f"there is no chain {hook.chain!r} in a table {hook.table!r} to hook into")
            rule = render(hook.rule)
        except BadRule as error:
            self._rejected[hook] = Failure(HookRef(self._family, *place, single=True), str(error))
            return
        self._dirty_hooks.add(place)
        doomed = self._doomed_hooks.setdefault(place, set())
        if wanted:
            self._hooks.setdefault(place, {}).setdefault(hook, rule)
            doomed.discard(rule.hash)
        else:
            self._hooks.get(place, {}).pop(hook, None)
            doomed.add(rule.hash)

    def hold(self, base: Update) -> Update:
        """Want what was found, or the base where it names a chain or hook, unless the rules found were made by
        another version or other settings of ours.

        Rules of others in our chains are not held. The chain of a class is never empty, so one that somebody has
        flushed drops all packets rather than letting all through.
        """
        for place, rules in self._chains.actual.items():
            self._chains.desire(place, _held(place[1], rules))
        mine = Update(
            sets={name: spec for name, spec in base.sets.items() if spec and spec.family is self._family},
            chains={key: rules for key, rules in base.chains.items() if key.family is self._family},
            hooks={hook: wanted for hook, wanted in base.hooks.items() if hook.family is self._family},
        )
        if self._is_of(mine):
            return mine
        for (table, chain), rules in self._builtins.items():
            for at, rule in enumerate(rule for rule in rules if rule.hash):
                # Their order is kept; only jumps to our chains come first (see felix_py.desired.static).
                spec = RuleSpec(rule.body.matches, rule.body.target)
                hook = Hook(self._family, table, chain, spec, spec.leads_to.startswith(CHAIN_PREFIX), at)
                self._hooks.setdefault((table, chain), {})[hook] = rule
        return Update()

    def _is_of(self, base: Update) -> bool:
        """Whether the kernel's chains and hooks that ``base`` names hold rules of ``base`` only, or some of them.

        Of dispatch only the rule for packets in no class is evidence: the others follow from the class numbers in
        use. If the kernel has no rule of ours at all, the existence of a set of ``base`` decides.
        """
        known: dict[Place, set[str]] = {
            (key.table, key.name): set(_hashes(render_chain(rules or ()))) for key, rules in base.chains.items()
        }
        for hook in base.hooks:
            known.setdefault((hook.table, hook.chain), set()).add(render(hook.rule).hash)
        actual = self._chains.actual | self._builtins
        found = {place: _evidence(place[1], rules) for place, rules in actual.items()}
        present = [place for place in found if (found[place] if place in self._builtins else place in known)]
        if not present:
            return any(map(self._has_set, base.sets))
        return all(found[place] <= known.get(place, set()) for place in present)

    def release(self) -> None:
        self._chains.release()
        for noted in (self._hooks, self._rejected, self._doomed_hooks, self._dirty_hooks):
            noted.clear()

    # --- actual --------------------------------------------------------------------------------------

    def read(self, timeout: float = _AHEAD_SECONDS) -> TablesRead:
        """Read the kernel's tables for :meth:`offer`, within ``timeout`` seconds. Any thread may call this.

        Raises:
            ToolError: the tables cannot be read.
        """
        epoch = self._restore.epoch  # changes when a write begins and when it ends
        return TablesRead(epoch, parse_save(save(self._family, self._backend, timeout)))

    def offer(self, read: TablesRead | None) -> None:
        """Tables that the next :meth:`load` uses, unless we have written since they were read."""
        self._read = read

    def load(self) -> None:
        read, self._read = self._read, None
        if read and read.epoch != self._restore.epoch:
            read = self.read(_AGAIN_SECONDS)
        right = [place for place in self._hooks if self._hook_change(place) is None]
        before = self._builtins
        actual = _by_place(read.tables if read else parse_save(save(self._family, self._backend)))
        self._builtins = {place: actual.pop(place) for place in list(actual) if place[1] in BUILTIN_CHAINS}
        self._bodies.keep(
            rule.text for held in (actual, self._builtins) for rules in held.values() for rule in rules
        )
        found = self._chains.load(actual)
        if self._loaded:
            self._drift += [*self._chain_drift(found), *self._hook_drift(right, before)]
        self._loaded = True
        self._dirty_hooks = self._hooks.keys() | self._doomed_hooks.keys()
        self._swept = False

    def _chain_drift(self, found: Found[Place]) -> Iterator[Drift]:
        for place in sorted(found.lost):
            wanted, actual = self._chains.desired[place], self._chains.actual.get(place)
            altered = self._altered(actual or (), wanted)
            yield Drift(self._ref(place), chain_difference(wanted, actual, altered))
        for place in sorted(set(found.strays) - self._rejected_places()):
            yield Drift(self._ref(place), stray_chain(self._chains.actual[place]))

    def _hook_drift(self, right: Iterable[Place], before: Mapping[Place, tuple[Rule, ...]]) -> Iterator[Drift]:
        """Drift of hooks that were right and are not any more, and of new rules of ours that are not wanted."""
        for place in sorted(right):
            if self._hook_change(place):
                (top, end), actual = self._own_rules(place), self._builtins.get(place, ())
                how = hook_difference(place[0], top, end, actual, self._altered(actual, (*top, *end)))
                yield Drift(self._ref(place), how)
        for place, rules in sorted(self._builtins.items()):
            known = {rule.hash for rule in before.get(place, ())} | self._wanted_hashes(place)
            if strays := [rule for rule in rules if rule.hash and rule.hash not in known]:
                yield Drift(self._ref(place), stray_rules(strays))

    def rules(self, table: str, prefix: str) -> list[Body]:
        """The rules of our chains in a table whose names have this prefix, chain by chain."""
        return [
            rule.body
            for (in_table, chain), rules in sorted(self._chains.actual.items())
            if in_table == table and chain.startswith(prefix)
            for rule in rules
        ]

    def sizes(self) -> Mapping[str, int]:
        return {"chain": len(self._chains.desired)}

    def differences(self) -> list[Ref]:
        return [change.ref for change in self._changes(Sweep.NOTHING)]

    def owned(self) -> list[str]:
        lines: list[str] = []
        for place, rules in sorted((self._chains.actual | self._builtins).items()):
            if place in self._builtins:
                lines += [
                    f"{HookRef(self._family, *place, single=True)}: {rule.text}" for rule in rules if rule.hash
                ]
            else:
                lines.append(f"{self._ref(place)}: {len(rules)} rules")
        return lines

    # --- the difference ------------------------------------------------------------------------------

    def write(self, sweep: Sweep) -> Report:
        """Write the difference; failed changes are reported and stay pending."""
        before = self._restore.counted
        failures = list(self._rejected.values())
        changes = self._changes(sweep)
        error = self._restore.run(changes)
        if error is None:
            written = self._done(changes)
            self._read_back(changes)
        elif is_hopeless(error):
            written = 0
            failures += [Failure(change.ref, error) for change in changes]
        else:
            written = self._salvage(changes, sweep, failures)
        runs, waits, seconds = (now - then for now, then in zip(self._restore.counted, before, strict=True))
        return Report(int(runs), written, tuple(failures), int(waits), seconds)

    def _salvage(self, changes: list[Change], sweep: Sweep, failures: list[Failure]) -> int:
        """After a failed transaction: read the tables, and write all changes that can be written."""
        try:
            self.load()
        except ToolError as unreadable:
            failures += [Failure(change.ref, str(unreadable)) for change in changes]
            return 0
        written = 0
        for _, members in by_table(self._changes(sweep)):
            for part, error in self._restore.isolate(in_dependency_order(members)):
                if error is None:
                    written += self._done(part)
                else:
                    failures += [Failure(change.ref, error) for change in part]
        return written

    def _done(self, changes: Iterable[Change]) -> int:
        """Note changes that are in the kernel; returns their number."""
        count = 0
        for change in changes:
            if not change.is_ours:
                self._builtins[change.place] = change.after or ()
                self._settled(change.place)
            elif change.after is None:
                self._chains.removed([change.place])
            else:
                self._chains.written({change.place: change.after})
            count += 1
        return count

    def _read_back(self, changes: Iterable[Change]) -> None:
        """Learn how the tools print mended rules: a right rule that looks altered would be mended for ever."""
        mended = [change for change in changes if self._altered(change.before, change.after or ())]
        if not mended:
            return
        try:
            found = _by_place(self.read(_AGAIN_SECONDS).tables)
        except ToolError:
            return  # the next load tries again
        for change in mended:
            wanted = {rule.hash: rule for rule in change.after or () if rule.hash}
            for rule in found.get(change.place, ()):
                if rule.hash in wanted:
                    self._bodies.learn(wanted[rule.hash], rule)

    def _altered(self, actual: Iterable[Rule], wanted: Iterable[Rule]) -> list[Rule]:
        """The rules that carry the hash of a wanted rule and do something else."""
        by_hash = {rule.hash: rule for rule in wanted if rule.hash}
        return [r for r in actual if r.hash in by_hash and self._bodies.altered(by_hash[r.hash], r)]

    def _changes(self, sweep: Sweep) -> list[Change]:
        if sweep and not self._swept:
            self._doom_strays()
        chains = sorted([*self._chains.updates(), *self._chains.deletions()])
        changes = [self._chain_change(place) for place in chains]
        for place in sorted(self._dirty_hooks):
            if change := self._hook_change(place):
                changes.append(change)
            else:
                self._settled(place)
        return changes

    def _settled(self, place: Place) -> None:
        self._dirty_hooks.discard(place)
        self._doomed_hooks.pop(place, None)

    def _rejected_places(self) -> set[Place]:
        """Chains that keep their content, because the wanted one cannot be rendered."""
        return {(key.table, key.name) for key in self._rejected if isinstance(key, ChainRef)}

    def _doom_strays(self) -> None:
        """Have all unwanted objects of ours deleted. Once after each load, since only a load finds strays."""
        self._chains.sweep(keep=self._rejected_places())
        for place, rules in self._builtins.items():
            if strays := {rule.hash for rule in rules if rule.hash} - self._wanted_hashes(place):
                self._doomed_hooks.setdefault(place, set()).update(strays)
                self._dirty_hooks.add(place)
        self._swept = True

    def _chain_change(self, place: Place) -> Change:
        wanted = self._chains.desired.get(place)
        lines = tuple(f"-A {place[1]} {rule.text}" for rule in wanted or ())
        return Change(self._ref(place), lines, self._chains.actual.get(place, ()), wanted)

    def _is_right(self, wanted: tuple[Rule, ...], actual: tuple[Rule, ...]) -> bool:
        return _hashes(wanted) == _hashes(actual) and not self._altered(actual, wanted)

    def _hook_change(self, place: Place) -> Change | None:
        """Move our rules in a built-in chain to its top or end, unless no other rule hinders them where they are.

        See :mod:`felix_py.ruleset.places`. Rules are deleted by their text, never by their number: other programs
        may change the chain at any time.
        """
        top, end = self._own_rules(place)
        wanted = {*_hashes(top), *_hashes(end)}
        actual = self._builtins.get(place, ())
        doomed = self._doomed_hooks.get(place, set()) - wanted
        leaving = [rule for rule in actual if rule.hash in doomed]
        others = [rule for rule in actual if rule.hash not in doomed and rule.hash not in wanted]
        # Unknown rules of ours (from before an upgrade) do not hinder until the sweep.
        ours = [rule.hash for rule in actual if rule.hash in wanted]
        in_order = ours == [*_hashes(top), *_hashes(end)] and not any(in_the_way(place[0], top, end, actual))
        if in_order and not self._altered(actual, (*top, *end)):
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
        return Change(self._ref(place), (*deletes, *inserts), actual, after)

    def _own_rules(self, place: Place) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
        """Our rules that must be first in a built-in chain, and those that must be last."""
        hooks = sorted(self._hooks.get(place, {}).items(), key=lambda item: (item[0].rank, item[1].hash))
        top = tuple(rule for hook, rule in hooks if hook.first)
        return top, tuple(rule for hook, rule in hooks if not hook.first)

    def _wanted_hashes(self, place: Place) -> set[str]:
        return {rule.hash for rule in self._hooks.get(place, {}).values()}

    def _ref(self, place: Place) -> ChainRef | HookRef:
        made = HookRef if place[1] in BUILTIN_CHAINS else ChainRef
        return made(self._family, *place)


def _by_place(saved: Mapping[str, SavedTable]) -> dict[Place, tuple[Rule, ...]]:
    return {
        (name, chain): tuple(rules)
        for name, table in saved.items()
        if name in TABLES
        for chain, rules in (*table.chains.items(), *table.builtins.items())
    }


def _held(chain: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules to keep of a chain that was found; see :meth:`Iptables.hold`."""
    ours = tuple(rule for rule in rules if rule.hash)
    if any(not rule.is_seal for rule in ours):
        return ours
    if is_class_chain(chain):
        return _CLOSED
    # Somebody has removed the seal, so which rules are ours cannot be told; but without those that deny, packets
    # would pass. Those of kinds that we never make go.
    return tuple(r for r in rules if r.leads_to in _OUR_TARGETS or r.leads_to.startswith(CHAIN_PREFIX))


def _evidence(chain: str, rules: Iterable[Rule]) -> set[str]:
    """The hashes of our rules by which it is told which version has made a chain."""
    ours = [rule for rule in rules if rule.hash]
    if isinstance(parse_chain_name(chain), DispatchChain):
        ours = [rule for rule in ours[:1] if rule.body.target == RETURN]
    return set(_hashes(ours))


def _hashes(rules: Iterable[Rule]) -> list[str]:
    return [rule.hash for rule in rules]
