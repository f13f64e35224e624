"""ExaBGP, started with one correction: ``python -m bgp.launch server FILE``.

A collision of connections (RFC 4271, section 6.8) is decided by the higher BGP Identifier, as long as neither is
Established. With the higher one at the peer, ExaBGP 5.0 gives its own connection up for the peer's in
OpenConfirm, too. It has sent its KEEPALIVE by then, so at the peer that connection may be Established; the peer
then closes the other one, and both are lost. To the peer that is a second restart, at which it deletes the routes
that it kept for the first (RFC 4724, section 4.2): traffic stops until they are announced anew. So in OpenConfirm
the connection that there is stays. A peer for which it is not Established yet may close it as well, and nothing
is lost by that: both sides try again, and the peer keeps the routes.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

from exabgp.bgp.fsm import FSM
from exabgp.reactor.peer import Peer

_TURNS = 100
_handle_connection = Peer.handle_connection


def handle_connection(peer: Any, connection: Any) -> object:
    """In place of ``Peer.handle_connection``. Returns something true if the connection is refused."""
    if peer.fsm == FSM.OPENCONFIRM:
        # ExaBGP itself forgets to send what refuses a connection. That is some bytes on a socket that is new.
        deque(islice(connection.notification(6, 7, "another connection is in OpenConfirm"), _TURNS), maxlen=0)
        return True
    return _handle_connection(peer, connection)


if __name__ == "__main__":
    from exabgp.application.main import main

    Peer.handle_connection = handle_connection
    main()
