"""ExaBGP, started with one correction: ``python -m bgp.launch server FILE``.

The higher BGP Identifier decides a connection collision (RFC 4271, section 6.8), as long as neither connection is
Established. If the peer's is higher, ExaBGP 5.0 closes its own connection even in OpenConfirm. It has sent its
KEEPALIVE by then, so at the peer that connection may be Established; the peer then closes the other one, and both
are lost. The peer takes this for a second restart and deletes the routes kept for the first one (RFC 4724,
section 4.2): traffic stops until they are announced anew. So in OpenConfirm the existing connection stays. A peer
for which it is not Established yet may close it, too, which is harmless: both sides try again, and the peer keeps
the routes.
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
        # ExaBGP itself does not send the refusal. It is a few bytes on a new socket.
        deque(islice(connection.notification(6, 7, "another connection is in OpenConfirm"), _TURNS), maxlen=0)
        return True
    return _handle_connection(peer, connection)


if __name__ == "__main__":
    from exabgp.application.main import main

    Peer.handle_connection = handle_connection
    main()
