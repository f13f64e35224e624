"""Rules and sets as a real kernel holds them, read back and simulated: the oracle's verdict."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from felix_py.dataplane.backend import save
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.live_sets import LiveSets
from felix_py.records import Backend
from felix_py.ruleset import legacy
from felix_py.ruleset.decode_save import decode
from felix_py.ruleset.run import Outcome
from policy.model import Family
from tests.support.clusters import Cluster, clusters, packets
from tests.support.isolate import new_netns, run
from tests.support.simulated import Judge, planned
from tests.support.thorough import examples

pytestmark = pytest.mark.root

PACKETS = packets()
_LIMIT = settings(
    max_examples=examples(12),
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_what_the_kernel_holds_does_what_the_oracle_says(backend: Backend) -> None:
    outcomes: set[Outcome] = set()

    @_LIMIT
    @given(cluster=clusters(), seed=st.integers(0, 2**32))
    def check(cluster: Cluster, seed: int) -> None:
        planner = planned(cluster)
        with Kernel(tuple(Family), backend) as kernel:
            kernel.load()
            update = planner.take()
            update.routes.clear()  # there are no interfaces here
            kernel.update(update)
            assert kernel.apply().failures == ()
            kernel.update(planner.confirm())
            assert kernel.apply(sweep=True).failures == ()
        saved = {family: decode(family, save(family, backend)) for family in Family}
        decoded = [saved]
        if backend is Backend.LEGACY and seed % 3 == 0:  # a process a time
            decoded.append({family: legacy.read(family) for family in Family})
        for rules in decoded:
            with LiveSets() as sets:
                judge = Judge(cluster, rules, sets)
                some = judge.concerned(PACKETS)
                for packet in random.Random(seed).sample(some, min(len(some), 60)):
                    found = judge.simulated(packet)
                    assert found.outcome is judge.expected(packet), (packet, [str(s) for s in found.trace])
                    outcomes.add(found.outcome)

    with new_netns():
        check()
    assert outcomes == {Outcome.ACCEPT, Outcome.DROP}


@pytest.mark.usefixtures("netns")
def test_sets_of_others_are_read_as_far_as_they_are_understood() -> None:
    for line in (
        "create nets hash:net",
        "add nets 10.0.0.0/8",
        "create holes hash:net",
        "add holes 10.0.0.0/8",
        "add holes 10.1.0.0/16 nomatch",
        "create pairs hash:ip,port family inet6",
        "add pairs fd00::1,udp:53",
        "create ways hash:net,iface",
        "add ways 10.0.0.0/8,eth0",
        "create list list:set",
        "create marks hash:ip skbinfo",
        "add marks 10.0.0.1 skbmark 0x10/0xf0",
    ):
        run("ipset", *line.split())
    with LiveSets() as sets:
        nets, holes, pairs, ways, marks, others = map(sets, ("nets", "holes", "pairs", "ways", "marks", "list"))
        assert nets is not None
        assert nets.get("10.0.0.0/8") == 0
        assert nets.get("10.0.0.0/9") is None
        assert nets.get("nonsense") is None
        assert pairs is not None
        assert pairs.get("fd00::1,udp:53") == 0
        assert ways is not None
        assert (ways.get("10.0.0.0/8,eth0"), ways.get("10.0.0.0/8,eth1")) == (0, None)
        assert marks is not None
        assert marks.get("10.0.0.1") == 0x10 << 32 | 0xF0
        assert holes is not None
        with pytest.raises(LookupError, match="nomatch"):
            holes.get("10.0.0.0/8")
        assert others is not None
        assert others.type == "list:set"
        assert sets("missing") is None
