"""ExaBGP's helper is killed while it is spoken to: no session ends, and the agent soon knows all again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bgp import Sidecar, agent
from tests.support.bgp_rack import TIME, V4, V6, Rack, bird_config
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

MANY = 2000


@pytest.fixture
def rack(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> Iterator[Rack]:
    many = "".join(f"route 10.{128 + i // 256}.{i % 256}.0/24 blackhole;\n" for i in range(MANY))
    with Bird(tor, tmp_path / "tor", bird_config(many)) as bird:
        yield Rack(sidecar, bird, tor, tmp_path)


@pytest.mark.parametrize("what", ["reading", "announcing", "hearing"])
async def test_the_bridge_is_killed(rack: Rack, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: len(node.speaker.routes()) == MANY + 2 and rack.announced(), TIME)
        before, exabgp = [rack.tor.since(name) for name in ("node4", "node6")], rack.sidecar.exabgp()
        mine = {V4, V6}
        if what == "reading":
            # It is ExaBGP's answer that is long.
            node.speaker._control._readback.everything()
            node.speaker._flush()
        elif what == "announcing":
            mine |= {f"10.{64 + i // 256}.{i % 256}.0/24" for i in range(MANY)}
            node.speaker.announce(mine)
        else:
            rack.tor.birdc("disable", "s4")
            rack.tor.birdc("enable", "s4")
        await asyncio.sleep(0.02)
        lost, detached = asyncio.Event(), node.speaker._control.detached

        def noted(now: float, *reason: str) -> None:
            detached(now, *reason)
            assert not node.up()
            lost.set()

        monkeypatch.setattr(node.speaker._control, "detached", noted)  # it may be up again within milliseconds
        os.kill(rack.sidecar.pids()[2], signal.SIGKILL)
        await asyncio.wait_for(lost.wait(), TIME)
        await until(lambda: node.up() and len(node.speaker.routes()) == MANY + 2, TIME)
        await until(lambda: rack.tor.routes("node4") | rack.tor.routes("node6") == mine, TIME)
        assert await node.speaker.delivered(TIME)
        assert [rack.tor.since(name) for name in ("node4", "node6")] == before
        assert (rack.sidecar.exabgp(), node.speaker.ignored) == (exabgp, 0)


async def test_a_bridge_that_cannot_be_started_anew(rack: Rack) -> None:
    """ExaBGP ends then, and the routers keep the routes for its restart."""
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: len(node.speaker.routes()) == MANY + 2 and rack.announced(), TIME)
        withdrawn, exabgp = rack.withdrawals(), rack.sidecar.exabgp()
        run("prlimit", "--pid", str(exabgp), "--nofile=3")
        os.kill(rack.sidecar.pids()[2], signal.SIGKILL)
        await until(lambda: rack.sidecar.exabgp() not in (0, exabgp), TIME)
        await until(lambda: node.up() and len(node.speaker.routes()) == MANY + 2, TIME)
        assert (rack.announced(), rack.withdrawals()) == (True, withdrawn)
