"""An agent's view of the cluster through a proxy that misbehaves, in front of the server under test.

Nothing is lost or made up meanwhile, and all is as on the server soon after the proxy is well again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from felix_py.datastore import access
from felix_py.datastore.access import Identity, Plain
from felix_py.datastore.client import Api
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.informer import Timing
from felix_py.datastore.store import Record
from policy.change import Change
from policy.model import NetworkPolicy
from tests.conformance.conftest import Kubectl
from tests.support.bad_proxy import BadProxy, Mood
from tests.support.fakeapi import PATIENCE
from tests.support.waiting import until

QUICK = Timing(
    answer=5.0, silence=3.0, probe=5.0, retry=(0.1, 1.0), lost=(0.1, 1.0), recycle=(5.0, 8.0), grace=1.0
)
"""A watch whose proxy has forgotten it, but answers other requests, is found by nothing but its age."""

FAULTS = 6
"""How often it has to happen before the proxy is well again."""


class View:
    """A cluster as one agent sees it, and what it was told of the policies of a namespace."""

    def __init__(self, kubeconfig: Path, proxy: BadProxy, namespace: str) -> None:
        token = access.of_kubeconfig(kubeconfig, None)._identity.token
        self.cluster = Cluster(
            Api(lambda: Plain(Identity(proxy.url, token=token))), node_name="none", timing=QUICK
        )
        self._namespace = namespace
        self.gone: list[str] = []
        self.cluster.store.subscribe(self._note)

    def _note(self, changes: Sequence[Change[Record]]) -> None:
        for change in changes:
            if isinstance(change.newest, NetworkPolicy) and change.newest.namespace == self._namespace:
                self.gone += [change.newest.name] * (change.after is None)

    def policies(self) -> set[str]:
        return {name for space, name in self.cluster.store.policies.records if space == self._namespace}


def policy(name: str) -> dict[str, object]:
    metadata = {"name": name}
    spec: dict[str, object] = {"podSelector": {}}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("mood", [mood for mood in Mood if mood is not Mood.WELL])
async def test_nothing_is_lost(kubectl: Kubectl, mood: Mood) -> None:
    """To an agent that runs, and to one that starts meanwhile."""
    kubectl.apply(policy("stays"), policy("goes"))
    found = access.of_kubeconfig(kubectl.kubeconfig, None)
    with BadProxy(found.server, found._context) as proxy:
        running, starting = (View(kubectl.kubeconfig, proxy, kubectl.namespace) for _ in range(2))
        running.cluster.start()
        try:
            await until(lambda: running.policies() == {"stays", "goes"}, PATIENCE)
            proxy.become(mood)
            starting.cluster.start()
            await asyncio.to_thread(kubectl, "delete", "networkpolicy", "goes")
            await asyncio.to_thread(kubectl.apply, policy("comes"))
            await until(lambda: proxy.met[mood] >= FAULTS, PATIENCE)
            if mood is not Mood.SLOW:
                assert running.gone == [], "what cannot be read says nothing"
                assert not starting.cluster.store.in_sync.is_set()
            proxy.become(Mood.WELL)
            for view in (running, starting):
                async with asyncio.timeout(PATIENCE):
                    await view.cluster.in_sync()
                await until(lambda: view.policies() == {"stays", "comes"}, PATIENCE)  # noqa: B023
            assert running.gone == ["goes"]
            assert set(starting.gone) <= ({"goes"} if mood is Mood.SLOW else set())
        finally:
            await running.cluster.stop()
            await starting.cluster.stop()
