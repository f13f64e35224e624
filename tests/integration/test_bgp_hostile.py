"""A peer that is broken or means harm, beside one that is well: the real agent, ExaBGP and kernel."""

from __future__ import annotations

import re
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bgp.damping import BURST, INTERVAL
from tests.support import raw_bgp as raw
from tests.support.agent_process import POD_CIDR
from tests.support.bgp import NODE_ASN, TOR_ASN, link
from tests.support.bird import Bird
from tests.support.declared_agent import DeclaredAgent, declared_agent
from tests.support.fakeapi import BGP_CONFIGURATIONS
from tests.support.isolate import NetworkNamespace, run
from tests.support.raw_bgp import RawPeer

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

WELL, HOSTILE, NODE = "10.9.0.2", "10.10.0.2", "10.10.0.1"
HOSTILE_ASN = 65066
FAR = "10.65.7.0/24"
"""What the router that is well announces."""


def bird_config() -> str:
    return f"""
    router id {WELL};
    protocol device {{ }}
    protocol static {{ ipv4; route {FAR} blackhole; }}
    protocol bgp node {{
      local as {TOR_ASN}; neighbor 10.9.0.1 as {NODE_ASN}; connect delay time 1;
      ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
    }}
    """


@dataclass
class Scene:
    """The node is the current namespace; ``well`` and ``hostile`` are its peers."""

    agent: DeclaredAgent
    well: Bird
    hostile: RawPeer
    attacker: NetworkNamespace

    def installed(self) -> dict[str, str]:
        """Learned routes of the kernel: prefix -> next hop."""
        shown = run("ip", "-4", "route", "show", "proto", "89")
        return dict(re.findall(r"^(\S+) via (\S+) ", shown, re.MULTILINE))

    def peer(self, address: str = HOSTILE) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.agent.status()["peers"] if one["address"] == address)
        return found

    def undisturbed(self) -> tuple[object, ...]:
        """What no peer may change: the other's session, the processes."""
        return (
            self.well.written("node"),
            self.well.established("node"),
            self.agent.sidecar.exabgp(),
            self.agent.get("/readyz")[0],
        )


@pytest.fixture
def scene(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Scene]:
    router, attacker = make_netns("tor0"), make_netns("tor1")
    link(router, 0)
    link(attacker, 1)
    with (
        Bird(router, tmp_path / "bird", bird_config()) as well,
        RawPeer(attacker, HOSTILE, HOSTILE_ASN) as hostile,
        declared_agent(tmp_path, options=["--cluster-cidr=10.65.0.0/16"]) as agent,
    ):
        agent.declare(BGP_CONFIGURATIONS, "default", asNumber=NODE_ASN, nodeToNodeMeshEnabled=False)
        agent.peer(0)
        agent.start()
        agent.wait_ready()
        scene = Scene(agent, well, hostile, attacker)
        agent.until(lambda: well.routes("node") == {POD_CIDR} and scene.installed() == {FAR: WELL}, "all is well")
        yield scene


def good(*prefixes: str, hop: str = HOSTILE, path: tuple[int, ...] = (HOSTILE_ASN,), more: bytes = b"") -> bytes:
    return raw.update(raw.attributes(hop, path, more), raw.nlri(*prefixes))


LAST = "10.65.99.0/24"


def communities(count: int) -> bytes:
    return raw.attribute(raw.OPTIONAL_TRANSITIVE, raw.COMMUNITIES, struct.pack(f"!{count}I", *range(count)))


