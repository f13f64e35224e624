"""ExaBGP, started with thirteen corrections, an option and a capability: ``python -m bgp.launch server FILE``.

The first correction: the higher BGP Identifier decides a connection collision (RFC 4271, section 6.8), as long as
neither connection is Established. If the peer's is higher, ExaBGP 5.0 closes its own connection even in
OpenConfirm. It has sent its KEEPALIVE by then, so at the peer that connection may be Established; the peer then
closes the other one, and both are lost. The peer takes this for a second restart and deletes the routes kept for
the first one (RFC 4724, section 4.2): traffic stops until they are announced anew. So in OpenConfirm the existing
connection stays. A peer for which it is not Established yet may close it, too, which is harmless: both sides try
again, and the peer keeps the routes.

The second: where graceful restart is agreed on, ExaBGP ends a session without a NOTIFICATION. Then the peer keeps
our routes, which for a path that BFD has found dead is wrong (RFC 5882, 4.3): RFC 9384 has a Cease for it.

The third: after a NOTIFICATION ExaBGP connects again within a millisecond. A peer that looks at the new
connection first takes it for a graceful restart (RFC 4724, section 4.2), closes the old one unread, and keeps the
routes. So there is a second in between, as RFC 4271's IdleHoldTimer has it (section 8.1.1). There is one as well
after a session that has lasted for less than ten: a peer that ends each at once costs a session a second at most.

The fourth: of bytes that are no BGP message ExaBGP 5.0 tries to tell its helper as of a NOTIFICATION received,
and fails on that with an exception, so that the peer hears nothing and the log gets 60 lines. It is not told:
what the peer is sent is said at the session's end.

The fifth: ``show adj-rib in json`` leaves path identifiers out (RFC 7911), which updates have.

The sixth: ExaBGP knows a neighbor by its addresses and AS numbers, and refuses a second one with the same, on
another port or link. All its names and texts of a neighbor begin with ``str(neighbor["peer-address"])``, so that
says what :attr:`bgp.model.Peer.key` does. Nothing in a connection from such a peer says which of them it is: none
is accepted from an address that two neighbors have, and ExaBGP connects to both.

The seventh: RFC 7606 wants a route withdrawn, or an attribute left out, where ExaBGP ends the session (also for
AS4_PATH and PMSI_TUNNEL, which others pass on unread) or does not look: an origin of two bytes, an AS path with a
segment of nothing. And it calls a confederation's segments in an AS path those of no confederation. An attribute
that says of itself that everybody knows it, and that ExaBGP does not know, ends the session (RFC 4271, section
6.3, which RFC 7606 leaves as it is): ExaBGP would use the route without it.

The eighth: to find the neighbors that a command is for, ExaBGP tries a regular expression on each neighbor for
each one that is named. With 200 in one command that took 160 ms.

The ninth: IPv6 next hops of IPv4 prefixes (RFC 8950) are for a session in which both ends have the capability.
ExaBGP announces them in every session, which a peer without it ends, again and again; and it does not offer the
capability where IPv4 is all that the session is for. What is not agreed on is kept back here, since the agent,
which knows it from ``show neighbor json``, may be away when a router comes back with less than it had.

The tenth: an OPEN that comes once more in OpenConfirm is another connection's business (RFC 4271, section 8.2.2,
event 19) and no error. ExaBGP ends the session. OpenBGPD 7.7 sends its OPEN twice where an attempt of its own to
connect has failed half way, as when ExaBGP is killed and comes back, and takes the new end for a second restart.

The eleventh: hold times, keepalives and delays go by the wall clock. One that is set ahead ends all sessions at
once; set back, no keepalive is sent, and none that has ended begins again, until it is as late as it was.

The twelfth: after a write to a helper that has died, ExaBGP stops all sessions for ever, although it starts the
helper anew. An event is lost instead, since whoever attaches to the new helper reads all anew; what the old one
has asked for goes with it, or the answers would be taken for those to the new one. If a helper cannot be started,
ExaBGP ends, and the sidecar starts it anew.

The thirteenth is for the sidecar, which ends an ExaBGP that hangs: each turn of the loop is counted
(:mod:`bgp.standstill`).

The option: a keepalive time of its own, from the neighbor's description (:data:`bgp.render.KEEPALIVE`). A
keepalive is sent in each third of the negotiated hold time at the latest (RFC 4271, section 4.4). A change of it
is a change of the neighbor.

The capability: whoever is not root needs CAP_NET_BIND_SERVICE to listen on port 179. The image's Python may have
it (its file permits it, and the pod adds it) but does not raise it; here it is raised, for ExaBGP alone.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

from exabgp.bgp import timer
from exabgp.bgp.fsm import FSM
from exabgp.bgp.message.keepalive import KeepAlive
from exabgp.bgp.message.nop import NOP
from exabgp.bgp.message.notification import Notify
from exabgp.bgp.message.open import Open
from exabgp.bgp.message.update import Update
from exabgp.bgp.message.update.attribute.aspath import CONFED_SEQUENCE, CONFED_SET
from exabgp.bgp.message.update.attribute.attribute import Attribute
from exabgp.bgp.message.update.attribute.attributes import Attributes
from exabgp.bgp.message.update.nlri.inet import INET
from exabgp.bgp.neighbor import Neighbor
from exabgp.protocol.family import AFI, SAFI
from exabgp.protocol.ip import IPRange
from exabgp.reactor import delay, loop
from exabgp.reactor import peer as peer_module
from exabgp.reactor.api import processes
from exabgp.reactor.api.command import announce, limit, rib
from exabgp.reactor.api.processes import ProcessError, Processes
from exabgp.reactor.asynchronous import ASYNC
from exabgp.reactor.keepalive import KA
from exabgp.reactor.network import outgoing
from exabgp.reactor.peer import Peer
from exabgp.reactor.protocol import Protocol
from exabgp.util import cache

from bgp.bfd import CEASE_BFD_DOWN
from bgp.fields import peer_name
from bgp.prefixes import is_link_local
from bgp.render import KEEPALIVE
from bgp.standstill import TURNS, Turns

_TURNS = 100
_IDLE_HOLD = 1
_YOUNG = 10
"""Seconds, both."""

CODE = Attribute.CODE
_CAPABILITY_VERSION = 0x20080522
_NET_BIND_SERVICE = 10
_handle_connection = Peer.handle_connection
_close = Peer._close
_equal = Neighbor.__eq__
_match_neighbors = limit.match_neighbors
_unpack = Attribute.unpack
_parse_one = Attributes._parse_one
_infer = Neighbor.infer
_as_dict = INET.as_dict
_split_nlris = Update._split_nlris
_handle_problem = Processes._handle_problem
_set_error_handler = ASYNC.set_error_handler
_write = Processes.write
_cli_data = Peer.cli_data
_active_peers = loop.Reactor.active_peers
_turns: Turns | None = None

_TIMED = (cache, delay, loop, outgoing, peer_module, processes, timer)
"""The modules of ExaBGP that measure time, all of its server."""

STEADY = SimpleNamespace(**{**vars(time), "time": time.monotonic})
"""In place of the module ``time``. What ExaBGP makes of it for people is in a log that is off."""

_IPV4_BY_IPV6 = (AFI.ipv4, SAFI.unicast, AFI.ipv6)
"""RFC 8950: what the capability says of IPv4 prefixes."""


def handle_connection(peer: Any, connection: Any) -> object:
    """In place of ``Peer.handle_connection``. Returns something true if the connection is refused."""
    if is_ambiguous(peer):
        # Without a NOTIFICATION, after which a peer may refuse connections for a time, too.
        connection.close()
        return True
    if peer.fsm == FSM.OPENCONFIRM:
        # ExaBGP itself does not send the refusal. It is a few bytes on a new socket.
        deque(islice(connection.notification(6, 7, "another connection is in OpenConfirm"), _TURNS), maxlen=0)
        return True
    return _handle_connection(peer, connection)


def is_ambiguous(peer: Any) -> bool:
    """Whether a connection that fits a peer fits another one as well."""

    def ends(one: Any) -> tuple[object, ...]:
        return one.neighbor["peer-address"], one.neighbor["local-address"]

    return any(ends(one) == ends(peer) for one in peer.reactor._peers.values() if one is not peer)


def infer(neighbor: Any) -> None:
    """In place of ``Neighbor.infer``, which is called once all options are there, and before the name is used."""
    _infer(neighbor)
    address = neighbor["peer-address"]
    link = neighbor["source-interface"] if is_link_local(address.top()) else ""
    neighbor["peer-address"] = Named(address, peer_name(address.top(), neighbor["connect"], link))
    if neighbor["capability"]["nexthop"]:
        neighbor.add_nexthop(*_IPV4_BY_IPV6)


class Named(IPRange):  # type: ignore[misc]
    """The address of a peer, in texts as :func:`bgp.fields.peer_name` has it."""

    def __init__(self, address: Any, name: str) -> None:
        super().__init__(address.top(), str(address.mask))
        self._name = name

    def __repr__(self) -> str:
        return self._name


def close(peer: Any, message: str = "", error: object = "") -> None:
    """In place of ``Peer._close``, which ExaBGP calls before a NOTIFICATION would be sent, or in place of it."""
    if peer._teardown == CEASE_BFD_DOWN and message.startswith("graceful restarted negotiated"):
        raise Notify(6, CEASE_BFD_DOWN, b"")
    young = peer.fsm == FSM.ESTABLISHED and time.monotonic() < peer.stats["complete"] + _YOUNG
    if message.startswith("notification sent") or young:
        peer._delay._next = max(peer._delay._next, _IDLE_HOLD)
    _close(peer, message, error)


class Keepalives(KA):  # type: ignore[misc]  # ExaBGP has no types
    """In place of ``KA``, which sends a session's keepalives."""

    def __init__(self, session: Any, proto: Any) -> None:
        super().__init__(session, proto)
        word, _, seconds = proto.neighbor["description"].partition(" ")
        if word == KEEPALIVE and self.send_timer.keepalive:
            self.send_timer.keepalive = min(self.send_timer.keepalive, int(seconds))


