"""Several paths to one prefix from one peer (RFC 7911), and a keepalive time of its own, with real routers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.bgp import NODE_ASN, TOR4, TOR_ASN, Agent, Sidecar, agent, config
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace
from tests.support.routers import frr, gobgp, openbgpd
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

LEARNED = "10.244.7.0/24"
BOTH = ("10.9.0.3", "10.9.0.4")
CONFIG = config({"peerIP": TOR4, "asNumber": TOR_ASN})
STATICS = "".join(
    f"protocol static s{number} {{ ipv4; route {LEARNED} blackhole; }}\n" for number in range(len(BOTH))
)
NEXT_HOPS = f"""
filter with_next_hop {{
  if proto = "s0" then bgp_next_hop = {BOTH[0]};
  else if proto = "s1" then bgp_next_hop = {BOTH[1]};
  else reject;
  accept;
}}
"""
TOR = f"""
    router id {TOR4};
    protocol device {{ }}
    {NEXT_HOPS}{STATICS}
    protocol bgp node {{ local as {TOR_ASN}; neighbor 10.9.0.1 as {NODE_ASN};
      graceful restart on; graceful restart time 60; connect delay time 1; hold time 90;
      ipv4 {{ import all; export filter with_next_hop; next hop keep; add paths tx; }};
    }}
"""
BESIDE = (
    TOR.replace(f"router id {TOR4}", "router id 10.9.9.9")
    .replace(f"neighbor 10.9.0.1 as {NODE_ASN};", f"neighbor {TOR4} port 179 as {TOR_ASN}; multihop;")
    .replace(f"local as {TOR_ASN};", "local 127.0.0.1 port 1179 as 65009;")
)
"""A BIRD in the router's own namespace, which has the two paths for it."""


@dataclass
class Rack:
    sidecar: Sidecar
    tor: Bird
    tor_netns: NetworkNamespace

    @property
    def run_dir(self) -> Path:
        return self.sidecar.run_dir


@pytest.fixture
def rack(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> Iterator[Rack]:
    """BIRD does not run yet."""
    bird = Bird(tor, tmp_path / "tor", TOR)
    yield Rack(sidecar, bird, tor)
    bird.stop()


def hops(node: Agent) -> tuple[str, ...]:
    return node.speaker.routes().get(LEARNED, ())


async def test_each_path_of_a_peer_counts(rack: Rack) -> None:
    rack.tor.start()
    async with agent(rack.run_dir, CONFIG, set()) as node:
        await until(lambda: hops(node) == BOTH)
        explained = node.speaker.explain(LEARNED)
        assert [(one.peer, one.path.next_hop, one.used) for one in explained] == [
            (TOR4, hop, True) for hop in BOTH
        ]
        assert all(one.path.path_id for one in explained)
        (status,) = node.speaker.peers()
        assert status.received == 2
        for protocol, left in (("s0", BOTH[1:]), ("s1", BOTH[:1])):
            rack.tor.birdc("disable", protocol)
            await until(lambda: hops(node) == left)  # noqa: B023
            rack.tor.birdc("enable", protocol)
            await until(lambda: hops(node) == BOTH)

    # What went while no agent was there is found, path by path.
    rack.tor.birdc("disable", "s0")
    async with agent(rack.run_dir, CONFIG, set()) as node:
        await until(lambda: node.speaker.in_sync and hops(node) == BOTH[1:])
        rack.tor.birdc("enable", "s0")
        await until(lambda: hops(node) == BOTH)
    async with agent(rack.run_dir, CONFIG, set()) as node:
        await until(lambda: node.speaker.in_sync and hops(node) == BOTH)
        rack.tor.birdc("disable", "node")
        await until(lambda: not hops(node))


async def passes_both_on(rack: Rack, router: AbstractContextManager[object]) -> None:
    """A router that has the two paths of the BIRD beside it, and then one."""
    rack.tor_netns.run("ip", "link", "set", "lo", "up")
    rack.tor.start()
    with router:
        async with agent(rack.run_dir, CONFIG, set()) as node:
            await until(lambda: hops(node) == BOTH)
            rack.tor.birdc("disable", "s1")
            await until(lambda: hops(node) == BOTH[:1])


async def test_frr_with_all_paths(rack: Rack, tmp_path: Path) -> None:
    """FRR has the two paths of a BIRD beside it, and passes both on."""
    rack.tor.write(BESIDE)
    text = f"""
        router bgp {TOR_ASN}
         bgp router-id {TOR4}
         no bgp ebgp-requires-policy
         neighbor 10.9.0.1 remote-as {NODE_ASN}
         neighbor 127.0.0.1 remote-as 65009
         neighbor 127.0.0.1 port 1179
         neighbor 127.0.0.1 ebgp-multihop
         address-family ipv4 unicast
          neighbor 10.9.0.1 addpath-tx-all-paths
          neighbor 10.9.0.1 attribute-unchanged next-hop
    """
    await passes_both_on(rack, frr(rack.tor_netns, tmp_path, text))


async def test_keepalives_are_sent_as_often_as_is_asked_for(rack: Rack) -> None:
    """By default the hold timer of BIRD would be started anew every 30 seconds."""
    rack.tor.start()
    wanted = replace(CONFIG, peers=tuple(replace(peer, keepalive_time=1) for peer in CONFIG.peers))
    seen: list[float] = []

    def restarts() -> int:
        """How often the timer was seen to be further from its end than before."""
        match = re.search(r"Hold timer: +([\d.]+)/90", rack.tor.birdc("show", "protocols", "all", "node"))
        seen.extend([float(match[1])] if match else [])
        return sum(later > before for before, later in itertools.pairwise(seen))

    async with agent(rack.run_dir, wanted, set()) as node:
        await until(node.up)
        await until(lambda: restarts() >= 4, 60, 0.3)


async def test_openbgpd_with_all_paths(rack: Rack, tmp_path: Path) -> None:
    """It has the two paths of a BIRD beside it, and passes both on."""
    rack.tor.write(BESIDE)
    text = f"""
        AS {TOR_ASN}
        router-id {TOR4}
        neighbor 127.0.0.1 {{
          remote-as 65009
          port 1179
          announce add-path recv yes
        }}
        neighbor 10.9.0.1 {{
          remote-as {NODE_ASN}
          announce add-path send all
          set nexthop no-modify
        }}
        allow from ebgp
        allow to ebgp
    """
    await passes_both_on(rack, openbgpd(rack.tor_netns, tmp_path, text))


async def test_gobgp_with_all_paths(rack: Rack, tmp_path: Path) -> None:
    text = f"""
        [global.config]
          as = {TOR_ASN}
          router-id = "{TOR4}"
        [[neighbors]]
          [neighbors.config]
            neighbor-address = "10.9.0.1"
            peer-as = {NODE_ASN}
          [neighbors.timers.config]
            connect-retry = 1
            idle-hold-time-after-reset = 1
          [[neighbors.afi-safis]]
            [neighbors.afi-safis.config]
              afi-safi-name = "ipv4-unicast"
            [neighbors.afi-safis.add-paths.config]
              send-max = 8
    """
    with gobgp(rack.tor_netns, tmp_path, text) as ask:
        for number, hop in enumerate(BOTH, 1):
            ask("global", "rib", "add", LEARNED, "identifier", str(number), "nexthop", hop)
        async with agent(rack.run_dir, CONFIG, set()) as node:
            await until(lambda: hops(node) == BOTH)
            ask("global", "rib", "del", LEARNED, "identifier", "2")
            await until(lambda: hops(node) == BOTH[:1])
