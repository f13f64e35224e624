"""An explanation says what the oracle says, and each of its reasons holds."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.model import Direction, RuleAction, Tier
from policy.oracle.evaluate import verdict
from policy.oracle.explain import End, explain
from tests.support.clusters import NODE, Cluster, clusters, packets
from tests.support.thorough import examples

PACKETS = packets()


@settings(max_examples=examples(200), deadline=None)
@given(cluster=clusters(), seed=st.integers(0, 2**32))
def test_an_explanation_is_the_oracle_s_verdict_with_reasons(cluster: Cluster, seed: int) -> None:
    view = cluster.snapshot()
    for packet in random.Random(seed).sample(PACKETS, 60):
        truth = verdict(view, packet, frozenset(NODE))
        found = explain(view, packet, frozenset(NODE))
        assert found.allowed is truth.allowed
        assert (found.egress.verdict, found.ingress.verdict) == (truth.egress, truth.ingress)
        for end in (found.egress, found.ingress):
            check(end)


def check(end: End) -> None:
    assert (end.verdict is None) is (end.free is not None)
    if end.verdict is None:
        assert end.asked == ()
        return
    said = end.verdict
    asked = [one.policy for one in end.asked]
    # In order of evaluation, with nothing left out but what a Pass has skipped; and nothing behind the decision.
    assert [ref for ref in said.selected_by if ref in asked] == asked
    assert set(asked) | set(end.not_asked) == set(said.selected_by)
    if said.decided_by:
        assert asked[-1] == said.decided_by.policy
        assert len(end.asked[-1].tried) == said.decided_by.index
    elif said.tier is Tier.NETWORK:
        assert not said.allowed
        assert all(one.tier is not Tier.BASELINE for one in end.asked)
    elif not said.passed_by:
        assert end.not_asked == ()
    assert {rule.policy for rule in said.passed_by} <= set(asked)
    for one in end.asked:
        assert [tried.rule.index for tried in one.tried] == list(range(len(one.tried)))
        for tried in one.tried:
            assert tried.reason
            assert tried.rule.policy == one.policy
            assert one.tier is not Tier.NETWORK or tried.action is RuleAction.ACCEPT
    assert end.direction in Direction