def equal(neighbor: Any, other: Any) -> bool:
    """In place of ``Neighbor.__eq__``, which a reload asks what has changed."""
    return bool(_equal(neighbor, other)) and neighbor["description"] == other["description"]


def as_dict(nlri: Any) -> dict[str, Any]:
    """In place of ``INET.as_dict``: with the path identifier, if there is one, as updates have it."""
    found: dict[str, Any] = _as_dict(nlri)
    if nlri.path_info.path_info:
        found["path-information"] = ".".join(map(str, nlri.path_info.path_info))
    return found


def unpack(code: int, flag: int, data: bytes, direction: Any, negotiated: Any) -> Any:
    """In place of ``Attribute.unpack``, with RFC 7606, 7.1 and 7.2. Raises Notify.

    An attribute to leave out is None: ExaBGP's own way of that keeps the route out of its adj-rib-in, so that
    an agent that starts anew would miss it.
    """
    if code == CODE.ORIGIN and len(data) != 1:
        raise Notify(3, 5, "ORIGIN is one byte")
    if code == CODE.AS_PATH and has_empty_segment(data, 4 if negotiated.asn4 else 2):
        raise Notify(3, 11, "AS_PATH has a segment of no AS")
    try:
        return _unpack(code, flag, data, direction, negotiated)
    except Notify:
        if code in Attributes.DISCARD:
            return None
        raise


