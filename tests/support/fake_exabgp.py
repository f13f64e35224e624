"""A stand-in for ExaBGP and the peers behind it, as :class:`bgp.control.Control` sees them: lines in, lines out.

It behaves as ExaBGP 5.0 with `manual-eor`, `adj-rib-in` and `adj-rib-out` was seen to behave, and its peers do
graceful restart. Attach with :meth:`connect`; while nobody is attached, events are lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from bgp.prefixes import version

Route = tuple[str, tuple[int, ...], int]
"""Next hop, AS path, MED."""


@dataclass
class FakePeer:
    """One neighbor: the peer's own table, ExaBGP's two tables of it, and what the peer has from us."""

    address: str
    local: str
    asn: int
    local_asn: int
    families: tuple[int, ...]
    table: dict[str, Route] = field(default_factory=dict)
    established: bool = False
    age: int = 0
    counter: int = 0
    adj_in: dict[str, Route] = field(default_factory=dict)
    adj_out: set[str] = field(default_factory=set)
    installed: set[str] = field(default_factory=set)
    stale: set[str] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    flaps: list[str] = field(default_factory=list)


class FakeExaBGP:
    """ExaBGP with some neighbors. Commands take effect at once.

    ``deaf_to_refresh``: peers take their time over a route refresh (for ever, unless told to announce).
    """

    def __init__(self) -> None:
        self.peers: dict[str, FakePeer] = {}
        self.commands: list[str] = []
        self.deaf_to_refresh = False
        self._out: list[str] = []
        self._attached = False

    # --- the agent's side --------------------------------------------------------------------------------

    def connect(self) -> None:
        """An agent attaches; what was written for another one is gone."""
        self._out.clear()
        self._attached = True

    def disconnect(self) -> None:
        """No agent any more."""
        self._out.clear()
        self._attached = False

    def write(self, data: bytes) -> None:
        """Lines from the agent."""
        for line in data.decode("ascii").splitlines():
            self.commands.append(line)
            self._out.append("done" if self._command(line) else "error")

    def read(self) -> bytes:
        """Lines for the agent."""
        data = "".join(line + "\n" for line in self._out).encode()
        self._out.clear()
        return data

    # --- the network's side ------------------------------------------------------------------------------

    def add(self, address: str, local: str, asn: int, local_asn: int, families: tuple[int, ...] = ()) -> FakePeer:
        """A neighbor of the configuration."""
        carried = families or (version(address),)
        self.peers[address] = FakePeer(address, local, asn, local_asn, carried)
        return self.peers[address]

    def remove(self, address: str) -> None:
        """A reload without this neighbor."""
        self.down(address, "stop, message [removed]")
        del self.peers[address]

    def up(self, address: str, *, restart: bool = True, router_id: str = "192.0.2.9") -> None:
        """The session comes up: OPEN, up, the peer's table, end-of-RIB."""
        peer = self.peers[address]
        if peer.established:
            return
        peer.established, peer.age, peer.ended = True, 0, set()
        peer.adj_in.clear()
        flags = {f"ipv{family}/unicast": [" restart"] for family in peer.families}
        capability: dict[str, object] = {"1": {"name": "multiprotocol", "families": [*flags]}}
        if restart:
            capability["64"] = {"name": "graceful restart", "time": 120, "address-family-flags": flags}
        self._event(
            peer,
            "open",
            direction="receive",
            open={"asn": peer.asn, "router_id": router_id, "capabilities": capability},
        )
        self._event(peer, "state", state="up")
        peer.stale = set(peer.installed)
        # ExaBGP repeats by itself what it was told.
        peer.installed |= peer.adj_out
        peer.stale -= peer.adj_out
        for prefix, route in peer.table.items():
            self._update(peer, prefix, route)
        for family in peer.families:
            eor = {"eor": {"afi": f"ipv{family}", "safi": "unicast"}}
            self._event(peer, "update", direction="receive", message=eor)

    def down(self, address: str, reason: str = "closing connection") -> None:
        """The session ends; the peer keeps our routes as stale."""
        peer = self.peers[address]
        if peer.established:
            peer.established = False
            self._event(peer, "state", state="down", reason=reason)

    def restart(self) -> None:
        """ExaBGP dies and comes back, knowing nothing; its sessions are down."""
        self.disconnect()
        for peer in self.peers.values():
            peer.established = False
            peer.adj_in.clear()
            peer.adj_out.clear()
            peer.counter = 0

    def announce(self, address: str, prefix: str, route: Route) -> None:
        """The peer announces a route."""
        peer = self.peers[address]
        peer.table[prefix] = route
        if peer.established:
            self._update(peer, prefix, route)

    def withdraw(self, address: str, prefix: str) -> None:
        """The peer withdraws a route."""
        peer = self.peers[address]
        if peer.table.pop(prefix, None) and peer.established:
            del peer.adj_in[prefix]
            family = f"ipv{version(prefix)} unicast"
            message = {"update": {"withdraw": {family: [{"nlri": prefix}]}}}
            self._event(peer, "update", direction="receive", message=message)

    # --- ExaBGP ------------------------------------------------------------------------------------------

    def _command(self, line: str) -> bool:
        if line == "show neighbor json":
            self._write(json.dumps([self._show(peer) for peer in self.peers.values()]))
            return True
        if line in ("show adj-rib in json", "show adj-rib out json"):
            for peer in self.peers.values():
                if " in " in line:
                    for prefix, route in peer.adj_in.items():
                        self._rib_line(peer, prefix, route)
                else:
                    for prefix in peer.adj_out:
                        self._rib_line(peer, prefix, (peer.local, (), 0))
            return True
        words = line.split()
        if words[0] != "neighbor" or words[1] not in self.peers:
            return False
        return self._neighbor_command(self.peers[words[1]], line, words)

    def _neighbor_command(self, peer: FakePeer, line: str, words: list[str]) -> bool:
        assert peer.established, f"pending output for a session that is down blocks reloads: {line}"
        match words[2:]:
            case ["announce", "attributes", "next-hop", hop, "nlri", *prefixes]:
                of = version(peer.address if hop == "self" else hop)
                (family,) = set(map(version, prefixes))
                assert family in peer.families
                assert family == of or (hop != "self" and family < of), "ExaBGP's next hop would be the router id"
                peer.adj_out |= set(prefixes)
                peer.installed |= set(prefixes)
                peer.stale -= set(prefixes)
            case ["withdraw", "attributes", "next-hop", _, "nlri", *prefixes]:
                self._remove(peer, set(prefixes))
            case ["clear", "adj-rib", "out"]:
                self._remove(peer, set(peer.adj_out))
            case ["announce", "route-refresh", family, "unicast"]:
                assert int(family[-1]) in peer.families
                for prefix, route in () if self.deaf_to_refresh else peer.table.items():
                    if version(prefix) == int(family[-1]):
                        self._update(peer, prefix, route)
            case ["announce", "eor", family, "unicast"]:
                assert int(family[-1]) in peer.families
                stale = {prefix for prefix in peer.stale if version(prefix) == int(family[-1])}
                peer.flaps += stale
                peer.installed -= stale
                peer.stale -= stale
                peer.ended.add(int(family[-1]))
            case _:
                return False
        return True

    def _remove(self, peer: FakePeer, prefixes: set[str]) -> None:
        peer.flaps += peer.installed & prefixes
        peer.adj_out -= prefixes
        peer.installed -= prefixes
        peer.stale -= prefixes

    def _update(self, peer: FakePeer, prefix: str, route: Route) -> None:
        peer.adj_in[prefix] = route
        next_hop, as_path, med = route
        announce = {f"ipv{version(prefix)} unicast": {next_hop: [{"nlri": prefix}]}}
        update = {"attribute": _attributes(as_path, med), "announce": announce}
        self._event(peer, "update", direction="receive", message={"update": update})

    def _event(self, peer: FakePeer, kind: str, **content: object) -> None:
        peer.counter += 1
        neighbor = {
            "address": {"local": peer.local, "peer": peer.address},
            "asn": {"local": peer.local_asn, "peer": peer.asn},
            **content,
        }
        self._write(json.dumps({"exabgp": "5.0.0", "counter": peer.counter, "type": kind, "neighbor": neighbor}))

    def _rib_line(self, peer: FakePeer, prefix: str, route: Route) -> None:
        next_hop, as_path, med = route
        line = {"nlri": {"prefix": prefix, "nexthop": next_hop}, "attributes": _attributes(as_path, med)}
        self._write(json.dumps({"peer": {"address": peer.address}, "route": line}))

    def _show(self, peer: FakePeer) -> dict[str, object]:
        return {
            "state": "up" if peer.established and peer.age else "down",
            "duration": peer.age,
            "fsm": "ESTABLISHED" if peer.established else "IDLE",
            "local": {"address": peer.local, "as": peer.local_asn},
            "peer": {
                "address": peer.address,
                "as": peer.asn,
                "id": "192.0.2.9" if peer.established else None,
                "capabilities": {"route-refresh": True if peer.established else None},
            },
            "messages": {"sent": {"update": len(peer.adj_out)}},
            "families": [f"ipv{family} unicast" for family in peer.families],
        }

    def _write(self, line: str) -> None:
        if self._attached:
            self._out.append(line)


def _attributes(as_path: tuple[int, ...], med: int) -> dict[str, object]:
    path = {"0": {"element": "as-sequence", "value": list(as_path)}} if as_path else {}
    return {"origin": "igp", "as-path": path, "med": med}
