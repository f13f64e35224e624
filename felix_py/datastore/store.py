"""The current state of the cluster, as received from the API server. On the event loop: no locks, no I/O."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from felix_py import log
from felix_py.datastore import kinds
from felix_py.datastore.decode import Gone, Kind, Unusable
from felix_py.records import NodeRecord
from policy.change import Change
from policy.model import ClusterPolicy, Namespace, NetworkPolicy, ObjectKey, Pod, PolicyKind

R = TypeVar("R")

_LONGEST_REASON = 2000
"""Characters: a policy may have a thousand problems, and the reason goes to the log, /status and an Event."""

Record = Pod | Namespace | NetworkPolicy | ClusterPolicy | NodeRecord

Handler = Callable[[Sequence[Change[Record]]], None]
"""Receives changes in order, on the loop. The store is already in the state after the last of them."""


class Problem(Struct, frozen=True):
    """An object that is not, or not wholly, understood. ``kind``: the kind's name."""

    kind: str
    key: ObjectKey
    uid: str
    reason: str


class Mark(enum.Enum):
    """A full list begins; it is complete, and objects that it did not name are gone."""

    LIST_BEGIN = enum.auto()
    LIST_END = enum.auto()


class Table(Generic[R]):
    """All objects of one kind.

    A list is processed by mark and sweep: its objects are compared with the known ones as they arrive, and at its
    end the unnamed ones are removed. A relist publishes differences only, and an incomplete one does no harm.
    """

    def __init__(
        self,
        kind: Kind[R],
        publish: Callable[[Sequence[Change[Record]]], None],
        on_problem: Callable[[Problem], None],
        on_listed: Callable[[str], None],
    ) -> None:
        self.kind = kind
        self._publish = publish
        self._on_problem = on_problem
        self._on_listed = on_listed
        self._records: dict[ObjectKey, R] = {}
        self._problems: dict[ObjectKey, Problem] = {}
        self._unnamed: set[ObjectKey] | None = None
        self.listed = asyncio.Event()
        """Set once a full list is in. Never cleared."""
        self.changed = asyncio.Event()
        """Set whenever a source has told anything; who waits for it clears it."""
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever a source has told anything; for more than one who waits."""
        self._listeners.append(listener)

    @property
    def records(self) -> Mapping[ObjectKey, R]:
        """A live view; cluster-scoped objects have the namespace ""."""
        return MappingProxyType(self._records)

    @property
    def problems(self) -> Mapping[ObjectKey, Problem]:
        """A live view of the objects that are not, or not wholly, understood."""
        return MappingProxyType(self._problems)

    def apply(self, items: Sequence[R | Gone | Unusable | Mark]) -> None:
        """Process a source's items and publish the differences."""
        changes: list[Change[Record]] = []
        listed = False
        for item in items:
            match item:
                case Mark.LIST_BEGIN:
                    self._unnamed = self._records.keys() | self._problems.keys()
                case Mark.LIST_END:
                    for key in sorted(self._unnamed or ()):
                        self._remove(key, changes)
                    self._unnamed = None
                    listed = True
                case Gone(key):
                    self._remove(key, changes)
                case Unusable(key, uid, reason):
                    self._remove(key, changes, but_problem=True)
                    self._note(Problem(self.kind.name, key, uid, reason))
                case _:
                    self._upsert(item, changes)
        self.changed.set()
        if changes:
            self._publish(changes)
        if listed:
            self.listed.set()
        for listener in self._listeners:
            listener()
        if listed:
            self._on_listed(self.kind.name)

    def _upsert(self, record: R, changes: list[Change[Record]]) -> None:
        key = self.kind.key(record)
        if self._unnamed is not None:
            self._unnamed.discard(key)
        previous = self._records.get(key)
        if record == previous:
            return
        self._records[key] = record
        changes.append(Change(previous, record))  # type: ignore[arg-type]
        if isinstance(record, NetworkPolicy | ClusterPolicy) and record.problems:
            self._note(Problem(self.kind.name, key, record.uid, "; ".join(record.problems)))
        else:
            self._problems.pop(key, None)

    def _remove(self, key: ObjectKey, changes: list[Change[Record]], *, but_problem: bool = False) -> None:
        if self._unnamed is not None:
            self._unnamed.discard(key)
        if not but_problem:
            self._problems.pop(key, None)
        record = self._records.pop(key, None)
        if record is not None:
            changes.append(Change(record, None))  # type: ignore[arg-type]

    def _note(self, problem: Problem) -> None:
        problem = replace(problem, reason=problem.reason[:_LONGEST_REASON])
        if self._problems.get(problem.key) != problem:
            self._problems[problem.key] = problem
            self._on_problem(problem)


