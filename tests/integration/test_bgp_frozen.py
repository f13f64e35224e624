"""Processes that stand still for longer than any hold time (SIGSTOP), and go on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from felix_py import speaker
from tests.support.bgp import TOR4, TOR6, TOR_ASN, Agent, Sidecar, agent, config
from tests.support.bgp_rack import LEARNED4, LEARNED6, V4, V6, Rack, bird_config
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

HOLD, RESTART = 6, 12
PEERS = [
    {"peerIP": address, "asNumber": TOR_ASN, "holdTime": HOLD, "maxRestartTime": RESTART}
    for address in (TOR4, TOR6)
]


@pytest.fixture
def rack(
    tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rack]:
    monkeypatch.setattr(speaker, "_ASK", 2)
    monkeypatch.setattr(speaker, "_GIVE_UP", 5)
    with Bird(tor, tmp_path / "tor", bird_config()) as bird:
        yield Rack(sidecar, bird, tor, tmp_path)


def is_well(rack: Rack, node: Agent) -> bool:
    learned = {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}
    return node.up() and rack.announced() and dict(node.speaker.routes()) == learned


@pytest.mark.parametrize("which", [1, 2], ids=["exabgp", "bridge"])
async def test_what_does_not_answer_has_no_session(rack: Rack, which: int) -> None:
    async with agent(rack.run_dir, config(*PEERS), announce={V4, V6}) as node:
        await until(lambda: is_well(rack, node), 60)
        pid = rack.sidecar.pids()[which]
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: not any(peer.established for peer in node.speaker.peers()), 60)
        assert {peer.error for peer in node.speaker.peers()} == {"ExaBGP does not answer"}
        # As of a speaker that restarts, but not for ever.
        assert len(node.speaker.routes()) == 2
        await until(lambda: not node.speaker.routes(), 60)
        assert {peer.error for peer in node.speaker.peers()} == {"ExaBGP does not answer"}
        assert node.speaker.hangs == 1
        os.kill(pid, signal.SIGCONT)
        await until(lambda: is_well(rack, node), 60)


async def test_an_idle_exabgp_is_not_given_up(rack: Rack) -> None:
    async with agent(rack.run_dir, config(*PEERS), announce={V4, V6}) as node:
        await until(lambda: is_well(rack, node), 60)
        since, node.changes[:] = rack.tor.since("node4"), []
        await asyncio.sleep(4 * speaker._GIVE_UP)
        assert is_well(rack, node)
        assert (rack.tor.since("node4"), node.changes) == (since, [])
        assert node.speaker.ignored == 0


async def test_the_sidecar_stands_still(rack: Rack) -> None:
    """Nothing depends on it but what is to be started."""
    async with agent(rack.run_dir, config(*PEERS), announce={V4, V6}) as node:
        await until(lambda: is_well(rack, node), 60)
        pid, exabgp, _ = rack.sidecar.pids()
        before = rack.tor.since("node4")
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(2 * HOLD)
        assert is_well(rack, node)
        assert rack.tor.since("node4") == before
        os.kill(exabgp, signal.SIGKILL)
        await until(lambda: not node.up(), 60)
        os.kill(pid, signal.SIGCONT)
        await until(lambda: is_well(rack, node), 60)
