"""Route reflection (RFC 4456): whoever reflects for whom, everybody learns all, and nothing goes round."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.announcement import Announcement
from bgp.decision import Identity, Path, Source
from bgp.export import NO_ADVERTISE, NO_EXPORT, goes_back, own, reflected
from bgp.model import Peer
from bgp.prefixes import PrefixSet
from bgp.resources import BGPFilter, FilterRule, NextHopMode, Operations
from bgp.rib import ImportFilter, Rib
from tests.support.thorough import examples

ASN = 64512
LEARN = ImportFilter(PrefixSet(["10.244.0.0/16"]), PrefixSet())


@dataclass
class Node:
    """A speaker: its RIB, its sessions by the other's address, and what it has told each."""

    address: str
    cluster_id: str
    clients: set[str] = field(default_factory=set)
    neighbors: set[str] = field(default_factory=set)
    rib: Rib = field(default_factory=Rib)
    told: dict[tuple[str, str], Announcement] = field(default_factory=dict)
    announces: bool = True

    @property
    def prefix(self) -> str:
        return f"10.244.{self.address.rpartition('.')[2]}.0/24"

    def meet(self) -> None:
        self.rib.set_filter(LEARN)
        self.rib.set_own(Identity(self.address, self.cluster_id))
        for other in self.neighbors:
            client = other in self.clients
            self.rib.set_source(Source(other, other, ASN, self.address, external=False, client=client))

    def says(self) -> list[tuple[str, str, Announcement | None]]:
        """To whom, which prefix, and what of it has changed."""
        self.rib.take()
        found: list[tuple[str, str, Announcement | None]] = []
        for other in sorted(self.neighbors):
            cluster_id = self.cluster_id if other in self.clients else ""
            peer = Peer(address=other, asn=ASN, local_asn=ASN, source_address=self.address, cluster_id=cluster_id)
            us = Identity(self.address, self.cluster_id)
            wanted = {
                p: reflected(p, c, peer, us)
                for p, c in self.rib.reflected.items()
                if not goes_back(c, peer, other)
            }
            wanted[self.prefix] = own(Announcement(self.prefix), peer) if self.announces else None
            for prefix in {*wanted, *(p for o, p in self.told if o == other)}:
                now = wanted.get(prefix)
                if now != self.told.get((other, prefix)):
                    found.append((other, prefix, now))
                    if now:
                        self.told[other, prefix] = now
                    else:
                        del self.told[other, prefix]
        return found

    def hears(self, of: str, prefix: str, one: Announcement | None) -> None:
        if one is None:
            self.rib.withdraw(of, prefix)
            return
        hop = of if one.next_hop == "self" else one.next_hop
        path = Path(hop, one.as_path, originator_id=one.originator_id, cluster_list=one.cluster_list)
        self.rib.announce(of, prefix, path)


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Node]:
    """Reflectors in a full mesh, some with one cluster ID; clients of one or two; others in the mesh."""
    clusters = draw(st.lists(st.sampled_from(["1.1.1.1", "2.2.2.2", "3.3.3.3"]), min_size=1, max_size=3))
    if draw(st.booleans()):
        clusters = ["1.1.1.1", "2.2.2.2", "3.3.3.3"]
    reflectors = [Node(f"10.9.0.{n}", cluster) for n, cluster in enumerate(clusters, 1)]
    plain = [Node(f"10.9.0.{n}", "") for n in range(20, 20 + draw(st.integers(0, 2)))]
    nodes = {node.address: node for node in [*reflectors, *plain]}
    for node in nodes.values():
        node.neighbors = nodes.keys() - {node.address}
    # Reflectors may be clients of others, even of each other.
    for one, other in permutations(reflectors, 2):
        if one.cluster_id != other.cluster_id and draw(st.integers(0, 3)):
            one.clients.add(other.address)
    for n in range(10, 10 + draw(st.integers(1, 4))):
        client = Node(f"10.9.0.{n}", "")
        of = draw(st.lists(st.sampled_from(reflectors), min_size=1, max_size=2, unique_by=lambda r: r.address))
        # Reflectors of one cluster share their clients: one does not take the other's routes (RFC 4456, 7).
        of += [r for r in reflectors if r.cluster_id in {o.cluster_id for o in of} and r not in of]
        for reflector in of:
            reflector.clients.add(client.address)
            reflector.neighbors.add(client.address)
        client.neighbors = {reflector.address for reflector in of}
        nodes[client.address] = client
    return nodes


