"""Events of BGP peers: what is told, and that a flapping peer costs little."""

from __future__ import annotations

from dataclasses import replace

from bgp.session import LimitState, PeerStatus
from felix_py.observe.peer_events import PeerEvents
from tests.support.watching import ScriptedClock


def peer(*, up: bool, error: str = "", address: str = "10.0.0.1") -> PeerStatus:
    return PeerStatus(address, 65000, up, 0.0, 0, (), error, name="tor")


class Rig:
    def __init__(self) -> None:
        self.clock = ScriptedClock()
        self.written: list[tuple[bool, str, str]] = []
        self.events = PeerEvents(lambda *event: self.written.append(event), self.clock.now)

    def see(self, *peers: PeerStatus) -> list[tuple[bool, str, str]]:
        """What one look writes."""
        del self.written[:]
        self.events.look(peers)
        return self.written.copy()


def test_up_down_and_refused() -> None:
    rig = Rig()
    session = "the BGP session with tor 10.0.0.1 (AS 65000) "
    assert rig.see(peer(up=False)) == []
    assert rig.see(peer(up=True)) == [(False, "BGPPeerUp", f"{session}is up")]
    assert rig.see(peer(up=True)) == []
    down = peer(up=False, error="hold timer expired")
    assert rig.see(down) == [(True, "BGPPeerDown", f"{session}is down: hold timer expired")]
    assert rig.see(down) == []
    refused = peer(up=False, error="notification received 2/2 OPEN Message Error: Bad Peer AS")
    assert rig.see(refused) == [
        (True, "BGPPeerRefused", f"{session}was refused: {refused.error}"),
    ]
    assert rig.see(refused) == []


def test_prefix_limits() -> None:
    rig = Rig()
    session = "the BGP session with tor 10.0.0.1 (AS 65000) "
    well = replace(peer(up=True), received=8, limit=10)
    near = replace(well, limit_state=LimitState.NEAR)
    held = replace(peer(up=False, error="it announced more"), limit_state=LimitState.HELD_DOWN)
    assert rig.see(well) == []
    words = f"{session}has 8 of 10 prefixes; over that, the session is ended"
    assert rig.see(near) == [(True, "BGPPeerNearLimit", words)]
    assert rig.see(near) == []
    assert rig.see(held) == [(True, "BGPPeerHeldDown", f"{session}is held down: it announced more")]
    assert rig.see(held) == []
    assert rig.see(well) == [(False, "BGPPeerUp", f"{session}is up")]


def test_a_session_that_is_taken_over_is_no_news() -> None:
    rig = Rig()
    assert rig.see(peer(up=True)) == []
    assert rig.see() == []
    assert rig.see(peer(up=True)) == []


def test_a_peer_that_flaps_is_told_seldom_and_the_others_as_ever() -> None:
    rig = Rig()
    other = "10.0.0.2"
    rig.see(peer(up=False), peer(up=False, address=other))
    told = 0
    for number in range(1000):
        rig.clock.advance(2)
        told += len(rig.see(peer(up=number % 2 == 0), peer(up=False, address=other)))
    assert told <= 4 + 2000 / 600 + 1
    assert len(rig.see(peer(up=False), peer(up=True, address=other))) == 1
    rig.clock.advance(600)
    [(_, reason, text)] = rig.see(peer(up=True), peer(up=True, address=other))
    assert reason == "BGPPeerUp"
    assert "changes before that were not told" in text