UNWANTED = {
    "default route": good("0.0.0.0/0"),
    "halves of it": good("0.0.0.0/1", "128.0.0.0/1"),
    "the node's address": good(f"{NODE}/32"),
    "a link of the node": good("10.9.0.0/24"),
    "the other router's address": good(f"{WELL}/32"),
    "our pods": good(POD_CIDR),
    "one of our pods": good("10.65.0.7/32"),
    "all of the cluster's pods": good("10.64.0.0/15"),
    "loopback": good("127.0.0.0/8"),
    "multicast": good("224.0.0.0/4"),
    "next hop ours": good("10.65.40.0/24", hop=NODE),
    "next hop ours on the other link": good("10.65.41.0/24", hop="10.9.0.1"),
    "next hop a pod of ours": good("10.65.42.0/24", hop="10.65.0.7"),
    "next hop loopback": good("10.65.43.0/24", hop="127.0.0.1"),
    "next hop nobody": good("10.65.44.0/24", hop="0.0.0.0"),
    "next hop multicast": good("10.65.45.0/24", hop="224.0.0.5"),
    "next hop broadcast": good("10.65.46.0/24", hop="255.255.255.255"),
    "next hop the link's broadcast": good("10.65.49.0/24", hop="10.10.0.255"),
    "next hop on no link": good("10.65.47.0/24", hop="192.0.2.77"),
    "next hop inside itself": good("10.65.48.0/24", hop="10.65.48.1"),
    "loop": good("10.65.50.0/24", path=(HOSTILE_ASN, NODE_ASN)),
    "loop of many": good("10.65.51.0/24", path=(HOSTILE_ASN, *[NODE_ASN] * 300)),
    "an endless path": good("10.65.52.0/24", path=(HOSTILE_ASN, *range(1, 900))),
    "AS 0": good("10.65.53.0/24", path=(HOSTILE_ASN, 0)),
    "too many communities": good("10.65.54.0/24", more=communities(900)),
}


def test_nothing_is_installed_that_should_not_be(scene: Scene) -> None:
    before = scene.undisturbed()
    scene.agent.peer(1, asNumber=HOSTILE_ASN)
    session = scene.hostile.establish()
    for name, sent in UNWANTED.items():
        session.send(sent)
        print(name)
    session.send(good(LAST), raw.END_OF_RIB)
    scene.agent.until(lambda: LAST in scene.installed(), "the last of them")
    assert scene.installed() == {FAR: WELL, LAST: HOSTILE}
    assert scene.undisturbed() == before


# --- malformed -------------------------------------------------------------------------------------------------


def path(*numbers: int) -> bytes:
    return struct.pack(f"!BB{len(numbers)}I", 2, len(numbers), *numbers)


Changed = tuple[int, int, bytes]
"""Flags, type and value of an attribute."""


def attributes(*changed: Changed, without: int = 0) -> bytes:
    """Those of a good route with some changed, added or left out."""
    usual = {
        raw.ORIGIN: (raw.WELL_KNOWN, b"\0"),
        raw.AS_PATH: (raw.WELL_KNOWN, path(HOSTILE_ASN)),
        raw.NEXT_HOP: (raw.WELL_KNOWN, bytes([10, 10, 0, 2])),
    }
    usual |= {kind: (flags, value) for flags, kind, value in changed}
    return b"".join(raw.attribute(f, kind, value) for kind, (f, value) in usual.items() if kind != without)


HEADER = b"\xff" * 16
TRANSITIVE = raw.OPTIONAL_TRANSITIVE

MP_REACH = struct.pack("!HBB4sB", 1, 1, 4, bytes([10, 10, 0, 2]), 0) + raw.nlri("10.65.66.0/24")
"""RFC 4760, 3."""

