"""Any sequence of changes, with faults at any place, ends with the store equal to the server."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from felix_py.datastore.informer import Timing
from policy.model import Pod
from tests.support import faults
from tests.support.fakeapi import PODS, FakeApi, pod
from tests.support.thorough import examples
from tests.support.watching import Watching, watching

NAMES = ("a", "b", "c", "d")
FAULTS = {
    "refuse 500": faults.refuse(500, "InternalError"),
    "refuse 429": faults.refuse(429, "TooManyRequests", retry_after="3"),
    "refuse 410": faults.refuse(410, "Expired"),
    "refuse 422": faults.refuse(422, "Invalid"),
    "error event 410": faults.error_event(410, "Expired"),
    "error event 500": faults.error_event(500, "InternalError"),
    "instant eof": faults.instant_eof,
    "reset": faults.reset,
    "silent": faults.silent,
    "garbage": faults.line(b'{"type": 5}'),
    "truncated": faults.truncated(pod("truncated")),
    "half": faults.half_event_then_end(pod("half")),
    "unfinished": faults.unfinished_list,
}

step = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.sampled_from(["10.0.0.1", "10.0.0.2", "broken"])),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(
        st.just("fault"), st.sampled_from(["watch", "watchlist", "list", "*"]), st.sampled_from(sorted(FAULTS))
    ),
    st.tuples(st.sampled_from(["compact", "bookmark", "end_watches", "break_connections", "restart", "restore"])),
    st.tuples(st.just("settle")),
)


def expected(api: FakeApi) -> dict[tuple[str, str], tuple[str, ...]]:
    """Key -> addresses of every pod that can be understood."""
    return {
        (namespace, name): (obj["status"]["podIPs"][0]["ip"],)
        for (collection, namespace, name), obj in api.objects.items()
        if collection == PODS and obj["status"]["podIPs"][0]["ip"] != "broken"
    }


def perform(api: FakeApi, what: tuple[object, ...]) -> None:
    match what:
        case ("put", str(name), str(ip)):
            api.put(PODS, pod(name, ip=ip))
        case ("delete", str(name)):
            if (PODS, "default", name) in api.objects:
                api.delete(PODS, "default", name)
        case ("fault", str(verb), str(fault)):
            api.fault(verb, FAULTS[fault])
        case ("restart",):
            api.refuse()
            api.listen()
        case ("restore",):
            # Far enough back that no version is ever given out twice: nobody could notice that.
            api.restore(api.version - 1000)
        case (str(method),):
            getattr(api, method)()


def replayed(watch: Watching) -> dict[tuple[str, str], tuple[str, ...]]:
    """What a consumer that believed every event would now think; also checks that the events fit together."""
    state: dict[tuple[str, str], Any] = {}
    for event in watch.events:
        assert isinstance(event.newest, Pod)
        key = event.newest.key
        assert state.get(key) == event.before
        assert event.after != event.before
        if event.after is not None:
            state[key] = event.after
        else:
            del state[key]
    return {key: record.addresses for key, record in state.items()}


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(step, max_size=25),
    watch_list=st.booleans(),
    gone_in_stream=st.booleans(),
    future=st.sampled_from(("silence", "504", "410")),
)
async def test_ends_as_the_server_is(
    steps: list[tuple[object, ...]], watch_list: bool, gone_in_stream: bool, future: str
) -> None:
    with FakeApi(version=100_000, watch_list=watch_list, gone_in_stream=gone_in_stream, future=future) as api:
        async with watching(api, Timing(answer=0.05, recycle=(0.05, 0.1), grace=0)) as watch:

            def equal() -> bool:
                return {key: pod.addresses for key, pod in watch.table.records.items()} == expected(api)

            for what in steps:
                if what == ("settle",):
                    api.clear_faults()
                    await watch.until(equal)
                else:
                    await asyncio.to_thread(perform, api, what)
            api.clear_faults()
            await watch.until(equal)
            assert replayed(watch) == expected(api)
