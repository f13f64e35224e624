"""The wall clock jumps while ExaBGP runs: hold times, keepalives and delays do not go by that clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bgp import TOR4, TOR6, TOR_ASN, Sidecar, agent, config
from tests.support.bgp_rack import V4, V6, Rack, bird_config
from tests.support.bird import Bird
from tests.support.clock import Clock
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.started, pytest.mark.usefixtures("netns")]

YEARS = 10 * 365 * 86400.0
HOLD = 6


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tmp_path / "clock", monkeypatch)


@pytest.fixture
def rack(clock: Clock, tmp_path: Path, tor: NetworkNamespace) -> Iterator[Rack]:
    with Bird(tor, tmp_path / "tor", bird_config()) as bird, Sidecar(tmp_path / "run") as sidecar:
        yield Rack(sidecar, bird, tor, tmp_path)


@pytest.mark.parametrize("seconds", [-YEARS, YEARS], ids=["back", "ahead"])
async def test_sessions_last_and_one_that_ends_is_back_at_once(rack: Rack, clock: Clock, seconds: float) -> None:
    peers = [{"peerIP": address, "asNumber": TOR_ASN, "holdTime": HOLD} for address in (TOR4, TOR6)]
    async with agent(rack.run_dir, config(*peers), announce={V4, V6}) as node:
        await until(rack.announced, 60)
        since = rack.tor.since("node4")
        clock.jump(seconds)
        await asyncio.sleep(2 * HOLD)
        assert rack.tor.since("node4") == since
        assert node.up()
        # It waits for a second before it tries again, by whatever clock.
        rack.tor.birdc("restart", "node4")
        await until(lambda: rack.tor.since("node4") != since)
        await until(lambda: node.up() and rack.announced(), 30)
        [four, _] = node.speaker.peers()
        assert four.since < 60
