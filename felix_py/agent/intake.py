"""Passes the store's changes to facts and pod network."""

from __future__ import annotations

from collections.abc import Sequence

from felix_py import log
from felix_py.agent.announced import Announced
from felix_py.agent.facts import Facts
from felix_py.agent.network import PodNetwork
from felix_py.datastore.store import Record
from policy.change import Change
from policy.model import Pod


class Intake:
    """A handler for :meth:`felix_py.datastore.store.Store.subscribe`."""

    def __init__(self, facts: Facts, network: PodNetwork, announced: Announced | None = None) -> None:
        """``announced``: believe addresses that pods' annotations claim."""
        self._announced = announced
        self._facts = facts
        self._network = network
        self._log = log.get("agent")

    def __call__(self, changes: Sequence[Change[Record]]) -> None:
        """Fold changes in order."""
        for change in changes:
            try:
                pod = change.of(Pod)
                believed = self._announced.believe(pod, self._facts.pooled) if pod and self._announced else change
                self._facts.fold(believed)
                if pod:
                    self._network.fold(pod)
            except MemoryError:
                raise
            except Exception:
                # A defect of ours with one object must not lose the others of its batch.
                self._log.exception("cannot take over an object", what=repr(change)[:500])
