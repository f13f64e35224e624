"""Attributes and filters, both ways, with a real BIRD 2 on the other side: eBGP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bgp.announcement import Announcement
from bgp.model import SpeakerConfig
from bgp.resources import BGPFilter
from tests.support.bgp import NODE_ASN, TOR4, TOR_ASN, Sidecar, agent, config, link
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

PODS, SERVICE, PLAIN = "10.244.1.0/24", "10.96.0.1/32", "10.244.2.0/24"
LEARNED, OTHER = "10.244.7.0/24", "10.244.8.0/24"
DRESSED = Announcement(
    SERVICE,
    origin=2,
    med=7,
    as_path=(65100, 65100),
    communities=("65000:100", "65535:65281"),
    large_communities=("65000:1:2",),
)
TOR = f"""
    router id {TOR4};
    protocol device {{ }}
    protocol static s4 {{ ipv4;
      route {LEARNED} blackhole {{ bgp_community.add((65000,7)); bgp_large_community.add((65000,7,7)); }};
      route {OTHER} blackhole;
    }}
    protocol bgp node {{ local as {TOR_ASN}; neighbor 10.9.0.1 as {NODE_ASN};
      graceful restart on; graceful restart time 20; connect delay time 1;
      ipv4 {{ import all; export where proto = "s4"; next hop self; }};
    }}
"""


@dataclass
class Rack:
    run_dir: Path
    tor: Bird

    def shown(self, prefix: str) -> dict[str, str]:
        """BGP attributes of a route that BIRD has from us."""
        return dict(
            re.findall(r"BGP\.(\w+): (.*)", self.tor.birdc("show", "route", "all", "protocol", "node", prefix))
        )


@pytest.fixture
def rack(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Rack]:
    netns = make_netns("tor")
    link(netns)
    tor = Bird(netns, tmp_path / "tor", TOR)
    tor.start()
    sidecar = Sidecar(tmp_path / "run")
    sidecar.start()
    yield Rack(sidecar.run_dir, tor)
    sidecar.stop()
    tor.stop()


def speaker(*filters: BGPFilter) -> SpeakerConfig:
    plain = config({"peerIP": TOR4, "asNumber": TOR_ASN})
    return replace(plain, peers=(replace(plain.peers[0], filters=filters),))


async def test_attributes_arrive_change_and_survive_the_agent(rack: Rack) -> None:
    async with agent(rack.run_dir, speaker()) as node:
        node.speaker.announce([PODS, DRESSED])
        await until(lambda: rack.tor.routes("node") == {PODS, SERVICE}, 60)
        assert rack.shown(SERVICE) == {
            "origin": "Incomplete",
            "as_path": f"{NODE_ASN} 65100 65100",
            "next_hop": "10.9.0.1",
            "med": "7",
            "local_pref": "100",
            "community": "(65000,100) (65535,65281)",
            "large_community": "(65000, 1, 2)",
        }
        assert rack.shown(PODS)["as_path"] == str(NODE_ASN)
        node.speaker.announce([PODS, replace(DRESSED, med=8)])
        await until(lambda: rack.shown(SERVICE).get("med") == "8", 60)
    before, withdrawn = rack.tor.written("node"), rack.tor.withdrawals("node")
    updates = imports(rack.tor)
    async with agent(rack.run_dir, speaker()) as node:
        node.speaker.announce([PODS, replace(DRESSED, med=8)])
        await until(node.up, 60)
        assert await node.speaker.delivered(60)
        assert (rack.tor.written("node"), rack.tor.withdrawals("node")) == (before, withdrawn)
        assert imports(rack.tor) == updates, "BIRD got an update"
        # Of another life: it is seen and replaced.
        node.speaker.announce([PODS, replace(DRESSED, med=9)])
        await until(lambda: rack.shown(SERVICE).get("med") == "9", 60)


def imports(bird: Bird) -> int:
    """Updates that BIRD has received in the session."""
    found = re.search(r"Import updates: +(\d+)", bird.birdc("show", "protocols", "all", "node"))
    assert found
    return int(found[1])
