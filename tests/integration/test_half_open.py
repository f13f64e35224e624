"""Connections to the API server whose other end is gone without a word: found by the kernel, within a bound."""

from __future__ import annotations

import asyncio
import time

import pytest

from felix_py.datastore.client import Api
from felix_py.datastore.informer import Timing
from tests.support.fakeapi import NODES, PODS, FakeApi, pod
from tests.support.isolate import run
from tests.support.waiting import until
from tests.support.watching import configuration, watching

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

DEAD_AFTER = 4.0
"""Instead of a minute."""


def forget_the_flow(api: FakeApi, address: str) -> None:
    """As a firewall that lost its state: packets of this connection vanish both ways, others pass."""
    _, _, port = address.rpartition(":")
    for chain, side in (("INPUT", "--sport"), ("INPUT", "--dport")):
        run("iptables", "-w", "-A", chain, "-i", "lo", "-p", "tcp", side, port, "-j", "DROP")


def client_address(api: FakeApi) -> str:
    """Address and port of the one connection to the server."""
    lines = run("ss", "-Htn", "state", "established", "dport", "=", f":{api.port}").splitlines()
    assert len(lines) == 1, lines
    return lines[0].split()[2]


async def test_a_flow_that_is_forgotten_on_the_way_is_found_and_the_watch_begins_anew() -> None:
    with FakeApi() as api:
        client = Api(lambda: configuration(api), dead_after=DEAD_AFTER)
        async with watching(api, Timing(), client=client) as watch:
            await watch.until_listed()
            forget_the_flow(api, client_address(api))
            since = time.monotonic()
            api.put(PODS, pod("a"))
            async with asyncio.timeout(60):
                await until(lambda: watch.names() == {"a"})
            assert time.monotonic() - since >= DEAD_AFTER / 2, "the flow did not hang at all"
            assert api.verbs() == ["watchlist", "watch"]


async def test_a_quiet_watch_lives_as_long_as_its_connection_does() -> None:
    """The kernel's probes are answered by the kernel at the other end, so silence by itself ends nothing."""
    with FakeApi() as api:
        client = Api(lambda: configuration(api), dead_after=1.0)
        async with watching(api, Timing(), client=client) as watch:
            await watch.until_listed()
            address = client_address(api)
            await asyncio.sleep(3)
            api.put(NODES, {"metadata": {"name": "other-kind"}})
            assert api.verbs() == ["watchlist"]
            assert client_address(api) == address
            api.put(PODS, pod("a"))
            await watch.until_names("a")
