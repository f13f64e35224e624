"""OpenConfirm: what comes then, beside the KEEPALIVE, of a peer with the higher BGP Identifier (RFC 4271, 6.8 and
8.2.2): another connection, another OPEN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bgp.render import render
from bgp.sidecar import CONFIG
from tests.support.bgp import NODE4, TOR4, TOR_ASN, Sidecar, config
from tests.support.isolate import NetworkNamespace
from tests.support.raw_bgp import KEEPALIVE, OPEN, UPDATE, Conversation, RawPeer, message, opening

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

CEASE, COLLISION = 6, 7
FSM_ERROR, IN_OPEN_CONFIRM = 5, 2
OPENING = opening(TOR_ASN, TOR4, hold_time=12)
"""ExaBGP says something every four seconds then."""


@pytest.fixture
def place(tor: NetworkNamespace, tmp_path: Path) -> Iterator[tuple[Sidecar, RawPeer]]:
    """ExaBGP, and its peer that has accepted nothing yet."""
    speaker = config({"peerIP": TOR4, "asNumber": TOR_ASN})
    sidecar = Sidecar(tmp_path / "bgp")
    peers = [replace(peer, source_address=NODE4) for peer in speaker.peers]
    (sidecar.run_dir / CONFIG).write_text(render(speaker, peers))
    sidecar.start()
    try:
        with RawPeer(tor, TOR4, TOR_ASN) as peer:
            yield sidecar, peer
    finally:
        sidecar.kill()


def in_open_confirm(peer: RawPeer) -> Conversation:
    """A peer that has sent its own KEEPALIVE is Established from here on."""
    found = peer.accept()
    assert found.receive()[0] == OPEN
    found.send(OPENING)
    assert found.receive()[0] == KEEPALIVE
    return found


def goes_on(first: Conversation) -> bool:
    first.send(message(KEEPALIVE))
    return first.receive()[0] in (UPDATE, KEEPALIVE)


def test_what_may_be_established_at_the_peer_is_not_given_up_for_another_connection(
    place: tuple[Sidecar, RawPeer],
) -> None:
    sidecar, peer = place
    first = in_open_confirm(peer)
    assert peer.connect(NODE4).ended() == (CEASE, COLLISION)
    assert goes_on(first)
    assert "connected to peer-1 with outgoing-1" in sidecar.log


def test_the_same_open_once_more_is_no_error(place: tuple[Sidecar, RawPeer]) -> None:
    """OpenBGPD sends it where an attempt of its own to connect has failed half way."""
    first = in_open_confirm(place[1])
    first.send(OPENING)
    assert goes_on(first)


@pytest.mark.parametrize("again", [[opening(TOR_ASN, TOR4, hold_time=30)], [OPENING] * 2], ids=["other", "two"])
def test_another_open_ends_the_session(place: tuple[Sidecar, RawPeer], again: list[bytes]) -> None:
    first = in_open_confirm(place[1])
    first.send(*again)
    assert first.ended() == (FSM_ERROR, IN_OPEN_CONFIRM)
