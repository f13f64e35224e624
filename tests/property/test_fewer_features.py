"""Without some of the matches, the simulated node lets nothing through that the full rules deny."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.desired.features import Feature
from felix_py.ruleset.run import Outcome, Path, Transit, simulate
from policy.model import Family, Packet
from tests.support.clusters import NODE, Cluster, clusters, packets
from tests.support.simulated import OPTIONS, UPLINK, Judge, as_ruleset, as_sets, planned
from tests.support.thorough import examples

PACKETS = packets()


@settings(max_examples=examples(100), deadline=None)
@given(
    cluster=clusters(),
    missing=st.sets(st.sampled_from(Feature), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_nothing_passes_that_the_full_rules_deny(cluster: Cluster, missing: set[Feature], seed: int) -> None:
    full, fewer = (judge(cluster, features) for features in ((), tuple(sorted(missing))))
    concerned = full.concerned(PACKETS)
    for packet in random.Random(seed).sample(concerned, min(len(concerned), 40)):
        found = fewer.simulated(packet)
        assert not found.doubts
        if full.simulated(packet).outcome is Outcome.DROP:
            assert found.outcome is Outcome.DROP, (packet, missing)
        elif Feature.ADDRTYPE not in missing or packet.source not in NODE:
            # And what it costs is what the notice says: nothing else between pods, nodes and the world.
            assert found.outcome is Outcome.ACCEPT, (packet, missing)
        for odd in astray(packet):
            outcomes = [
                simulate(one.rules[odd.family], one.sets, odd, Path.FORWARD).outcome for one in (full, fewer)
            ]
            assert Outcome.ACCEPT not in outcomes[1:] or outcomes[0] is Outcome.ACCEPT, (odd, missing)


def judge(cluster: Cluster, missing: tuple[Feature, ...]) -> Judge:
    planner = planned(cluster, replace(OPTIONS, missing=missing))
    update = planner.take()
    update.merge(planner.confirm())
    return Judge(cluster, {family: as_ruleset(update, family) for family in Family}, as_sets(update))


def astray(packet: Packet) -> Iterator[Transit]:
    """The same by interfaces that it does not belong to, in every state of a connection."""
    for state in ("NEW", "ESTABLISHED", "RELATED", "INVALID"):
        yield Transit(packet, UPLINK, "felix0123456789", state)
        yield Transit(packet, "felix0123456789", UPLINK, state)
        yield Transit(packet, "renamed0", UPLINK, state)
