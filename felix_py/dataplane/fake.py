"""Dataplane and connection tracking table in memory, with the semantics of the real ones, for tests."""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from felix_py.dataplane.delta import Delta
from felix_py.dataplane.order import ORDER, Step
from felix_py.dataplane.protocols import EVERYTHING, Look, RulesSnapshot
from felix_py.layout import ROUTE_PROTOCOL_LEARNED
from felix_py.records import Drift, Failure, Flow, Hook, Report, Route, SetSpec, Update
from felix_py.refs import ChainRef, LinkRef, MemberRef, Ref, RouteRef, SetRef
from felix_py.ruleset.model import Rules

T = TypeVar("T")

Item = ChainRef | Hook | SetRef | MemberRef | RouteRef
"""The key of one object in an Update."""


def _look(item: Item) -> Look:
    match item:
        case SetRef() | MemberRef():
            return Look.SETS
        case RouteRef():
            return Look.ROUTES
    return Look.RULES


def _ref(item: Item) -> Ref:
    return item.ref if isinstance(item, Hook) else item


def _items(update: Update) -> Iterator[tuple[Item, object]]:
    for name, spec in update.sets.items():
        yield SetRef(name), spec
    for name, members in update.members.items():
        for member, mark in members.items():
            yield MemberRef(name, member), mark
    yield from update.chains.items()
    for hook, wanted in update.hooks.items():
        yield hook, wanted or None
    yield from update.routes.items()


@dataclass(frozen=True, slots=True)
class _Read(RulesSnapshot):
    epoch: int
    items: dict[Item, object]


