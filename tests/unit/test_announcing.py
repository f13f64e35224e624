"""When the speaker is told what, and what a node says of its drain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import pytest

from bgp.announcement import Announcement
from bgp.resources import BGPConfiguration
from bgp.services import Drain, Endpoints, Service
from felix_py.agent import announcing
from felix_py.agent.announcing import Announcing
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.records import NodeRecord
from felix_py.speaker import Speaker
from policy.model import Family
from tests.support.services import Objects
from tests.support.told import ToldFacts
from tests.support.waiting import running, until

OWN, RANGE, HOST = "10.1.0.0/24", "10.96.0.0/16", "10.96.0.1/32"
CONFIG = BGPConfiguration(name="default", service_cluster_ips=(RANGE,))
WEB = Service("shop", "web", True, ("10.96.0.1",))
HERE = Endpoints("shop", "web-1", "web", 4, ready_here=True, ready_elsewhere=True)


class Sessions:
    """A speaker that is told everything, and whose ExaBGP sends it when the test lets it."""

    def __init__(self) -> None:
        self.told: dict[str, Announcement] | None = None
        self.sends = True

    def announce(self, announcements: Iterable[Announcement]) -> None:
        self.told = {one.prefix: one for one in announcements}

    async def delivered(self) -> bool:
        await asyncio.sleep(0)
        return self.sends


class Rig:
    def __init__(self) -> None:
        self.facts, self.objects, self.sessions = ToldFacts(), Objects(), Sessions()
        self.notices = Notices(Metrics())
        speaker = cast(Speaker, self.sessions)
        self.part = Announcing(self.facts, self.objects, (Family.V4,), self.notices, speaker)
        self.part.configure(CONFIG)

    def node(self, drain: str = "") -> None:
        self.facts.upsert(NodeRecord("n1", pod_cidrs=(OWN,), drain=drain))
        self.part.review()

    def told(self) -> Any:
        return None if self.sessions.told is None else {*self.sessions.told}


async def turns() -> None:
    """Let everything happen that can without time."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcing, "_LOOK", 0.01)
    monkeypatch.setattr(announcing, "_AGAIN", 0.01)


async def test_nothing_is_said_before_all_is_known() -> None:
    rig = Rig()
    async with running(rig.part.run()):
        rig.part.review()
        await turns()
        rig.node()
        rig.objects.put(WEB, HERE)
        await turns()
        assert rig.told() is None, "an earlier agent's announcements stay"
        rig.objects.end_list()
        await until(lambda: rig.told() == {OWN, RANGE, HOST})
        # From here on each change counts at once.
        rig.objects.put(Endpoints("shop", "web-1", "web", 4))
        await until(lambda: rig.told() == {OWN, RANGE})
        assert not rig.notices.all()


async def test_a_server_that_refuses_services_keeps_no_pod_from_being_reached() -> None:
    rig = Rig()
    rig.node()
    async with running(rig.part.run()):
        await asyncio.sleep(0.05)
        assert rig.told() is None, "it may only be away"
        rig.objects.forbidden = True
        await until(lambda: rig.told() == {OWN, RANGE})
        assert [notice.kind for notice in rig.notices.all()] == [NoticeKind.BGP]
        rig.objects.forbidden = False
        rig.objects.put(WEB, HERE)
        rig.objects.end_list()
        await until(lambda: rig.told() == {OWN, RANGE, HOST})
        assert not rig.notices.all()


async def test_a_drain_is_over_when_it_was_sent() -> None:
    rig = Rig()
    rig.node()
    rig.objects.put(WEB, HERE)
    rig.objects.end_list()
    async with running(rig.part.run()):
        await until(lambda: rig.told() == {OWN, RANGE, HOST})
        assert not rig.part.drained().asked
        rig.sessions.sends = False
        rig.node("true")
        await until(lambda: rig.sessions.told is not None and rig.sessions.told[OWN].local_preference == 0)
        found = rig.part.drained()
        assert (found.asked, found.stage, found.sent) == ("true", Drain.GRACEFUL, False)
        rig.sessions.sends = True
        await until(lambda: rig.part.drained().sent)
        rig.node()
        await until(lambda: rig.sessions.told is not None and rig.sessions.told[OWN].local_preference is None)


async def test_a_node_that_was_drained_before_the_start() -> None:
    rig = Rig()
    rig.sessions.sends = False
    rig.node("true")
    rig.objects.end_list()
    async with running(rig.part.run()):
        await until(lambda: rig.told() == {OWN})
        assert (rig.part.drained().stage, rig.part.drained().sent) == (Drain.WITHDRAWN, False)
        rig.sessions.sends = True
        await until(lambda: rig.part.drained().sent)
