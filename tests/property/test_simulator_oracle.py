"""Planned rules, written as text, decoded and run by the simulator: the oracle's verdict, packet for packet."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.model import Family
from tests.support.clusters import Cluster, clusters, packets
from tests.support.simulated import Judge, as_ruleset, as_sets, planned
from tests.support.thorough import examples

PACKETS = packets()


@settings(max_examples=examples(150), deadline=None)
@given(cluster=clusters(), seed=st.integers(0, 2**32))
def test_the_simulated_node_does_what_the_oracle_says(cluster: Cluster, seed: int) -> None:
    planner = planned(cluster)
    update = planner.take()
    update.merge(planner.confirm())
    judge = Judge(cluster, {family: as_ruleset(update, family) for family in Family}, as_sets(update))
    packets = judge.concerned(PACKETS)
    for packet in random.Random(seed).sample(packets, min(len(packets), 60)):
        found = judge.simulated(packet)
        assert found.outcome is judge.expected(packet), (packet, [str(step) for step in found.trace])
        assert not found.doubts
