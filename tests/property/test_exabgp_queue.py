"""Commands to ExaBGP, equal ones to several sessions together: each is told what it would be told alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bgp import protocol
from bgp.command_queue import CommandQueue

PEERS = ["10.9.0.2", "10.9.0.2:1180", "fd09::2", "fe80::2%eth0"]
WHAT = [f"{verb} attributes next-hop self nlri {net}" for verb in ("announce", "withdraw") for net in "ab"]
WHAT += ["announce eor ipv4 unicast", "announce route-refresh ipv4 unicast", "clear adj-rib out"]

to_peers = st.builds(lambda peer, what: f"neighbor {peer} {what}", st.sampled_from(PEERS), st.sampled_from(WHAT))
commands = st.lists(to_peers | st.sampled_from([protocol.SHOW_RIB_IN, protocol.SHOW_RIB_OUT, None]), max_size=40)


def each(line: str) -> list[str]:
    """The commands to one session each that a line stands for, as ExaBGP reads it."""
    *peers, last = line.split(" , ")
    if not last.startswith("neighbor "):
        return [line]
    _, address, what = last.split(" ", 2)
    return [f"{peer} {what}" for peer in (*peers, f"neighbor {address}")]


def told(lines: list[str], peer: str) -> list[str]:
    """What is said to a session, with what is said to ExaBGP itself, in order."""
    return [one for one in lines if one.startswith((f"neighbor {peer} ", "show "))]


@given(commands)
def test_each_session_is_told_the_same_in_the_same_order(wanted: list[str | None]) -> None:
    """None stands for a moment in which one line is taken out."""
    queue, lines = CommandQueue(), []
    for one in wanted:
        if one is not None:
            queue.add(one)
        elif len(queue):
            lines.append(queue.take())
    while len(queue):
        lines.append(queue.take())
    single = [one for line in lines for one in each(line)]
    asked = [one for one in wanted if one is not None]
    assert sorted(single) == sorted(asked)
    for peer in PEERS:
        assert told(single, peer) == told(asked, peer)


def test_what_a_route_reflector_tells_all_is_one_line_a_route() -> None:
    queue = CommandQueue()
    for number in range(200):
        for prefix in range(10):
            queue.add(f"neighbor 10.9.0.{number} announce attributes next-hop self nlri {prefix}")
    lines = [queue.take() for _ in range(len(queue))]
    assert len(lines) == 10
    assert lines[0].startswith("neighbor 10.9.0.0 , neighbor 10.9.0.1 , ")
    assert lines[0].endswith(" , neighbor 10.9.0.199 announce attributes next-hop self nlri 0")