FATAL = {
    "marker": b"\0" * 16 + struct.pack("!HB", 19, raw.KEEPALIVE),
    "too short": HEADER + struct.pack("!HB", 18, raw.KEEPALIVE),
    "too long": HEADER + struct.pack("!HB", 4097, raw.UPDATE) + b"\0" * 4078,
    "as long as can be": HEADER + struct.pack("!HB", 65535, raw.UPDATE) + b"\0" * 65516,
    "unknown message": raw.message(99, b"what"),
    "KEEPALIVE with a body": raw.message(raw.KEEPALIVE, b"x"),
    "UPDATE of one byte": raw.message(raw.UPDATE, b"\0"),
    "withdrawn beyond its end": raw.message(raw.UPDATE, struct.pack("!HH", 500, 0)),
    "attributes beyond its end": raw.message(raw.UPDATE, struct.pack("!HH", 0, 500)),
    "prefix of 33 bits": raw.update(attributes(), b"\x21\x0a\x41\x42\x00\x00"),
    "prefix of 255 bits": raw.update(attributes(), b"\xff\x0a\x41\x42"),
    "prefix cut off": raw.update(attributes(), b"\x18\x0a"),
    "MP_REACH_NLRI of one byte": raw.update(attributes((0x80, 14, b"\0")), raw.nlri("10.65.66.0/24")),
    "two of MP_REACH_NLRI": raw.update(2 * raw.attribute(0x80, 14, MP_REACH), b""),
    "attribute that everybody should know": raw.update(attributes((0x40, 202, b"x")), raw.nlri("10.65.66.0/24")),
    "MP_UNREACH_NLRI of one byte": raw.update(attributes((0x80, 15, b"\0")), raw.nlri("10.65.66.0/24")),
}
"""What ends a session."""

WITHDRAWING = {
    "attribute beyond the attributes": struct.pack("!BBB", 0x40, raw.ORIGIN, 200),
    "no next hop": attributes(without=raw.NEXT_HOP),
    "no AS path": attributes(without=raw.AS_PATH),
    "no origin": attributes(without=raw.ORIGIN),
    "no attribute": b"",
    "origin 7": attributes((0x40, raw.ORIGIN, b"\7")),
    "empty origin": attributes((0x40, raw.ORIGIN, b"")),
    "next hop of three bytes": attributes((0x40, raw.NEXT_HOP, b"\x0a\x0a\0")),
    "next hop of sixteen bytes": attributes((0x40, raw.NEXT_HOP, b"\x20" + b"\0" * 14 + b"\1")),
    "AS path cut off": attributes((0x40, raw.AS_PATH, b"\2\5\0\0\0\1")),
    "AS path of a kind 9": attributes((0x40, raw.AS_PATH, b"\x09\1\0\0\0\1")),
    "MED of three bytes": attributes((0x80, raw.MED, b"\0\0\0")),
    "local preference of one byte": attributes((0x40, raw.LOCAL_PREF, b"\0")),
    "communities of five bytes": attributes((TRANSITIVE, raw.COMMUNITIES, b"\0" * 5)),
    "large communities of five bytes": attributes((TRANSITIVE, raw.LARGE_COMMUNITIES, b"\0" * 5)),
    "origin of two bytes": attributes((0x40, raw.ORIGIN, b"\0\0")),
    "AS path with a segment of no AS": attributes((0x40, raw.AS_PATH, path(HOSTILE_ASN) + b"\2\0")),
    "AS path of nothing but that": attributes((0x40, raw.AS_PATH, b"\2\0")),
    "AS path with a byte left": attributes((0x40, raw.AS_PATH, path(HOSTILE_ASN) + b"\2")),
    "AS path that begins in a confederation": attributes(
        (0x40, raw.AS_PATH, b"\3\1\0\0\0\1" + path(HOSTILE_ASN))
    ),
    "AS path with a confederation's set": attributes((0x40, raw.AS_PATH, path(HOSTILE_ASN) + b"\4\1\0\0\0\1")),
    "MED of no byte": attributes((0x80, raw.MED, b"")),
    "communities of no byte": attributes((TRANSITIVE, raw.COMMUNITIES, b"")),
    "large communities of no byte": attributes((TRANSITIVE, raw.LARGE_COMMUNITIES, b"")),
    "extended communities of seven bytes": attributes((TRANSITIVE, 16, b"\0" * 7)),
    "extended communities of no byte": attributes((TRANSITIVE, 16, b"")),
    "IPv6 extended communities of seven bytes": attributes((TRANSITIVE, 25, b"\0" * 7)),
    "PMSI_TUNNEL of a byte": attributes((TRANSITIVE, 22, b"\0")),
    "ORIGINATOR_ID of three bytes": attributes((0x80, 9, b"\0" * 3)),
    "ORIGINATOR_ID of no byte": attributes((0x80, 9, b"")),
    "CLUSTER_LIST of three bytes": attributes((0x80, 10, b"\0" * 3)),
    "CLUSTER_LIST of no byte": attributes((0x80, 10, b"")),
    # RFC 7606, 7.7 would be content without the attribute.
    "AGGREGATOR of no byte": attributes((TRANSITIVE, 7, b"")),
    "AS4_PATH of no byte": attributes((TRANSITIVE, 17, b"")),
    "AS4_AGGREGATOR of no byte": attributes((TRANSITIVE, 18, b"")),
    "one byte left": attributes() + b"\x40",
    "two bytes left": attributes() + b"\x40\1",
    "flags of the origin": attributes((0xC0, raw.ORIGIN, b"\0")),
    "flags of the AS path": attributes((0x80, raw.AS_PATH, path(HOSTILE_ASN))),
    "flags of the next hop": attributes((0xC0, raw.NEXT_HOP, bytes([10, 10, 0, 2]))),
    "flags of the MED": attributes((0x40, raw.MED, b"\0\0\0\1")),
    "flags of communities": attributes((0x80, raw.COMMUNITIES, b"\0" * 4)),
    "flags of large communities": attributes((0x80, raw.LARGE_COMMUNITIES, b"\0" * 12)),
    "flags of CLUSTER_LIST": attributes((TRANSITIVE, 10, b"\0" * 4)),
}
"""Attributes with which a route counts as withdrawn (RFC 7606). By prefix: the third number is 100 and up."""

