"""Kinds of a CustomResourceDefinition: not installed, installed later, removed; and what only looks like that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from felix_py.datastore.absence import DEFINITIONS, Discovery
from felix_py.datastore.client import Api
from felix_py.datastore.informer import Timing
from felix_py.datastore.kinds import CLUSTER_POLICIES as KIND
from felix_py.datastore.kinds import CLUSTER_POLICY_KINDS
from tests.support import fakeapi, faults
from tests.support.fakeapi import CLUSTER_POLICIES, PODS, FakeApi, Json, pod
from tests.support.watching import QUICK, ScriptedClock, configuration, probing, watching


def policy(name: str, **spec: Any) -> Json:
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, **spec}
    return {"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": spec}


async def asked(api: FakeApi, times: int) -> None:
    """Wait until the kind was asked for so often, from the first time on."""
    await asyncio.to_thread(api.wait_for, lambda: len(api.verbs(CLUSTER_POLICIES)) >= times)


@pytest.mark.parametrize("watch_list", [True, False])
async def test_a_kind_that_is_not_installed_is_a_complete_empty_list(watch_list: bool) -> None:
    with FakeApi(watch_list=watch_list) as api:
        async with watching(api, kind=KIND) as watch:
            await watch.until_listed()
            assert watch.names() == set()
            assert watch.events == []


@pytest.mark.parametrize("progress", [True, False])
async def test_one_quiet_watch_of_its_definition_is_all_that_it_costs(progress: bool) -> None:
    with FakeApi(progress=progress) as api:
        async with watching(api, kind=KIND) as watch:
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs(DEFINITIONS) == ["list", "watch"])
            assert api.verbs(CLUSTER_POLICIES) == ["watchlist"]
            assert all(
                request.query["fieldSelector"] == "metadata.name=clusternetworkpolicies.policy.networking.k8s.io"
                for request in api.requests
                if request.path == DEFINITIONS
            ), "by name: that is what the right to it is restricted to"
            watch.clock.advance(400)
            api.end_watches()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs(DEFINITIONS) == ["list", "watch"] * 2)
            assert api.verbs(CLUSTER_POLICIES) == ["watchlist"]
            assert max(watch.clock.waits) == 0


@pytest.mark.parametrize("watch_list", [True, False])
async def test_one_that_is_installed_later_is_watched_at_once(watch_list: bool) -> None:
    with FakeApi(watch_list=watch_list) as api:
        async with watching(api, kind=KIND) as watch:
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs(DEFINITIONS) == ["list", "watch"])
            api.define(CLUSTER_POLICIES, established=False)
            api.install(CLUSTER_POLICIES)
            api.put(CLUSTER_POLICIES, policy("a"))
            await watch.until_names("a")
            assert sum(watch.clock.waits) < 0.5
            api.put(CLUSTER_POLICIES, policy("b"))
            await watch.until_names("a", "b")
            api.delete(CLUSTER_POLICIES, "", "a")
            await watch.until_names("b")
        assert ("watchlist" in api.verbs(CLUSTER_POLICIES)[-2:]) is watch_list


async def test_a_definition_may_be_there_a_moment_before_what_it_defines() -> None:
    """Servers of one cluster learn of it one after the other."""
    with FakeApi() as api:
        async with watching(api, kind=KIND) as watch:
            await watch.until_listed()
            api.define(CLUSTER_POLICIES)
            await asked(api, 4)
            api.install(CLUSTER_POLICIES)
            api.put(CLUSTER_POLICIES, policy("a"))
            await watch.until_names("a")
            first = watch.clock.waits[2:5]
            assert all(0.15 * 2**n <= delay <= 0.45 * 2**n for n, delay in enumerate(first)), "backing off"


async def test_a_definition_of_other_versions_is_none() -> None:
    with FakeApi() as api:
        api.define(CLUSTER_POLICIES, version="v9")
        async with watching(api, kind=KIND) as watch:
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: api.verbs(DEFINITIONS) == ["list", "watch"])
            assert len(watch.clock.waits) == 1, "not doubted"
            api.install(CLUSTER_POLICIES)
            api.put(CLUSTER_POLICIES, policy("a"))
            await watch.until_names("a")


# --- definitions that may not be read --------------------------------------------------------------------------


async def test_without_the_right_to_the_definition_the_group_is_looked_at_less_and_less() -> None:
    with FakeApi(definitions=False) as api:
        async with watching(api, kind=KIND) as watch:
            await watch.until_listed()
            waits = (await watch.clock.until_waits(40))[1:]
            assert api.verbs(CLUSTER_POLICIES) == ["watchlist"] * 2, "the kind itself is not asked for"
            api.install(CLUSTER_POLICIES)
            api.put(CLUSTER_POLICIES, policy("a"))
            await watch.until_names("a")
    assert 0.5 * QUICK.absent <= waits[0] <= 1.5 * QUICK.absent
    assert all(10 * QUICK.absent <= wait <= 30 * QUICK.absent for wait in waits[6:]), waits
    assert max(waits[6:]) - min(waits[6:]) > QUICK.absent, "not in step with other agents"


def test_one_look_at_the_group_serves_all_kinds() -> None:
    with FakeApi() as api:
        clock = ScriptedClock()
        client = Api(lambda: configuration(api))
        discovery = Discovery(client, clock)
        group = "policy.networking.k8s.io"
        versions = ("v1alpha1", "v1alpha1", "v1alpha2")
        assert [discovery.serves(group, version, 7) for version in versions] == [False] * 3
        assert api.verbs(f"/apis/{group}") == ["list"]
        api.install(CLUSTER_POLICIES)
        assert not discovery.serves(group, "v1alpha2", 7)
        clock.advance(8)
        assert [discovery.serves(group, version, 7) for version in versions] == [False, False, True]
        assert api.verbs(f"/apis/{group}") == ["list", "list"]
        client.close()


# --- a server that is about to start ---------------------------------------------------------------------------


def no_such_path(api: FakeApi) -> None:
    """It has read no definitions, and serves none: 404 for the whole group and for what defines it."""
    api.fault("*", faults.refuse(404, "NotFound"), path=CLUSTER_POLICIES, times=4)
    api.fault("*", faults.refuse(404, "NotFound"), path=DEFINITIONS, times=4)


def not_in_step(api: FakeApi) -> None:
    """It has the definition, but does not serve the kind yet."""
    api.fault("*", faults.refuse(404, "NotFound"), path=CLUSTER_POLICIES, times=6)


def unavailable(api: FakeApi) -> None:
    """It says 404, then that it is not ready, then 404."""
    api.fault("*", faults.refuse(404, "NotFound"), path=CLUSTER_POLICIES, times=2)
    api.fault("*", faults.refuse(503, "ServiceUnavailable"), path=CLUSTER_POLICIES, times=2)
    api.fault("*", faults.refuse(404, "NotFound"), path=CLUSTER_POLICIES, times=2)
    api.fault("*", faults.refuse(503, "ServiceUnavailable"), path=DEFINITIONS, times=4)


def empty_once(api: FakeApi) -> None:
    """Its definitions are an old list's for a moment, that has none."""

    def nothing(exchange: fakeapi.Exchange) -> bool:
        exchange.send(200, {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []})
        return True

    api.fault("*", faults.refuse(404, "NotFound"), path=CLUSTER_POLICIES)
    api.fault("list", nothing, path=DEFINITIONS)


