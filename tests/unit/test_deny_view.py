"""Whose an address is, while pods come, change and go."""

from __future__ import annotations

from dataclasses import replace

from felix_py.agent.deny_view import EventView
from felix_py.datastore.store import Deleted, Upserted
from felix_py.records import NodeRecord
from policy.model import ClusterPolicy, Pod, PodPeer, PolicyKind, Selector, Tier

WEB = Pod("shop", "web", addresses=("10.1.0.2", "fd00::2"))
DB = Pod("shop", "db", addresses=("10.1.0.2",))


def owner(view: EventView, address: str = "10.1.0.2") -> str:
    pod = view.pod_at(address)
    return pod.name if pod else ""


def test_pods() -> None:
    view = EventView()
    view.take([Upserted(WEB, None)])
    assert (owner(view), owner(view, "fd00::2"), owner(view, "fd00::3")) == ("web", "web", "")
    view.take([Upserted(replace(WEB, addresses=("fd00::3",)), WEB)])
    assert (owner(view), owner(view, "fd00::2"), owner(view, "fd00::3")) == ("", "", "web")
    for other in (replace(WEB, active=False), replace(WEB, host_network=True), replace(WEB, addresses=())):
        view.take([Upserted(WEB, None), Upserted(other, WEB)])
        assert owner(view) == ""
    view.take([Upserted(WEB, None), Deleted(WEB)])
    assert owner(view) == ""


def test_an_address_that_passes_to_another_pod_stays_with_it() -> None:
    view = EventView()
    view.take([Upserted(WEB, None), Upserted(DB, None), Deleted(WEB)])
    assert owner(view) == "db"
    view.take([Upserted(WEB, None), Deleted(WEB), Deleted(DB), Deleted(WEB)])
    assert owner(view) == ""


def test_nodes_and_cluster_policies() -> None:
    view = EventView()
    node = NodeRecord("n1", "", ("192.0.2.1",))
    policy = ClusterPolicy(PolicyKind.CLUSTER, "guard", Tier.ADMIN, 1, PodPeer(Selector(), None))
    view.take([Upserted(node, None), Upserted(policy, None)])
    view.take(
        [Upserted(replace(node, addresses=("192.0.2.7",)), node), Upserted(replace(policy, priority=2), policy)]
    )
    assert [n.addresses for n in view.nodes()] == [("192.0.2.7",)]
    assert [p.priority for p in view.cluster_policies()] == [2]
    view.take([Deleted(node), Deleted(policy)])
    assert list(view.nodes()) == []
    assert list(view.cluster_policies()) == []
