"""Tens of thousands of failures: they are told apart in linear time, the loop keeps turning, little is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from felix_py.agent.refusals import Refusals
from felix_py.cni.network import NetworkError
from felix_py.dataplane.fake import FakeDataplane
from felix_py.desired.names import chain_name
from felix_py.failures import Failures, by_reason
from felix_py.observe.stalls import Stalls, WatchedSelector
from felix_py.records import Failure, bounded
from felix_py.refs import ApplyRef, ChainRef, MemberRef, Ref, RouteRef, RoutesRef
from policy.model import Direction, Family, LocalEndpoint, NetworkPolicy, Pod, PolicyRef, Selector
from policy.names import policy_chain
from tests.support.frozen import as_in_an_agent
from tests.support.told import ToldEngine
from tests.unit.test_agent_network import Rig, lease

MANY = 50_000
MOST = 0.5
"""Seconds of processor time that one turn of the event loop may take: wall time would be the machine's.
A turn over all of them took seconds. Measured: under 0.1, and 0.24 beside others, who empty the caches."""


class Refusing(dict[Ref, str]):
    """Every object with one of these beginnings fails."""

    def __init__(self, *beginnings: str) -> None:
        super().__init__()
        self._beginnings = beginnings

    def get(self, ref: Ref, default: Any = None) -> Any:
        return "Network is unreachable" if str(ref).startswith(self._beginnings) else default

    def __contains__(self, ref: object) -> bool:
        return str(ref).startswith(self._beginnings)

    def __getitem__(self, ref: Ref) -> str:
        return "Network is unreachable"


def on_watched_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> float:
    """Run a test on a loop whose selector times it; the most processor time that one turn took, in seconds."""
    turns: list[float] = [0.0]
    selector = WatchedSelector(lambda _seconds, processor: turns.append(processor))
    loops = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector))
    with as_in_an_agent(), loops as runner:
        runner.run(asyncio.wait_for(test(), 100))
    return max(turns)


def test_fifty_thousand_prefixes_that_cannot_be_installed_stall_nobody() -> None:
    async def test() -> None:
        async with Rig(FakeDataplane(failing=Refusing("route 10.1.0.2/", "route 11."))) as rig:
            for part in range(0, MANY, 1000):  # as the speaker passes them on
                rig.facts.learned(
                    {f"11.{n >> 8}.{n & 255}.0/24": ("192.0.2.2",) for n in range(part, part + 1000)}
                )
                await asyncio.sleep(0)
            rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
            for _ in range(3):  # each retry says the same
                await rig.reconciler.settled(lambda: ())
            assert rig.reconciler.failures.objects >= MANY
            with pytest.raises(NetworkError, match=r"10\.1\.0\.2"):  # its own route, among all the others
                await rig.network.enforce(lease())

    with capture_logs() as logged:
        longest = on_watched_loop(test)
    assert longest < MOST
    assert len([line for line in logged if line["event"] == "cannot write"]) < 10


def test_whose_policies_thousands_of_chains_are_is_found_in_no_time() -> None:
    engine = ToldEngine((Family.V4,))
    engine.upsert(Pod("shop", "web", "u1", "n1"))
    policies = [NetworkPolicy("shop", f"p{number}", Selector(), ingress=()) for number in range(1500)]
    for policy in policies:
        engine.upsert(policy)
    engine.lease(LocalEndpoint("shop", "web", ("10.1.0.2",)))
    list(engine.flush())
    chains = [chain_name(policy_chain(Direction.INGRESS, policy.ref)) for policy in policies]
    warned: list[PolicyRef] = []
    refusals = Refusals(engine.policies_using, lambda policy, _reason, _text: warned.append(policy))
    started = time.thread_time()
    refusals(Failure(ChainRef(Family.V4, "filter", chain), "no") for chain in chains)
    assert time.thread_time() - started < MOST
    assert sorted(warned) == sorted(policy.ref for policy in policies)


def test_failures_are_found_by_name_once_each() -> None:
    route = Failure(RouteRef("10.1.0.2/32", 88), "no")
    chain = Failure(ChainRef(Family.V4, "filter", "FELIX-PI-a"), "no")
    full = Failure(MemberRef("felix4-x", "10.1.0.2"), "full")
    failures = Failures([route, chain, route, full])
    assert len(failures) == 3
    assert failures.naming({"FELIX-PI-a", "felix0"}) == (chain,)
    assert {str(failure.ref) for failure in failures.naming(["10.1.0.2"])} == {
        "route 10.1.0.2/32",
        "set felix4-x member 10.1.0.2",
    }
    assert failures.besides(Failures([route])) == [chain, full]


def test_what_is_kept_and_said_is_bounded_and_counted() -> None:
    many = [Failure(RouteRef(f"10.{n >> 8}.{n & 255}.0/24", 89), "no") for n in range(5000)]
    kept = bounded([*many, Failure(RouteRef("::/0", 89), "other")], RoutesRef())
    assert len(kept) == 102
    assert Failures(kept).objects == 5001
    said = by_reason(kept)
    assert said["other"] == ["route ::/0"]
    assert said["no"][-1] == "and 4990 more"
    assert len(said["no"]) == 11
    reasons = by_reason(Failure(ApplyRef(), f"reason {n}") for n in range(1000))
    assert len(reasons) == 21
    assert reasons["further reasons"][-1] == "and 970 more"


def test_a_turn_that_takes_long_is_counted_and_said_once_in_a_while() -> None:
    seen: list[float] = []
    said: list[dict[str, Any]] = []
    stalls = Stalls(seen.append, lambda event, **more: said.append({"event": event, **more}))
    for seconds in (0.2, 0.7, 0.3):
        stalls(seconds, 0.1)
    assert seen == [0.2, 0.7, 0.3]
    assert [(line["times"], line["longest"]) for line in said] == [(1, 0.2)]


def test_the_selector_tells_of_long_turns_only() -> None:
    async def test() -> None:
        await asyncio.sleep(0.01)
        done = 0
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            done += 1
        await asyncio.sleep(0)

    assert on_watched_loop(test) >= 0.3
