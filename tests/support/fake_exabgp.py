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
    """One neighbor: the peer's own table, ExaBGP's two tables of it, and what the peer has from us.

    ``adj_out`` and ``installed``: prefix -> attributes as in the command. ``pending``: what ExaBGP has not sent
    yet, by attributes in the order in which these came first; false: a withdrawal. ``extended_next_hop``: the
    peer takes IPv6 next hops of IPv4 prefixes (RFC 8950).
    """

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
    adj_out: dict[str, str] = field(default_factory=dict)
    installed: dict[str, str] = field(default_factory=dict)
    pending: dict[str, dict[str, bool]] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    flaps: list[str] = field(default_factory=list)
    extended_next_hop: bool = True

    @property
    def agreed(self) -> bool:
        """Whether IPv4 prefixes may have IPv6 next hops in the session."""
        return self.extended_next_hop and version(self.local) == 6 and 4 in self.families


class FakeExaBGP:
    """ExaBGP with some neighbors. Commands take effect at once.

    ``deaf_to_refresh``: peers take their time over a route refresh (for ever, unless told to announce).
    ``lazy``: what is announced goes out with :meth:`flush` only.
    """

    def __init__(self) -> None:
        self.peers: dict[str, FakePeer] = {}
        self.commands: list[str] = []
        self.deaf_to_refresh = False
        self.lazy = False
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
        carried = families or (version(local),)
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
        if peer.extended_next_hop:
            capability["5"] = {"name": "nexthop", "conversion": ["ipv4/unicast/ipv6"]}
        self._event(
            peer,
            "open",
            direction="receive",
            open={"asn": peer.asn, "router_id": router_id, "capabilities": capability},
        )
        self._event(peer, "state", state="up")
        peer.stale = set(peer.installed)
        # ExaBGP repeats by itself what it was told.
        for prefix, attributes in peer.adj_out.items():
            peer.pending.setdefault(attributes, {})[prefix] = True
        self._sent(peer)
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
            peer.pending.clear()
            self._event(peer, "state", state="down", reason=reason)

    def restart(self) -> None:
        """ExaBGP dies and comes back, knowing nothing; its sessions are down."""
        self.disconnect()
        for peer in self.peers.values():
            peer.established = False
            peer.adj_in.clear()
            peer.adj_out.clear()
            peer.pending.clear()
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
        words = line.split()
        if words[0] == "show":
            return self._listing(line)
        to: list[FakePeer] = []
        while words[:1] == ["neighbor"]:
            _, address, *words = words
            to += [self.peers[address]] if address in self.peers else []
            words = words[1:] if words[:1] == [","] else words
        understood = [self._neighbor_command(peer, line, words) for peer in to]
        return bool(understood) and all(understood)

    def _neighbor_command(self, peer: FakePeer, line: str, words: list[str]) -> bool:
        if words[0] == "teardown":
            self.down(peer.address, f"notification sent (6,{words[1]})")
            return True
        assert peer.established, f"pending output for a session that is down blocks reloads: {line}"
        match words:
            case ["announce", "attributes", "next-hop", hop, *rest]:
                attributes, prefixes = _split(["next-hop", hop, *rest])
                of = version(peer.local if hop == "self" else hop)
                (family,) = set(map(version, prefixes))
                assert family in peer.families
                assert family == of or (hop != "self" and family < of), "ExaBGP's next hop would be the router id"
                assert family == of or peer.agreed, "RFC 8950 is not agreed on"
                for prefix in prefixes:
                    if peer.adj_out.get(prefix) != attributes:
                        peer.pending.setdefault(attributes, {})[prefix] = True
                        peer.adj_out[prefix] = attributes
                self._sent(peer)
            case ["withdraw", "attributes", *rest]:
                attributes, prefixes = _split(rest)
                self._withdraw(peer, prefixes, attributes)
            case ["clear", "adj-rib", "out"]:
                for prefix, attributes in list(peer.adj_out.items()):
                    self._withdraw(peer, [prefix], attributes)
            case ["announce", "route-refresh", family, "unicast"]:
                assert int(family[-1]) in peer.families
                for prefix, route in () if self.deaf_to_refresh else peer.table.items():
                    if version(prefix) == int(family[-1]):
                        self._update(peer, prefix, route)
            case ["announce", "eor", family, "unicast"]:
                assert int(family[-1]) in peer.families
                self.flush(peer)
                stale = {prefix for prefix in peer.stale if version(prefix) == int(family[-1])}
                peer.flaps += stale
                peer.installed = {p: a for p, a in peer.installed.items() if p not in stale}
                peer.stale -= stale
                peer.ended.add(int(family[-1]))
            case _:
                return False
        return True

    def _listing(self, line: str) -> bool:
        match line:
            case "show neighbor json":
                self._write(json.dumps([self._show(peer) for peer in self.peers.values()]))
            case "show adj-rib in json":
                for peer in self.peers.values():
                    for prefix, route in peer.adj_in.items():
                        self._rib_line(peer, prefix, route)
            case "show adj-rib out json":
                for peer in self.peers.values():
                    for prefix, attributes in peer.adj_out.items():
                        self._write(json.dumps(_own_line(peer, prefix, attributes)))
            case _:
                return False
        return True

    def flush(self, peer: FakePeer) -> None:
        """ExaBGP sends what is pending for a peer."""
        for attributes, changes in peer.pending.items():
            for prefix, announced in changes.items():
                if announced and not _can_be_sent(peer, prefix, attributes):
                    continue
                peer.stale.discard(prefix)
                if announced:
                    peer.installed[prefix] = attributes
                elif prefix in peer.installed:
                    del peer.installed[prefix]
                    peer.flaps.append(prefix)
        peer.pending.clear()

    def _sent(self, peer: FakePeer) -> None:
        if not self.lazy:
            self.flush(peer)

    def _withdraw(self, peer: FakePeer, prefixes: list[str], attributes: str) -> None:
        for prefix in prefixes:
            if last := peer.adj_out.pop(prefix, None):
                peer.pending.get(last, {}).pop(prefix, None)
            peer.pending.setdefault(attributes, {})[prefix] = False
        self._sent(peer)

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
                "capabilities": {
                    "route-refresh": True if peer.established else None,
                    "nexthop": peer.established and peer.agreed,
                },
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


def _split(words: list[str]) -> tuple[str, list[str]]:
    """Attributes, and the prefixes behind ``nlri``."""
    at = words.index("nlri")
    return " ".join(words[:at]), words[at + 1 :]


def _can_be_sent(peer: FakePeer, prefix: str, attributes: str) -> bool:
    """What :mod:`bgp.launch` keeps back."""
    hop = attributes.split()[1]
    return hop == "self" or version(hop) == version(prefix) or peer.agreed


def _own_line(peer: FakePeer, prefix: str, attributes: str) -> dict[str, object]:
    """A line of ``show adj-rib out json``: ExaBGP has put the address in the place of ``self``."""
    words, found = attributes.split(), dict[str, object]()
    while words:
        name, value = words.pop(0), words.pop(0)
        if value != "[":
            found[name] = int(value) if name in ("med", "local-preference") else value
            continue
        end = words.index("]")
        values, words = words[:end], words[end + 1 :]
        path = {"0": {"element": "as-sequence", "value": [int(v) if v.isdigit() else v for v in values]}}
        found[name] = path if name == "as-path" else values
    next_hop = str(found.pop("next-hop")).replace("self", peer.local)
    route = {"nlri": {"prefix": prefix, "nexthop": next_hop}, "attributes": found}
    return {"peer": {"address": peer.address}, "route": route}