LEFT_OUT = {
    "ATOMIC_AGGREGATE of a byte": attributes((0x40, 6, b"\0")),
    "flags of ATOMIC_AGGREGATE": attributes((TRANSITIVE, 6, b"")),
    "AGGREGATOR of a byte": attributes((TRANSITIVE, 7, b"\0")),
    "AGGREGATOR with a short AS number": attributes((TRANSITIVE, 7, b"\0" * 6)),
    "flags of AGGREGATOR": attributes((0x80, 7, b"\0" * 8)),
    "AS4_PATH of a byte": attributes((TRANSITIVE, 17, b"\1")),
    "AS4_PATH cut off": attributes((TRANSITIVE, 17, b"\2\5\0")),
    "AS4_AGGREGATOR of a byte": attributes((TRANSITIVE, 18, b"\1")),
    "traffic engineering of a byte": attributes((0x80, 24, b"\1")),
    "AIGP of a byte": attributes((0x80, 26, b"\1")),
    "BGP-LS of a byte": attributes((0x80, 29, b"\1")),
    "prefix SID of a byte": attributes((TRANSITIVE, 40, b"\1")),
    "ATTR_SET of a byte": attributes((TRANSITIVE, 128, b"\1")),
    "an unknown one": attributes((0x80, 200, b"x")),
    "an unknown transitive one": attributes((TRANSITIVE, 201, b"x")),
    "a second origin": attributes() + raw.attribute(0x40, raw.ORIGIN, b"\7"),
}
"""Attributes without which a route stays (RFC 7606)."""


def test_malformed_attributes_withdraw_a_route_or_are_left_out(scene: Scene) -> None:
    before = scene.undisturbed()
    scene.agent.peer(1, asNumber=HOSTILE_ASN)
    every = WITHDRAWING | LEFT_OUT
    routes = {f"10.65.{100 + number}.0/24": name for number, name in enumerate(every)}
    session = scene.hostile.establish()
    session.send(good(*routes), raw.END_OF_RIB)
    scene.agent.until(lambda: routes.keys() <= scene.installed().keys(), "all are good")
    for prefix, name in routes.items():
        session.send(raw.update(every[name], raw.nlri(prefix)))
    session.send(good(LAST))
    scene.agent.until(lambda: LAST in scene.installed(), "the last of them")
    assert {routes[prefix] for prefix in scene.installed() if prefix in routes} == LEFT_OUT.keys()
    assert scene.peer()["established"]
    assert scene.agent.log.read_text().count("malformed attributes (RFC 7606)") == 1
    assert scene.undisturbed() == before


