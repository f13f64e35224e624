"""Pod interfaces that are made while their leases are written: made or not, nothing of a failed ADD stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace

from felix_py.cni.workers import Interfaces
from felix_py.dataplane.links import LinkError, LinkExists, PodLink, random_mac
from felix_py.records import Lease
from policy.model import Family
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]

LEASE = Lease("c1", "eth0", "felix-py", "default", "web", "uid", "felix0000000000", {}, 1.0)


@pytest.fixture
async def interfaces(netns: None) -> AsyncIterator[Interfaces]:
    interfaces = Interfaces()
    yield interfaces
    interfaces.close()


def pair(pod: NetworkNamespace, number: int = 0) -> PodLink:
    return PodLink(f"felix{number:010x}", pod.path, "eth0", {}, random_mac(), 1400)


def whole(link: PodLink) -> PodLink:
    return replace(link, addresses={Family.V4: "10.65.0.1", Family.V6: "fd65::1"})


async def test_it_is_configured_once_its_addresses_are_known_by_whichever_thread(
    interfaces: Interfaces, make_netns: MakeNetns
) -> None:
    link = pair(make_netns("pod"))
    making = interfaces.begin(link)
    await asyncio.to_thread(making.complete, whole(link), LEASE)
    assert await making.done() is LEASE
    assert making.link == whole(link)
    assert await interfaces.check(making.link, list(Family)) == []


@pytest.mark.parametrize("configured", [False, True])
async def test_one_that_is_abandoned_is_deleted(
    interfaces: Interfaces, make_netns: MakeNetns, configured: bool
) -> None:
    link = pair(make_netns("pod"))
    making = interfaces.begin(link)
    if configured:
        making.complete(whole(link), LEASE)
    await making.abandon()
    assert not await interfaces.exists(link.host)


async def test_what_was_there_before_is_neither_configured_nor_deleted(
    interfaces: Interfaces, make_netns: MakeNetns
) -> None:
    link = pair(make_netns("pod"))
    run("ip", "link", "add", link.host, "type", "veth", "peer", "name", "other0")
    making = interfaces.begin(link)
    making.complete(whole(link), LEASE)
    with pytest.raises(LinkExists):
        await making.done()
    await making.abandon()
    assert await interfaces.exists(link.host)
    assert "UP" not in run("ip", "-o", "link", "show", "dev", link.host).partition(">")[0]


async def test_why_it_cannot_be_configured_is_told(interfaces: Interfaces, make_netns: MakeNetns) -> None:
    pod = make_netns("pod")
    pod.run("ip", "route", "add", "blackhole", "default")
    link = pair(pod)
    making = interfaces.begin(link)
    making.complete(whole(link), LEASE)
    with pytest.raises(LinkError, match="has a default route already"):
        await making.done()
    await making.abandon()
    assert not await interfaces.exists(link.host)
