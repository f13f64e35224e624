"""What a watch may carry, who asks for it, and how a reflector starts and stops."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from felix_py.datastore.access import Identity, Plain
from felix_py.datastore.client import Api
from felix_py.datastore.informer import Timing
from tests.support import fakeapi, faults
from tests.support.badbytes import SPOILT_VALUES
from tests.support.fakeapi import PODS, SPOILT, FakeApi, pod
from tests.support.watching import QUICK, ScriptedClock, configuration, watching

# --- what cannot be understood ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [faults.truncated, faults.half_event_then_end], ids=["cut", "ended"])
async def test_truncated_line_is_asked_for_again(fault: type) -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            api.fault("watch", fault(pod("a")))
            api.end_watches()
            api.put(PODS, pod("a"))
            await watch.until_names("a")
            assert "watchlist" not in api.verbs()[1:], "its version was never counted as seen"


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b'{"type":"ADDED","object":[]}',
        b'{"type":"NEWS","object":{}}',
        b'{"type":"ADDED","object":{"metadata":{}}}',
    ],
)
async def test_malformed_line_relists(line: bytes) -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            api.fault("watch", faults.line(line))
            api.end_watches()
            api.put(PODS, pod("a"))
            await watch.until_names("a")
            await asyncio.to_thread(api.wait_for, lambda: "watchlist" in api.verbs()[1:])


async def test_empty_lines_are_nothing() -> None:
    with FakeApi() as api:
        api.fault("watchlist", faults.line(b"\n\n"))
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_names("a")
            assert api.verbs() == ["watchlist"]


async def test_malformed_list_is_asked_for_again() -> None:
    def garbage(exchange: fakeapi.Exchange) -> bool:
        exchange.send(200, {"surprise": True})
        return True

    with FakeApi(watch_list=False) as api:
        api.put(PODS, pod("a"))
        api.fault("list", garbage)
        async with watching(api) as watch:
            await watch.until_names("a")


@pytest.mark.parametrize("watch_list", [True, False])
async def test_invalid_object_inside_a_list_spoils_only_itself(watch_list: bool) -> None:
    with FakeApi(watch_list=watch_list) as api:
        api.put(PODS, pod("a"))
        api.put(PODS, pod("bad", ip="not an address"))
        api.put(PODS, pod("z"))
        async with watching(api) as watch:
            await watch.until_listed()
            assert watch.names() == {"a", "z"}
            assert [(p.kind, p.key, p.uid) for p in watch.problems] == [("Pod", ("default", "bad"), "uid-bad")]
            assert "not an address" in watch.problems[0].reason


@pytest.mark.parametrize("watch_list", [True, False])
@pytest.mark.parametrize("value", [value for value in SPOILT_VALUES if b"\n" not in value])
async def test_no_bytes_of_one_object_make_the_agent_list_for_ever(value: bytes, watch_list: bool) -> None:
    """In the list, and in a watch: everything else is known, nothing is asked for twice."""
    with FakeApi(watch_list=watch_list, spoilt=value) as api:
        api.put(PODS, pod("a"))
        api.put(PODS, pod("bad", labels={"team": SPOILT}))
        api.put(PODS, pod("z"))
        async with watching(api) as watch:
            await watch.until_listed()
            asked = 1 if watch_list else 3
            await asyncio.to_thread(api.wait_for, lambda: len(api.verbs()) == asked)
            api.put(PODS, pod("worse") | {"spec": SPOILT})
            api.put(PODS, pod("last"))
            await watch.until(lambda: "last" in watch.names())
            assert {"a", "z", "last"} <= watch.names()
            lost = {problem.key[1] for problem in watch.store.problems}
            assert watch.names() | lost == {"a", "bad", "z", "worse", "last"}
            assert all(problem.reason for problem in watch.store.problems)
            assert len(api.verbs()) == asked


async def test_an_event_of_an_object_without_a_readable_name_is_cleared_up_by_one_list() -> None:
    with FakeApi(spoilt=b'"\xff"') as api:
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_listed()
            api.put(PODS, pod(SPOILT))
            api.put(PODS, pod("z"))
            await watch.until_names("a", "z")
            assert [problem.key for problem in watch.store.problems] == [("", "")]
            api.put(PODS, pod("last"))
            await watch.until(lambda: "last" in watch.names())
            assert api.verbs().count("watchlist") == 2


def refused(code: int, body: fakeapi.Json, exchange: fakeapi.Exchange) -> bool:
    exchange.send(code, body)
    return True


async def test_refusals_of_any_bytes_are_refusals() -> None:
    """As of a proxy in between: wherever they come, the agent asks again later."""
    for value in SPOILT_VALUES:
        with FakeApi(spoilt=value) as api:
            for place in ("message", "code", "reason", "details"):
                body = fakeapi.status(500, "InternalError", "x") | {place: SPOILT}
                api.fault("watchlist", partial(refused, 500, body))
            api.fault("watchlist", faults.error_event(500, SPOILT))
            details = {"retryAfterSeconds": SPOILT, "causes": [{"reason": SPOILT}]}
            api.fault("list", partial(refused, 429, fakeapi.status(429, "TooManyRequests", "x", details)))
            api.put(PODS, pod("a"))
            async with watching(api) as watch:
                await watch.until_names("a")


async def test_object_that_becomes_invalid_counts_as_absent_until_it_is_well_again() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a", ip="10.0.0.1"))
        async with watching(api) as watch:
            await watch.until_names("a")
            bad = pod("a")
            bad["metadata"]["labels"] = {"number": 5}
            api.put(PODS, bad)
            await watch.until_names()
            assert watch.deleted() == ["a"]
            assert [p.key for p in watch.store.problems] == [("default", "a")]
            api.put(PODS, pod("a", ip="10.0.0.1"))
            await watch.until_names("a")
            assert watch.store.problems == []


async def test_invalid_object_is_reported_once_however_often_it_is_listed() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("bad", ip="x"))
        async with watching(api) as watch:
            await watch.until_listed()
            for name in ("first", "second"):
                api.refuse()
                api.put(PODS, pod(name))
                api.compact()
                api.listen()
                await watch.until(partial(lambda name: name in watch.names(), name))
            assert len(watch.problems) == 1
            api.delete(PODS, "default", "bad")
            await watch.until(lambda: not watch.store.problems)


# --- who we are ------------------------------------------------------------------------------------------------


async def test_token_rotation() -> None:
    with FakeApi(token="first") as api:
        token = ["first"]

        def load() -> Plain:
            return Plain(Identity(api.url, token=token[0]))

        async with watching(api, client=Api(load)) as watch:
            await watch.until_listed()
            api.token = "second"
            api.break_connections()
            await watch.clock.until_waits(3)
            token[0] = "second"
            api.put(PODS, pod("a"))
            await watch.until_names("a")
            assert "watchlist" not in api.verbs()[1:], "a refused identity says nothing about the version"


async def test_watch_recycle_uses_a_new_connection_and_reads_the_credentials_again() -> None:
    with FakeApi(token="first") as api:
        loads = []

        def load() -> Plain:
            loads.append(api.token)
            return configuration(api)

        async with watching(api, client=Api(load)) as watch:
            await watch.until_listed()
            assert 300 <= int(api.requests[0].query["timeoutSeconds"]) <= 600
            api.token = "second"
            watch.clock.advance(600)
            api.end_watches()
            api.put(PODS, pod("a"))
            await watch.until_names("a")
            assert loads == ["first", "second"]
            assert [r.authorization for r in api.requests] == ["Bearer first", "Bearer second"], "never refused"


async def test_watch_is_recycled_by_us_where_the_server_forgets_to() -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            watch.clock.advance(700)
            api.bookmark()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs() == ["watchlist", "watch"])


async def test_forbidden_is_retried_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeApi() as api:
        api.fault("watchlist", faults.refuse(403, "Forbidden", 'pods is forbidden: cannot watch resource "pods"'))
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_names("a")
    assert 'cannot watch resource "pods"' in capsys.readouterr().out


# --- start, stop, back-pressure --------------------------------------------------------------------------------


async def test_it_starts_at_once() -> None:
    """Each node's start is its own; what brings thousands at once (an API server's return) is met by backoff."""
    with FakeApi() as api:
        async with watching(api, Timing()) as watch:
            await watch.until_listed()
            assert watch.clock.waits == [0.0]


async def test_stop_is_quick_while_a_watch_is_silent() -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            async with asyncio.timeout(1):
                await watch.reflector.stop()


async def test_nothing_reaches_the_sink_after_stop() -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            await watch.reflector.stop()
            before = len(watch.events)
            api.put(PODS, pod("late"))
            await asyncio.sleep(0)
            assert len(watch.events) == before


async def test_age_grows_while_the_server_is_away() -> None:
    with FakeApi() as api:
        clock = ScriptedClock()
        async with watching(api, QUICK, clock) as watch:
            await watch.until_listed()
            assert watch.reflector.age() == 0
            api.refuse()
            await clock.until_waits(6)
            assert watch.reflector.age() > 10
            api.listen()
            api.put(PODS, pod("a"))
            await watch.until_names("a")
            assert watch.reflector.age() == 0
