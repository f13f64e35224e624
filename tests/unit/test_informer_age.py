"""How old a table may be: whatever the server answers, only what brings the table up to date counts."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from felix_py.datastore.informer import PAGE, Timing
from tests.support import faults
from tests.support.fakeapi import PATIENCE, PODS, Exchange, FakeApi, Fault, pod
from tests.support.waiting import until
from tests.support.watching import QUICK, ScriptedClock, watching

LASTING = 10_000


def no_list(exchange: Exchange) -> bool:
    exchange.send(200, {"items": [{"metadata": {"name": "p0", "namespace": "default"}}]})
    return True


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        ("page", faults.refuse(500, "InternalError")),
        ("list", no_list),
        ("watch", faults.refuse(500, "InternalError")),
        ("watch", faults.instant_eof),
    ],
    ids=["no second page", "no list", "no watch", "a watch that ends"],
)
async def test_it_grows_while_the_server_answers_and_tells_nothing(verb: str, fault: Fault) -> None:
    with FakeApi(watch_list=False) as api:
        for number in range(PAGE + 2):
            api.put(PODS, pod(f"p{number}"))
        clock = ScriptedClock()
        async with watching(api, QUICK, clock) as watch:
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: "watch" in api.verbs())
            assert watch.reflector.age() == 0
            api.fault(verb, fault, times=LASTING)
            if verb != "watch":
                api.compact()
            before = len(clock.waits)
            api.break_connections()
            api.delete(PODS, "default", "p0")
            if verb != "watch":
                api.compact()
            waited = (await clock.until_waits(before + 12))[before:]
            assert "p0" in watch.names()
            assert watch.reflector.age() > sum(waited[:-2])
            api.clear_faults()
            await watch.until(lambda: "p0" not in watch.names())
            await watch.until(lambda: watch.reflector.age() == 0)


def follows(api: FakeApi, watches: int) -> bool:
    """Whether so many watches have begun."""
    return api.verbs().count("watch") == watches


@pytest.mark.parametrize("proxy", [False, True])
async def test_it_does_not_grow_while_quiet_watches_are_ended_one_after_the_other(proxy: bool) -> None:
    """Each before it counts as silent."""
    with FakeApi() as api:
        clock = ScriptedClock()
        async with watching(api, Timing(answer=PATIENCE, silence=90), clock) as watch:
            await watch.until_listed()
            for number in range(1, 6):
                clock.advance(60)
                await asyncio.to_thread(api.break_connections if proxy else api.end_watches)
                await asyncio.to_thread(api.wait_for, partial(follows, api, number))
                await until(lambda: watch.reflector._watching_since is not None)
            assert watch.reflector.age() < 60
            clock.advance(91)
            api.fault("watch", faults.hang, times=LASTING)
            await asyncio.to_thread(api.break_connections)
            await asyncio.to_thread(api.wait_for, partial(follows, api, 6))
            assert watch.reflector.age() > 90
            api.clear_faults()
            await asyncio.to_thread(api.break_connections)