@dataclass
class FakeDataplane:
    """``kernel`` holds what was written; change it to make drift. ``failing``: refused objects -> the reason.

    ``broken_links``: interfaces that somebody has changed -> how. ``unreadable``: why loading fails, if it does.
    ``looks``: the look of each load. ``free``: an apply blocks while it is not set.
    """

    kernel: dict[Item, object] = field(default_factory=dict)
    failing: dict[Ref, str] = field(default_factory=dict)
    broken_links: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""
    looks: list[Look] = field(default_factory=list)
    applies: int = 0
    free: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.free.set()
        self._delta: Delta[Item, object, object] = Delta()
        self._broken: set[str] = set()
        self._drift: list[Drift] = []
        self._epoch = 0

    # --- Dataplane -----------------------------------------------------------------------------------

    def load(self, look: Look = EVERYTHING, rules: RulesSnapshot | None = None) -> None:
        self.looks.append(look)
        if self.unreadable:
            raise OSError(self.unreadable)
        found = dict(self.kernel)
        if isinstance(rules, _Read) and rules.epoch == self._epoch:
            found = {item: value for item, value in found.items() if _look(item) is not Look.RULES}
            found |= rules.items
        unseen = {item: value for item, value in self._delta.actual.items() if _look(item) not in look}
        seen = unseen | {item: value for item, value in found.items() if _look(item) in look}
        lost, strays = self._delta.load(seen)
        for item in lost:
            if not isinstance(item, MemberRef) or SetRef(item.set) in seen:
                self._drift.append(Drift(_ref(item), "other content" if item in seen else "missing"))
        self._drift += [Drift(_ref(item), "nobody asked for it") for item in strays]
        if Look.LINKS in look:
            self._look_at_links()

    def sizes(self) -> Mapping[str, int]:
        kinds: dict[type, str] = {ChainRef: "chain", SetRef: "set", MemberRef: "member", RouteRef: "route"}
        return Counter(kinds[type(item)] for item in list(self._delta.desired) if type(item) in kinds)

    def read_rules(self) -> RulesSnapshot:
        if self.unreadable:
            raise OSError(self.unreadable)
        held = {item: value for item, value in self.kernel.items() if _look(item) is Look.RULES}
        return _Read(self._epoch, held)

    def _look_at_links(self) -> None:
        routes = [value for value in self._delta.desired.values() if isinstance(value, Route)]
        names = {hop.interface for route in routes for hop in route.next_hops}
        broken = names & self.broken_links.keys()
        for name in sorted(broken - self._broken):
            self._drift.append(Drift(LinkRef(name), self.broken_links[name]))
        self._broken = broken

    def take_drift(self) -> list[Drift]:
        taken, self._drift = self._drift, []
        return taken

    def miscounted(self) -> Look:
        if self.unreadable:
            raise OSError(self.unreadable)
        held, known = (
            sum(_look(item) is Look.SETS for item in items) for items in (self.kernel, self._delta.actual)
        )
        return Look.SETS if held != known else Look(0)

    def hold(self, base: Update) -> list[Ref]:
        self._delta.hold()
        if self._delta.actual:
            self.update(base)
        return self._missing()

    def _missing(self) -> list[Ref]:
        return [_ref(item) for item in self._delta.desired if item in self._delta.pending]

    def release(self) -> None:
        self._delta.release()

    def update(self, update: Update) -> None:
        for name in update.emptied:
            self._empty(name)
        for item, value in _items(update):
            if value is not None:
                self._delta.desire(item, value)
                continue
            self._delta.dismiss(item)
            if isinstance(item, SetRef):
                self._empty(item.name)

    def _empty(self, name: str) -> None:
        for item in (*self._delta.desired, *self._delta.actual):
            if isinstance(item, MemberRef) and item.set == name:
                self._delta.dismiss(item)

    def differences(self) -> list[Ref]:
        self.load()
        return self._missing()

    def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
        self.applies += 1
        self.free.wait()
        if sweep:
            self._delta.sweep(keep={item for item in self._delta.actual if keep_learned and _is_learned(item)})
        changes = [(item, value) for item, value in self._delta.desired.items() if item in self._delta.pending]
        changes += [(item, None) for item in self._delta.deletions()]
        self._epoch += any(_look(item) is Look.RULES for item, _ in changes)
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
            if reason := self._refusal(item, value):
                failures.append(Failure(_ref(item), reason))
                continue
            writes += 1
            if isinstance(item, ChainRef | Hook):
                families.add(item.family)
            self._write(item, value)
        return Report(len(families), writes, tuple(failures))

    def _step_of(self, item: Item, value: object) -> Step:
        match item:
            case RouteRef():
                return Step.REMOVE_ROUTES if value is None else Step.WRITE_ROUTES
            case ChainRef() | Hook():
                return Step.WRITE_CHAINS
            case SetRef():
                return Step.DESTROY_SETS if value is None else Step.GROW_SETS
        if value is None:
            return Step.SHRINK_SETS
        spec = self._delta.desired.get(SetRef(item.set))
        return Step.WRITE_MARKS if isinstance(spec, SetSpec) and spec.mark_mask else Step.GROW_SETS

    def _refusal(self, item: Item, value: object) -> str | None:
        if isinstance(item, MemberRef) and value is not None and SetRef(item.set) not in self.kernel:
            return "there is no such set"
        return self.failing.get(_ref(item))

    def _write(self, item: Item, value: object) -> None:
        if value is not None:
            self.kernel[item] = value
            self._delta.written({item: value})
            return
        gone = [item]
        if isinstance(item, SetRef):
            gone += [other for other in self.kernel if isinstance(other, MemberRef) and other.set == item.name]
        for each in gone:
            self.kernel.pop(each, None)
        self._delta.removed(gone)

    # --- what tests look at --------------------------------------------------------------------------

    @property
    def sets(self) -> dict[str, SetSpec]:
        return {ref.name: cast("SetSpec", spec) for ref, spec in self._of(SetRef).items()}

    def members(self, name: str) -> dict[str, int]:
        """Members of a set -> mark."""
        return {ref.text: cast("int", mark) for ref, mark in self._of(MemberRef).items() if ref.set == name}

    @property
    def chains(self) -> dict[ChainRef, Rules]:
        return cast("dict[ChainRef, Rules]", self._of(ChainRef))

    @property
    def hooks(self) -> set[Hook]:
        return set(self._of(Hook))

    @property
    def routes(self) -> dict[RouteRef, Route]:
        return cast("dict[RouteRef, Route]", self._of(RouteRef))

    def _of(self, kind: type[T]) -> dict[T, object]:
        return {item: value for item, value in dict(self.kernel).items() if isinstance(item, kind)}


def _is_learned(item: Item) -> bool:
    return isinstance(item, RouteRef) and item.protocol == ROUTE_PROTOCOL_LEARNED


@dataclass
class FakeFlowTable:
    """``connections``: flows -> the addresses before NAT, besides the flow's two ends.

    ``broken``: the error of each call, if any; ``held``: flows that cannot be deleted.
    """

    connections: dict[Flow, frozenset[str]] = field(default_factory=dict)
    broken: OSError | None = None
    held: set[Flow] = field(default_factory=set)
    looks: list[set[str]] = field(default_factory=list)
    _made: int = 0

    def connect(self, flow: Flow, *translated: str) -> Flow:
        """Add a connection; it differs from an earlier one with the same ends and ports."""
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

    def busy(self, networks: Collection[str]) -> set[str]:
        self._answer()
        inside = list(map(ipaddress.ip_network, networks))
        ends = {
            end for flow, others in self.connections.items() for end in (flow.source, flow.destination, *others)
        }
        return {end for end in ends if any(ipaddress.ip_address(end) in network for network in inside)}

    def _answer(self) -> None:
        if self.broken is not None:
            raise self.broken
