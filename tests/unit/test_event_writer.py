"""Kubernetes Events: written once, counted, limited, and never in anybody's way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from felix_py.datastore.client import Api
from felix_py.datastore.event_writer import REPEAT_AFTER, EventWriter, ObjectRef
from tests.support import fakeapi, faults
from tests.support.fakeapi import FakeApi
from tests.support.watching import ScriptedClock, configuration

POLICY = ObjectRef("NetworkPolicy", "networking.k8s.io/v1", "shop", "deny", "uid-1")


@contextmanager
def writing(server: FakeApi, clock: ScriptedClock | None = None, node: str = "node-1") -> Iterator[EventWriter]:
    client = Api(lambda: configuration(server))
    writer = EventWriter(client, node_name=node, clock=clock or ScriptedClock())
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
        client.close()


def test_event_is_one_that_kubectl_describe_finds() -> None:
    with FakeApi() as server, writing(server) as events:
        events.warning(POLICY, "InvalidNetworkPolicy", "spec.ingress[0]: bad")
        server.wait_for(lambda: len(server.events) == 1)
        ((namespace, name), event) = next(iter(server.events.items()))
    assert namespace == "shop"
    assert name.startswith("deny.")
    assert event["involvedObject"] == {
        "kind": "NetworkPolicy",
        "apiVersion": "networking.k8s.io/v1",
        "namespace": "shop",
        "name": "deny",
        "uid": "uid-1",
    }
    assert (event["type"], event["reason"], event["message"], event["count"]) == (
        "Warning",
        "InvalidNetworkPolicy",
        "spec.ingress[0]: bad",
        1,
    )
    assert event["source"] == {"component": "felix-py", "host": "node-1"}


def test_event_on_a_cluster_scoped_object_lives_in_default() -> None:
    with FakeApi() as server, writing(server) as events:
        events.normal(ObjectRef("Node", "v1", "", "node-1"), "Ready", "all well")
        server.wait_for(lambda: bool(server.events))
        assert [namespace for namespace, _ in server.events] == ["default"]
        assert "namespace" not in next(iter(server.events.values()))["involvedObject"]


def test_the_same_again_is_written_only_after_a_while_and_with_its_count() -> None:
    clock = ScriptedClock()
    with FakeApi() as server, writing(server, clock) as events:
        for _ in range(5):
            events.warning(POLICY, "Invalid", "why")
        events.warning(POLICY, "Invalid", "something else")
        server.wait_for(lambda: len(server.events) == 2)
        assert [r.method for r in server.requests] == ["POST", "POST"]
        clock.advance(REPEAT_AFTER + 1)
        events.warning(POLICY, "Invalid", "why")
        server.wait_for(lambda: any(event["count"] == 6 for event in server.events.values()))


def test_event_that_expired_is_written_anew() -> None:
    clock = ScriptedClock()
    with FakeApi() as server, writing(server, clock) as events:
        events.warning(POLICY, "Invalid", "why")
        server.wait_for(lambda: bool(server.events))
        server.events.clear()
        clock.advance(REPEAT_AFTER + 1)
        events.warning(POLICY, "Invalid", "why")
        server.wait_for(lambda: [e["count"] for e in server.events.values()] == [1])


def test_many_agents_that_say_the_same_write_one_event() -> None:
    with FakeApi() as server, writing(server) as one, writing(server, node="node-2") as two:
        one.warning(POLICY, "Invalid", "why")
        two.warning(POLICY, "Invalid", "why")
        server.wait_for(lambda: len(server.requests) == 2)
        assert len(server.events) == 1


def test_rate_is_limited() -> None:
    clock = ScriptedClock()
    with FakeApi() as server, writing(server, clock) as events:
        for number in range(40):
            events.warning(POLICY, "Invalid", f"reason {number}")
        server.wait_for(lambda: len(server.events) == 40)
    assert clock.now() - 1000 == pytest.approx(40, abs=4), "20 at once, the other 20 one in two seconds"


def test_nothing_blocks_while_the_server_hangs_and_memory_is_bounded() -> None:
    with FakeApi() as server:
        server.fault("post", faults.hang)
        with writing(server) as events:
            for number in range(5000):
                events.warning(POLICY, "Invalid", f"reason {number}")
            assert events._queue.qsize() <= 256
            server.break_connections()


@pytest.mark.parametrize("fault", [faults.reset, faults.refuse(403, "Forbidden"), faults.refuse(500)])
def test_failure_is_logged_and_the_next_goes_on(fault: fakeapi.Fault, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeApi() as server:
        server.fault("post", fault)
        with writing(server) as events:
            events.warning(POLICY, "Invalid", "lost")
            events.warning(POLICY, "Invalid", "kept")
            server.wait_for(lambda: [e["message"] for e in server.events.values()] == ["kept"])
    assert "cannot write an Event" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x" * 253, "a." * 126, "p" * 199 + "-." + "q" * 40])
def test_name_and_message_are_within_the_api_s_bounds(name: str) -> None:
    with FakeApi() as server, writing(server) as events:
        events.warning(ObjectRef("NetworkPolicy", "v1", "ns", name), "Invalid", "ü" * 2000)
        server.wait_for(lambda: bool(server.events))
        ((_, event_name), event) = next(iter(server.events.items()))
    assert len(event_name) <= 253
    assert all(re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", part) for part in event_name.split("."))
    assert len(event["message"].encode()) <= 1024


def test_hostile_names_stay_inside_their_path_segment() -> None:
    with FakeApi() as server, writing(server) as events:
        events.warning(ObjectRef("Pod", "v1", "../../nodes", "n"), "Invalid", "why")
        server.wait_for(lambda: bool(server.requests))
        assert server.requests[0].path == "/api/v1/namespaces/..%2F..%2Fnodes/events"