def parse_one(attributes: Any, data: bytes, direction: Any, negotiated: Any) -> bytes | None:
    """In place of ``Attributes._parse_one``, which takes the first attribute of some. Raises Notify."""
    left: bytes | None = _parse_one(attributes, data, direction, negotiated)
    if left is not None and not data[0] & Attribute.Flag.OPTIONAL and data[1] not in Attribute.attributes_known:
        raise Notify(3, 2, data[: len(data) - len(left)])
    return left


def has_empty_segment(path: bytes, size: int) -> bool:
    """Whether an AS_PATH, with AS numbers of ``size`` bytes, has a segment without any."""
    at = 0
    while at + 1 < len(path):
        if not path[at + 1]:
            return True
        at += 2 + size * path[at + 1]
    return False


def split_nlris(update: Any, negotiated: Any) -> Any:
    """In place of ``Update._split_nlris``: what is sent as RFC 4271 has it, and by MP_REACH_NLRI (RFC 4760)."""
    plain, multiprotocol = _split_nlris(update, negotiated)
    if _IPV4_BY_IPV6 not in negotiated.nexthop:
        multiprotocol.pop((AFI.ipv4, SAFI.unicast), None)
    return plain, multiprotocol


def read_keepalive(protocol: Any) -> Iterator[Any]:
    """In place of ``Protocol.read_keepalive``, which waits in OpenConfirm. Raises Notify."""
    message = yield from _read_one(protocol)
    if message.TYPE == Open.TYPE and str(message) == str(protocol.negotiated.received_open):
        message = yield from _read_one(protocol)
    if message.TYPE != KeepAlive.TYPE:
        raise Notify(5, 2)
    yield message


