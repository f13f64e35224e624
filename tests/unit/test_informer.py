"""Every fault that a watch can meet, one test each: whatever happens, the table ends as the server is."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from felix_py.datastore.client import Api
from felix_py.datastore.informer import PAGE, Timing
from policy.model import Pod
from tests.support import fakeapi, faults
from tests.support.fakeapi import PATIENCE, PODS, FakeApi, pod
from tests.support.waiting import until
from tests.support.watching import configuration, probing, watching

# --- the plain course ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watch_list", [True, False])
async def test_lists_then_follows_changes(watch_list: bool) -> None:
    with FakeApi(watch_list=watch_list) as api:
        api.put(PODS, pod("a", ip="10.0.0.1"))
        async with watching(api) as watch:
            await watch.until_listed()
            assert watch.names() == {"a"}
            api.put(PODS, pod("b"))
            await watch.until_names("a", "b")
            api.put(PODS, pod("a", ip="10.0.0.9"))
            await watch.until(lambda: len(watch.events) == 3)
            changed = watch.events[-1]
            assert isinstance(changed.after, Pod)
            assert changed.after.addresses == ("10.0.0.9",)
            assert isinstance(changed.before, Pod)
            assert changed.before.addresses == ("10.0.0.1",)
            api.delete(PODS, "default", "a")
            await watch.until_names("b")


async def test_watch_list_is_one_request() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_listed()
            api.put(PODS, pod("b"))
            await watch.until_names("a", "b")
        assert api.verbs() == ["watchlist"]
        query = api.requests[0].query
        assert query["resourceVersionMatch"] == "NotOlderThan"
        assert "resourceVersion" not in query, "unset means a consistent read; 0 may be old"


@pytest.mark.parametrize("code", [400, 422])
async def test_watch_list_refused_falls_back_to_pages_at_once_and_for_good(code: int) -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        api.fault("watchlist", faults.refuse(code, "Invalid"))
        async with watching(api) as watch:
            await watch.until_names("a")
            api.wait_for(lambda: api.verbs() == ["watchlist", "list", "watch"])
            assert watch.clock.waits == watch.clock.waits[:1], "nothing failed, so nothing was waited for"
            api.compact()
            api.put(PODS, pod("b"))
            api.compact()
            api.break_connections()
            await watch.until_names("a", "b")
            assert api.verbs().count("watchlist") == 1


async def test_watch_list_that_never_completes_falls_back_to_pages() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        api.fault("watchlist", faults.unfinished_list, times=5)
        async with watching(api) as watch:
            await watch.until_listed()
            assert watch.names() == {"a"}, "what only the broken list had is swept"
            assert api.verbs()[:3] == ["watchlist", "watchlist", "list"]


async def test_pages() -> None:
    with FakeApi(watch_list=False) as api:
        for number in range(PAGE * 2 + 1):
            api.put(PODS, pod(f"p{number}"))
        async with watching(api) as watch:
            await watch.until_listed()
            assert len(watch.names()) == PAGE * 2 + 1
            await asyncio.to_thread(api.wait_for, lambda: "watch" in api.verbs())
            assert api.verbs() == ["watchlist", "list", "page", "page", "watch"]
            assert "resourceVersion" not in api.requests[1].query, "0 would be unpaged, and may be old"


async def test_paging_with_expired_continue_token_starts_over() -> None:
    with FakeApi(watch_list=False) as api:
        for number in range(PAGE + 1):
            api.put(PODS, pod(f"p{number}"))

        def expire(exchange: fakeapi.Exchange) -> bool:
            api.delete(PODS, "default", "p0")
            api.compact()
            return False

        api.fault("page", expire)
        async with watching(api) as watch:
            await watch.until_listed()
            assert api.verbs()[:4] == ["watchlist", "list", "page", "list"]
            assert watch.names() == {f"p{number}" for number in range(1, PAGE + 1)}


async def test_watch_starts_from_the_first_page_s_version() -> None:
    """A later page that is newer knows nothing of what changed meanwhile in front of it."""

    def newer_page(exchange: fakeapi.Exchange) -> bool:
        api.put(PODS, pod("a-new-one"))
        exchange.send(200, {"metadata": {"resourceVersion": str(api.version)}, "items": []})
        return True

    with FakeApi(watch_list=False) as api:
        for number in range(PAGE + 1):
            api.put(PODS, pod(f"p{number}"))
        api.fault("page", newer_page)
        async with watching(api) as watch:
            await watch.until(lambda: "a-new-one" in watch.names())


async def test_a_server_whose_store_cannot_serve_watch_list_is_asked_for_a_list_at_once() -> None:
    """kube-apiserver on etcd 3.4: 200, then an ERROR event before any object."""
    unable = faults.error_event(500, "InternalError", "RequestWatchProgress is disabled")
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        api.fault("watchlist", unable, times=9)
        async with watching(api) as watch:
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs() == ["watchlist", "list", "watch"])
            assert watch.clock.waits == [0.0], "nothing was waited for"
            api.compact()
            api.put(PODS, pod("b"))
            api.compact()
            api.break_connections()
            await watch.until_names("a", "b")
            assert api.verbs().count("watchlist") == 1, "it is remembered"


async def test_watch_list_is_tried_again_after_a_watch_that_went_well() -> None:
    """The next connection may be to another server, or to one with a new store."""
    with FakeApi() as api:
        api.fault("watchlist", faults.error_event(500, "InternalError"))
        async with watching(api) as watch:
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: "watch" in api.verbs())
            api.put(PODS, pod("a"))
            await watch.until_names("a")  # so the watch has begun here, too
            watch.clock.advance(400)
            api.put(fakeapi.NODES, {"metadata": {"name": "other-kind"}})
            api.compact()
            api.end_watches()
            api.put(PODS, pod("b"))
            await watch.until_names("a", "b")
            assert api.verbs()[-1] == "watchlist"


async def test_error_event_after_the_list_of_a_watch_list_says_nothing_of_watch_lists() -> None:
    def complete_then_error(exchange: fakeapi.Exchange) -> bool:
        exchange.begin_stream()
        exchange.bookmark(api.version, {"k8s.io/initial-events-end": "true"})
        exchange.event("ERROR", fakeapi.status(500, "InternalError", "told by the test"))
        exchange.end_stream()
        return True

    with FakeApi() as api:
        api.put(PODS, pod("a"))
        api.fault("watchlist", complete_then_error)
        async with watching(api) as watch:
            await watch.until_names("a")
            assert api.verbs() == ["watchlist", "watchlist"]


async def test_bookmark_only_stream_moves_the_version_on() -> None:
    def one_bookmark(exchange: fakeapi.Exchange) -> bool:
        exchange.begin_stream()
        exchange.bookmark(api.version)
        exchange.end_stream()
        return True

    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            api.put(fakeapi.NODES, {"metadata": {"name": "other-kind"}})
            api.fault("watch", one_bookmark)
            api.end_watches()
            await asyncio.to_thread(api.wait_for, lambda: len(api.verbs()) == 3)
            versions = [r.query.get("resourceVersion") for r in api.requests if r.verb != "confirm"]
            assert versions == [None, str(api.version - 1), str(api.version)]


# --- connections -----------------------------------------------------------------------------------------------


async def test_a_quiet_watch_is_left_alone_while_the_server_answers() -> None:
    """No event and no bookmark for as long as it likes: nothing is asked for again, and it does not grow old."""
    with FakeApi() as api:
        async with watching(api, Timing(silence=0.05)) as watch, probing(watch):
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs("/version") == ["list"] * 5)
            assert api.verbs() == ["watchlist"]
            assert watch.reflector.age() < PATIENCE
            api.put(PODS, pod("a"))
            await watch.until_names("a")


@pytest.mark.parametrize("fault", [faults.hang, faults.refuse(503)], ids=["no answer", "a gateway's complaint"])
async def test_a_silent_watch_begins_anew_where_the_server_does_not_answer(fault: fakeapi.Fault) -> None:
    """The other end acknowledges what we send, but nobody is at work there."""
    with FakeApi() as api:
        api.fault("watchlist", faults.silent)
        api.fault("list", fault, path="/version")
        async with watching(api, Timing(silence=0.05, probe=0.2)) as watch, probing(watch):
            await watch.until_listed()
            assert api.verbs("/version")[:1] == ["list"]
            assert api.verbs()[:2] == ["watchlist", "watchlist"]


@pytest.mark.parametrize("code", [401, 403, 404, 500])
async def test_a_server_that_refuses_the_question_is_there(code: int) -> None:
    with FakeApi() as api:
        api.fault("list", faults.refuse(code), path="/version", times=3)
        async with watching(api, Timing(silence=0.05)) as watch, probing(watch):
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs("/version") == ["list"] * 4)
            assert api.verbs() == ["watchlist"]


async def test_a_watch_that_the_server_does_not_end_in_time_is_ended_by_us_though_it_is_silent() -> None:
    with FakeApi() as api:
        async with watching(api, Timing(recycle=(0.1, 0.2), grace=0.1)) as watch:
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: "watch" in api.verbs())
            api.put(PODS, pod("a"))
            await watch.until_names("a")


async def test_read_timeout_of_a_request_without_any_answer() -> None:
    with FakeApi(watch_list=False) as api:
        api.put(PODS, pod("a"))
        api.fault("list", faults.hang)
        async with watching(api, Timing(answer=0.1)) as watch:
            await watch.until_names("a")
            assert api.verbs().count("list") == 2


async def test_sockets_have_keepalive() -> None:
    with FakeApi() as api:
        client = Api(lambda: configuration(api))
        with client.request("GET", PODS) as answer:
            sock = answer._response._connection.sock  # type: ignore[union-attr]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            answer.read()
        client.close()


async def test_watch_through_a_proxy_that_does_not_chunk() -> None:
    def plain(exchange: fakeapi.Exchange) -> bool:
        exchange._handler.send_response(200)
        exchange._handler.send_header("Connection", "close")
        exchange._handler.end_headers()
        for name in ("a", "b"):
            obj = api.put(PODS, pod(name))
            exchange._handler.wfile.write(json.dumps({"type": "ADDED", "object": obj}).encode() + b"\n")
        exchange.hang()
        return True

    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            api.fault("watch", plain)
            api.end_watches()
            await watch.until_names("a", "b")
            assert api.verbs() == ["watchlist", "watch"]
            api.break_connections()


async def test_refused_connections_are_retried_with_backoff() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        api.refuse()
        async with watching(api) as watch:
            waits = await watch.clock.until_waits(8)
            api.listen()
            await watch.until_names("a")
    assert all(0.4 * 2**n <= wait <= 1.2 * 2**n for n, wait in enumerate(waits[:4])), waits
    assert all(5 <= wait <= 15 for wait in waits[6:]), waits


async def test_a_refusal_counts_once_it_has_stood_and_until_the_first_answer() -> None:
    """A server that has just started lets nobody see anything for a moment."""
    with FakeApi() as api:
        api.fault("*", faults.refuse(403, "Forbidden"), times=2)
        async with watching(api, Timing(refused=1e6)) as watch:
            await watch.until_listed()
            assert not watch.reflector.refused
    with FakeApi() as api:
        api.fault("*", faults.refuse(403, "Forbidden"), times=999)
        async with watching(api, Timing(refused=5.0)) as watch:
            await until(lambda: watch.reflector.refused)
            api.clear_faults()
            await watch.until_listed()
            assert not watch.reflector.refused, "though the watch goes on"


async def test_reset_connection() -> None:
    with FakeApi() as api:
        api.fault("watchlist", faults.reset)
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_names("a")


async def test_instant_eof_loop_backs_off() -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            api.fault("watch", faults.instant_eof, times=6)
            api.end_watches()
            waits = await watch.clock.until_waits(6)
            api.put(PODS, pod("a"))
            await watch.until_names("a")
    assert waits[5] > 12, waits
    assert waits[0] <= 1.2, waits


async def test_a_watch_that_lived_long_is_taken_up_again_without_delay_and_from_its_version() -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            watch.clock.advance(400)
            api.end_watches()
            assert await watch.clock.until_waits(1) == [0.0]
            await asyncio.to_thread(api.wait_for, lambda: api.verbs() == ["watchlist", "watch"])
            assert api.requests[-1].query["resourceVersion"] == str(api.version)


async def test_backoff_starts_again_after_a_healthy_watch() -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            api.fault("watch", faults.instant_eof, times=5)
            api.end_watches()
            await watch.clock.until_waits(6)
            api.put(PODS, pod("a"))
            await watch.until_names("a")
            watch.clock.advance(11)
            api.break_connections()
            assert 0.4 <= (await watch.clock.until_waits(7))[-1] <= 1.2


async def test_retry_after_is_honoured() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        api.fault("watchlist", faults.refuse(429, "TooManyRequests", retry_after="77"))
        api.fault("watchlist", faults.refuse(503, "ServiceUnavailable", retry_after="50"))
        async with watching(api) as watch:
            await watch.until_names("a")
            waits = await watch.clock.until_waits(2)
    assert 77 <= waits[0] <= 77 * 1.2
    assert 50 <= waits[1] <= 50 * 1.2


async def test_server_restart_goes_on_from_the_version_seen() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_names("a")
            api.refuse()
            api.put(PODS, pod("b"))
            api.delete(PODS, "default", "a")
            await watch.clock.until_waits(3)
            assert watch.names() == {"a"}, "the last known state stays while the server is away"
            api.listen()
            await watch.until_names("b")
            assert api.verbs() == ["watchlist", "watch"]


# --- versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_stream", [True, False], ids=["ERROR event", "HTTP status"])
async def test_410_relists(in_stream: bool) -> None:
    with FakeApi(gone_in_stream=in_stream) as api:
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_names("a")
            api.refuse()
            api.delete(PODS, "default", "a")
            api.put(PODS, pod("b"))
            api.compact()
            api.listen()
            await watch.until_names("b")
            assert watch.deleted() == ["a"], "a deletion that no watch told of is found by the list"
            assert api.verbs() == ["watchlist", "watch", "watchlist"]


async def test_error_event_of_any_other_code_relists() -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            api.fault("watch", faults.error_event(500, "InternalError"))
            api.put(PODS, pod("a"))
            api.end_watches()
            await watch.until_names("a")
            await asyncio.to_thread(api.wait_for, lambda: api.verbs() == ["watchlist", "watch", "watchlist"])


@pytest.mark.parametrize("future", ["silence", "504", "410"])
async def test_server_restart_with_lower_versions(future: str) -> None:
    """As after etcd was restored from a backup. kube-apiserver says nothing to a watch from its future."""
    with FakeApi(future=future) as api:
        for name in ("a", "b", "c"):
            api.put(PODS, pod(name))
        async with watching(api) as watch:
            await watch.until_names("a", "b", "c")
            del api.objects[PODS, "default", "b"]
            api.restore(5)
            await watch.until_names("a", "c")
            api.put(PODS, pod("d"))
            await watch.until_names("a", "c", "d")


@pytest.mark.parametrize(("seconds", "asked"), [(700, []), (200, ["confirm"])], ids=["in its time", "earlier"])
async def test_a_version_is_confirmed_after_a_watch_that_did_not_end_in_its_time(
    seconds: float, asked: list[str]
) -> None:
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            watch.clock.advance(seconds)
            api.end_watches()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs() == ["watchlist", "watch"])
            assert [request.verb for request in api.requests][1:-1] == asked


async def test_a_version_is_confirmed_where_the_next_watch_does_not_come_about() -> None:
    """The last one has ended in its time; but the server is another one when it answers again."""
    with FakeApi() as api:
        async with watching(api) as watch:
            await watch.until_listed()
            watch.clock.advance(700)
            api.fault("watch", faults.reset)
            api.end_watches()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs() == ["watchlist", "watch", "watch"])
            assert [request.verb for request in api.requests][1:-1] == ["watch", "confirm"]


async def test_relist_yields_only_differences() -> None:
    with FakeApi(watch_list=False) as api:
        for number in range(20):
            api.put(PODS, pod(f"same-{number}"))
        api.put(PODS, pod("changes", ip="10.0.0.1"))
        api.put(PODS, pod("goes"))
        async with watching(api) as watch:
            await watch.until(lambda: len(watch.events) == 22)
            await asyncio.to_thread(api.wait_for, lambda: "watch" in api.verbs())
            api.refuse()
            api.put(PODS, pod("changes", ip="10.0.0.2"))
            api.delete(PODS, "default", "goes")
            api.put(PODS, pod("comes"))
            api.compact()
            api.listen()
            await watch.until(lambda: "goes" not in watch.names())
            assert set(watch.upserted()[22:]) == {"changes", "comes"}
            assert watch.deleted() == ["goes"]
            assert len(watch.events) == 25


async def test_list_that_breaks_off_deletes_nothing() -> None:
    with FakeApi(watch_list=False) as api:
        for number in range(PAGE + 5):
            api.put(PODS, pod(f"p{number}"))
        async with watching(api) as watch:
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: "watch" in api.verbs())
            api.fault("page", faults.reset, times=3)
            api.put(fakeapi.NODES, {"metadata": {"name": "other-kind"}})
            api.compact()
            api.break_connections()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs().count("watch") >= 3)
            assert watch.deleted() == []
            assert len(watch.upserted()) == PAGE + 5


async def test_list_without_resource_version_is_not_watched_from() -> None:
    def versionless(exchange: fakeapi.Exchange) -> bool:
        exchange.send(200, {"kind": "PodList", "metadata": {}, "items": []})
        return True

    with FakeApi(watch_list=False) as api:
        api.put(PODS, pod("a"))
        api.fault("list", versionless)
        async with watching(api) as watch:
            await watch.until_names("a")
            assert api.verbs()[:3] == ["watchlist", "list", "list"]


# --- events that are out of order ----------------------------------------------------------------------------


@pytest.mark.parametrize("watch_list", [True, False])
@pytest.mark.parametrize("order", ["older last", "deleted before added"])
async def test_events_out_of_order_make_it_list_again(order: str, watch_list: bool) -> None:
    """A proxy, or a server that answers from two caches: nothing in such a watch tells how it ends."""
    with FakeApi(watch_list=watch_list) as api:
        api.put(PODS, pod("a", ip="10.0.0.1"))
        async with watching(api) as watch:
            await watch.until_listed()
            api.wait_for(lambda: "watch" in api.verbs()[-1])

            def mixed(exchange: fakeapi.Exchange) -> bool:
                exchange.begin_stream()
                if order == "older last":
                    between = api.put(PODS, pod("a", ip="10.0.0.2"))
                    exchange.event("MODIFIED", api.put(PODS, pod("a", ip="10.0.0.3")))
                    exchange.event("MODIFIED", between)
                else:
                    added = api.put(PODS, pod("b"))
                    api.delete(PODS, "default", "b")
                    gone = {**added, "metadata": {**added["metadata"], "resourceVersion": str(api.version)}}
                    exchange.event("DELETED", gone)
                    exchange.event("ADDED", added)
                exchange.event("ADDED", api.put(PODS, pod("last")))
                exchange.hang()
                return True

            api.fault("watch", mixed)
            api.end_watches()
            await watch.until_names("a", "last")
            await watch.until(lambda: watch.table.records["default", "a"].addresses != ("10.0.0.2",))
            address = "10.0.0.3" if order == "older last" else "10.0.0.1"
            assert watch.table.records["default", "a"].addresses == (address,)
            assert "b" not in watch.names()
            assert api.verbs().count("watchlist" if watch_list else "list") == 2


async def test_events_that_come_twice_are_nothing_new() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_listed()

            def twice(exchange: fakeapi.Exchange) -> bool:
                exchange.begin_stream()
                for _ in range(2):
                    exchange.event("MODIFIED", api.objects[PODS, "default", "b"])
                return False

            api.fault("watch", twice)
            api.put(PODS, pod("b"))
            await watch.until_names("a", "b")
            api.end_watches()
            api.wait_for(lambda: api.verbs().count("watch") == 1)
            api.put(PODS, pod("c"))
            await watch.until_names("a", "b", "c")
            assert watch.upserted() == ["a", "b", "c"]
            assert api.verbs().count("watchlist") == 1
