"""One family's compiled program, and its changes since the last flush."""

from __future__ import annotations

from policy.engine.tightened import SetUses, is_class_tightened, is_tightened
from policy.ir import Chain, ChainId, Delta, Program, SetId, SetKind, Tightened
from policy.model import Direction, Family


class Output:
    """Keeps the previous value of each change, so that changes that cancel out vanish at the flush."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._chains: dict[ChainId, Chain] = {}
        self._sets: dict[SetId, SetKind] = {}
        self._counts: dict[SetId, dict[str, int]] = {}
        self._classes: dict[tuple[Direction, str], ChainId] = {}
        self._uses = SetUses()
        self._chains_before: dict[ChainId, Chain | None] = {}
        self._sets_before: dict[SetId, SetKind | None] = {}
        self._members_before: dict[SetId, dict[str, bool]] = {}
        self._new_sets: dict[SetId, None] = {}
        self._classes_before: dict[tuple[Direction, str], ChainId | None] = {}

    def set_chain(self, chain: Chain) -> None:
        """Create or replace a chain."""
        self._replace(chain.id, chain)
        self._chains[chain.id] = chain

    def remove_chain(self, chain: ChainId) -> None:
        """Remove a chain, if it exists."""
        self._replace(chain, None)
        self._chains.pop(chain, None)

    def _replace(self, chain: ChainId, after: Chain | None) -> None:
        before = self._chains.get(chain)
        self._chains_before.setdefault(chain, before)
        self._uses.replace(before, after)

    def open_set(self, set_: SetId, kind: SetKind) -> None:
        """Create an empty set."""
        if self._sets_before.setdefault(set_, self._sets.get(set_)) is None:
            # All members of a new set are new, up to a million: their previous state need not be kept.
            self._new_sets[set_] = None
        self._sets[set_] = kind
        self._counts[set_] = {}

    def close_set(self, set_: SetId) -> None:
        """Remove a set."""
        self._sets_before.setdefault(set_, self._sets.get(set_))
        del self._sets[set_]
        if set_ in self._new_sets:
            del self._new_sets[set_], self._counts[set_]
            return
        before = self._members_before.setdefault(set_, {})
        for member in self._counts.pop(set_):
            before.setdefault(member, True)

    def count(self, set_: SetId, member: str, sign: int) -> None:
        """Add (``sign`` 1) or remove (-1) a reason for a member to be in a set."""
        counts = self._counts[set_]
        held = counts.get(member, 0)
        if set_ not in self._new_sets:
            self._members_before.setdefault(set_, {}).setdefault(member, held > 0)
        if held + sign:
            counts[member] = held + sign
        else:
            del counts[member]

    def set_class(self, direction: Direction, address: str, chain: ChainId | None) -> None:
        """Set the class chain of an endpoint's address; None: no class."""
        key = (direction, address)
        self._classes_before.setdefault(key, self._classes.get(key))
        if chain is None:
            self._classes.pop(key, None)
        else:
            self._classes[key] = chain

    def flush(self) -> Delta:
        """Returns the changes since the last flush."""
        delta = Delta(self.family)
        for key, chain in self._chains_before.items():
            if self._chains.get(key) != chain:
                delta.chains[key] = self._chains.get(key)
        for set_, kind in self._sets_before.items():
            if self._sets.get(set_) != kind:
                delta.sets[set_] = self._sets.get(set_)
        for set_ in self._new_sets:
            if counts := self._counts[set_]:
                delta.members[set_] = dict.fromkeys(counts, True)
        for set_, before in self._members_before.items():
            if set_ in self._counts:
                counts = self._counts[set_]
                changed = {m: m in counts for m, was_in in before.items() if (m in counts) is not was_in}
                if changed:
                    delta.members[set_] = changed
        for end, was in self._classes_before.items():
            if self._classes.get(end) != was:
                delta.classes[end] = self._classes.get(end)
        delta.tightened = self._tightened(delta)
        self._chains_before, self._sets_before = {}, {}
        self._members_before, self._classes_before, self._new_sets = {}, {}, {}
        return delta

    def _tightened(self, delta: Delta) -> Tightened:
        found = Tightened()
        for chain, after in delta.chains.items():
            before = self._chains_before[chain]
            # A new chain is reached only from changed chains and classes, which are judged themselves.
            if before is not None and is_tightened(before, after):
                found.chains.add(chain)
        for key, chosen in delta.classes.items():
            was = self._classes_before[key]
            old = self._chains_before.get(was, self._chains.get(was)) if was else None
            if is_class_tightened(old, self._chains[chosen] if chosen else None):
                found.addresses.add(key[1])
        for set_, members in delta.members.items():
            # A new set comes with a new or changed chain.
            for member in self._uses.tightening(set_, members) if set_ not in delta.sets else ():
                if "/" in member:
                    found.chains.add(set_)
                else:
                    found.members.add(member.partition(",")[0])
        return found

    def program(self) -> Program:
        """The whole program."""
        classes: dict[Direction, dict[str, ChainId]] = {direction: {} for direction in Direction}
        for (direction, address), chain in self._classes.items():
            classes[direction][address] = chain
        members = {set_: frozenset(counts) for set_, counts in self._counts.items()}
        return Program(self.family, dict(self._chains), dict(self._sets), members, classes)
