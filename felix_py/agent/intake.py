"""From the store's events to those who follow the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from felix_py import log
from felix_py.agent.facts import Facts
from felix_py.agent.network import PodNetwork
from felix_py.datastore.store import Deleted, Event, Upserted
from policy.model import Pod


class Intake:
    """A handler for :meth:`felix_py.datastore.store.Store.subscribe`."""

    def __init__(self, facts: Facts, network: PodNetwork, node_name: str) -> None:
        self._facts = facts
        self._network = network
        self._node_name = node_name
        self._log = log.get("agent")

    def __call__(self, events: Sequence[Event]) -> None:
        """Take events over, in order."""
        for event in events:
            try:
                self._take(event)
            except MemoryError:
                raise
            except Exception:
                # A defect of ours over one object must not cost the others of its batch.
                self._log.exception("cannot take over an object", what=repr(event)[:500])

    def _take(self, event: Event) -> None:
        match event:
            case Upserted(record, _):
                self._facts.upsert(record)
                if isinstance(record, Pod):
                    self._network.pod_seen(record, self._node_name)
            case Deleted(record):
                self._facts.delete(record)
                if isinstance(record, Pod):
                    self._network.pod_gone(record)
