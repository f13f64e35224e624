"""BFD of the sidecar with a real BIRD: what fails in silence takes the routes along at once, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgp.bfd.packet import Diagnostic
from bgp.model import SpeakerConfig
from bgp.resources import Bfd
from tests.support import bgp_rack
from tests.support.bfd import Listener, silence, with_bfd
from tests.support.bgp import NODE4, NODE6, NODE_ASN, TOR4, TOR6, TOR_ASN, Agent, Sidecar, agent, config
from tests.support.bgp_rack import LEARNED4, LEARNED6, V4, V6
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

LEARNED = {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}
HOLD = 60
"""Seconds; nothing here waits for so long."""


def bird_config(*, bfd: str = "bfd graceful", sessions: str = "") -> str:
    return f"""
    router id {TOR4};
    log stderr all;
    protocol device {{ }}
    protocol bfd {{ interface "*" {{ interval 200 ms; multiplier 15; }}; {sessions} }}
    protocol static s4 {{ ipv4; route {LEARNED4} blackhole; }}
    protocol static s6 {{ ipv6; route {LEARNED6} blackhole; }}
    template bgp node {{
      local as {TOR_ASN}; hold time {HOLD}; graceful restart on; graceful restart time {HOLD};
      connect delay time 1; error wait time 1, 2; {bfd + ";" if bfd else ""}
    }}
    protocol bgp node4 from node {{
      neighbor {NODE4} as {NODE_ASN};
      ipv4 {{ import all; export where proto = "s4"; next hop self; }};
    }}
    protocol bgp node6 from node {{
      neighbor {NODE6} as {NODE_ASN};
      ipv6 {{ import all; export where proto = "s6"; next hop self; }};
    }}
    """


def node_config(bfd: Bfd | None = None) -> SpeakerConfig:
    both = ({"peerIP": a, "asNumber": TOR_ASN, "holdTime": HOLD} for a in (TOR4, TOR6))
    return with_bfd(config(*both), bfd or Bfd(interval=100, detect_multiplier=20))


class Rack(bgp_rack.Rack):
    def bfd_pid(self) -> int:
        return int(json.loads(re.findall(r"^.*BFD started.*$", self.sidecar.log, re.MULTILINE)[-1])["pid"])

    def tor_log(self) -> str:
        return (self.folder / "tor" / "bird.log").read_text()

    def bfd(self) -> list[str]:
        """States of BIRD's BFD sessions."""
        return [line.split()[2] for line in self.tor.birdc("show", "bfd", "sessions").splitlines()[3:]]

    def bfd_up(self) -> bool:
        return self.bfd() == ["Up", "Up"]


