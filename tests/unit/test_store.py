"""The tables: differences out of lists and changes, and who is told of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from felix_py.datastore.decode import Gone, Unusable
from felix_py.datastore.kinds import ADMIN_POLICIES, CLUSTER_POLICIES, CLUSTER_POLICY_KINDS
from felix_py.datastore.store import Mark, Problem, Record, Store
from policy.change import Change
from policy.model import (
    ClusterPolicy,
    Namespace,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyKind,
    Selector,
    Tier,
)

A, B = Pod("ns", "a"), Pod("ns", "b")
A2 = Pod("ns", "a", addresses=("10.0.0.1",))


class Seen:
    """A store and all that it told."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.batches: list[list[Change[Record]]] = []
        self.store = Store(self.problems.append)
        self.store.subscribe(lambda events: self.batches.append(list(events)))

    def pods(self, *items: Pod | Gone | Unusable | Mark) -> list[Change[Record]]:
        """Apply to the pods; what was published."""
        self.batches.clear()
        self.store.pods.apply(items)
        return [event for batch in self.batches for event in batch]


def listed(*items: Pod | Unusable) -> Sequence[Pod | Unusable | Mark]:
    return (Mark.LIST_BEGIN, *items, Mark.LIST_END)


async def test_changes() -> None:
    seen = Seen()
    assert seen.pods(A) == [Change(None, A)]
    assert seen.pods(A) == [], "the same again is no change"
    assert seen.pods(A2) == [Change(A, A2)]
    assert seen.pods(Gone(("ns", "a"))) == [Change(A2, None)]
    assert seen.pods(Gone(("ns", "a"))) == []
    assert not seen.store.pods.records


async def test_a_list_publishes_the_differences_only() -> None:
    seen = Seen()
    seen.pods(*listed(A, B))
    assert seen.pods(*listed(A, B)) == []
    assert seen.pods(*listed(A2)) == [Change(A, A2), Change(B, None)]
    assert seen.pods(*listed()) == [Change(A2, None)]


async def test_a_list_in_parts_with_changes_in_between() -> None:
    seen = Seen()
    seen.pods(*listed(A, B))
    assert seen.pods(Mark.LIST_BEGIN) == []
    assert seen.pods(A) == []
    assert seen.pods(Gone(("ns", "a"))) == [Change(A, None)]
    assert seen.pods(Mark.LIST_END) == [Change(B, None)]


async def test_a_list_that_begins_again_forgets_what_the_first_try_named() -> None:
    seen = Seen()
    seen.pods(*listed(A, B))
    seen.pods(Mark.LIST_BEGIN, A)
    assert seen.pods(*listed(B)) == [Change(A, None)]


async def test_a_batch_is_published_as_one_and_after_the_store_has_it() -> None:
    seen = Seen()
    during: list[set[str]] = []
    seen.store.subscribe(lambda _events: during.append({name for _, name in seen.store.pods.records}))
    seen.pods(A, B)
    assert len(seen.batches) == 1
    assert during == [{"a", "b"}]


async def test_unusable_object_is_absent_and_reported_once_a_reason() -> None:
    seen = Seen()
    seen.pods(A)
    bad = Unusable(("ns", "a"), "u", "why")
    assert seen.pods(bad) == [Change(A, None)]
    assert seen.pods(bad, *listed(bad)) == []
    assert seen.problems == [Problem("Pod", ("ns", "a"), "u", "why")]
    seen.pods(Unusable(("ns", "a"), "u", "other"))
    assert [p.reason for p in seen.problems] == ["why", "other"]
    assert seen.store.problems == [Problem("Pod", ("ns", "a"), "u", "other")]


@pytest.mark.parametrize("cure", [A, Gone(("ns", "a")), Mark.LIST_END])
async def test_problem_ends_when_the_object_is_well_or_gone(cure: Pod | Gone | Mark) -> None:
    seen = Seen()
    seen.pods(Unusable(("ns", "a"), "u", "why"), Mark.LIST_BEGIN, cure)
    assert seen.store.problems == []