class Store:
    """The tables of all watched kinds, and the handlers of their changes."""

    def __init__(self, on_problem: Callable[[Problem], None] = lambda _problem: None) -> None:
        """``on_problem`` is called once for each object with a problem, and again for a new reason."""
        self.in_sync = asyncio.Event()
        """Set once the first full list of every kind has been given to the handlers. Never cleared."""
        self._log = log.get("store")
        self._handlers: list[Handler] = []
        self._listing: set[str] = set()
        self.pods = self._table(kinds.PODS, on_problem)
        self.namespaces = self._table(kinds.NAMESPACES, on_problem)
        self.policies = self._table(kinds.POLICIES, on_problem)
        """NetworkPolicies; for the other kinds see :meth:`cluster_policies`."""
        self.nodes = self._table(kinds.NODES, on_problem)
        self._cluster_policies = {kind.name: self._table(kind, on_problem) for kind in kinds.CLUSTER_POLICY_KINDS}
        self._own: dict[str, Table[Any]] = {
            # Their problems are for who uses them to tell: objects of other nodes are among them.
            kind.name: Table(kind, lambda _changes: None, lambda _problem: None, lambda _kind: None)
            for kind in kinds.OWN_KINDS
        }

    def _table(self, kind: Kind[R], on_problem: Callable[[Problem], None]) -> Table[R]:
        self._listing.add(kind.name)
        return Table(kind, self._publish, on_problem, self._listed)

    def cluster_policies(self, kind: Kind[ClusterPolicy]) -> Table[ClusterPolicy]:
        """All policies of one of the cluster-scoped kinds; several kinds may use the same name."""
        return self._cluster_policies[kind.name]

    def own(self, kind: Kind[R]) -> Table[R]:
        """All objects of one of :data:`felix_py.datastore.kinds.OWN_KINDS`."""
        return self._own[kind.name]

    def policies_of(self, kind: PolicyKind) -> Table[NetworkPolicy] | Table[ClusterPolicy]:
        """All policies of one of the four kinds."""
        return self.policies if kind is PolicyKind.NETWORK else self._cluster_policies[kind.value]

    @property
    def not_listed(self) -> tuple[str, ...]:
        """The kinds that ``in_sync`` waits for: their first full list is incomplete."""
        return tuple(sorted(self._listing))

    @property
    def size(self) -> int:
        """Number of objects in all tables."""
        return sum(len(table.records) for table in self._tables)

    @property
    def problems(self) -> list[Problem]:
        """Every object that is not, or not wholly, understood."""
        return [problem for table in self._tables for problem in table.problems.values()]

    @property
    def _tables(self) -> tuple[Table[Any], ...]:
        """In an order that spares a new handler repeated work."""
        return (self.nodes, self.namespaces, self.policies, *self._cluster_policies.values(), self.pods)

    def subscribe(self, handler: Handler) -> None:
        """Give ``handler`` all present objects, and then every change."""
        changes: list[Change[Record]] = [
            Change(None, record) for table in self._tables for record in table.records.values()
        ]
        self._handlers.append(handler)
        if changes:
            self._call(handler, changes)

    def _publish(self, changes: Sequence[Change[Record]]) -> None:
        for handler in self._handlers:
            self._call(handler, changes)

    def _call(self, handler: Handler, changes: Sequence[Change[Record]]) -> None:
        try:
            handler(changes)
        except MemoryError:  # the handler may have processed half of the changes: only a restart repairs that
            raise
        except Exception:
            # A defect in one handler must neither stop the others nor end the watch.
            self._log.exception("a handler failed", changes=len(changes))

    def _listed(self, kind: str) -> None:
        self._listing.discard(kind)
        if not self._listing:
            self.in_sync.set()