Sessions = dict[tuple[str, str], deque[tuple[str, Announcement | None]]]


def talk(nodes: dict[str, Node], random: Random) -> None:
    """Updates in any order that keeps each session's own, until nobody has anything to say."""
    sessions: Sessions = {}
    for speaking in list(nodes.values()):
        enqueue(speaking, sessions)
    for _ in range(5000):
        waiting = sorted(key for key, updates in sessions.items() if updates)
        if not waiting:
            return
        of, to = random.choice(waiting)
        nodes[to].hears(of, *sessions[of, to].popleft())
        enqueue(nodes[to], sessions)
    raise AssertionError("it never ends")


def enqueue(node: Node, sessions: Sessions) -> None:
    for to, prefix, one in node.says():
        sessions.setdefault((node.address, to), deque()).append((prefix, one))


@settings(max_examples=examples(40), deadline=None)
@given(networks(), st.integers(0, 2**32).map(Random))
def test_everybody_learns_all_and_nothing_goes_round(nodes: dict[str, Node], random: Random) -> None:
    for node in nodes.values():
        node.meet()
    talk(nodes, random)
    for node in nodes.values():
        assert dict(node.rib.best) == {
            other.prefix: (other.address,) for other in nodes.values() if other is not node
        }
    # What one no longer announces is nowhere: no two reflectors keep it alive by telling each other.
    gone = nodes[random.choice(sorted(nodes))]
    gone.announces = False
    talk(nodes, random)
    assert all(gone.prefix not in node.rib.best for node in nodes.values())


def test_reflectors_that_are_each_others_clients_forget_what_is_gone() -> None:
    client = Node("10.9.0.10", "", neighbors={"10.9.0.1"})
    reflectors = [Node(f"10.9.0.{n}", f"{n}.{n}.{n}.{n}") for n in (1, 2, 3)]
    nodes = {node.address: node for node in [client, *reflectors]}
    for reflector in reflectors:
        reflector.clients = {other.address for other in reflectors if other is not reflector}
        reflector.neighbors = set(reflector.clients)
    reflectors[0].clients.add(client.address)
    reflectors[0].neighbors.add(client.address)
    for node in nodes.values():
        node.meet()
    for announces in (True, False):
        client.announces = announces
        talk(nodes, Random(1))
        assert {client.prefix in node.rib.best for node in reflectors} == {announces}


# --- one route to one peer -------------------------------------------------------------------------------------

US = Identity("10.9.0.1", "1.1.1.1")
CLIENT = Peer(address="10.9.0.10", asn=ASN, local_asn=ASN, source_address="10.9.0.1", cluster_id="1.1.1.1")
INNER = replace(CLIENT, address="10.9.0.20", cluster_id="")
TOR = replace(CLIENT, address="10.9.0.254", asn=65000, cluster_id="")
FROM_CLIENT = Source("10.9.0.11", "10.9.0.11", ASN, "10.9.0.1", external=False, client=True)
FROM_INNER = replace(FROM_CLIENT, address="10.9.0.21", router_id="10.9.0.21", client=False)
FROM_TOR = Source("10.9.0.253", "10.9.0.253", ASN, "10.9.0.1")
PREFIX = "10.244.7.0/24"
PATH = Path("10.9.0.99", (65010,), 1, med=5, local_pref=200, communities=("65000:1",))


def goes(source: Source, to: Peer, path: Path = PATH, us: Identity = US) -> Announcement | None:
    candidate = source, path
    return None if goes_back(candidate, to, "192.0.2.9") else reflected(PREFIX, candidate, to, us)


