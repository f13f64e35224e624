"""An agent under a ClusterRole of an earlier version, which lets it see no kind of later ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.agent_program import NODE, AgentProgram
from tests.support.fakeapi import BGP_PEERS, CONFIGURATIONS, NAMESPACES, NODES, FakeApi
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

LATER = {"BGPPeer": BGP_PEERS, "FelixConfiguration": CONFIGURATIONS}


async def test_kinds_that_may_not_be_seen_are_told_until_they_may(tmp_path: Path) -> None:
    with FakeApi() as api:
        api.put(NODES, {"metadata": {"name": NODE}, "spec": {"podCIDRs": ["10.65.0.0/24"]}})
        api.put(NAMESPACES, {"metadata": {"name": "default"}})
        for path in LATER.values():
            api.install(path)
            api.fault("*", faults.refuse(403, "Forbidden"), path=path, times=1000)
        agent = AgentProgram(tmp_path, api.url)

        def told() -> set[str]:
            return {one["subject"] for one in agent.status()["notices"] if one["kind"] == "kind-refused"}

        with agent:
            agent.start()
            await asyncio.to_thread(agent.wait_ready)
            async with asyncio.timeout(60):
                await until(lambda: told() == LATER.keys())
                api.clear_faults()
                await until(lambda: not told())
