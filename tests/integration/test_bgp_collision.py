"""Two connections at once between ExaBGP and a peer with the higher BGP Identifier (RFC 4271, section 6.8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bgp.render import render
from bgp.sidecar import CONFIG
from tests.support.bgp import NODE4, TOR4, TOR_ASN, Sidecar, config, link
from tests.support.isolate import NetworkNamespace
from tests.support.raw_bgp import KEEPALIVE, OPEN, UPDATE, RawPeer, message, opening

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

CEASE, COLLISION = 6, 7


def test_what_may_be_established_at_the_peer_is_not_given_up_for_another_connection(
    make_netns: Callable[[str], NetworkNamespace], tmp_path: Path
) -> None:
    router = make_netns("tor")
    link(router)
    speaker = config({"peerIP": TOR4, "asNumber": TOR_ASN})
    sidecar = Sidecar(tmp_path / "bgp")
    peers = [replace(peer, source_address=NODE4) for peer in speaker.peers]
    (sidecar.run_dir / CONFIG).write_text(render(speaker, peers))
    sidecar.start()
    try:
        with RawPeer(router, TOR4, TOR_ASN) as peer:
            first = peer.accept()
            assert first.receive()[0] == OPEN
            first.send(opening(TOR_ASN, TOR4))
            # It is in OpenConfirm; a peer that has sent its own KEEPALIVE is Established from here on.
            assert first.receive()[0] == KEEPALIVE
            assert peer.connect(NODE4).ended() == (CEASE, COLLISION)
            first.send(message(KEEPALIVE))
            assert first.receive()[0] in (UPDATE, KEEPALIVE)  # it goes on
        assert "connected to peer-1 with outgoing-1" in sidecar.log
    finally:
        sidecar.kill()
