"""Whatever ExaBGP's lines hold (a peer has its hand in them), the agent goes on, and the good lines count."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import protocol
from bgp.control import Control
from bgp.decoding import TEXT_MOST
from bgp.events import Up
from bgp.model import Peer, SpeakerConfig
from bgp.prefixes import PrefixSet
from bgp.protocol import Connection
from bgp.rib import ImportFilter
from tests.support.fake_exabgp import FakeExaBGP

PEER = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1")
GOOD, HOP = "10.244.7.0/24", "10.9.0.2"

NASTY = [
    "9" * 5000,
    "-1" + "0" * 400,
    "1" + "0" * 400,
    "1e999",
    "-1e999",
    "NaN",
    str(2**64),
    str(2**32),
    "-1",
    "1.5",
    "true",
    "null",
    '""',
    "[]",
    "{}",
    "[null]",
    '{"0": null}',
    "[" * 500 + "]" * 500,
    "[" * 50_000 + "]" * 50_000,
    '"' + "9" * 5000 + '"',
    '"' + "x" * 100_000 + '"',
    r'"\ud800"',
    r'"\u0000\n\u001b[2J"',
    '"10.244.9.9"',
    '"fe80::1"',
]
"""Values in JSON, as no wire gives them."""

_HERE = "@@"


def recorded() -> list[bytes]:
    """A line of each kind, as they come when the agent attaches and a peer announces."""
    exabgp = FakeExaBGP()
    exabgp.add(PEER.address, PEER.source_address, PEER.asn, PEER.local_asn)
    exabgp.connect()
    exabgp.up(PEER.address)
    exabgp.announce(PEER.address, "10.244.8.0/24", (HOP, (65000,), 5))
    exabgp.write(f"{protocol.SHOW_NEIGHBORS}\n{protocol.SHOW_RIB_IN}\n".encode())
    exabgp.withdraw(PEER.address, "10.244.8.0/24")
    exabgp.down(PEER.address)
    lines: list[bytes] = []
    while data := exabgp.read():
        lines += [line for line in data.split(b"\n") if line and line not in (b"done", b"error")]
    return lines


LINES = recorded()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something could be put instead: each key and index, on every level."""
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += [(*path, key), *places(inner, (*path, key))]
    return found


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    content = json.loads(draw(st.sampled_from(LINES)))
    for _ in range(draw(st.integers(1, 2))):
        if found := places(content):
            put(content, draw(st.sampled_from(found)), _HERE)
    line = json.dumps(content).replace(f'"{_HERE}"', draw(st.sampled_from(NASTY))).encode()
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(line)))
        line = line[:cut] + draw(st.sampled_from([b"\xff\xfe", b"\x80", b"", b"{" * 2000])) + line[cut:]
    return line.replace(b"\n", b" ")


def attached() -> tuple[Control, FakeExaBGP]:
    exabgp = FakeExaBGP()
    exabgp.add(PEER.address, PEER.source_address, PEER.asn, PEER.local_asn)
    exabgp.connect()
    control = Control()
    control.rib.set_filter(ImportFilter(PrefixSet(["10.244.0.0/16"]), PrefixSet()))
    control.configure(SpeakerConfig(asn=65001, router_id="10.9.0.1", peers=(PEER,)), [PEER], 100.0)
    control.attached()
    talk(control, exabgp)
    return control, exabgp


def talk(control: Control, exabgp: FakeExaBGP) -> None:
    while True:
        sent = control.channel.data_to_send()
        exabgp.write(sent)
        answer = exabgp.read()
        if not sent and not answer:
            return
        control.receive(answer, 100.0)


@given(st.lists(spoilt(), min_size=1, max_size=4))
def test_no_line_takes_the_agent_down(lines: list[bytes]) -> None:
    control, exabgp = attached()
    for line in lines:
        control.receive(line + b"\n", 100.0)
    control.tick(200.0)
    json.dumps([str(peer) for peer in control.peers(200.0)], ensure_ascii=False).encode()
    for note in control.channel.take_notes():
        f"{note.text} {note.detail}".encode()
        assert len(note.detail) <= TEXT_MOST
    control.rib.take()
    # What comes after it counts: here from a new connection, since the lines may have told of another state.
    control.detached(200.0)
    exabgp.disconnect()
    exabgp.connect()
    exabgp.up(PEER.address)
    control.attached()
    exabgp.announce(PEER.address, GOOD, (HOP, (65000,), 0))
    talk(control, exabgp)
    control.rib.take()
    assert control.rib.best[GOOD] == (HOP,)


@pytest.mark.parametrize(
    "line",
    [
        LINES[0].replace(b'"counter"', b'"counter": 1e999, "x"', 1),
        b'{"neighbor": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"neighbor": ' + b"9" * 5000 + b"}",
        b'{"neighbor": "\xff\xfe"}',
    ],
    ids=["infinity", "nested", "digits", "utf-8"],
)
def test_counted_and_said_once(line: bytes) -> None:
    control, _ = attached()
    control.channel.take_notes()
    for _ in range(100):
        control.receive(line + b"\n", 100.0)
    assert control.channel.ignored == 100
    assert [note.text for note in control.channel.take_notes()] == [
        "ExaBGP says what makes no sense; it is left out"
    ]


def test_a_line_without_end_is_not_kept() -> None:
    connection = Connection()
    up = next(line for line in LINES if b'"up"' in line)
    for _ in range(64):
        assert list(connection.receive(b" " * (1 << 18))) == []
    assert len(connection._lines._partial) <= 1 << 24
    # Its end is not taken for a line of its own.
    assert list(connection.receive(up + b"\n")) == []
    assert connection.ignored == 1
    assert list(connection.receive(up + b"\n")) == [Up(PEER.address)]
