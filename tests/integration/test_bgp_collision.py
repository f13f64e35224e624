"""Two connections at once between ExaBGP and a peer with the higher BGP Identifier (RFC 4271, section 6.8)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bgp.render import render
from bgp.sidecar import CONFIG
from tests.support.bgp import NODE4, TOR4, TOR_ASN, Sidecar, config, link
from tests.support.isolate import NetworkNamespace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4
CEASE, COLLISION = 6, 7
HOLD_TIME = 9
_PORT = 179


def message(kind: int, body: bytes = b"") -> bytes:
    """RFC 4271, section 4.1."""
    return b"\xff" * 16 + struct.pack("!HB", 19 + len(body), kind) + body


def opening() -> bytes:
    """RFC 4271, section 4.2; with IPv4 unicast and four-octet AS numbers (RFC 6793)."""
    capabilities = struct.pack("!BBHBB", 1, 4, 1, 0, 1) + struct.pack("!BBI", 65, 4, TOR_ASN)
    parameters = struct.pack("!BB", 2, len(capabilities)) + capabilities
    identifier = socket.inet_aton(TOR4)
    fixed = struct.pack("!BHH4sB", 4, TOR_ASN, HOLD_TIME, identifier, len(parameters))
    return message(OPEN, fixed + parameters)


def received(connection: socket.socket) -> tuple[int, bytes]:
    """The next message: its type and its body."""

    def take(size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            piece = connection.recv(size - len(taken))
            assert piece, "the connection was closed"
            taken += piece
        return taken

    length, kind = struct.unpack("!HB", take(19)[16:])
    return kind, take(length - 19)


def test_what_may_be_established_at_the_peer_is_not_given_up_for_another_connection(
    make_netns: Callable[[str], NetworkNamespace], tmp_path: Path
) -> None:
    router = make_netns("tor")
    link(router)
    speaker = config({"peerIP": TOR4, "asNumber": TOR_ASN})
    sidecar = Sidecar(tmp_path / "bgp")
    peers = [replace(peer, source_address=NODE4) for peer in speaker.peers]
    (sidecar.run_dir / CONFIG).write_text(render(speaker, peers))
    with router.enter():
        listener, second = socket.create_server((TOR4, _PORT)), socket.socket()
    listener.settimeout(60)
    second.settimeout(60)
    sidecar.start()
    try:
        first, _ = listener.accept()
        first.settimeout(60)
        assert received(first)[0] == OPEN
        first.sendall(opening())
        # It is in OpenConfirm; a peer that has sent its own KEEPALIVE is Established from here on.
        assert received(first)[0] == KEEPALIVE
        second.connect((NODE4, _PORT))
        kind, body = received(second)
        assert (kind, body[:2]) == (NOTIFICATION, bytes([CEASE, COLLISION]))
        first.sendall(message(KEEPALIVE))
        assert received(first)[0] in (UPDATE, KEEPALIVE)  # it goes on
        assert "connected to peer-1 with outgoing-1" in sidecar.log
    finally:
        sidecar.kill()
        for one in (listener, second):
            one.close()
    first.close()
