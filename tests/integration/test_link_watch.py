"""The watch for links and next hops loses events: it looks again, and knows what there is."""

from __future__ import annotations

import asyncio

import pytest

from felix_py.dataplane import link_watch, monitor
from felix_py.dataplane.link_watch import LinkWatch
from felix_py.dataplane.reach import Links
from policy.model import Family
from tests.support.isolate import run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

_POD = "felix0000000001"


async def test_lost_events_are_made_up_for_by_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the socket holds happens before the event loop gets to read any of it. All that matters is the
    last of it, and lost, and what is left is no reason to look."""
    monkeypatch.setattr(monitor, "_BUFFER", 4096)
    monkeypatch.setattr(link_watch, "_REFRESH", 3600.0)
    run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", _POD)
    run("ip", "link", "set", _POD, "up")
    run("ip", "link", "set", "up0", "up")
    told: asyncio.Queue[Links] = asyncio.Queue()
    task = asyncio.create_task(LinkWatch((Family.V4,), told.put_nowait).run())
    known = await told.get()
    while ("up0", True) not in known.interfaces.values():
        known = await told.get()
    await asyncio.sleep(1.0)  # no look is due any more that would find it by chance
    # What happens to an interface of a pod is no news, and is told in fewer bytes than a link.
    run("ip", "-batch", "-", stdin="".join(f"addr add 203.0.113.{n}/32 dev {_POD}\n" for n in range(250)))
    run("ip", "link", "set", "up0", "down")
    while ("up0", False) not in known.interfaces.values():
        known = await told.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
