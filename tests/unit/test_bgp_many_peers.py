"""A node with thousands of BGP peers: what ExaBGP says of all of them is one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bgp.events import Answered, Neighbors
from bgp.protocol import SHOW_NEIGHBORS, Connection
from tests.unit.test_bgp_bridge import OPEN, Running, read, running

__all__ = ["running"]

PIECE = 1 << 14
CAPABILITIES = dict.fromkeys(
    ("asn4", "route-refresh", "multi-session", "operational", "add-path", "extended-message"), True
) | {"graceful-restart": True, "nexthop": True}
COUNTS = dict.fromkeys(("open", "notification", "keepalive", "update", "refresh", "total"), 4_294_967_295)
FAMILIES = {"ipv4 unicast": True, "ipv6 unicast": True}


def neighbor(number: int) -> dict[str, Any]:
    """As ExaBGP 5.0.15 shows one, with everything as long as it gets."""
    ends = {
        name: {
            "capabilities": CAPABILITIES,
            "families": FAMILIES,
            "add-path": FAMILIES,
            "address": f"fd00:1234:5678:9abc:def0:{number:04x}:{index}:ffff",
            "as": 4_294_967_294,
            "id": "192.168.100.200",
            "hold": 65_535,
        }
        for index, name in enumerate(("local", "peer"), 1)
    }
    rest = {
        "messages": {"sent": COUNTS, "received": COUNTS},
        "capabilities": [*CAPABILITIES],
        "families": [*FAMILIES],
        "add-path": dict.fromkeys(FAMILIES, "send/receive"),
    }
    return {"state": "up", "duration": 31_536_000, "fsm": "ESTABLISHED", **ends, **rest}


@pytest.mark.parametrize("peers", [2000, 5000])
def test_the_agent_takes_the_line_of_all_peers(peers: int) -> None:
    connection = Connection()
    connection.command(SHOW_NEIGHBORS)
    connection.data_to_send()
    answer = json.dumps([neighbor(number) for number in range(peers)]).encode() + b"\ndone\n"
    assert len(answer) > 1400 * peers
    found = [
        event for at in range(0, len(answer), PIECE) for event in connection.receive(answer[at : at + PIECE])
    ]
    assert [type(event) for event in found] == [Neighbors, Answered]
    assert isinstance(found[0], Neighbors)
    assert len({one.peer for one in found[0].neighbors}) == peers
    assert connection.ignored == 0


def test_the_bridge_passes_it_and_remembers_the_opens_of_all(running: Running) -> None:
    line = json.dumps([neighbor(number) for number in range(5000)]).encode() + b"\n"
    opens = [OPEN % (f"10.{n >> 8}.{n & 255}.1".encode(), n) for n in range(5000)]
    with running.agent() as agent:
        running.command(agent, SHOW_NEIGHBORS.encode() + b"\n")
        running.write(line + b"done\n")
        assert read(agent, len(line) + 5) == line + b"done\n"
        running.write(b"".join(opens))
        read(agent, sum(map(len, opens)))
    with running.agent() as another:
        assert read(another, sum(map(len, opens))) == b"".join(opens)
