"""Before the cluster is known: what the dataplane holds is kept, nothing is planned; then the plan decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from felix_py.agent.network import _memberships
from felix_py.dataplane.fake import FakeDataplane
from felix_py.dataplane.protocols import EVERYTHING, Look, RulesSnapshot
from felix_py.desired.classes import ClassNumbers
from felix_py.desired.planner import Planner
from felix_py.layout import ROUTE_PROTOCOL_PODS
from felix_py.records import NextHop, Route, Update
from felix_py.refs import ChainRef, RouteRef
from policy.ir import ChainId, ChainKind
from policy.model import Direction, Family, Pod
from tests.support.rules import rule_of
from tests.support.waiting import until
from tests.unit.test_agent_network import DENY, NAMES, Rig, lease

V4 = Family.V4
OLD = ChainRef(V4, "filter", "FELIX-CI-old")
BETWEEN = ChainRef(V4, "filter", "FELIX-CI-between")
GONE = RouteRef("10.1.0.9/32", ROUTE_PROTOCOL_PODS)


def held() -> FakeDataplane:
    """A kernel with what a last life has left: a pod, and things that nobody will ask for."""
    kernel = FakeDataplane()
    kernel.kernel[OLD] = (rule_of("-j", "DROP"),)
    kernel.kernel[GONE] = Route(GONE, next_hops=(NextHop(interface="felixgone"),))
    return kernel


async def test_what_is_held_is_kept_whatever_is_noted_and_the_plan_follows() -> None:
    kernel = held()
    told: list[object] = []
    rig = Rig(kernel, on_drift=[told.append], on_applied=[told.append])
    before = dict(kernel.kernel)
    kernel.hold(Update())
    rig.reconciler.hold()
    rig.facts.upsert(DENY)
    rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
    rig.facts.attach(lease())
    task = asyncio.create_task(rig.reconciler.run())
    del kernel.kernel[OLD]
    kernel.kernel[BETWEEN] = (rule_of("-j", "ACCEPT"),)
    rig.pending.look(EVERYTHING)
    await until(lambda: kernel.kernel == before)
    # A pod goes: what was held for it is not missed.
    rig.network.leaving(lease("gone", "10.1.0.9"))
    await until(lambda: GONE not in kernel.routes)
    assert kernel.kernel.keys() == {OLD}
    assert told == [], "nobody knows yet what that means for connections"

    rig.reconciler.begin()
    rig.reconciler.sweep(keep_learned=True)
    await rig.reconciler.clean()
    assert OLD not in kernel.kernel
    assert "10.1.0.2" in kernel.members(NAMES.ingress)
    assert told
    rig.reconciler.let_go(_memberships(lease()))
    await rig.reconciler.settled()
    assert "10.1.0.2" in kernel.members(NAMES.ingress), "later, the plan knows"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.flows.close()


async def test_a_look_under_way_when_the_cluster_becomes_known_removes_nothing() -> None:
    """The change from holding to planning must not fall between the order to write and the writing."""

    class Slow(FakeDataplane):
        begin: Callable[[], None] = staticmethod(lambda: None)

        def load(self, look: Look = EVERYTHING, rules: RulesSnapshot | None = None) -> None:
            self.begin()
            super().load(look, rules)

        def release(self) -> None:
            self.released = dict(self.kernel)
            super().release()

    kernel = Slow()
    kernel.kernel[OLD] = (rule_of("-j", "DROP"),)
    rig = Rig(kernel)
    kernel.hold(Update())
    rig.reconciler.hold()
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    def begin() -> None:
        kernel.begin = lambda: None
        asyncio.run_coroutine_threadsafe(begin_now(), loop).result()

    async def begin_now() -> None:
        rig.reconciler.begin()
        begun.set()

    kernel.begin = begin
    task = asyncio.create_task(rig.reconciler.run())
    rig.pending.look(Look.ROUTES)
    await begun.wait()
    await rig.reconciler.settled()
    assert kernel.released == {OLD: (rule_of("-j", "DROP"),)}
    assert OLD in kernel.kernel, "not before the sweep"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.flows.close()


async def test_what_is_held_is_released_though_the_first_plan_fails() -> None:
    kernel = held()
    rig = Rig(kernel)
    kernel.hold(Update())
    rig.reconciler.hold()
    collect, failing = rig.reconciler._collect, [True]

    def fail_once(planner: Planner) -> bool:
        if failing:
            failing.clear()
            raise ValueError("a defect of ours")
        return collect(planner)

    rig.reconciler._collect = fail_once
    task = asyncio.create_task(rig.reconciler.run())
    rig.reconciler.begin()
    rig.reconciler.sweep(keep_learned=True)
    await rig.reconciler.clean()
    assert not failing
    assert OLD not in kernel.kernel
    assert GONE not in kernel.routes
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.flows.close()


def ingress(digest: str) -> ChainId:
    return ChainId(ChainKind.CLASS, Direction.INGRESS, digest)


def test_a_number_that_the_kernel_still_maps_addresses_to_is_not_given_away() -> None:
    numbers = ClassNumbers({ingress("a"): 2}, {1, 2, 4})
    assert [numbers.claim(ingress(digest)) for digest in "abc"] == [2, 3, 5]
    numbers.free()
    assert numbers.claim(ingress("d")) == 1