def _read_one(protocol: Any) -> Generator[Any, None, Any]:
    """The next message. Yielded is what stands for none so far."""
    for message in protocol.read_message():
        if message.TYPE != NOP.TYPE:
            return message
        yield message
    raise RuntimeError("a message that never comes")


def cli_data(peer: Any) -> Any:
    """In place of ``Peer.cli_data``, which ``show neighbor`` shows: with RFC 8950, offered and agreed on."""
    found = _cli_data(peer)
    agreed = peer.proto.negotiated.nexthop if peer.proto else ()
    found["capabilities"]["nexthop"] = (bool(peer.neighbor.nexthops()), _IPV4_BY_IPV6 in agreed)
    return found


def match_neighbors(peers: Any, descriptions: list[list[str]]) -> Any:
    """In place of ``match_neighbors`` of the API's commands: names of neighbors that descriptions fit."""
    if not descriptions or any(len(one) != 1 for one in descriptions):
        return _match_neighbors(peers, descriptions)
    wanted = {one for (one,) in descriptions}
    return [peer for peer in peers if peer.partition(" local-ip ")[0] in wanted]


def tell_nothing(_processes: Any, *_: object) -> None:
    """In place of ``Processes.notification``, which is called for bytes that are no message."""


def set_error_handler(queue: Any, handler: Any) -> None:
    """In place of ``ASYNC.set_error_handler``, which is called once: ``Processes`` is to know the queue, too."""
    _set_error_handler(queue, handler)
    handler.__self__.queue = queue


def handle_problem(processes: Any, process: str) -> None:
    """In place of ``Processes._handle_problem``, which starts a helper anew. May raise ProcessError."""
    processes.queue.clear(process)
    _handle_problem(processes, process)


def write(processes: Any, process: str, text: Any, neighbor: Any = None) -> Any:
    """In place of ``Processes.write``. Raises ProcessError for an answer only, which is of no neighbor."""
    try:
        return _write(processes, process, text, neighbor)
    except ProcessError:
        if neighbor is None:
            raise
        return True


def is_broken(processes: Any, _neighbor: Any) -> bool:
    """In place of ``Processes.broken``, which each session asks in each turn."""
    if processes._configuration.keys() - processes._process.keys():
        os._exit(1)
    return False


def active_peers(reactor: Any) -> Any:
    """In place of ``Reactor.active_peers``, which is called once in each turn of the loop."""
    if _turns is not None:
        _turns.turned()
    return _active_peers(reactor)


class _Header(ctypes.Structure):
    """``struct __user_cap_header_struct`` of capget(2); process 0 is this one."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    """``struct __user_cap_data_struct``: 32 capabilities of each kind."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def raise_bind_service() -> bool:
    """Make CAP_NET_BIND_SERVICE effective if it is permitted; returns whether it is now."""
    libc = ctypes.CDLL(None)
    header, data = _Header(_CAPABILITY_VERSION, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), data):
        return False
    data[0].effective |= data[0].permitted & 1 << _NET_BIND_SERVICE
    libc.capset(ctypes.byref(header), data)
    return bool(data[0].effective & 1 << _NET_BIND_SERVICE)


if __name__ == "__main__":
    from exabgp.application.main import main

    raise_bind_service()
    if descriptor := os.environ.pop(TURNS, ""):
        _turns = Turns(int(descriptor))
        loop.Reactor.active_peers = active_peers
    Peer.handle_connection = handle_connection
    Peer._close = close
    peer_module.KA = Keepalives
    Neighbor.__eq__ = equal
    Neighbor.infer = infer
    INET.as_dict = as_dict
    Attribute.unpack = unpack
    Attributes._parse_one = parse_one
    Update._split_nlris = split_nlris
    Peer.cli_data = cli_data
    Protocol.read_keepalive = read_keepalive
    CONFED_SEQUENCE.NAME, CONFED_SET.NAME = "as-confed-sequence", "as-confed-set"
    Attributes.TREAT_AS_WITHDRAW += (CODE.ORIGINATOR_ID, CODE.CLUSTER_LIST, CODE.PMSI_TUNNEL)
    Attributes.DISCARD += (CODE.AS4_PATH, CODE.AS4_AGGREGATOR)
    for module in (announce, rib):
        module.match_neighbors = match_neighbors
    Processes.notification = tell_nothing
    Processes._handle_problem = handle_problem
    Processes.write = write
    Processes.broken = is_broken
    ASYNC.set_error_handler = set_error_handler
    for module in _TIMED:
        module.time = STEADY
    main()
