"""The writer of NodeNetworkStatus: what it writes, how seldom, and what it does about a server that is unwell."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from felix_py.datastore.client import Api
from felix_py.datastore.status_writer import CHECKED, PACE, SLOW_PACE, Offer, StatusWriter
from tests.support import faults
from tests.support.fakeapi import NODE_STATUSES, FakeApi, Json
from tests.support.waiting import eventually
from tests.support.watching import ScriptedClock, configuration


def offer(ready: str = "True", owner: str = "uid-1", endpoints: int = 1, **gist: Any) -> Offer:
    conditions = [
        {"type": "Ready", "status": ready, "reason": "Because", "message": f"{endpoints} pods"},
        {"type": "PeersUp", "status": "True", "reason": "NoPeers", "message": ""},
    ]
    return Offer(owner, {"conditions": conditions, "endpoints": endpoints}, (ready, gist))


@contextmanager
def server(*, installed: bool = True) -> Iterator[FakeApi]:
    with FakeApi() as api:
        if installed:
            api.install(NODE_STATUSES)
        yield api


@contextmanager
def writing(api: FakeApi, clock: ScriptedClock) -> Iterator[StatusWriter]:
    client = Api(lambda: configuration(api))
    writer = StatusWriter(client, node_name="n1", clock=clock)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
        client.close()


def held(api: FakeApi) -> Json | None:
    with api.changed:
        return api.objects.get((NODE_STATUSES, "", "n1"))


def status(api: FakeApi) -> Json:
    found: Json = (held(api) or {}).get("status", {})
    return found


def condition(api: FakeApi, kind: str = "Ready") -> Json:
    return next((one for one in status(api).get("conditions", ()) if one["type"] == kind), {})


def writes(api: FakeApi) -> int:
    with api.changed:
        return sum(request.path.endswith("/status") for request in api.requests)


def until(api: FakeApi, writer: StatusWriter, **wanted: Any) -> None:
    api.wait_for(lambda: all(status(api).get(name) == value for name, value in wanted.items()))
    idle(writer)


def idle(writer: StatusWriter) -> None:
    """Until no write is under way."""
    eventually(lambda: not writer._due.is_set(), 20)


def test_the_object_is_made_and_owned_by_the_node() -> None:
    with server() as api, writing(api, ScriptedClock()) as writer:
        writer.offer(offer(endpoints=3))
        until(api, writer, endpoints=3)
        found = held(api)
    assert found is not None
    assert found["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-1"}
    ]


def test_conditions_say_since_when() -> None:
    with server() as api, writing(api, clock := ScriptedClock()) as writer:
        writer.offer(offer())
        until(api, writer, endpoints=1)
        first = condition(api)["lastTransitionTime"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first)
        with api.changed:
            api.objects[NODE_STATUSES, "", "n1"]["status"]["conditions"][0]["lastTransitionTime"] = "tampered"
        clock.advance(SLOW_PACE + PACE)
        writer.offer(offer(endpoints=2))
        until(api, writer, endpoints=2)
        assert condition(api)["lastTransitionTime"] == first, "the status is the same"
        clock.advance(2 * PACE)
        writer.offer(offer("False", endpoints=2))
        api.wait_for(lambda: condition(api)["status"] == "False")
        idle(writer)
        assert condition(api, "PeersUp")["lastTransitionTime"] == first


def test_after_a_restart_they_go_on() -> None:
    old = {"type": "PeersUp", "status": "True", "reason": "NoPeers", "message": "",
           "lastTransitionTime": "2020-01-01T00:00:00Z"}  # fmt: skip
    with server() as api, writing(api, ScriptedClock()) as writer:
        api.put(NODE_STATUSES, {"metadata": {"name": "n1"}, "status": {"conditions": [old]}})
        writer.offer(offer())
        until(api, writer, endpoints=1)
        assert condition(api, "PeersUp")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
        assert condition(api)["lastTransitionTime"] > "2020-01-01T00:00:00Z"


def test_nothing_is_written_unless_it_has_changed_and_not_soon_again() -> None:
    with server() as api, writing(api, clock := ScriptedClock()) as writer:
        writer.offer(offer())
        until(api, writer, endpoints=1)
        clock.advance(SLOW_PACE * 2)
        writer.offer(offer())
        assert not writer._due.is_set(), "it has not changed"
        writer.offer(offer(endpoints=2))
        until(api, writer, endpoints=2)
        clock.advance(PACE - 1)
        writer.offer(offer("False", endpoints=3))
        assert not writer._due.is_set(), "too soon"
        clock.advance(PACE)
        writer.offer(offer(endpoints=4))
        assert not writer._due.is_set(), "a count can wait"
        writer.offer(offer("False", endpoints=5))
        until(api, writer, endpoints=5)
        assert writes(api) == 3


def test_a_storm_of_changes_costs_one_write_in_ten_seconds() -> None:
    seconds = 600
    with server() as api, writing(api, clock := ScriptedClock()) as writer:
        for number in range(seconds):
            writer.offer(offer(str(number), endpoints=number))
            idle(writer)
            clock.advance(1)
        assert seconds / PACE / 1.3 < writes(api) <= seconds / PACE


def test_what_somebody_deleted_comes_again() -> None:
    with server() as api, writing(api, clock := ScriptedClock()) as writer:
        writer.offer(offer())
        until(api, writer, endpoints=1)
        api.delete(NODE_STATUSES, "", "n1")
        clock.advance(CHECKED[1])
        writer.offer(offer())  # is told that there is none
        idle(writer)
        clock.advance(2 * PACE)
        writer.offer(offer())
        until(api, writer, endpoints=1)


def test_a_node_that_is_made_again_owns_it() -> None:
    with server() as api, writing(api, clock := ScriptedClock()) as writer:
        writer.offer(offer())
        until(api, writer, endpoints=1)
        clock.advance(2 * PACE)
        writer.offer(offer(owner="uid-2"))
        api.wait_for(lambda: (held(api) or {})["metadata"]["ownerReferences"][0]["uid"] == "uid-2")


def test_without_its_definition_it_waits_and_comes() -> None:
    with server(installed=False) as api, writing(api, clock := ScriptedClock()) as writer:
        for _ in range(5):
            writer.offer(offer())
            idle(writer)
            clock.advance(500)
        asked = len(api.requests)
        assert asked == 10, "each try asks for the object, and then tries to make it"
        api.install(NODE_STATUSES)
        writer.offer(offer())
        until(api, writer, endpoints=1)


@pytest.mark.parametrize("fault", [faults.refuse(503), faults.refuse(403), faults.reset])
def test_a_server_that_is_not_well_gets_the_newest_later(fault: Any) -> None:
    with server() as api, writing(api, clock := ScriptedClock()) as writer:
        api.fault("patch", fault, times=3)
        for number in range(1, 5):
            writer.offer(offer(endpoints=number))
            idle(writer)
            clock.advance(1000)
        until(api, writer, endpoints=4)


def test_one_that_never_answers_holds_nobody_up() -> None:
    with server() as api:
        api.fault("patch", faults.hang)
        with writing(api, ScriptedClock()) as writer:
            writer.offer(offer())
            api.wait_for(lambda: bool(api.requests))
            started = time.monotonic()
            writer.offer(offer(endpoints=2))
            assert time.monotonic() - started < 2
            assert len(api.requests) == 1, "one at a time"
            api.break_connections()


def test_an_orderly_stop_says_that_the_state_is_not_known() -> None:
    with server() as api:
        with writing(api, ScriptedClock()) as writer:
            writer.offer(offer(endpoints=7))
            until(api, writer, endpoints=7)
        assert (condition(api)["status"], condition(api)["reason"]) == ("Unknown", "AgentStopped")
        assert condition(api, "PeersUp")["status"] == "True"
        assert status(api)["endpoints"] == 7


def test_who_has_written_nothing_says_nothing_at_the_end() -> None:
    with server() as api:
        with writing(api, ScriptedClock()):
            pass
        assert api.requests == []