@pytest.mark.parametrize(
    ("source", "to"),
    [(FROM_CLIENT, CLIENT), (FROM_CLIENT, INNER), (FROM_INNER, CLIENT)],
    ids=["client to client", "client to other", "other to client"],
)
def test_rfc4456_inside_the_as_the_route_stays_as_it_is(source: Source, to: Peer) -> None:
    assert goes(source, to) == Announcement(
        PREFIX,
        next_hop="10.9.0.99",
        as_path=(65010,),
        med=5,
        local_preference=200,
        communities=("65000:1",),
        originator_id=source.router_id,
        cluster_list=("1.1.1.1",),
    )
    again = goes(source, to, replace(PATH, originator_id="192.0.2.1", cluster_list=("2.2.2.2",)))
    assert again
    assert (again.originator_id, again.cluster_list) == ("192.0.2.1", ("1.1.1.1", "2.2.2.2"))


def test_rfc4456_not_between_those_that_are_no_clients() -> None:
    assert goes(FROM_INNER, INNER) is None


def test_who_is_no_reflector_passes_nothing_on() -> None:
    assert goes(FROM_CLIENT, CLIENT, us=Identity("10.9.0.1")) is None
    assert goes(FROM_CLIENT, TOR, us=Identity("10.9.0.1")) is None


def test_to_an_ebgp_peer_with_ourselves_as_next_hop_and_nothing_of_the_inside() -> None:
    for source in (FROM_CLIENT, FROM_INNER):
        assert goes(source, TOR) == Announcement(PREFIX, as_path=(65010,), communities=("65000:1",))


def test_from_an_ebgp_peer_to_ibgp_peers_only() -> None:
    for to in (CLIENT, INNER):
        assert goes(FROM_TOR, to) == Announcement(
            PREFIX,
            next_hop="10.9.0.99",
            as_path=(65010,),
            med=5,
            local_preference=200,
            communities=("65000:1",),
        )
    assert goes(FROM_TOR, TOR) is None


def test_not_back_to_whom_it_is_from() -> None:
    back = replace(CLIENT, address=FROM_CLIENT.address)
    assert goes(FROM_CLIENT, back) is None
    assert goes(FROM_CLIENT, CLIENT, replace(PATH, originator_id="192.0.2.9")) is None
    assert goes(FROM_CLIENT, CLIENT, replace(PATH, next_hop=CLIENT.address)) is None


def test_rfc1997_well_known_communities() -> None:
    assert goes(FROM_CLIENT, CLIENT, replace(PATH, communities=(NO_ADVERTISE,))) is None
    assert goes(FROM_CLIENT, TOR, replace(PATH, communities=(NO_EXPORT,))) is None
    assert goes(FROM_CLIENT, CLIENT, replace(PATH, communities=(NO_EXPORT,)))


@pytest.mark.parametrize(
    ("to", "mode", "keep", "next_hop"),
    [
        (CLIENT, NextHopMode.AUTO, False, "10.9.0.99"),
        (CLIENT, NextHopMode.SELF, False, "self"),
        (CLIENT, NextHopMode.KEEP, False, "10.9.0.99"),
        (TOR, NextHopMode.AUTO, False, "self"),
        (TOR, NextHopMode.AUTO, True, "10.9.0.99"),
        (TOR, NextHopMode.SELF, True, "self"),
        (TOR, NextHopMode.KEEP, False, "10.9.0.99"),
    ],
)
def test_next_hop_modes(to: Peer, mode: NextHopMode, keep: bool, next_hop: str) -> None:
    found = goes(FROM_CLIENT, replace(to, next_hop_mode=mode, keep_original_next_hop=keep))
    assert found
    assert found.next_hop == next_hop
    mine = own(Announcement(PREFIX), replace(to, next_hop_mode=mode, keep_original_next_hop=keep))
    assert mine
    assert mine.next_hop == "self"


def test_export_filters() -> None:
    learned = FilterRule(accept=False, source="RemotePeers")
    marked = FilterRule(accept=True, operations=Operations(add_communities=("65000:9",), local_preference=300))
    filters = (BGPFilter(name="own-only", export_v4=(learned, marked)),)
    assert goes(FROM_CLIENT, replace(CLIENT, filters=filters)) is None
    mine = Announcement(PREFIX, communities=("65000:9",))
    assert own(Announcement(PREFIX), replace(CLIENT, filters=filters)) == replace(mine, local_preference=300)
    assert own(Announcement(PREFIX), replace(TOR, filters=filters)) == mine
