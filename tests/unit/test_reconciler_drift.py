"""What others change is looked for, counted once, logged in one line; what is still to be written is not that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from felix_py import pace, pending
from felix_py.dataplane.protocols import EVERYTHING, Look
from felix_py.records import Lease, NextHop, Route
from felix_py.refs import KINDS, ChainRef, LinkRef, MemberRef, Ref, RouteRef
from policy.model import Family, Pod
from tests.support.waiting import until
from tests.unit.test_agent_network import DENY, NAMES, Rig, lease

POD = RouteRef("10.1.0.2/32", 88)
OWN = RouteRef("10.1.0.0/24", 88)
FORWARD = ChainRef(Family.V4, "filter", "FELIX-FORWARD")
Log = list[MutableMapping[str, Any]]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "_SOON", (0.0, 0.0, 0.0))
    monkeypatch.setattr(pending, "_PROMPTLY", (0.0, 0.0, 0.0))


@pytest.fixture
def logged() -> Iterator[Log]:
    with capture_logs() as lines:
        yield lines


@asynccontextmanager
async def compared(refresh: float = 3600) -> AsyncIterator[Rig]:
    """A rig with one pod, whose kernel has been read and swept."""
    async with Rig(refresh=refresh) as rig:
        await rig.network.enforce(lease())
        rig.reconciler.sweep()
        await rig.reconciler.settled()
        rig.kernel.looks.clear()
        yield rig


def drift(rig: Rig) -> dict[str, float]:
    found = {}
    for kind in KINDS:
        value = rig.metrics.registry.get_sample_value("felix_py_drift_total", {"kind": kind})
        assert value is not None, "every kind is there from the start"
        if value:
            found[kind] = value
    return found


def take(rig: Rig, ref: ChainRef | RouteRef) -> None:
    """Somebody removes an object."""
    del rig.kernel.kernel[ref]


async def test_only_the_named_parts_are_read_and_the_change_is_mended_and_counted_once(logged: Log) -> None:
    async with compared() as rig:
        assert rig.reconciler.last_drift is None
        take(rig, POD)
        take(rig, FORWARD)
        rig.pending.look(Look.ROUTES)
        await until(lambda: drift(rig) == {"route": 1})
        assert POD in rig.kernel.routes
        assert rig.kernel.looks == [Look.ROUTES]
        assert rig.reconciler.last_drift is not None
        assert rig.reconciler.last_drift[1] == ["route 10.1.0.2/32: missing"]
        rig.pending.look(Look.RULES)
        await until(lambda: drift(rig) == {"route": 1, "chain": 1})
        assert FORWARD in rig.kernel.chains
        assert rig.kernel.looks == [Look.ROUTES, Look.RULES]
        rig.pending.look(EVERYTHING)
        await until(lambda: len(rig.kernel.looks) == 4)
        await rig.reconciler.settled()
        assert drift(rig) == {"route": 1, "chain": 1}
        assert rig.reconciler.last_drift[1] == ["chain FELIX-FORWARD (filter, IPv4): missing"]
        assert 0 <= rig.reconciler.last_drift[0] < 20
    assert [(line["log_level"], line["found"]) for line in logged if "found" in line] == [
        ("warning", ["route 10.1.0.2/32: missing"]),
        ("warning", ["chain FELIX-FORWARD (filter, IPv4): missing"]),
    ]


async def test_what_sends_no_events_is_counted_until_it_can_be_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "_RARELY", 0.0)
    async with compared() as rig:
        member = next(item for item in rig.kernel.kernel if isinstance(item, MemberRef))
        rig.kernel.unreadable = "no memory"
        del rig.kernel.kernel[member]
        rig.pending.look(Look.SETS)
        await until(lambda: rig.reconciler.unread)
        rig.kernel.unreadable = ""
        await until(lambda: drift(rig) == {"member": 1})
        assert member in rig.kernel.kernel
        del rig.kernel.kernel[member]
        await until(lambda: drift(rig) == {"member": 2})
        assert set(rig.kernel.looks) == {Look.SETS}


async def test_a_long_list_is_one_line_that_names_some_and_counts_the_rest(logged: Log) -> None:
    async with compared() as rig:
        rig.facts.learned({f"10.1.{n}.0/24": ("192.0.2.2",) for n in range(1, 31)})
        await rig.reconciler.settled()
        for n in range(1, 31):
            take(rig, RouteRef(f"10.1.{n}.0/24", 89))
        rig.pending.look(Look.ROUTES)
        await until(lambda: drift(rig) == {"route": 30})
    (line,) = [line for line in logged if "found" in line]
    assert len(line["found"]) == 11
    assert line["found"][-1] == "and 20 more"


async def test_what_is_pending_or_refused_is_no_drift() -> None:
    async with compared() as rig:
        rig.kernel.failing[RouteRef("10.1.0.9/32", 88)] = "no"
        rig.facts.attach(lease("c9", "10.1.0.9", 2.0))
        rig.pending.look(EVERYTHING)
        await until(lambda: rig.reconciler.failures)
        rig.kernel.looks.clear()
        rig.pending.look(EVERYTHING)
        await until(lambda: Look.RULES in rig.kernel.looks and len(rig.kernel.looks) >= 2)
        assert drift(rig) == {}


async def test_what_is_asked_to_go_is_no_drift_when_it_is_gone_before() -> None:
    """A CNI DEL deletes the interface, and the kernel the route with it, before anything is applied."""
    async with compared() as rig:
        rig.network.leaving(lease())
        take(rig, POD)
        rig.pending.look(Look.ROUTES)
        await until(lambda: rig.kernel.looks)
        await rig.network.release(lease())
        assert drift(rig) == {}
        assert not rig.kernel.members(NAMES.source)
        assert not rig.facts.held.has_interface(lease().interface)


async def test_strays_are_counted_and_removed() -> None:
    async with compared() as rig:
        stray = Route(RouteRef("10.1.0.77/32", 88), next_hops=(NextHop(interface="eth0"),))
        rig.kernel.kernel[stray.key] = stray
        rig.pending.look(Look.ROUTES)
        await until(lambda: drift(rig) == {"route": 1})
        await until(lambda: stray.key not in rig.kernel.routes)


async def test_a_changed_interface_is_mended_and_counted(logged: Log) -> None:
    async with compared() as rig:
        rig.kernel.broken_links[lease().interface] = "down"
        rig.pending.look(Look.LINKS)
        await until(lambda: drift(rig) == {"link": 1})
        assert not rig.kernel.broken_links
    assert [line["found"] for line in logged if "found" in line] == [["interface felixc1: down"]]


async def test_something_that_can_never_be_written_does_not_keep_drift_from_being_found() -> None:
    async with compared(refresh=0.05) as rig:
        rig.kernel.failing[RouteRef("10.1.7.0/24", 89)] = "no"
        rig.facts.learned({"10.1.7.0/24": ("192.0.2.2",)})
        await until(lambda: rig.reconciler.failures)
        take(rig, POD)
        await until(lambda: drift(rig) == {"route": 1})
        assert POD in rig.kernel.routes


async def test_a_kernel_that_cannot_be_read_keeps_no_pod_waiting_and_is_read_again(logged: Log) -> None:
    async with compared() as rig:
        rig.kernel.unreadable = "dump interrupted"
        take(rig, FORWARD)
        take(rig, OWN)
        rig.pending.look(Look.RULES | Look.ROUTES)
        await until(lambda: len(rig.kernel.looks) > 2)
        await rig.network.enforce(lease("c3", "10.1.0.3", 3.0))
        assert "10.1.0.3,felixc3" in rig.kernel.members(NAMES.source)
        assert rig.reconciler.failures.objects == 0
        rig.kernel.unreadable = ""
        await until(lambda: drift(rig) == {"chain": 1, "route": 1})
        await until(lambda: FORWARD in rig.kernel.chains and OWN in rig.kernel.routes)
    unread = [line["reason"] for line in logged if line["event"] == "cannot read the kernel back; trying again"]
    assert unread == ["dump interrupted"]  # once, not for every try


async def test_how_long_ago_everything_was_compared_grows_while_a_part_cannot_be_read() -> None:
    async with compared(refresh=0.02) as rig:
        rig.kernel.unreadable = "dump interrupted"
        before = rig.reconciler.compared_age
        await until(lambda: len(rig.kernel.looks) > 2 and rig.reconciler.compared_age > before)
        grown = rig.reconciler.compared_age
        rig.kernel.unreadable = ""
        await until(lambda: rig.reconciler.compared_age < grown)


async def test_rules_that_we_wrote_while_they_were_read_are_read_again() -> None:
    async with compared() as rig:
        read = rig.kernel.read_rules()
        rig.facts.upsert(DENY)
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        await rig.reconciler.settled()
        chains = dict(rig.kernel.chains)
        rig.kernel.load(Look.RULES, read)
        assert rig.kernel.take_drift() == []
        rig.kernel.apply()
        assert rig.kernel.chains == chains


async def test_trying_again_costs_nothing_when_nothing_failed() -> None:
    async with compared() as rig:
        before = rig.kernel.applies
        rig.pending.retry()
        for _ in range(5):
            await asyncio.sleep(0)
        assert rig.kernel.applies == before
        rig.kernel.failing[RouteRef("10.1.7.0/24", 89)] = "network is down"
        rig.facts.learned({"10.1.7.0/24": ("192.0.2.2",)})
        await until(lambda: rig.reconciler.failures)
        rig.kernel.failing.clear()
        rig.pending.retry()
        await until(lambda: RouteRef("10.1.7.0/24", 89) in rig.kernel.routes)


async def test_what_a_del_deletes_while_an_apply_reads_the_kernel_is_nobodys_change() -> None:
    """The apply has its plan already, and so still wants the route and the interface."""
    async with compared() as rig:
        load = rig.kernel.load
        loop = asyncio.get_running_loop()
        left: list[Lease] = []

        async def leave() -> None:
            rig.network.leaving(lease())
            left.append(lease())

        def deleted_meanwhile(*args: Any) -> None:
            if not left:
                asyncio.run_coroutine_threadsafe(leave(), loop).result(10)
                take(rig, POD)
            load(*args)

        rig.kernel.load = deleted_meanwhile  # type: ignore[method-assign, assignment]
        rig.pending.look(Look.ROUTES)
        await until(lambda: bool(left))
        await rig.reconciler.settled()
        assert drift(rig) == {}
        assert POD not in rig.kernel.routes


async def test_what_is_leaving_is_the_pods_interface_and_its_routes_until_they_are_planned_away() -> None:
    async with compared() as rig:
        refs: tuple[Ref, ...] = (LinkRef(lease().interface), POD, OWN, LinkRef("felix9999999999"), FORWARD)
        rig.network.leaving(lease())
        assert [rig.facts.is_leaving(ref) for ref in refs] == [True, True, False, False, False]
        await rig.reconciler.settled()
        assert not any(rig.facts.is_leaving(ref) for ref in refs)
