"""An engine, and facts, that a test tells of one object after the other, as the store does."""

from __future__ import annotations

from typing import Any, Protocol

from felix_py.agent.facts import Facts
from felix_py.agent.held import HeldLeases
from felix_py.agent.network import PodNetwork
from felix_py.agent.view import ClusterView
from felix_py.records import NodeRecord
from policy.change import Change
from policy.engine.compile import Engine
from policy.model import ClusterPolicy, Family, LocalEndpoint, NetworkPolicy, ObjectKey, Pod


def place(record: Any) -> tuple[type, Any]:
    """What tells an object from all others."""
    if isinstance(record, Pod):
        return Pod, record.key
    if isinstance(record, NetworkPolicy | ClusterPolicy):
        return NetworkPolicy, record.ref
    return type(record), record.name


class Folds(Protocol):
    """Who follows the cluster."""

    def fold(self, change: Change[Any]) -> None: ...


class Told:
    """Remembers what it has told somebody, as the store does, so that it can say what was there before."""

    def __init__(self, follower: Folds | None = None) -> None:
        self._followers = [follower] if follower else []
        self.records: dict[tuple[type, Any], Any] = {}
        self.pods: dict[ObjectKey, Pod] = {}
        self.nodes: dict[ObjectKey, NodeRecord] = {}

    def follow(self, follower: Folds) -> None:
        """Tell this one as well, from now on."""
        self._followers.append(follower)

    def upsert(self, *records: Any) -> None:
        """Objects are there, or have changed."""
        for record in records:
            self._set(place(record), record)

    def delete(self, record: Any) -> None:
        """An object is gone; whatever else it is, it has the key of this one. One that never was is fine."""
        self.remove(*place(record))

    def remove(self, kind: type, key: Any) -> None:
        """The same, by class (NetworkPolicy for all policies) and key, name or ref."""
        if (kind, key) in self.records:
            self._set((kind, key), None)

    def _set(self, where: tuple[type, Any], after: Any) -> None:
        before = self.records.get(where)
        tables: list[tuple[dict[Any, Any], Any]] = [(self.records, where)]
        if where[0] is Pod:
            tables.append((self.pods, where[1]))
        elif where[0] is NodeRecord:
            tables.append((self.nodes, ("", where[1])))
        for table, key in tables:
            if after is None:
                del table[key]
            else:
                table[key] = after
        for follower in self._followers:
            follower.fold(Change(before, after))


class ToldEngine(Engine):
    """An engine that is told by hand, of endpoints without their pods."""

    def __init__(self, families: tuple[Family, ...] = tuple(Family)) -> None:
        super().__init__(families)
        self.told = Told(self)

    def upsert(self, *records: Any) -> None:
        """See :meth:`Told.upsert`."""
        self.told.upsert(*records)

    def delete(self, record: Any) -> None:
        """See :meth:`Told.delete`."""
        self.told.delete(record)

    def lease(self, local: LocalEndpoint) -> None:
        """A pod interface of this node is there."""
        self.attach(local, self.told.pods.get(local.key))


class ToldFacts(Facts):
    """Facts that are told by hand."""

    def __init__(self, node: str = "n1", families: tuple[Family, ...] = tuple(Family), **more: Any) -> None:
        """``more``: see :class:`Facts`; ``engine`` and ``view`` are new ones if they are not given."""
        self.told = Told()
        engine, view = more.pop("engine", None) or Engine(families), more.pop("view", None) or ClusterView()
        super().__init__(node, self.told.pods, self.told.nodes, HeldLeases(), engine, view, **more)
        self.told.follow(self)

    def upsert(self, *records: Any) -> None:
        """See :meth:`Told.upsert`."""
        self.told.upsert(*records)

    def delete(self, record: Any) -> None:
        """See :meth:`Told.delete`."""
        self.told.delete(record)

    def show_pods(self, network: PodNetwork) -> None:
        """Tell somebody else of pods, as the agent does."""
        self.told.follow(_Pods(network))


class _Pods:
    def __init__(self, network: PodNetwork) -> None:
        self._network = network

    def fold(self, change: Change[Any]) -> None:
        if pod := change.of(Pod):
            self._network.fold(pod)
