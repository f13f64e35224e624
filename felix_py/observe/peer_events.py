"""Events on the Node for its BGP peers: up, down, refused. A peer that flaps is told less and less often."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from bgp.session import LimitState, PeerStatus
from felix_py.backoff import TokenBucket

_AT_ONCE = 4
_EACH = 600.0
"""Seconds until a peer may have another Event, once it has had so many at once."""

_MOST_PEERS = 256

Write = Callable[[bool, str, str], None]
"""Whether it is a warning, its reason in one CamelCase word, and its text."""


class _Known(Struct):
    established: bool
    error: str
    allowed: TokenBucket
    limit: LimitState
    untold: int = 0


class PeerEvents:
    """Compares the peers with those of the last look. The first look at a peer is silent: an agent that starts
    takes sessions over.
    """

    def __init__(self, write: Write, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def look(self, peers: Sequence[PeerStatus]) -> None:
        """Write what has changed."""
        now = {peer.address: peer for peer in peers[:_MOST_PEERS]}
        for address in self._known.keys() - now.keys():
            del self._known[address]
        for address, peer in now.items():
            known = self._known.get(address)
            if known is None:
                bucket = TokenBucket(1 / _EACH, _AT_ONCE, self._clock)
                known = self._known[address] = _Known(peer.established, _refusal(peer), bucket, peer.limit_state)
            elif known.established != peer.established:
                known.established, known.error = peer.established, _refusal(peer)
                self._tell(peer, known)
            elif not peer.established and (refusal := _refusal(peer)) and refusal != known.error:
                known.error = refusal
                self._tell(peer, known)
            elif peer.established and peer.limit_state is not known.limit is LimitState.WITHIN:
                self._tell(peer, known)
            known.limit = peer.limit_state

    def _tell(self, peer: PeerStatus, known: _Known) -> None:
        if not known.allowed.take():
            known.untold += 1
            return
        named = f"{peer.name} " if peer.name else ""
        text = f"the BGP session with {named}{peer.address} (AS {peer.asn}) "
        missed = f" ({known.untold} changes before that were not told)" if known.untold else ""
        known.untold = 0
        if peer.limit_state is LimitState.HELD_DOWN:
            self._write(True, "BGPPeerHeldDown", f"{text}is held down: {peer.error}{missed}")
        elif peer.established and peer.limit_state is LimitState.NEAR:
            near = f"{peer.received} of {peer.limit} prefixes; over that, the session is ended"
            self._write(True, "BGPPeerNearLimit", f"{text}has {near}{missed}")
        elif peer.established:
            self._write(False, "BGPPeerUp", f"{text}is up{missed}")
        elif known.error:
            self._write(True, "BGPPeerRefused", f"{text}was refused: {known.error}{missed}")
        else:
            self._write(True, "BGPPeerDown", f"{text}is down: {peer.error or 'no reason known'}{missed}")


def _refusal(peer: PeerStatus) -> str:
    """The NOTIFICATION, by either side, that ended the session or the attempt; empty if there was none."""
    return peer.error if peer.error.startswith("notification ") else ""
