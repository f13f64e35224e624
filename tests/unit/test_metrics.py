"""What the figures count, where a figure could be wrong without anybody noticing."""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path

import pytest

from felix_py.dataplane.iptables_restore import lock_is_held
from felix_py.metrics import Metrics
from felix_py.refs import RouteRef
from policy.model import Pod
from tests.support.waiting import until
from tests.unit.test_agent_network import Rig, lease


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


async def test_from_event_to_kernel_is_counted_once_an_apply_that_wrote() -> None:
    async with Rig() as rig:
        name = "felix_py_event_to_kernel_seconds"
        before = value(rig.metrics, f"{name}_count")
        rig.kernel.free.clear()
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        attached = asyncio.ensure_future(rig.network.enforce(lease()))
        await asyncio.sleep(0.3)  # the kernel takes as long
        rig.kernel.free.set()
        await attached
        assert value(rig.metrics, f"{name}_count") > before
        assert value(rig.metrics, f"{name}_sum") >= 0.3
        # What changes nothing in the kernel says nothing of its latency.
        counted = value(rig.metrics, f"{name}_count")
        applies = rig.kernel.applies
        rig.facts.upsert(Pod("far", "away", "u2", "n2"))
        await until(lambda: rig.kernel.applies > applies)
        await rig.reconciler.settled()
        assert value(rig.metrics, f"{name}_count") == counted


async def test_a_retry_is_an_apply_after_one_that_failed() -> None:
    async with Rig() as rig:
        assert value(rig.metrics, "felix_py_apply_retries_total") == 0
        route = RouteRef("10.1.0.2/32", 88)
        rig.kernel.failing[route] = "no"
        with pytest.raises(Exception, match="no"):
            await rig.network.enforce(lease())
        await until(lambda: value(rig.metrics, "felix_py_apply_retries_total") >= 2)
        del rig.kernel.failing[route]
        await rig.network.enforce(lease())
        counted = value(rig.metrics, "felix_py_apply_retries_total")
        await rig.network.release(lease())
        assert value(rig.metrics, "felix_py_apply_retries_total") == counted


async def test_sizes_are_those_of_what_is_wanted() -> None:
    async with Rig() as rig:
        await rig.network.enforce(lease())
        sizes = rig.reconciler.sizes()
        assert sizes["route"] == len(rig.kernel.routes)
        assert sizes["set"] > 0
        assert sizes["member"] > 0
        assert sizes["class"] == 2  # an unknown pod is isolated in both directions
        await rig.network.release(lease())
        assert rig.reconciler.sizes()["class"] == 0
        assert rig.reconciler.sizes()["route"] == sizes["route"] - 1


def test_whether_somebody_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not lock_is_held(path)
    path.touch()
    assert not lock_is_held(path)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert lock_is_held(path)
    assert not lock_is_held(path)
