"""A dataplane and a table of connections in memory, with the semantics of the real ones: for tests of whatever
stands above them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from felix_py.dataplane.interface import EVERYTHING, Part
from felix_py.dataplane.order import ORDER, Step
from felix_py.layout import ROUTE_PROTOCOL_LEARNED
from felix_py.records import (
    ChainKey,
    Drift,
    DriftKind,
    Failure,
    Flow,
    Hook,
    Report,
    Route,
    RouteKey,
    SetSpec,
    Update,
)
from felix_py.ruleset.model import Rules

_PARTS = {
    "set": Part.SETS,
    "member": Part.SETS,
    "chain": Part.RULES,
    "hook": Part.RULES,
    "route": Part.ROUTES,
}


class Item(NamedTuple):
    """One object; ``key`` is what the fields of an Update use, (set, member) for a member."""

    kind: str
    key: Hashable

    @property
    def what(self) -> str:
        """As in the Failure that the real dataplane reports."""
        match self.key:
            case ChainKey(family, table, name):
                return f"chain {name} ({table}, IPv{int(family)})"
            case Hook():
                return f"hooks in chain {self.key.chain} ({self.key.table}, IPv{int(self.key.family)})"
            case RouteKey(destination, _):
                return f"route {destination}"
            case (set_name, member):
                return f"set {set_name} member {member}"
            case _:
                return f"set {self.key}"

    def drift(self, how: str) -> Drift:
        """As the real dataplane tells it."""
        name = member = ""
        match self.key:
            case ChainKey(_, _, name) | str(name):
                pass
            case Hook():
                name = self.key.chain
            case (str(name), str(member)):
                pass
        return Drift(DriftKind(self.kind), self.what, how, name=name, member=member)


def _items(update: Update) -> Iterator[tuple[Item, object]]:
    for name, spec in update.sets.items():
        yield Item("set", name), spec
    for name, members in update.members.items():
        for member, mark in members.items():
            yield Item("member", (name, member)), mark
    for key, rules in update.chains.items():
        yield Item("chain", key), rules
    for hook, wanted in update.hooks.items():
        yield Item("hook", hook), wanted or None
    for route_key, route in update.routes.items():
        yield Item("route", route_key), route


@dataclass
class FakeDataplane:
    """``kernel`` is what has been written; change it to make drift. ``failing``: what to refuse -> the reason.

    ``broken_links``: interfaces that somebody has changed -> how. ``unreadable``: why loading fails, if it does.
    ``looks``: the parts of each load. ``free``: while it is not set, an apply does not come to its end.
    """

    kernel: dict[Item, object] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    broken_links: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""
    looks: list[Part] = field(default_factory=list)
    applies: int = 0
    free: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.free.set()
        self._wanted: dict[Item, object] = {}
        self._seen: dict[Item, object] = {}
        self._broken: set[str] = set()
        self._drift: list[Drift] = []
        self._epoch = 0
        self._loaded = False

    # --- Dataplane -----------------------------------------------------------------------------------

    def load(self, parts: Part = EVERYTHING, rules: object = None) -> None:
        first, self._loaded = not self._loaded, True
        self.looks.append(parts)
        if self.unreadable:
            raise OSError(self.unreadable)
        found = dict(self.kernel)
        if isinstance(rules, tuple) and rules[0] == self._epoch:
            found = {item: value for item, value in found.items() if _PARTS[item.kind] is not Part.RULES}
            found |= rules[1]
        unseen = {item: value for item, value in self._seen.items() if _PARTS[item.kind] not in parts}
        found = unseen | {item: value for item, value in found.items() if _PARTS[item.kind] in parts}
        if not first:
            self._drift += [*self._spoilt(found), *self._strays(found)]
        self._seen = found
        if Part.LINKS in parts:
            self._look_at_links()

    def read_rules(self) -> object:
        if self.unreadable:
            raise OSError(self.unreadable)
        held = {item: value for item, value in self.kernel.items() if _PARTS[item.kind] is Part.RULES}
        return self._epoch, held

    def _spoilt(self, found: dict[Item, object]) -> Iterator[Drift]:
        for item, value in self._wanted.items():
            if value is None or self._seen.get(item) != value or found.get(item) == value:
                continue
            if item.kind != "member" or Item("set", _set_of(item)) in found:
                yield item.drift("other content" if item in found else "missing")

    def _strays(self, found: dict[Item, object]) -> Iterator[Drift]:
        for item in found.keys() - self._seen.keys():
            if self._wanted.get(item) is None:
                yield item.drift("nobody asked for it")

    def _look_at_links(self) -> None:
        routes = [value for item, value in self._wanted.items() if item.kind == "route" and value]
        names = {hop.interface for route in routes for hop in cast("Route", route).next_hops}
        broken = names & self.broken_links.keys()
        for name in sorted(broken - self._broken):
            self._drift.append(Drift(DriftKind.LINK, f"interface {name}", self.broken_links[name]))
        self._broken = broken

    def take_drift(self) -> list[Drift]:
        taken, self._drift = self._drift, []
        return taken

    def hold(self, base: Update) -> list[str]:
        self._wanted = dict(self._seen)
        if self._seen:
            self._wanted |= dict(_items(base))
        return [item.what for item, value in self._wanted.items() if value and self._seen.get(item) != value]

    def release(self) -> None:
        self._wanted.clear()

    def update(self, update: Update) -> None:
        for name in update.emptied:
            self._empty(name)
        for item, value in _items(update):
            self._wanted[item] = value
            if item.kind == "set" and value is None:
                self._empty(cast("str", item.key))

    def _empty(self, name: str) -> None:
        for item in (*self._wanted, *self._seen):
            if item.kind == "member" and _set_of(item) == name:
                self._wanted[item] = None

    def differences(self) -> list[str]:
        self.load()
        return [
            item.what
            for item, value in self._wanted.items()
            if value is not None and self._seen.get(item) != value
        ]

    def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
        self.applies += 1
        self.free.wait()
        wanted = dict(self._wanted)
        if sweep:
            strays = self._seen.keys() - wanted.keys()
            wanted |= dict.fromkeys(item for item in strays if not (keep_learned and _is_learned(item)))
        changes = [(item, value) for item, value in wanted.items() if self._seen.get(item) != value]
        self._epoch += any(_PARTS[item.kind] is Part.RULES for item, _ in changes)
        return sum((self._step(step, changes) for step in ORDER), self._mend_links())

    def _mend_links(self) -> Report:
        for name in self._broken:
            self.broken_links.pop(name, None)
        writes, self._broken = len(self._broken), set()
        return Report(writes=writes)

    def _step(self, step: Step, changes: list[tuple[Item, object]]) -> Report:
        writes = 0
        failures: list[Failure] = []
        families = set()
        for item, value in changes:
            if self._step_of(item, value) is not step:
                continue
            reason = self._refusal(item, value)
            if reason:
                failures.append(Failure(item.what, reason))
                continue
            writes += 1
            if isinstance(item.key, ChainKey | Hook):
                families.add(item.key.family)
            self._write(item, value)
        return Report(len(families), writes, tuple(failures))

    def _step_of(self, item: Item, value: object) -> Step:
        match item.kind:
            case "route":
                return Step.REMOVE_ROUTES if value is None else Step.WRITE_ROUTES
            case "chain" | "hook":
                return Step.WRITE_CHAINS
            case "set":
                return Step.DESTROY_SETS if value is None else Step.GROW_SETS
        spec = self._wanted.get(Item("set", _set_of(item)))
        if value is None:
            return Step.SHRINK_SETS
        return Step.WRITE_MARKS if isinstance(spec, SetSpec) and spec.mark_mask else Step.GROW_SETS

    def _refusal(self, item: Item, value: object) -> str | None:
        if item.kind == "member" and value is not None and Item("set", _set_of(item)) not in self.kernel:
            return "there is no such set"
        return self.failing.get(item.what)

    def _write(self, item: Item, value: object) -> None:
        for state in (self.kernel, self._seen):
            if value is not None:
                state[item] = value
                continue
            state.pop(item, None)
            if item.kind == "set":
                for member in [m for m in state if m.kind == "member" and _set_of(m) == item.key]:
                    del state[member]

    # --- what tests look at --------------------------------------------------------------------------

    @property
    def sets(self) -> dict[str, SetSpec]:
        """Sets by name."""
        return cast("dict[str, SetSpec]", self._of("set"))

    def members(self, name: str) -> dict[str, int]:
        """Members of a set and their marks."""
        members = cast("dict[tuple[str, str], int]", self._of("member"))
        return {text: mark for (set_name, text), mark in members.items() if set_name == name}

    @property
    def chains(self) -> dict[ChainKey, Rules]:
        """Chains and their rules."""
        return cast("dict[ChainKey, Rules]", self._of("chain"))

    @property
    def hooks(self) -> set[Hook]:
        """Hooks in built-in chains."""
        return set(cast("dict[Hook, bool]", self._of("hook")))

    @property
    def routes(self) -> dict[RouteKey, Route]:
        """Routes by destination and protocol."""
        return cast("dict[RouteKey, Route]", self._of("route"))

    def _of(self, kind: str) -> dict[Hashable, object]:
        return {item.key: value for item, value in dict(self.kernel).items() if item.kind == kind}


def _is_learned(item: Item) -> bool:
    return isinstance(item.key, RouteKey) and item.key.protocol == ROUTE_PROTOCOL_LEARNED


def _set_of(member: Item) -> str:
    return cast("tuple[str, str]", member.key)[0]


@dataclass
class FakeFlowTable:
    """``connections``: what there is, and besides a flow's two ends the addresses that it was translated from.

    ``broken``: why the kernel does not answer, if it is not to; ``held``: flows that it refuses to delete.
    """

    connections: dict[Flow, frozenset[str]] = field(default_factory=dict)
    broken: OSError | None = None
    held: set[Flow] = field(default_factory=set)
    looks: list[set[str]] = field(default_factory=list)
    _made: int = 0

    def connect(self, flow: Flow, *translated: str) -> Flow:
        """A new connection; one of the same ends and ports that was there before it is another one."""
        self._made += 1
        made = flow._replace(entry=b"%d" % self._made, original=flow.original or b"%d" % self._made)
        self.connections[made] = frozenset(translated)
        return made

    def flows(self, addresses: Collection[str]) -> list[Flow]:
        self.looks.append(set(addresses))
        self._answer()
        return [flow for flow in self.connections if not {flow.source, flow.destination}.isdisjoint(addresses)]

    def delete(self, flows: Sequence[Flow]) -> tuple[list[Flow], OSError | None]:
        self._answer()
        refused = [flow for flow in flows if flow in self.held]
        deleted = [flow for flow in flows if flow in self.connections and flow not in self.held]
        for flow in deleted:
            del self.connections[flow]
        return deleted, OSError(1, "Operation not permitted") if refused else None

    def forget(self, addresses: Collection[str]) -> int:
        self._answer()
        found = [
            flow
            for flow, translated in self.connections.items()
            if not {flow.source, flow.destination, *translated}.isdisjoint(addresses)
        ]
        deleted, error = self.delete(found)
        if error is not None:
            raise error
        return len(deleted)

    def _answer(self) -> None:
        if self.broken is not None:
            raise self.broken