def test_malformed_messages_end_their_session_alone(scene: Scene) -> None:
    before = scene.undisturbed()
    scene.agent.peer(1, asNumber=HOSTILE_ASN)
    for name, sent in FATAL.items():
        session = scene.hostile.establish()
        session.send(good(LAST), raw.END_OF_RIB)
        scene.agent.until(lambda: LAST in scene.installed(), "good")
        session.send(sent, good("10.65.66.0/24"))
        session.ended()
        code = "3/" if any(word in name for word in ("prefix", "beyond", "NLRI", "attribute")) else "1/"
        scene.agent.until(
            lambda code=code: scene.peer()["reason"].startswith(f"notification sent {code}"),  # type: ignore[misc]
            f"{name}: what happened",
        )
        scene.agent.until(lambda: scene.installed() == {FAR: WELL}, f"{name}: its routes are gone")
        assert scene.undisturbed() == before, name
    assert "EXABGP MISBEHAVED" not in scene.agent.sidecar.log


# --- silent ----------------------------------------------------------------------------------------------------

HOLD_TIME = 3
"""Seconds, the least there is."""


def mute(peer: RawPeer) -> raw.Conversation:
    return peer.accept()


def half_an_open(peer: RawPeer) -> raw.Conversation:
    conversation = peer.accept()
    conversation.send(raw.opening(peer.asn, peer.address, HOLD_TIME)[:20])
    return conversation


def open_and_nothing(peer: RawPeer) -> raw.Conversation:
    conversation = peer.accept()
    conversation.send(raw.opening(peer.asn, peer.address, HOLD_TIME))
    return conversation


def no_more_keepalives(peer: RawPeer) -> raw.Conversation:
    conversation = peer.establish(HOLD_TIME)
    conversation.send(good(LAST, hop=peer.address), raw.END_OF_RIB)
    return conversation


def half_a_message(peer: RawPeer) -> raw.Conversation:
    conversation = no_more_keepalives(peer)
    conversation.send(good("10.65.66.0/24", hop=peer.address)[:-3])
    return conversation


STALLS: dict[str, tuple[Callable[[RawPeer], raw.Conversation], tuple[int, int]]] = {
    "10.10.0.11": (mute, (1, 1)),
    "10.10.0.12": (half_an_open, (1, 1)),
    "10.10.0.13": (open_and_nothing, (4, 0)),
    "10.10.0.14": (no_more_keepalives, (4, 0)),
    "10.10.0.15": (half_a_message, (4, 0)),
}
"""By address of the peer: how far it goes, and the NOTIFICATION that ends that."""


def test_a_peer_that_falls_silent_at_any_point(scene: Scene) -> None:
    before = scene.undisturbed()
    with ExitStack() as stack:
        peers = {}
        for number, address in enumerate(STALLS):
            scene.attacker.run("ip", "address", "add", f"{address}/24", "dev", "node")
            peers[address] = stack.enter_context(RawPeer(scene.attacker, address, HOSTILE_ASN))
            scene.agent.peer(10 + number, peerIP=address, asNumber=HOSTILE_ASN)
        conversations = {address: STALLS[address][0](peer) for address, peer in peers.items()}
        for address, conversation in conversations.items():
            conversation.socket.settimeout(2 * raw.PATIENCE)  # ExaBGP waits for an OPEN for a minute
            code, subcode = expected = STALLS[address][1]
            assert conversation.ended() == expected, address
            reason = f"notification sent {code}/{subcode}"
            scene.agent.until(lambda a=address, r=reason: scene.peer(a)["reason"].startswith(r), reason)  # type: ignore[misc]
        assert scene.installed() == {FAR: WELL}
        assert scene.undisturbed() == before


# --- restless --------------------------------------------------------------------------------------------------


FLAPS = 30


