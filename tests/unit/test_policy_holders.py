"""Whose an address is where several claim it: a function of the state, and the same to engine and oracle."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from felix_py.observe.disputes import told
from policy.holders import Holders, claimed
from policy.model import Direction, Family, LocalEndpoint, NetworkPolicy, Pod, PodPeer, PolicyRule, Selector
from policy.oracle.evaluate import Snapshot
from tests.support.told import ToldEngine

X = ("10.0.0.1",)
OLD = Pod("a", "old", "o", "n1", addresses=X, since="2026-01-01T00:00:00Z", deleted=True)
NEW = Pod("b", "new", "n", "n2", addresses=X, since="2026-01-02T00:00:00Z")


def owner(*pods: Pod, leases: tuple[LocalEndpoint, ...] = ()) -> Pod | None:
    """By the holders, in every order, and by the oracle."""
    endpoints = {endpoint.key: endpoint for endpoint in leases}
    events: list[Pod | LocalEndpoint] = [*pods, *leases]
    found = set()
    for seed in range(20):
        holders = Holders()
        for event in random.Random(seed).sample(events, len(events)):
            if isinstance(event, Pod):
                holders.claim(event.key, (), claimed(event, endpoints.get(event.key)), event)
            else:
                holders.lease(event.key, None, event)
        found.add(holders.pod(X[0]))
    (decided,) = found
    assert Snapshot([], pods, [], [], leases).pod_at(X[0]) == decided
    return decided


@pytest.mark.parametrize("pods", [(OLD,), (NEW,)])
def test_a_single_claim_is_good(pods: tuple[Pod, ...]) -> None:
    assert owner(*pods) == pods[0]


def test_the_newest_claim_counts() -> None:
    assert owner(OLD, NEW) == NEW
    assert owner(OLD, replace(OLD, name="older", since="2025-12-31T23:59:59Z"), NEW) == NEW


def test_what_has_ended_or_is_on_the_host_network_claims_nothing() -> None:
    assert owner(OLD, replace(NEW, active=False)) == OLD
    assert owner(OLD, replace(NEW, host_network=True)) == OLD


def test_within_a_second_the_one_that_stays_counts() -> None:
    assert owner(replace(OLD, since=NEW.since, uid="z"), NEW) == NEW
    twin = replace(NEW, name="twin", uid="z")
    assert owner(NEW, twin) == twin  # whichever, but always the same


def test_what_is_leased_here_is_the_lease_s() -> None:
    lease = LocalEndpoint("a", "old", X, "o")
    assert owner(OLD, NEW, leases=(lease,)) == OLD
    # Its pod is unknown, has ended, or is a later one of that name: nobody's.
    assert owner(NEW, leases=(lease,)) is None
    assert owner(replace(OLD, active=False), NEW, leases=(lease,)) is None
    assert owner(replace(OLD, uid="another"), NEW, leases=(lease,)) is None
    assert owner(replace(OLD, addresses=("10.0.0.9",)), NEW, leases=(lease,)) is not None
    assert owner(OLD, NEW, leases=(LocalEndpoint("a", "old", X),)) == OLD  # a runtime that tells no uid


def test_a_lease_takes_the_place_of_what_the_api_server_says() -> None:
    lease = LocalEndpoint("a", "old", ("10.0.0.2",), "o")
    assert owner(OLD, leases=(lease,)) is None


def test_disputes_are_told_while_they_last() -> None:
    holders = Holders()
    assert told(holders) == {}
    holders.claim(OLD.key, (), X, OLD)
    before = holders.revision
    holders.claim(NEW.key, (), X, NEW)
    assert holders.revision != before
    (text,) = told(holders).values()
    assert text.startswith("10.0.0.1 is taken for pod b/new on n2, whose claim is the newest; a/old on n1 (being")
    before = holders.revision
    holders.claim(OLD.key, X, (), None)
    assert holders.revision != before
    assert told(holders) == {}


def test_an_address_goes_over_in_one_change() -> None:
    """A set that means both pods keeps the address throughout; one that means the older loses it at once."""
    engine = ToldEngine((Family.V4,))
    engine.upsert(Pod("a", "me", "m"))
    engine.lease(LocalEndpoint("a", "me", ("10.0.0.7",), "m"))
    own = PolicyRule((PodPeer(None, Selector()),))
    engine.upsert(NetworkPolicy("a", "p", Selector(), ingress=(own,)))
    engine.upsert(OLD)
    engine.flush()
    assert engine.endpoint_policies(("a", "me"), Direction.INGRESS)
    (members,) = engine.program(Family.V4).members.values()
    assert members == {"10.0.0.1", "10.0.0.7"}
    engine.upsert(NEW)
    (delta,) = engine.flush()
    assert [dict(changed) for changed in delta.members.values()] == [{"10.0.0.1": False}]
    engine.told.remove(Pod, NEW.key)
    engine.flush()
    twin = replace(NEW, namespace="a")
    engine.upsert(twin)
    assert engine.flush() == []