def forbidden(api: FakeApi) -> None:
    """The agent may not read definitions, so that nobody but the kind itself can be asked."""
    api.definitions = False
    api.fault("*", faults.refuse(404, "NotFound"), path=CLUSTER_POLICIES, times=5)


@pytest.mark.parametrize("starting", [no_such_path, not_in_step, unavailable, empty_once, forbidden])
async def test_a_server_that_is_just_starting_takes_no_policy_out_of_force(
    starting: Callable[[FakeApi], None],
) -> None:
    """The agent starts too, and finds rules of such policies in the kernel."""
    with FakeApi() as api:
        api.install(CLUSTER_POLICIES)
        api.put(CLUSTER_POLICIES, policy("a"))
        starting(api)
        async with watching(api, kind=KIND, in_force=True) as watch:
            await watch.until_listed()
            assert watch.names() == {"a"}, "no complete list came before this one"


async def test_a_definition_that_is_there_is_believed_more_than_a_404_also_without_rules_in_the_kernel() -> None:
    """As after a reboot of everything."""
    with FakeApi() as api:
        api.install(CLUSTER_POLICIES)
        api.put(CLUSTER_POLICIES, policy("a"))
        not_in_step(api)
        async with watching(api, kind=KIND) as watch:
            await watch.until_listed()
            assert watch.names() == {"a"}


