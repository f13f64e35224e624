"""However many events there are, few writes come of them."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import fields, replace

import pytest

from felix_py import reconcile
from felix_py.dataplane.fake import FakeDataplane
from felix_py.records import Report
from policy.model import NetworkPolicy, Pod, PodPeer, PolicyRule, Selector
from tests.unit.test_agent_network import NAMES, Rig, lease

FROM_ALL = NetworkPolicy("shop", "from-all", Selector(), ingress=(PolicyRule((PodPeer(None, Selector()),)),))
EVENTS = 10_000


class Busy(FakeDataplane):
    """A kernel that holds up an apply until it is let go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
        self.begun.set()
        assert self.go.wait(10)
        return super().apply(sweep=sweep, keep_learned=keep_learned)


def storm(rig: Rig) -> list[Pod]:
    """Pods that come, get addresses, other labels, and partly go."""
    pods = [Pod("shop", f"p{n}", addresses=(f"10.2.{n >> 8}.{n & 255}",)) for n in range(EVENTS // 4)]
    for pod in pods:
        rig.facts.upsert(replace(pod, addresses=()))
        rig.facts.upsert(pod)
        rig.facts.upsert(replace(pod, labels=(("app", "x"),)))
    for pod in pods[::2]:
        rig.facts.delete(pod)
        rig.facts.upsert(pod)
    return pods


async def test_what_comes_in_during_an_apply_shares_the_next() -> None:
    kernel = Busy()
    async with Rig(kernel) as rig:
        rig.facts.upsert(FROM_ALL)
        rig.facts.upsert(Pod("shop", "web"))
        await rig.network.enforce(lease())
        before = kernel.applies
        kernel.go.clear()
        kernel.begun.clear()
        waiting = asyncio.create_task(rig.reconciler.settled())
        assert await asyncio.to_thread(kernel.begun.wait, 10)
        pods = storm(rig)
        kernel.go.set()
        await waiting
        await rig.reconciler.settled()
        assert kernel.applies - before <= 4
        assert set(kernel.members(peers(rig))) == {"10.1.0.2", *(a for pod in pods for a in pod.addresses)}


async def test_what_nobody_waits_for_rests_a_moment_and_what_somebody_waits_for_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Rig() as rig:
        rig.facts.upsert(FROM_ALL)
        rig.facts.upsert(Pod("shop", "web"))
        await rig.network.enforce(lease())
        monkeypatch.setattr(reconcile, "_REST", 3600.0)
        await rig.reconciler.settled()
        before = rig.kernel.applies
        for pod in storm(rig)[:100]:
            rig.facts.upsert(replace(pod, labels=(("app", "y"),)))
            await asyncio.sleep(0)
        # The first change of a quiet system goes at once; those behind it share an apply or a few.
        assert rig.kernel.applies - before <= 3
        await rig.network.release(lease())
        assert rig.kernel.applies - before <= 6
        assert not rig.kernel.members(NAMES.ingress)


def peers(rig: Rig) -> str:
    """The set of the policy's peers: the one that the plan does not name."""
    (name,) = rig.kernel.sets.keys() - {getattr(NAMES, field.name) for field in fields(NAMES)}
    return name
