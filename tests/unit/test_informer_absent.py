"""Kinds of a CustomResourceDefinition: not installed, installed later, removed; and what only looks like that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from felix_py.datastore.decode import CLUSTER_POLICIES as KIND
from felix_py.datastore.decode import CLUSTER_POLICY_KINDS
from tests.support import fakeapi, faults
from tests.support.fakeapi import CLUSTER_POLICIES, PODS, FakeApi, Json, pod
from tests.support.watching import QUICK, on_loop, watching


def policy(name: str, **spec: Any) -> Json:
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, **spec}
    return {"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": spec}


async def asked(api: FakeApi, times: int) -> None:
    """Wait until the kind was asked for so often, from the first time on."""
    await asyncio.to_thread(api.wait_for, lambda: len(api.verbs(CLUSTER_POLICIES)) >= times)


@on_loop
@pytest.mark.parametrize("watch_list", [True, False])
async def test_a_kind_that_is_not_installed_is_a_complete_empty_list(watch_list: bool) -> None:
    with FakeApi(watch_list=watch_list) as api:
        async with watching(api, kind=KIND) as watch:
            await watch.until_listed()
            assert watch.names() == set()
            assert watch.events == []


@on_loop
async def test_it_is_looked_for_again_and_again_at_the_same_pace_and_not_in_step_with_other_agents() -> None:
    with FakeApi() as api:
        async with watching(api, kind=KIND) as watch:
            waits = await watch.clock.until_waits(40)
    assert all(0.5 * QUICK.absent <= wait <= 1.5 * QUICK.absent for wait in waits), waits
    assert max(waits) - min(waits) > QUICK.absent / 4


@on_loop
@pytest.mark.parametrize("watch_list", [True, False])
async def test_one_that_is_installed_later_is_watched(watch_list: bool) -> None:
    with FakeApi(watch_list=watch_list) as api:
        async with watching(api, kind=KIND) as watch:
            await asked(api, 3)
            api.install(CLUSTER_POLICIES)
            api.put(CLUSTER_POLICIES, policy("a"))
            await watch.until_names("a")
            api.put(CLUSTER_POLICIES, policy("b"))
            await watch.until_names("a", "b")
            api.delete(CLUSTER_POLICIES, "", "a")
            await watch.until_names("b")
        assert ("watchlist" in api.verbs(CLUSTER_POLICIES)[-2:]) is watch_list


@on_loop
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


@on_loop
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


@on_loop
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


@on_loop
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


@on_loop
async def test_the_age_of_a_kind_that_is_not_there_is_that_of_the_last_look() -> None:
    with FakeApi() as api:
        async with watching(api, kind=KIND) as watch:
            await watch.clock.until_waits(5)
            assert watch.reflector.age() <= 2 * 1.5 * QUICK.absent


def test_the_kinds_are_where_the_api_has_them() -> None:
    assert [kind.path for kind in CLUSTER_POLICY_KINDS] == [
        fakeapi.CLUSTER_POLICIES,
        fakeapi.ADMIN_POLICIES,
        fakeapi.BASELINE_ADMIN_POLICIES,
    ]
    assert all(kind.optional for kind in CLUSTER_POLICY_KINDS)
