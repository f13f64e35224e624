"""One family's compiled program, and what has changed in it since the last flush."""

from __future__ import annotations

from policy.ir import Chain, Delta, Program, SetKind, Tightened
from policy.model import Direction, Family
from policy.tightened import SetUses, is_class_tightened, is_tightened


class Output:
    """Every change is noted with what was there before, so that changes that cancel out vanish at the flush."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._chains: dict[str, Chain] = {}
        self._sets: dict[str, SetKind] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._classes: dict[tuple[Direction, str], str] = {}
        self._uses = SetUses()
        self._chains_before: dict[str, Chain | None] = {}
        self._sets_before: dict[str, SetKind | None] = {}
        self._members_before: dict[str, dict[str, bool]] = {}
        self._new_sets: dict[str, None] = {}
        self._classes_before: dict[tuple[Direction, str], str | None] = {}

    def set_chain(self, chain: Chain) -> None:
        """Make a chain, or give it other rules."""
        self._replace(chain.name, chain)
        self._chains[chain.name] = chain

    def remove_chain(self, name: str) -> None:
        """The chain is not needed any more."""
        self._replace(name, None)
        self._chains.pop(name, None)

    def _replace(self, name: str, after: Chain | None) -> None:
        before = self._chains.get(name)
        self._chains_before.setdefault(name, before)
        self._uses.replace(before, after)

    def open_set(self, name: str, kind: SetKind) -> None:
        """Make an empty set."""
        if self._sets_before.setdefault(name, self._sets.get(name)) is None:
            # Of what the last flush did not have, all members are new: nothing to note, be they a million.
            self._new_sets[name] = None
        self._sets[name] = kind
        self._counts[name] = {}

    def close_set(self, name: str) -> None:
        """The set is not needed any more."""
        self._sets_before.setdefault(name, self._sets.get(name))
        del self._sets[name]
        if name in self._new_sets:
            del self._new_sets[name], self._counts[name]
            return
        before = self._members_before.setdefault(name, {})
        for member in self._counts.pop(name):
            before.setdefault(member, True)

    def count(self, name: str, member: str, sign: int) -> None:
        """One more, or one less, reason for a member to be in a set."""
        counts = self._counts[name]
        held = counts.get(member, 0)
        if name not in self._new_sets:
            self._members_before.setdefault(name, {}).setdefault(member, held > 0)
        if held + sign:
            counts[member] = held + sign
        else:
            del counts[member]

    def set_class(self, direction: Direction, address: str, chain: str | None) -> None:
        """Put an endpoint's address into a class, or into none."""
        key = (direction, address)
        self._classes_before.setdefault(key, self._classes.get(key))
        if chain is None:
            self._classes.pop(key, None)
        else:
            self._classes[key] = chain

    def flush(self) -> Delta:
        """What has changed since the last flush."""
        delta = Delta(self.family)
        for name, chain in self._chains_before.items():
            if self._chains.get(name) != chain:
                delta.chains[name] = self._chains.get(name)
        for name, kind in self._sets_before.items():
            if self._sets.get(name) != kind:
                delta.sets[name] = self._sets.get(name)
        for name in self._new_sets:
            if counts := self._counts[name]:
                delta.members[name] = dict.fromkeys(counts, True)
        for name, before in self._members_before.items():
            if name in self._counts:
                counts = self._counts[name]
                changed = {m: m in counts for m, was_in in before.items() if (m in counts) is not was_in}
                if changed:
                    delta.members[name] = changed
        for key, was in self._classes_before.items():
            if self._classes.get(key) != was:
                delta.classes[key] = self._classes.get(key)
        delta.tightened = self._tightened(delta)
        self._chains_before, self._sets_before = {}, {}
        self._members_before, self._classes_before, self._new_sets = {}, {}, {}
        return delta

    def _tightened(self, delta: Delta) -> Tightened:
        found = Tightened()
        for name, after in delta.chains.items():
            before = self._chains_before[name]
            # To a new chain only changed chains and other classes lead.
            if before is not None and is_tightened(before, after):
                found.names.add(name)
        for key, chosen in delta.classes.items():
            was = self._classes_before[key]
            old = self._chains_before.get(was, self._chains.get(was)) if was else None
            if is_class_tightened(old, self._chains[chosen] if chosen else None, self._is_tier):
                found.addresses.add(key[1])
        for name, members in delta.members.items():
            # A new set comes with a new or changed chain.
            for member in self._uses.tightening(name, members) if name not in delta.sets else ():
                if "/" in member:
                    found.names.add(name)
                else:
                    found.members.add(member.partition(",")[0])
        return found

    def _is_tier(self, chain: str) -> bool:
        return self._chains[chain].tier

    def program(self) -> Program:
        """All of it."""
        classes: dict[Direction, dict[str, str]] = {direction: {} for direction in Direction}
        for (direction, address), chain in self._classes.items():
            classes[direction][address] = chain
        members = {name: frozenset(counts) for name, counts in self._counts.items()}
        return Program(self.family, dict(self._chains), dict(self._sets), members, classes)