@pytest.fixture
def rack(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> Iterator[Rack]:
    with Bird(tor, tmp_path / "tor", bird_config()) as bird:
        yield Rack(sidecar, bird, tor, tmp_path)


async def settled(rack: Rack, node: Agent) -> None:
    await until(lambda: rack.announced() and dict(node.speaker.routes()) == LEARNED)
    await until(lambda: rack.bfd_up() and [peer.bfd for peer in node.speaker.peers()] == ["UP", "UP"])


async def test_silent_loss_takes_the_routes_at_once(rack: Rack) -> None:
    async with agent(rack.run_dir, node_config(), announce={V4, V6}) as node:
        await settled(rack, node)
        with Listener(rack.run_dir) as listener:
            # BIRD wants 200 ms in both directions and bears 15 losses, we 100 ms and 20.
            await until(lambda: listener.timers(TOR4) == listener.timers(TOR6) == (200_000, 15 * 200_000))
            silence(rack.tor_netns)
            await until(lambda: not node.speaker.routes())
            report = listener.last(TOR4)
            assert report is not None
            assert report.diagnostic == Diagnostic.DETECTION_TIME_EXPIRED
        assert [(peer.established, peer.error) for peer in node.speaker.peers()] == [(False, "BFD down")] * 2
        assert "LOWER_UP" in run("ip", "link", "show", "dev", "tor0")
        silence(rack.tor_netns, end=True)
        await settled(rack, node)


async def test_a_router_whose_bgp_knows_nothing_of_bfd_is_told_why(rack: Rack) -> None:
    rack.tor.write(bird_config(bfd="", sessions=f"neighbor {NODE4}; neighbor {NODE6};"))
    rack.tor.birdc("configure")
    async with agent(rack.run_dir, node_config(), announce={V4, V6}) as node:
        await settled(rack, node)
        before = rack.tor.written("node4", "node6")
        rack.tor.birdc("disable", "bfd1")  # BIRD says no AdminDown, it is silent
        await until(lambda: rack.tor_log().count("Received: Unknown error 6.10") >= 2)  # RFC 9384's, to this BIRD
        # BGP works, so it comes up again: BFD that is not there is no failure of what came later.
        await until(lambda: rack.announced() and dict(node.speaker.routes()) == LEARNED and node.up())
        assert [peer.bfd for peer in node.speaker.peers()] == ["DOWN", "DOWN"]
        assert rack.tor.written("node4", "node6") != before, "the router kept what it was told to forget"


async def test_bfd_that_never_comes_up_is_no_failure(rack: Rack) -> None:
    rack.tor.write(bird_config(bfd=""))
    rack.tor.birdc("configure")
    async with agent(rack.run_dir, node_config(), announce={V4, V6}) as node:
        with Listener(rack.run_dir) as listener:
            await until(lambda: listener.state(TOR4) == listener.state(TOR6) == "DOWN")
            await until(lambda: rack.announced() and dict(node.speaker.routes()) == LEARNED)
        assert node.up()


async def test_a_router_that_crashes_keeps_its_routes(rack: Rack) -> None:
    """Its BFD is gone with its BGP, whose graceful restart is under way then (RFC 5882, 4.3.2)."""
    async with agent(rack.run_dir, node_config(), announce={V4, V6}) as node:
        await settled(rack, node)
        node.changes.clear()
        rack.tor.stop(kill=True)
        await until(lambda: not node.up())
        await until(lambda: [peer.bfd for peer in node.speaker.peers()] == ["DOWN", "DOWN"])
        assert (dict(node.speaker.routes()), node.changes) == (LEARNED, [])
        rack.tor.start()
        await settled(rack, node)


@pytest.mark.parametrize("how", ["agent", "bfd", "sidecar", "exabgp"])
async def test_what_restarts_here_costs_the_router_no_route(rack: Rack, how: str) -> None:
    async with agent(rack.run_dir, node_config(), announce={V4, V6}) as node:
        await settled(rack, node)
    withdrawn = rack.withdrawals()
    async with agent(rack.run_dir, node_config(), announce={V4, V6}) as node:
        await settled(rack, node)
        if how == "agent":
            assert rack.bfd_up()
        elif how == "bfd":
            os.kill(rack.bfd_pid(), signal.SIGKILL)
        elif how == "exabgp":
            os.kill(rack.sidecar.exabgp(), signal.SIGKILL)
            await until(lambda: not node.up())
        else:
            rack.sidecar.stop()
            await until(lambda: "Up" not in rack.bfd())
            rack.sidecar.start()
        await settled(rack, node)
        assert rack.withdrawals() == withdrawn


async def test_a_failure_while_the_agent_is_away_counts_when_it_is_back(rack: Rack) -> None:
    async with agent(rack.run_dir, node_config(), announce={V4, V6}) as node:
        await settled(rack, node)
    silence(rack.tor_netns)
    with Listener(rack.run_dir) as listener:
        await until(lambda: listener.state(TOR4) == listener.state(TOR6) == "DOWN")
    async with agent(rack.run_dir, node_config(), announce={V4, V6}) as node:
        await until(lambda: [peer.error for peer in node.speaker.peers()] == ["BFD down"] * 2)
        assert not node.speaker.routes()
        silence(rack.tor_netns, end=True)
        await settled(rack, node)
