"""Attributes and filters, both ways, with a real BIRD 2 on the other side: eBGP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bgp.announcement import Announcement
from bgp.model import SpeakerConfig
from bgp.resources import BGPFilter, FilterRule, Operations
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
def rack(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> Iterator[Rack]:
    with Bird(tor, tmp_path / "tor", TOR) as bird:
        yield Rack(sidecar.run_dir, bird)


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


MARKED = FilterRule(
    accept=True, communities=("65000:7",), operations=Operations(local_preference=200, priority=512)
)
NO_OTHER = FilterRule(accept=False, cidr=OTHER, match_operator="Equal")
NO_SERVICES = FilterRule(accept=False, cidr="10.96.0.0/12", match_operator="In", prefix_length=(32, None))
NAMED = FilterRule(
    accept=True, operations=Operations(add_communities=("65000:9", "65000:9:9"), prepend=(NODE_ASN,))
)


async def test_filters_both_ways_in_force_as_they_change_without_touching_the_session(rack: Rack) -> None:
    async with agent(rack.run_dir, speaker()) as node:
        node.speaker.announce([PODS, PLAIN, SERVICE])
        await until(lambda: rack.tor.routes("node") == {PODS, PLAIN, SERVICE}, 60)
        await until(lambda: set(node.speaker.routes()) == {LEARNED, OTHER}, 60)
        since = rack.tor.since("node")
        exports = BGPFilter(name="out", export_v4=(NO_SERVICES, NAMED))
        imports_ = BGPFilter(name="in", import_v4=(MARKED, NO_OTHER))
        node.speaker.set_config(speaker(exports, imports_))
        await until(lambda: set(node.speaker.routes()) == {LEARNED}, 60)
        assert [one.reason for one in node.speaker.explain(OTHER)] == ["BGPFilter in rejects it"]
        [marked] = node.speaker.explain(LEARNED)
        assert (marked.path.local_pref, marked.path.priority) == (200, 512)
        assert marked.path.communities == ("65000:7",)
        assert marked.path.large_communities == ("65000:7:7",)
        await until(lambda: rack.tor.routes("node") == {PODS, PLAIN}, 60)
        await until(lambda: rack.shown(PODS).get("community") == "(65000,9)", 60)
        assert rack.shown(PODS)["large_community"] == "(65000, 9, 9)"
        assert rack.shown(PODS)["as_path"] == f"{NODE_ASN} {NODE_ASN}"
        node.speaker.set_config(speaker())
        await until(lambda: set(node.speaker.routes()) == {LEARNED, OTHER}, 60)
        await until(lambda: rack.tor.routes("node") == {PODS, PLAIN, SERVICE}, 60)
        await until(lambda: "community" not in rack.shown(PODS), 60)
        assert rack.tor.since("node") == since
        assert rack.tor.withdrawals("node") == 1, "the Service's prefix, once"


async def test_a_peer_over_its_limit_is_held_down_until_that_is_raised(rack: Rack) -> None:
    limited = speaker()
    limited = replace(limited, peers=(replace(limited.peers[0], prefix_limit=1),))
    async with agent(rack.run_dir, limited) as node:
        node.speaker.announce([PODS])
        await until(lambda: "more than 1 prefixes" in node.speaker.peers()[0].error, 60)
        assert dict(node.speaker.routes()) == {}
        # It lets go of the session, and takes back what it had announced.
        await until(lambda: not rack.tor.established("node"), 60)
        await until(lambda: rack.tor.routes("node") == set(), 60)
        await asyncio.wait_for(node.speaker.wait_in_sync(), 60)
        assert dict(node.speaker.routes()) == {}
        node.speaker.set_config(speaker())
        await until(lambda: set(node.speaker.routes()) == {LEARNED, OTHER}, 60)
        await until(lambda: rack.tor.routes("node") == {PODS}, 60)
        assert node.speaker.peers()[0].error == ""


# --- a route reflector -----------------------------------------------------------------------------------------

CLIENTS = ("10.9.0.2", "10.10.0.2", "10.11.0.2")
CLUSTER = "1.1.1.1"


def client(index: int) -> str:
    """A BIRD as iBGP client, which announces 10.244.10<index>.0/24."""
    return f"""
        router id {CLIENTS[index]};
        protocol device {{ }}
        protocol static s4 {{ ipv4; route 10.244.10{index}.0/24 blackhole; }}
        protocol bgp node {{ local as {NODE_ASN}; neighbor 10.{9 + index}.0.1 as {NODE_ASN};
          graceful restart on; graceful restart time 20; connect delay time 1;
          ipv4 {{ import all; export where proto = "s4"; }};
        }}
    """


def taken(bird: Bird) -> dict[str, dict[str, str]]:
    """Prefix -> attributes of all that BIRD was sent, used or not."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"\n(?=10\.)", bird.birdc("show", "route", "all", "protocol", "node")):
        if match := re.match(r"(10\S+)", part):
            found[match[1]] = dict(re.findall(r"BGP\.(\w+): (.*)", part))
    return found


@pytest.fixture
def birds(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[list[Bird]]:
    """The clients."""
    with ExitStack() as stack:
        running = []
        for index in range(len(CLIENTS)):
            netns = make_netns(f"client{index}")
            link(netns, index)
            running.append(stack.enter_context(Bird(netns, tmp_path / f"client{index}", client(index))))
        yield running


async def test_a_node_reflects_between_its_clients(sidecar: Sidecar, birds: list[Bird]) -> None:
    plain = config(*({"peerIP": address, "asNumber": NODE_ASN} for address in CLIENTS))
    reflector = replace(plain, peers=tuple(replace(peer, cluster_id=CLUSTER) for peer in plain.peers))
    async with agent(sidecar.run_dir, reflector) as node:
        node.speaker.announce([PODS])
        for index, bird in enumerate(birds):
            others = {f"10.244.10{n}.0/24": n for n in range(3) if n != index}
            await until(lambda bird=bird, others=others: taken(bird).keys() == {PODS, *others}, 60)  # type: ignore[misc]
            for prefix, n in others.items():
                assert taken(bird)[prefix] == {
                    "origin": "IGP",
                    "as_path": "",
                    "next_hop": CLIENTS[n],
                    "local_pref": "100",
                    "originator_id": CLIENTS[n],
                    "cluster_list": CLUSTER,
                }
        await until(lambda: len(node.speaker.routes()) == 3, 60)
    before = [bird.written("node") for bird in birds]
    withdrawn = [bird.withdrawals("node") for bird in birds]
    async with agent(sidecar.run_dir, reflector) as node:
        node.speaker.announce([PODS])
        await until(node.up, 60)
        await asyncio.wait_for(node.speaker.wait_in_sync(), 60)
        assert await node.speaker.delivered(60)
        assert [bird.written("node") for bird in birds] == before, "the agent's restart was seen"
        assert [bird.withdrawals("node") for bird in birds] == withdrawn
        birds[0].birdc("disable", "s4")
        await until(lambda: all("10.244.100.0/24" not in taken(bird) for bird in birds), 60)
        await until(lambda: len(node.speaker.routes()) == 2, 60)