def test_a_storm_of_flaps(scene: Scene) -> None:
    """Of sessions, then of a route."""
    scene.agent.peer(1, asNumber=HOSTILE_ASN)
    scene.hostile.establish().close()
    before, asked = scene.undisturbed(), len(scene.agent.api.requests)
    lines = scene.agent.log.read_text().count("\n") + scene.agent.sidecar.log.count("\n")
    for _ in range(FLAPS):
        session = scene.hostile.connect(NODE)
        session.send(raw.opening(HOSTILE_ASN, HOSTILE), raw.message(raw.KEEPALIVE))
        session.send(good(LAST), raw.END_OF_RIB)
        with suppress(EOFError):  # ExaBGP connects by itself at the same time, and one of the two has to end
            session.until(raw.KEEPALIVE)
        session.close()
    assert len(scene.agent.api.requests) - asked < FLAPS, "a status and some Events, not one for each"
    assert scene.agent.log.read_text().count("\n") + scene.agent.sidecar.log.count("\n") - lines < 8 * FLAPS
    session = scene.hostile.establish()
    for _ in range(500):
        session.send(good(LAST), raw.update(withdrawn=raw.nlri(LAST)))
    session.send(good("10.65.98.0/24"), raw.END_OF_RIB)
    scene.agent.until(lambda: scene.installed() == {FAR: WELL, "10.65.98.0/24": HOSTILE}, "as it is in the end")
    assert scene.undisturbed() == before


class Flapping:
    """Routes that come and go, some hundred times a second, until the end of a block."""

    def __init__(self, session: raw.Conversation, *prefixes: str) -> None:
        self.flaps = 0
        self._messages = good(*prefixes), raw.update(withdrawn=raw.nlri(*prefixes))
        self._session = session
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self._session.send(*self._messages)
            self.flaps += 1

    def __enter__(self) -> Flapping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_what_a_route_that_flaps_costs(scene: Scene, tmp_path: Path) -> None:
    """In writes to the kernel, log lines and requests; and what others announce is in force meanwhile."""
    scene.agent.peer(1, asNumber=HOSTILE_ASN)
    session = scene.hostile.establish()
    session.send(good("10.65.98.0/24"), raw.END_OF_RIB)
    scene.agent.until(lambda: "10.65.98.0/24" in scene.installed(), "its good route")
    seen = tmp_path / "routes"
    with ExitStack() as stack:
        monitor = subprocess.Popen(["ip", "monitor", "route"], stdout=stack.enter_context(seen.open("w")))
        stack.callback(monitor.wait)
        stack.callback(monitor.kill)
        scene.well.birdc("disable", "static1")
        scene.agent.until(lambda: FAR in seen.read_text(), "the monitor sees routes")
        scene.well.birdc("enable", "static1")
        scene.agent.until(lambda: FAR in scene.installed(), "as before")
        asked, lines = len(scene.agent.api.requests), scene.agent.log.read_text().count("\n")
        since = time.monotonic()
        with Flapping(session, LAST) as flapping:
            for turn in range(6):
                scene.well.birdc("disable" if turn % 2 == 0 else "enable", "static1")
                scene.agent.until(lambda gone=turn % 2 == 0: (FAR not in scene.installed()) == gone, "the others")  # type: ignore[misc]
            scene.agent.until(lambda: flapping.flaps > 1000, "much of it")
        seconds = time.monotonic() - since
        session.send(good(LAST))
        scene.agent.until(lambda: LAST in scene.installed(), "what is quiet counts again")
        writes = sum(line.split()[:1] == [LAST] or LAST in line for line in seen.read_text().splitlines())
    print(f"{flapping.flaps} flaps in {seconds:.1f} s: {writes} writes to the kernel")
    assert writes <= 2 * (BURST + 1 + (time.monotonic() - since) / INTERVAL) + 2
    assert writes < flapping.flaps / 4
    assert scene.agent.log.read_text().count("\n") - lines < 20
    assert len(scene.agent.api.requests) - asked < 10 + seconds
    assert {FAR, LAST, "10.65.98.0/24"} <= scene.installed().keys()