@pytest.mark.parametrize(("definitions", "bound"), [(True, 5), (False, 60)])
async def test_a_kind_that_is_gone_is_believed_to_be_gone_after_a_time_though_rules_are_in_force(
    definitions: bool, bound: float
) -> None:
    with FakeApi(definitions=definitions) as api:
        async with watching(api, kind=KIND, in_force=True) as watch:
            await watch.until_listed()
            asked_again = [wait for wait in watch.clock.waits if wait < QUICK.absent / 2]
            assert 1 <= sum(asked_again) < bound


# --- there, and gone -------------------------------------------------------------------------------------------


async def test_one_that_is_removed_empties_the_table_and_may_come_back() -> None:
    with FakeApi() as api:
        api.install(CLUSTER_POLICIES)
        api.put(CLUSTER_POLICIES, policy("a"))
        async with watching(api, kind=KIND) as watch:
            await watch.until_names("a")
            api.uninstall(CLUSTER_POLICIES)
            await watch.until_names()
            assert watch.deleted() == ["a"]
            api.install(CLUSTER_POLICIES)
            api.put(CLUSTER_POLICIES, policy("c"))
            await watch.until_names("c")


async def test_a_single_404_of_an_installed_kind_loses_no_policy() -> None:
    """As of a server that is about to start, or one of several that is behind the others."""
    with FakeApi() as api:
        api.install(CLUSTER_POLICIES)
        api.put(CLUSTER_POLICIES, policy("a"))
        async with watching(api, kind=KIND) as watch:
            await watch.until_names("a")
            for _ in range(3):
                api.fault("watch", faults.refuse(404, "NotFound"), path=CLUSTER_POLICIES)
                seen = len(api.verbs(CLUSTER_POLICIES))
                api.end_watches()
                await asked(api, seen + 2)
            api.put(CLUSTER_POLICIES, policy("b"))
            await watch.until_names("a", "b")
            assert watch.deleted() == []
            assert watch.upserted() == ["a", "b"], "nothing was published twice"


async def test_a_404_for_a_kind_that_every_server_has_is_an_error() -> None:
    with FakeApi() as api:
        api.put(PODS, pod("a"))
        async with watching(api) as watch:
            await watch.until_names("a")
            api.fault("*", faults.refuse(404, "NotFound"), path=PODS, times=6)
            api.end_watches()
            await watch.clock.until_waits(5)
            api.put(PODS, pod("b"))
            await watch.until_names("a", "b")
            assert watch.deleted() == []


@pytest.mark.parametrize("code", [401, 403, 500, 503])
async def test_a_kind_that_cannot_be_asked_for_is_not_a_kind_that_is_not_there(code: int) -> None:
    """Without the right to list it, an agent does not know what it must deny: it waits."""
    with FakeApi() as api:
        api.install(CLUSTER_POLICIES)
        api.put(CLUSTER_POLICIES, policy("a"))
        api.fault("*", faults.refuse(code), path=CLUSTER_POLICIES, times=8)
        async with watching(api, kind=KIND) as watch:
            await watch.clock.until_waits(4)
            assert KIND.name in watch.store.not_listed
            await watch.until_names("a")


@pytest.mark.parametrize("definitions", [True, False])
async def test_the_age_of_a_kind_that_is_not_there_is_that_of_the_last_look(definitions: bool) -> None:
    with FakeApi(definitions=definitions) as api:
        async with watching(api, Timing(silence=0.05), kind=KIND) as watch, probing(watch):
            await watch.until_listed()
            await asyncio.to_thread(api.wait_for, lambda: len(api.verbs("/version")) > 3 or not definitions)
            assert watch.reflector.age() <= 1.5 * 20 * QUICK.absent


def test_the_kinds_are_where_the_api_has_them() -> None:
    assert [kind.path for kind in CLUSTER_POLICY_KINDS] == [
        fakeapi.CLUSTER_POLICIES,
        fakeapi.ADMIN_POLICIES,
        fakeapi.BASELINE_ADMIN_POLICIES,
    ]
    assert all(kind.optional for kind in CLUSTER_POLICY_KINDS)
