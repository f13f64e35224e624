"""Facts, planner, reconciler and the CNI server's view of them, on a dataplane in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import pytest

from felix_py.agent.flows import Flows
from felix_py.agent.forgetting import Forgetting
from felix_py.agent.network import PodNetwork, concern_everybody
from felix_py.cni.network import NetworkError
from felix_py.dataplane.fake import FakeDataplane, FakeFlowTable
from felix_py.dataplane.protocols import Look
from felix_py.desired.marks import Marks
from felix_py.desired.names import SetNames, chain_name
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.failures import Failures
from felix_py.layout import ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS
from felix_py.metrics import Metrics
from felix_py.pending import Pending
from felix_py.reconcile import NotApplied, Reconciler
from felix_py.records import Drift, Failure, Lease, NextHop, NodeRecord, Report, Route
from felix_py.refs import ChainRef, RouteRef, SysctlRef
from policy.model import (
    Direction,
    Family,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyRule,
    Selector,
)
from policy.names import policy_chain
from tests.support.builders import labelled
from tests.support.told import ToldFacts
from tests.support.waiting import until

V4 = Family.V4
NAMES = SetNames.of(V4)
DENY = NetworkPolicy("shop", "deny", Selector(), ingress=(), egress=())


def lease(container: str = "c1", address: str = "10.1.0.2", created: float = 1.0) -> Lease:
    return Lease(container, "eth0", "felix-py", "shop", "web", "u1", f"felix{container}", {V4: address}, created)


class Rig:
    """Everything between the CNI server and the kernel, with the kernel in memory."""

    def __init__(
        self,
        kernel: FakeDataplane | None = None,
        refresh: float = 3600,
        on_drift: Sequence[Callable[[Sequence[Drift]], None]] = (),
        on_applied: Sequence[Callable[[Failures], None]] = (),
    ) -> None:
        self.kernel = kernel or FakeDataplane()
        self.kernel.load()
        self.metrics = Metrics()
        self.pending = Pending()
        self.facts = ToldFacts("n1", (V4,), changed=self.pending.note)
        planner = Planner((V4,), StaticOptions(Marks.from_mask(0xFFFF0000)), {})
        self.reconciler = Reconciler(
            self.pending,
            planner,
            self.kernel,
            self.facts.collect,
            self.metrics,
            refresh_interval=refresh,
            everybodys=partial(concern_everybody, self.facts),
            is_leaving=self.facts.is_leaving,
            on_drift=on_drift,
            on_applied=on_applied,
        )
        self.connections = FakeFlowTable()
        self.flows = Flows(self.connections, self.connections, self.metrics)
        self.network = PodNetwork(self.facts, self.reconciler, lambda: 1500, Forgetting(self.flows, rest=0))
        self.facts.show_pods(self.network)
        self.facts.upsert(NodeRecord("n1", "", ("192.0.2.1",), ("10.1.0.0/24",)))
        self.facts.upsert(NodeRecord("n2", "", ("192.0.2.2",), ("10.1.1.0/24",)))

    async def __aenter__(self) -> Rig:
        self.task = asyncio.create_task(self.reconciler.run())
        await self.reconciler.settled()
        self.network.set_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.flows.close()

    def restores(self) -> float:
        value = self.metrics.registry.get_sample_value("felix_py_iptables_restores_total")
        assert value is not None
        return value


async def test_the_nodes_own_cidr_is_a_blackhole_and_pods_are_not_masqueraded_to_pods_and_nodes() -> None:
    async with Rig() as rig:
        assert RouteRef("10.1.0.0/24", ROUTE_PROTOCOL_PODS) in rig.kernel.routes
        assert set(rig.kernel.members(NAMES.pool)) == {"10.1.0.0/24", "10.1.1.0/24"}
        no_masquerade = {"10.1.0.0/24", "10.1.1.0/24", "192.0.2.1/32", "192.0.2.2/32"}
        assert set(rig.kernel.members(NAMES.no_masquerade)) == no_masquerade
        rig.facts.delete(NodeRecord("n2"))
        await rig.reconciler.settled()
        assert set(rig.kernel.members(NAMES.pool)) == {"10.1.0.0/24"}


async def test_enforce_returns_with_route_binding_and_class_in_the_kernel() -> None:
    async with Rig() as rig:
        rig.facts.upsert(DENY)
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        await rig.network.enforce(lease())
        assert rig.kernel.routes[RouteRef("10.1.0.2/32", ROUTE_PROTOCOL_PODS)].next_hops == (
            NextHop(interface="felixc1"),
        )
        assert "10.1.0.2,felixc1" in rig.kernel.members(NAMES.source)
        assert rig.kernel.members(NAMES.ingress)["10.1.0.2"] == 1 << 24
        assert rig.kernel.members(NAMES.egress)["10.1.0.2"] == 1 << 17
        assert await rig.network.problems(lease()) == []
        await rig.network.release(lease())
        assert not rig.kernel.members(NAMES.source)
        assert not rig.kernel.members(NAMES.ingress)
        assert RouteRef("10.1.0.2/32", ROUTE_PROTOCOL_PODS) not in rig.kernel.routes
        assert not [key for key in rig.kernel.chains if key.name.startswith(("FELIX-C", "FELIX-P"))] or (
            [key.name for key in rig.kernel.chains if key.name.startswith("FELIX-C")] == ["FELIX-CLASSIFY"]
        )


async def test_a_release_does_not_wait_for_conntrack_but_the_addresss_next_holder_does() -> None:
    async with Rig() as rig:
        await rig.network.enforce(lease())
        looking, answer = threading.Event(), threading.Event()
        forget = rig.connections.forget

        def slowly(addresses: Collection[str]) -> int:
            looking.set()
            assert answer.wait(5)
            return forget(addresses)

        rig.connections.forget = slowly  # type: ignore[method-assign]
        await rig.network.release(lease())
        await asyncio.to_thread(looking.wait)
        await rig.network.enforce(lease("c3", "10.1.0.3", created=2.0))
        next_holder = asyncio.create_task(rig.network.enforce(lease("c2", created=3.0)))
        end = asyncio.create_task(rig.network.close())
        while "10.1.0.2,felixc2" not in rig.kernel.members(NAMES.source):
            await rig.reconciler.settled()
        rig.facts.upsert(DENY)
        await rig.reconciler.settled()  # another round, and whoever waited for the kernel only is through
        assert not next_holder.done()
        assert not end.done()
        answer.set()
        await asyncio.gather(next_holder, end)


async def test_old_rules_go_although_somebody_elses_route_is_in_the_way() -> None:
    async with Rig(FakeDataplane(failing={RouteRef("10.9.0.0/24", 89): "a route that is not ours"})) as rig:
        rig.facts.learned({"10.9.0.0/24": ("192.0.2.9",)})
        rig.facts.upsert(DENY)
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        await rig.network.enforce(lease())
        rig.facts.delete(DENY)
        with pytest.raises(NotApplied):
            await rig.reconciler.settled()
        assert not [key for key in rig.kernel.chains if key.name.startswith(("FELIX-CI-", "FELIX-PI-"))]
        assert [str(failure.ref) for failure in rig.reconciler.failures] == ["route 10.9.0.0/24"]


async def test_the_newest_sandbox_of_a_pod_is_its_endpoint_and_the_olds_release_does_not_disturb_it() -> None:
    async with Rig() as rig:
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        old, new = lease(), lease("c2", "10.1.0.3", 2.0)
        await rig.network.enforce(old)
        await rig.network.enforce(new)
        assert set(rig.kernel.members(NAMES.source)) == {"10.1.0.3,felixc2"}
        assert await rig.network.problems(old) != []
        await rig.network.release(old)
        assert set(rig.kernel.members(NAMES.source)) == {"10.1.0.3,felixc2"}
        await rig.network.release(new)
        assert not rig.kernel.members(NAMES.source)


async def test_a_pod_has_departed_when_its_object_is_gone_or_it_has_a_newer_interface() -> None:
    async with Rig() as rig:
        network, pod = rig.network, Pod("shop", "web", "u1", "n1")
        lost = lease("c0", "10.1.0.9", 0.5)
        rig.facts.upsert(pod)
        assert not network.departed(lost)  # its DEL may come yet
        await network.enforce(lease())
        assert network.departed(lost)
        assert not network.departed(lease())
        rig.facts.delete(pod)
        assert network.departed(lease())
        waiting = PodNetwork(rig.facts, rig.reconciler, lambda: 1500, Forgetting(rig.flows, rest=0))
        assert not waiting.departed(lost)  # not in sync: nothing is known


async def test_an_address_that_passes_from_one_pod_to_another_stays_with_the_new_one() -> None:
    async with Rig() as rig:
        await rig.network.enforce(lease())
        other = Lease("c9", "eth0", "felix-py", "shop", "api", "u9", "felixc9", {V4: "10.1.0.2"}, 2.0)
        rig.facts.detach(lease())
        await rig.network.enforce(other)
        assert set(rig.kernel.members(NAMES.source)) == {"10.1.0.2,felixc9"}
        key = RouteRef("10.1.0.2/32", ROUTE_PROTOCOL_PODS)
        assert rig.kernel.routes[key].next_hops == (NextHop(interface="felixc9"),)


async def test_a_refused_route_fails_its_own_endpoint_and_no_other() -> None:
    kernel = FakeDataplane(failing={RouteRef("10.1.0.2/32", 88): "Network is down"})
    async with Rig(kernel) as rig:
        with pytest.raises(NetworkError, match="Network is down"):
            await rig.network.enforce(lease())
        other = Lease("c9", "eth0", "felix-py", "shop", "api", "u9", "felixc9", {V4: "10.1.0.9"}, 2.0)
        await rig.network.enforce(other)
        assert "route 10.1.0.2/32" in [str(failure.ref) for failure in rig.reconciler.failures]
        kernel.failing.clear()
        rig.pending.note()
        await rig.reconciler.settled()
        assert RouteRef("10.1.0.2/32", ROUTE_PROTOCOL_PODS) in rig.kernel.routes


async def test_a_pod_that_joins_a_class_causes_no_restore() -> None:
    async with Rig() as rig:
        rig.facts.upsert(DENY)
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        rig.facts.upsert(Pod("shop", "api", "u9", "n1"))
        await rig.network.enforce(lease())
        before = rig.restores()
        await rig.network.enforce(
            Lease("c9", "eth0", "felix-py", "shop", "api", "u9", "felixc9", {V4: "10.1.0.9"}, 2.0)
        )
        assert rig.restores() == before
        assert rig.kernel.members(NAMES.ingress)["10.1.0.9"] == rig.kernel.members(NAMES.ingress)["10.1.0.2"]


async def test_waiting_for_a_pod_ends_with_that_very_pod() -> None:
    async with Rig() as rig:
        first = asyncio.create_task(rig.network.wait_for_pod("shop", "web", "u2"))
        second = asyncio.create_task(rig.network.wait_for_pod("shop", "web", ""))
        hasty = asyncio.create_task(asyncio.wait_for(rig.network.wait_for_pod("shop", "web", "u2"), 0.01))
        with pytest.raises(TimeoutError):
            await hasty
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        await second
        assert not first.done()
        rig.facts.upsert(Pod("shop", "web", "u2", "n1"))
        await first
        rig.facts.delete(Pod("shop", "web", "u2"))
        gone = asyncio.create_task(rig.network.wait_for_pod("shop", "web", ""))
        assert await asyncio.wait((gone,), timeout=0.01) == (set(), {gone})
        gone.cancel()


async def test_a_lease_whose_pod_is_another_one_of_its_name_has_no_pod_here() -> None:
    async with Rig() as rig:
        held = lease()
        assert rig.network.departed(held)
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        assert not rig.network.departed(held)
        # Made anew here; the runtime may have forgotten the old sandbox.
        rig.facts.upsert(Pod("shop", "web", "u2", "n1"))
        assert rig.network.departed(held)
        # Made anew elsewhere: of the one that was here nobody may be told as if it were there.
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        rig.facts.upsert(Pod("shop", "web", "u3", "n2"))
        assert rig.network.departed(held)
        waiting = asyncio.create_task(rig.network.wait_for_pod("shop", "web", "u1"))
        assert await asyncio.wait((waiting,), timeout=0.01) == (set(), {waiting})
        waiting.cancel()


async def test_what_an_add_waits_for_is_said() -> None:
    async with Rig() as rig:
        assert "is it this agent's API server" in rig.network.why_unknown("shop", "web", "u1")
        rig.facts.upsert(Pod("shop", "web", "u1", "n2"))
        assert "on node n2, not on this one" in rig.network.why_unknown("shop", "web", "u1")
        here = Pod("shop", "web", "u1", "n1")
        rig.facts.upsert(here)
        assert "with uid u2, but with u1" in rig.network.why_unknown("shop", "web", "u2")


async def test_learned_routes_come_and_go() -> None:
    async with Rig() as rig:
        key = RouteRef("10.1.1.0/24", ROUTE_PROTOCOL_LEARNED)
        rig.facts.learned({"10.1.1.0/24": ("192.0.2.3", "192.0.2.2")})
        await rig.reconciler.settled()
        assert [hop.gateway for hop in rig.kernel.routes[key].next_hops] == ["192.0.2.2", "192.0.2.3"]
        rig.facts.learned({"10.1.1.0/24": ()})
        await rig.reconciler.settled()
        assert key not in rig.kernel.routes


async def test_clean_means_read_written_and_swept_and_learned_routes_may_wait() -> None:
    learned, stale = RouteRef("10.1.7.0/24", ROUTE_PROTOCOL_LEARNED), RouteRef("10.1.0.9/32", ROUTE_PROTOCOL_PODS)
    stray = ChainRef(V4, "filter", "FELIX-PI-old")

    kernel = FakeDataplane()
    async with Rig(kernel) as rig:
        for key in (learned, stale):
            kernel.kernel[key] = Route(key, next_hops=(NextHop(interface="eth0"),))
        kernel.kernel[stray] = ()
        kernel.unreadable = "dump interrupted"
        rig.reconciler.sweep(keep_learned=True)
        clean = asyncio.create_task(rig.reconciler.clean())
        await until(lambda: len(kernel.looks) > 4)
        assert not clean.done(), "what is there was never seen"
        rig.network._ready = False
        assert rig.network.unready() == "the kernel cannot be read: dump interrupted"
        kernel.unreadable = ""
        kernel.failing = {stray: "a rule still uses it"}
        await until(lambda: rig.reconciler.failures)
        for _ in range(3):
            await rig.reconciler.settled(lambda: ())
        assert not clean.done()
        assert rig.network.unready() == f"policy is not in force yet: {stray}: a rule still uses it"
        kernel.failing = {}
        await clean
        assert stray not in kernel.kernel
        assert set(kernel.routes) & {stale, learned} == {learned}
        rig.reconciler.sweep()
        await until(lambda: learned not in kernel.routes)


async def test_a_policy_that_cannot_be_written_keeps_no_other_pod_from_a_node_that_restarts() -> None:
    """What is stale goes all the same, and the pods that do not stand on it start; readyz goes on telling."""
    isolating = NetworkPolicy("shop", "odd", Selector(), ingress=(PolicyRule(),))
    stray = ChainRef(V4, "filter", "FELIX-PI-old")

    kernel = FakeDataplane()
    async with Rig(kernel) as rig:
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        rig.facts.upsert(isolating)
        rig.facts.attach(lease())
        chain = chain_name(policy_chain(Direction.INGRESS, isolating.ref))
        kernel.failing = {ChainRef(V4, "filter", chain): "no such match"}
        kernel.kernel[stray] = ()
        rig.reconciler.sweep(keep_learned=True)
        await asyncio.wait_for(rig.reconciler.clean(), 20)
        assert stray not in kernel.kernel
        assert rig.reconciler.unenforced is not None
        with pytest.raises(NetworkError, match="no such match"):
            await rig.network.enforce(lease())
        rig.facts.upsert(Pod("dev", "tool", "u2", "n1"))
        other = Lease("c2", "eth0", "felix-py", "dev", "tool", "u2", "felixc2", {V4: "10.1.0.3"}, 2.0)
        await rig.network.enforce(other)


async def test_a_sweep_that_is_asked_for_while_an_apply_runs_waits_for_the_plan_that_knows_the_news() -> None:
    """BGP is in sync, and told of a route with its last words: the apply under way has not heard of it."""
    learned = RouteRef("10.1.7.0/24", ROUTE_PROTOCOL_LEARNED)

    class Busy(FakeDataplane):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.deleted: list[RouteRef] = []
            self.meanwhile: Callable[[], object] = lambda: None

        def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Any:
            before = set(self.routes)
            report = super().apply(sweep=sweep, keep_learned=keep_learned)
            self.deleted += before - set(self.routes)
            self.meanwhile()
            return report

    kernel = Busy()
    kernel.kernel[learned] = Route(learned, next_hops=(NextHop(gateway="192.0.2.2"),))
    async with Rig(kernel) as rig:
        rig.reconciler.sweep(keep_learned=True)
        await rig.reconciler.clean()
        loop = asyncio.get_running_loop()

        async def in_sync() -> None:
            rig.facts.learned({"10.1.7.0/24": ("192.0.2.2",)})
            rig.reconciler.sweep()

        def meanwhile() -> None:
            kernel.meanwhile = lambda: None
            asyncio.run_coroutine_threadsafe(in_sync(), loop).result()

        kernel.meanwhile = meanwhile
        rig.facts.delete(NodeRecord("n2"))  # any news that has a second step
        rig.facts.upsert(DENY)
        rig.facts.delete(DENY)
        await rig.reconciler.settled()
        await rig.reconciler.settled()
        assert kernel.deleted == []
        stray = RouteRef("10.1.8.0/24", ROUTE_PROTOCOL_LEARNED)
        kernel.kernel[stray] = Route(stray, next_hops=(NextHop(gateway="192.0.2.2"),))
        rig.pending.look(Look.ROUTES)
        await until(lambda: kernel.deleted == [stray])


async def test_drift_is_repaired_at_the_refresh_and_strays_go_only_after_the_sweep_is_allowed() -> None:
    kernel = FakeDataplane()
    async with Rig(kernel) as rig:
        stray = RouteRef("10.1.7.0/24", ROUTE_PROTOCOL_LEARNED)
        rig.facts.learned({"10.1.7.0/24": ("192.0.2.2",)})
        await rig.reconciler.settled()
    kernel = FakeDataplane(kernel.kernel)  # another process, the same kernel
    async with Rig(kernel, refresh=0.02) as rig:
        blackhole = RouteRef("10.1.0.0/24", ROUTE_PROTOCOL_PODS)
        for item in [item for item in kernel.kernel if item == blackhole]:
            del kernel.kernel[item]
        await until(lambda: blackhole in kernel.routes)
        assert stray in kernel.routes
        rig.reconciler.sweep()
        await rig.reconciler.settled()
        assert stray not in kernel.routes


async def test_a_dataplane_that_raises_does_not_end_the_reconciler() -> None:
    class Broken(FakeDataplane):
        broken = False

        def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Any:
            if self.broken:
                raise OSError("no buffer space")
            return super().apply(sweep=sweep, keep_learned=keep_learned)

    kernel = Broken()
    async with Rig(kernel) as rig:
        kernel.broken = True
        with pytest.raises(NetworkError, match="no buffer space"):
            await rig.network.enforce(lease())
        kernel.broken = False
        await rig.network.enforce(lease())
        assert "10.1.0.2,felixc1" in rig.kernel.members(NAMES.source)


async def test_before_the_first_sync_nothing_is_written_for_a_release() -> None:
    rig = Rig()
    rig.facts.attach(lease())
    await rig.network.release(lease())
    assert rig.kernel.kernel == {}
    assert rig.network.unready() is not None


async def test_who_waits_for_the_agent_is_told_when_nothing_hinders_it() -> None:
    rig = Rig()
    rig.network.hinder("rules of ours are in force elsewhere, too")
    waiting = asyncio.create_task(rig.network.ready())
    async with rig:
        await asyncio.sleep(0)
        assert not waiting.done()
        rig.network.hinder("")
        await asyncio.wait_for(waiting, 30)
        rig.network.hinder("rules of ours are in force elsewhere, too")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rig.network.ready(), 0)


async def test_a_set_that_comes_back_before_it_went_keeps_no_member_of_its_first_life() -> None:
    kernel = FakeDataplane()
    async with Rig(kernel) as rig:
        from_api = PolicyRule((PodPeer(None, labelled(app="api")),))
        allow = NetworkPolicy("shop", "deny", Selector(), ingress=(from_api,))
        rig.facts.upsert(allow)
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        rig.facts.upsert(Pod("shop", "api", "u2", "n2", (("app", "api"),), ("10.1.1.1",)))
        await rig.network.enforce(lease())
        (name,) = [name for name in kernel.sets if "10.1.1.1" in kernel.members(name)]
        kernel.failing[RouteRef("10.1.9.0/24", 89)] = "keeps the removal from being confirmed"
        rig.facts.learned({"10.1.9.0/24": ("192.0.2.2",)})
        rig.facts.upsert(DENY)
        with pytest.raises(NotApplied):
            await rig.reconciler.settled()
        rig.facts.delete(Pod("shop", "api"))
        rig.facts.upsert(allow)
        kernel.failing.clear()
        await rig.reconciler.settled()
        assert name in kernel.sets
        assert kernel.members(name) == {}


async def test_a_failure_of_a_neighbour_with_a_longer_address_is_not_ones_own() -> None:
    kernel = FakeDataplane(failing={RouteRef("10.1.0.20/32", 88): "no"})
    async with Rig(kernel) as rig:
        neighbour = Lease("c9", "eth0", "f", "shop", "api", "u9", "felixc9", {V4: "10.1.0.20"}, 2.0)
        with pytest.raises(NetworkError):
            await rig.network.enforce(neighbour)
        await rig.network.enforce(lease())


async def test_check_names_what_somebody_took_from_the_endpoint_and_it_comes_back() -> None:
    kernel = FakeDataplane()
    async with Rig(kernel) as rig:
        await rig.network.enforce(lease())
        route = RouteRef("10.1.0.2/32", ROUTE_PROTOCOL_PODS)
        for item in [item for item in kernel.kernel if item == route]:
            del kernel.kernel[item]
        assert await rig.network.problems(lease()) == ["route 10.1.0.2/32 is not in the kernel"]
        await rig.reconciler.settled()
        assert await rig.network.problems(lease()) == []


async def test_a_setting_of_a_pods_own_interface_that_cannot_be_kept_fails_that_pod_and_no_other() -> None:
    refused = Failure(SysctlRef("ipv4/conf/felixc1/rp_filter"), "Read-only file system")

    class ReadOnly(FakeDataplane):
        def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
            return super().apply(sweep=sweep, keep_learned=keep_learned) + Report(failures=(refused,))

    rig = Rig(ReadOnly())
    task = asyncio.create_task(rig.reconciler.run())
    with pytest.raises(NetworkError, match="Read-only file system"):
        await rig.network.enforce(lease())
    await rig.network.enforce(
        Lease("c9", "eth0", "felix-py", "shop", "api", "u9", "felixc9", {V4: "10.1.0.9"}, 2.0)
    )
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.flows.close()
