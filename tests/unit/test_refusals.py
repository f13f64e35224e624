"""What the kernel refuses of a policy is told on the policy, once, and on nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from felix_py.agent.refusals import Refusals
from felix_py.dataplane.fake import FakeDataplane
from felix_py.desired.names import chain_name, names_of
from felix_py.failures import Failures
from felix_py.records import Failure
from felix_py.refs import ApplyRef, ChainRef, MemberRef, Ref, RouteRef, SetRef
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Direction,
    Family,
    IPBlock,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyKind,
    PolicyRef,
    PolicyRule,
    RuleAction,
    Selector,
    Tier,
)
from policy.names import policy_chain
from tests.support.waiting import until
from tests.unit.test_agent_network import Rig

EVERY = Selector()
BLOCK = IPBlock("192.0.2.0/24")
DB = NetworkPolicy("shop", "db", EVERY, ingress=(PolicyRule((BLOCK,)),))
WEB = NetworkPolicy("shop", "web", EVERY, ingress=(PolicyRule((PodPeer(EVERY, None),)),))
GUARD = ClusterPolicy(
    PolicyKind.CLUSTER,
    "guard",
    Tier.ADMIN,
    1,
    PodPeer(EVERY, None),
    egress=(ClusterRule(RuleAction.DENY, (BLOCK,)),),
)


class Told(list[tuple[PolicyRef, str]]):
    """Every warning: the policy and the text."""

    def warn(self, policy: PolicyRef, reason: str, text: str) -> None:
        assert reason == "NotEnforced"
        self.append((policy, text))

    def refs(self) -> list[PolicyRef]:
        return [policy for policy, _ in self]


def named(names: dict[str, tuple[PolicyRef, ...]]) -> tuple[Refusals, Told]:
    told = Told()
    return Refusals(lambda used: names.get(names_of(used)[0], ()), told.warn), told


def failures(*refs: Ref) -> Iterable[Failure]:
    return [Failure(ref, "No space left on device") for ref in refs]


def test_each_policy_of_a_chain_or_set_is_told_once() -> None:
    chain, group = "FELIX-PI-0123456789abcdef", "felix4-0123456789abcdef"
    refusals, told = named({chain: (DB.ref,), group: (DB.ref, GUARD.ref)})
    rules = ChainRef(Family.V4, "filter", chain)
    refusals(failures(rules, MemberRef(group, "10.0.0.1"), MemberRef(group, "10.0.0.2")))
    assert told.refs() == [DB.ref, DB.ref, GUARD.ref]
    assert chain in told[0][1]
    assert told[1][1].endswith(f"set {group} member 10.0.0.1: No space left on device")
    refusals(failures(rules, MemberRef(group, "10.0.0.9")))
    assert len(told) == 3, "it still fails, and that was told"
    refusals(())
    refusals(failures(SetRef(group)))
    assert len(told) == 5, "it was mended in between"


def test_what_is_no_policy_s_is_told_to_nobody() -> None:
    refusals, told = named({})
    refusals(
        failures(
            RouteRef("10.0.0.1/32", 88),
            ChainRef(Family.V4, "filter", "FELIX-FORWARD"),
            SetRef("felix4-source"),
            ApplyRef(),
        )
    )
    assert told == []


async def test_a_policy_s_chain_that_the_kernel_refuses() -> None:
    """The whole way: engine, planner, reconciler, with the kernel in memory."""

    chain = chain_name(policy_chain(Direction.EGRESS, GUARD.ref))
    kernel = FakeDataplane(failing={ChainRef(Family.V4, "filter", chain): "invalid argument"})
    told, listeners = Told(), list[Callable[[Failures], None]]()
    rig = Rig(kernel, on_applied=listeners)
    listeners.append(Refusals(rig.facts.engine.policies_using, told.warn))
    for record in (Namespace("shop"), Pod("shop", "web"), DB, WEB, GUARD):
        rig.facts.upsert(record)
    rig.facts.engine.attach(LocalEndpoint("shop", "web", ("10.1.0.2",)), Pod("shop", "web"))
    task = asyncio.create_task(rig.reconciler.run())
    await until(lambda: rig.reconciler.failures)
    assert set(told.refs()) == {GUARD.ref}
    kernel.failing.clear()
    await rig.reconciler.settled()
    assert not rig.reconciler.failures
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_defect_in_telling_does_not_stop_the_applies() -> None:
    def broken(_failures: Iterable[Failure]) -> None:
        raise RuntimeError("defect")

    async with Rig(on_applied=[broken]) as rig:
        for _ in range(3):
            await rig.reconciler.settled()