async def test_policy_with_problems_is_kept_and_reported() -> None:
    seen = Seen()
    policy = NetworkPolicy("ns", "p", Selector(), ingress=(), uid="u", problems=("spec.x: bad", "spec.y: worse"))
    seen.store.policies.apply([policy, policy])
    assert seen.batches == [[Change(None, policy)]]
    assert seen.problems == [Problem("NetworkPolicy", ("ns", "p"), "u", "spec.x: bad; spec.y: worse")]
    seen.store.policies.apply([NetworkPolicy("ns", "p", Selector(), ingress=(), uid="u")])
    assert seen.store.problems == []


async def test_in_sync_needs_every_kind_and_comes_after_the_events() -> None:
    seen = Seen()
    store = seen.store
    seen.pods(*listed(A))
    kinds = ("AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "ClusterNetworkPolicy")
    assert store.not_listed == (*kinds, "Namespace", "NetworkPolicy", "Node")
    for kind in CLUSTER_POLICY_KINDS:
        store.cluster_policies(kind).apply([Mark.LIST_BEGIN, Mark.LIST_END])
    store.namespaces.apply([Mark.LIST_BEGIN, Mark.LIST_END])
    store.policies.apply([Mark.LIST_BEGIN, Mark.LIST_END])
    assert not store.in_sync.is_set()
    synced_during: list[bool] = []
    store.subscribe(lambda _events: synced_during.append(store.in_sync.is_set()))
    store.namespaces.apply([Namespace("n")])
    store.nodes.apply([Mark.LIST_BEGIN, Mark.LIST_END])
    assert store.in_sync.is_set()
    assert synced_during == [False, False], "what was there at subscription, then the namespace"
    store.nodes.apply([Mark.LIST_BEGIN])
    assert store.in_sync.is_set(), "a relist does not take it back"


async def test_cluster_policies_of_several_kinds_may_share_a_name() -> None:
    def named(kind: PolicyKind, *problems: str) -> ClusterPolicy:
        subject = PodPeer(Selector(), None)
        return ClusterPolicy(kind, "x", Tier.ADMIN, 1, subject, uid=f"uid-{kind}", problems=problems)

    seen = Seen()
    cluster, admin = named(PolicyKind.CLUSTER, "spec.a: bad"), named(PolicyKind.ADMIN, "spec.b: bad")
    seen.store.cluster_policies(CLUSTER_POLICIES).apply([cluster])
    seen.store.cluster_policies(ADMIN_POLICIES).apply([admin])
    assert [batch for batch in seen.batches if batch] == [[Change(None, cluster)], [Change(None, admin)]]
    problems = [
        Problem("ClusterNetworkPolicy", ("", "x"), cluster.uid, "spec.a: bad"),
        Problem("AdminNetworkPolicy", ("", "x"), admin.uid, "spec.b: bad"),
    ]
    assert seen.problems == problems
    assert seen.store.problems == problems
    seen.store.cluster_policies(ADMIN_POLICIES).apply([Gone(("", "x"))])
    assert seen.store.cluster_policies(CLUSTER_POLICIES).records == {("", "x"): cluster}
    assert seen.store.problems == problems[:1]
    late: list[Change[Record]] = []
    seen.store.subscribe(late.extend)
    assert late == [Change(None, cluster)]


async def test_late_subscriber_gets_what_is_there() -> None:
    seen = Seen()
    seen.pods(A, B)
    seen.store.namespaces.apply([Namespace("ns")])
    late: list[Change[Record]] = []
    seen.store.subscribe(late.extend)
    assert late == [Change(None, Namespace("ns")), Change(None, A), Change(None, B)]


async def test_handler_that_fails_harms_nobody_else() -> None:
    store = Store()

    def broken(_events: Sequence[Change[Record]]) -> None:
        raise RuntimeError("defect")

    got: list[Change[Record]] = []
    store.subscribe(broken)
    store.subscribe(got.extend)
    store.pods.apply([A])
    assert got == [Change(None, A)]
    assert store.pods.records == {("ns", "a"): A}


def test_who_listens_to_a_kind_hears_that_it_is_listed() -> None:
    table = Store().pods
    heard: list[bool] = []
    table.on_change(lambda: heard.append(table.listed.is_set()))
    table.apply([Mark.LIST_BEGIN])
    table.apply([Pod("a", "b"), Mark.LIST_END])
    assert heard == [False, True]
