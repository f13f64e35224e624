"""What the cluster looks like now, as far as the API server has told. On the event loop: no locks, no I/O."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from felix_py import log
from felix_py.datastore.decode import (
    CLUSTER_POLICY_KINDS,
    NAMESPACES,
    NODES,
    PODS,
    POLICIES,
    Gone,
    Kind,
    Unusable,
)
from felix_py.records import NodeRecord
from policy.change import Change
from policy.model import ClusterPolicy, Namespace, NetworkPolicy, ObjectKey, Pod, PolicyKind

R = TypeVar("R")

_LONGEST_REASON = 2000
"""Characters: a policy may have a thousand problems, and the reason goes to the log, to /status and into an
Event."""

Record = Pod | Namespace | NetworkPolicy | ClusterPolicy | NodeRecord


Handler = Callable[[Sequence[Change[Record]]], None]
"""Gets changes in order, on the loop. The store is already in the state behind the last of them."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An object with a part that cannot be understood: the kind's name, which object, and why."""

    kind: str
    key: ObjectKey
    uid: str
    reason: str


class Mark(enum.Enum):
    """What a source says besides records: a full list begins; it is complete (what it did not name is gone)."""

    LIST_BEGIN = enum.auto()
    LIST_END = enum.auto()


class Table(Generic[R]):
    """All objects of one kind.

    A list is marked and swept: its objects are compared with the known ones as they come, and only at its end do
    the unnamed ones go. So a relist gives the differences and nothing else, and one that breaks off does no harm.
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

    @property
    def records(self) -> Mapping[ObjectKey, R]:
        """A live view; cluster-scoped objects have the namespace ""."""
        return MappingProxyType(self._records)

    @property
    def problems(self) -> Mapping[ObjectKey, Problem]:
        """A live view of the objects that are not, or not wholly, understood."""
        return MappingProxyType(self._problems)

    def apply(self, items: Sequence[R | Gone | Unusable | Mark]) -> None:
        """Take what a source found, publish the differences."""
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
        if changes:
            self._publish(changes)
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
    """The tables of all watched kinds, and who wants to know of changes."""

    def __init__(self, on_problem: Callable[[Problem], None] = lambda _problem: None) -> None:
        """``on_problem`` is called once for each object that cannot be understood, and again for a new reason."""
        self.in_sync = asyncio.Event()
        """Set once the first full list of every kind is in and was given to the handlers. Never cleared."""
        self._log = log.get("store")
        self._handlers: list[Handler] = []
        self._listing: set[str] = set()
        self._pods = self._table(PODS, on_problem)
        self._namespaces = self._table(NAMESPACES, on_problem)
        self._policies = self._table(POLICIES, on_problem)
        self._nodes = self._table(NODES, on_problem)
        self._cluster_policies = {kind.name: self._table(kind, on_problem) for kind in CLUSTER_POLICY_KINDS}

    def _table(self, kind: Kind[R], on_problem: Callable[[Problem], None]) -> Table[R]:
        self._listing.add(kind.name)
        return Table(kind, self._publish, on_problem, self._listed)

    @property
    def pods(self) -> Table[Pod]:
        """All pods of the cluster."""
        return self._pods

    @property
    def namespaces(self) -> Table[Namespace]:
        """All namespaces."""
        return self._namespaces

    @property
    def policies(self) -> Table[NetworkPolicy]:
        """All NetworkPolicies."""
        return self._policies

    @property
    def nodes(self) -> Table[NodeRecord]:
        """All nodes."""
        return self._nodes

    def cluster_policies(self, kind: Kind[ClusterPolicy]) -> Table[ClusterPolicy]:
        """All policies of one of the cluster-scoped kinds; several kinds may use the same name."""
        return self._cluster_policies[kind.name]

    def policies_of(self, kind: PolicyKind) -> Table[NetworkPolicy] | Table[ClusterPolicy]:
        """All policies of one of the four kinds."""
        return self._policies if kind is PolicyKind.NETWORK else self._cluster_policies[kind.value]

    @property
    def not_listed(self) -> tuple[str, ...]:
        """The kinds whose first full list is not in yet: what in-sync waits for."""
        return tuple(sorted(self._listing))

    @property
    def problems(self) -> list[Problem]:
        """Every object that is not, or not wholly, understood."""
        return [problem for table in self._tables for problem in table.problems.values()]

    @property
    def _tables(self) -> tuple[Table[Any], ...]:
        """In an order in which a new handler has the least to do twice."""
        return (self._nodes, self._namespaces, self._policies, *self._cluster_policies.values(), self._pods)

    def subscribe(self, handler: Handler) -> None:
        """Give ``handler`` everything there is now, and then every change."""
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
        except MemoryError:  # it may know half of them: only a start makes that good
            raise
        except Exception:
            # A defect in one consumer must neither stop the others nor end the watch.
            self._log.exception("a handler failed", changes=len(changes))

    def _listed(self, kind: str) -> None:
        self._listing.discard(kind)
        if not self._listing:
            self.in_sync.set()
