"""The source address of a BGP session, as the kernel's routing table has it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from bgp.model import Peer


def source_address(peer: Peer, before: Mapping[str, str]) -> str:
    """The one of ``before`` (by :attr:`Peer.key`) if the node still has it, else what the routing table says.

    Empty: the node has no route to the peer.
    """
    known = before.get(peer.key, "")
    if known and _probe(peer, lambda probe: probe.bind(_endpoint(peer, known, 0))):
        return known
    return _probe(peer, lambda probe: probe.connect(_endpoint(peer, peer.address, peer.port))) or known


def _endpoint(peer: Peer, address: str, port: int) -> tuple[str | int, ...]:
    """A socket address; a link-local one is of the peer's interface. OSError: there is none."""
    return (address, port, 0, socket.if_nametoindex(peer.interface)) if peer.interface else (address, port)


def _probe(peer: Peer, use: Callable[[socket.socket], None]) -> str:
    """Returns the address of a UDP socket after ``use`` (nothing is sent), or empty if that fails."""
    family = socket.AF_INET6 if peer.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            use(probe)
            return str(probe.getsockname()[0])
    except OSError:
        return ""
