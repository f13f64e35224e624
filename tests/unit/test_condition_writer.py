"""The condition felixpy.io/Accepted: what it says, when it is written, and that agents do not fight over it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from felix_py.datastore.client import Api
from felix_py.datastore.conditions import ACCEPTED, LOOK, ConditionWriter
from tests.support import fakeapi, faults
from tests.support.fakeapi import ADMIN_POLICIES, BASELINE_ADMIN_POLICIES, CLUSTER_POLICIES, FakeApi, Json
from tests.support.watching import ScriptedClock, configuration

KIND = "ClusterNetworkPolicy"
DNS = "felix-py does not watch DNS, so it cannot match domain names"
OTHER = {
    "type": "example.com/Audited",
    "status": "True",
    "reason": "Ok",
    "message": "",
    "lastTransitionTime": "x",
}


def policy(name: str = "guard", *, broken: bool = False, generation: int = 1, **status: Any) -> Json:
    peer = {"domainNames": ["a.example"]} if broken else {"networks": ["10.0.0.0/8"]}
    spec = {
        "tier": "Admin",
        "priority": 1,
        "subject": {"namespaces": {}},
        "egress": [{"action": "Deny", "to": [peer]}],
    }
    metadata = {"name": name, "uid": f"uid-{name}", "generation": generation}
    return {"metadata": metadata, "spec": spec, "status": status}


@contextmanager
def server(*collections: str) -> Iterator[FakeApi]:
    with FakeApi() as api:
        for collection in collections or (CLUSTER_POLICIES,):
            api.install(collection)
        yield api


@contextmanager
def writing(api: FakeApi, clock: ScriptedClock | None = None) -> Iterator[ConditionWriter]:
    client = Api(lambda: configuration(api))
    writer = ConditionWriter(client, clock=clock or ScriptedClock())
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
        client.close()
        assert not writer._thread.is_alive()


def conditions(api: FakeApi, name: str = "guard", collection: str = CLUSTER_POLICIES) -> list[Json]:
    found: list[Json] = api.objects[collection, "", name].get("status", {}).get("conditions", [])
    return found


def accepted(api: FakeApi, name: str = "guard", collection: str = CLUSTER_POLICIES) -> Json:
    return next((one for one in conditions(api, name, collection) if one["type"] == ACCEPTED), {})


def patches(api: FakeApi) -> int:
    with api.changed:
        return [request.method for request in api.requests].count("PATCH")


def looks(api: FakeApi, name: str = "guard") -> int:
    with api.changed:
        return sum(r.method == "GET" and r.path == f"{CLUSTER_POLICIES}/{name}" for r in api.requests)


def test_a_policy_with_problems_gets_a_condition_that_the_api_would_take() -> None:
    with server() as api, writing(api) as writer:
        api.put(CLUSTER_POLICIES, policy(broken=True, generation=7))
        writer.review(KIND, "guard")
        api.wait_for(lambda: bool(accepted(api)))
        condition = accepted(api)
    assert condition["status"] == "False"
    assert condition["reason"] == "NotAppliedAsWritten"
    assert condition["message"] == (
        f"spec.egress[0].to[0].domainNames: {DNS}; "
        "spec.egress[0]: as a part of it is not understood, it denies everything"
    )
    assert condition["observedGeneration"] == 7
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", condition["lastTransitionTime"])
    # The patterns of meta/v1 Condition.
    assert re.fullmatch(
        r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])",
        condition["type"],
    )
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", condition["reason"])


def test_a_mended_policy_is_true_again_and_since_when() -> None:
    since = {"type": ACCEPTED, "status": "False", "reason": "NotAppliedAsWritten", "message": "why",
             "lastTransitionTime": "2020-01-01T00:00:00Z", "observedGeneration": 1}  # fmt: skip
    with server() as api, writing(api) as writer:
        api.put(CLUSTER_POLICIES, policy(generation=2, conditions=[since]))
        writer.review(KIND, "guard")
        api.wait_for(lambda: accepted(api)["status"] == "True")
        condition = accepted(api)
    assert condition["reason"] == "AppliedAsWritten"
    assert condition["observedGeneration"] == 2
    assert condition["lastTransitionTime"] > "2020-01-01T00:00:00Z"


def test_other_problems_keep_the_time_since_when_it_is_false() -> None:
    since = {"type": ACCEPTED, "status": "False", "reason": "NotAppliedAsWritten", "message": "others",
             "lastTransitionTime": "2020-01-01T00:00:00Z", "observedGeneration": 1}  # fmt: skip
    with server() as api, writing(api) as writer:
        api.put(CLUSTER_POLICIES, policy(broken=True, conditions=[since]))
        writer.review(KIND, "guard")
        api.wait_for(lambda: DNS in accepted(api)["message"])
        assert accepted(api)["lastTransitionTime"] == "2020-01-01T00:00:00Z"


def test_a_policy_that_never_had_problems_gets_none() -> None:
    with server() as api, writing(api) as writer:
        api.wait_for(lambda: "list" in api.verbs(CLUSTER_POLICIES))
        api.put(CLUSTER_POLICIES, policy())
        writer.review(KIND, "guard")
        api.wait_for(lambda: looks(api) == 1)
        writer.review(KIND, "guard")
        api.wait_for(lambda: looks(api) == 2)
        assert patches(api) == 0


def test_conditions_of_others_stay() -> None:
    with server() as api, writing(api) as writer:
        api.put(CLUSTER_POLICIES, policy(broken=True, conditions=[OTHER]))
        writer.review(KIND, "guard")
        api.wait_for(lambda: bool(accepted(api)))
        assert conditions(api)[0] == OTHER


def test_many_agents_write_once() -> None:
    with server() as api, ExitStack() as stack:
        agents = [stack.enter_context(writing(api)) for _ in range(12)]
        api.put(CLUSTER_POLICIES, policy(broken=True))
        for _ in range(3):
            for agent in agents:
                agent.review(KIND, "guard")
        api.wait_for(lambda: bool(accepted(api)))
        settled = accepted(api)
        version = api.objects[CLUSTER_POLICIES, "", "guard"]["metadata"]["resourceVersion"]
        for agent in agents:
            agent.review(KIND, "guard")
        seen = looks(api)
        api.wait_for(lambda: looks(api) >= seen + 12)
        assert accepted(api) == settled
        assert api.objects[CLUSTER_POLICIES, "", "guard"]["metadata"]["resourceVersion"] == version


def test_agents_look_at_different_times() -> None:
    clocks = [ScriptedClock() for _ in range(8)]
    with server() as api, ExitStack() as stack:
        for clock in clocks:
            agent = stack.enter_context(writing(api, clock))
            agent.review(KIND, "guard")
        api.wait_for(lambda: api.verbs(CLUSTER_POLICIES).count("list") == 8)
    first = {clock.waits[0] for clock in clocks}
    assert len(first) > 1
    assert all(LOOK[0] <= wait <= LOOK[1] for wait in first)


def test_a_write_in_between_is_not_undone() -> None:
    """What somebody wrote between our look and our patch stays: the patch is refused, and we look again."""
    with server() as api, writing(api) as writer:
        api.put(CLUSTER_POLICIES, policy(broken=True))

        def meanwhile(exchange: fakeapi.Exchange) -> bool:
            api.put(CLUSTER_POLICIES, policy(broken=True, generation=2, conditions=[OTHER]))
            return False

        api.fault("patch", meanwhile)
        writer.review(KIND, "guard")
        api.wait_for(lambda: bool(accepted(api)))
        assert conditions(api)[0] == OTHER
        assert accepted(api)["observedGeneration"] == 2


def test_what_was_mended_while_no_agent_ran_is_found_at_the_start() -> None:
    since = {"type": ACCEPTED, "status": "False", "reason": "X", "message": "why", "lastTransitionTime": "x"}
    with server(CLUSTER_POLICIES, ADMIN_POLICIES) as api:
        for number in range(1201):
            api.put(CLUSTER_POLICIES, policy(f"good-{number:04}"))
        api.put(CLUSTER_POLICIES, policy("zz-mended", conditions=[since]))
        broken = policy("broken")
        del broken["spec"]["tier"]
        broken["spec"]["egress"][0]["action"] = "Log"
        api.put(ADMIN_POLICIES, broken)
        with writing(api):
            api.wait_for(lambda: accepted(api, "zz-mended")["status"] == "True")
            api.wait_for(lambda: bool(accepted(api, "broken", ADMIN_POLICIES)))
        assert patches(api) == 2
        assert "list" in api.verbs(BASELINE_ADMIN_POLICIES), "one that is not installed ends nothing"


@pytest.mark.parametrize("fault", [faults.reset, faults.refuse(500), faults.refuse(409), faults.refuse(429)])
@pytest.mark.parametrize("verb", ["patch", "*"])
def test_what_fails_for_a_passing_reason_is_tried_again(fault: fakeapi.Fault, verb: str) -> None:
    with server() as api:
        api.put(CLUSTER_POLICIES, policy(broken=True))
        api.fault(verb, fault, times=3)
        with writing(api) as writer:
            writer.review(KIND, "guard")
            api.wait_for(lambda: bool(accepted(api)))


def test_without_the_right_to_patch_it_says_so_and_gives_up(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as api:
        api.put(CLUSTER_POLICIES, policy(broken=True))
        api.put(CLUSTER_POLICIES, policy("second", broken=True))
        api.fault("patch", faults.refuse(403, "Forbidden", "may not patch the status"), times=2)
        with writing(api):
            api.wait_for(lambda: patches(api) == 2)
    assert capsys.readouterr().out.count("may not patch the status") == 2
    assert not accepted(api)


def test_a_policy_that_is_gone_by_then() -> None:
    with server() as api, writing(api) as writer:
        writer.review(KIND, "gone")
        api.put(CLUSTER_POLICIES, policy(broken=True))
        writer.review(KIND, "guard")
        api.wait_for(lambda: bool(accepted(api)))


def test_nothing_blocks_and_memory_is_bounded() -> None:
    with server() as api:
        api.fault("list", faults.hang)
        with writing(api) as writer:
            for number in range(5000):
                writer.review(KIND, f"policy-{number}")
            assert writer._queue.qsize() <= 1024
            api.break_connections()


def test_thousands_of_problems_are_a_message_that_the_api_takes() -> None:
    with server() as api, writing(api) as writer:
        huge = policy()
        huge["spec"]["egress"] = [{"action": "Deny", "to": [{"networks": ["x" * 60]}]}] * 25
        api.put(CLUSTER_POLICIES, huge)
        writer.review(KIND, "guard")
        api.wait_for(lambda: bool(accepted(api)))
        assert len(accepted(api)["message"]) <= 4096
        assert accepted(api)["message"].endswith(" …")
