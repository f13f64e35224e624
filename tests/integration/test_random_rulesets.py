"""Whatever policies say, the kernel takes the rules that come of them: on both backends, from state to state."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from felix_py.dataplane.kernel import Kernel
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.records import Backend
from policy.model import Family
from tests.support.clusters import Cluster, clusters
from tests.support.isolate import new_netns
from tests.support.thorough import examples
from tests.support.told import ToldFacts

pytestmark = pytest.mark.root

_LIMIT = settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _facts(cluster: Cluster) -> ToldFacts:
    facts = ToldFacts("node")
    for namespace in cluster.namespaces.values():
        facts.upsert(namespace)
    for node in cluster.nodes.values():
        facts.upsert(node)
    for policy in cluster.policies.values():
        facts.upsert(policy)
    for pod in cluster.pods.values():
        facts.upsert(pod)
    for endpoint in cluster.endpoints.values():
        facts.engine.attach(endpoint, facts.pod(endpoint.key))
    return facts


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_the_kernel_takes_every_ruleset_and_says_the_same_back(backend: Backend) -> None:
    options = StaticOptions(Marks.from_mask(0xFFFF0000))

    @_LIMIT
    @given(cluster=clusters())
    def check(cluster: Cluster) -> None:
        # Each state follows whichever the kernel is in, as after a restart of the agent.
        planner = Planner(tuple(Family), options, {})
        _facts(cluster).collect(planner)
        with Kernel(tuple(Family), backend) as kernel:
            kernel.load()
            kernel.update(planner.take())
            assert kernel.apply().failures == ()
            kernel.update(planner.confirm())
            assert kernel.apply(sweep=True).failures == ()
            assert kernel.differences() == []
            assert kernel.apply(sweep=True).writes == 0

    with new_netns():
        check()
