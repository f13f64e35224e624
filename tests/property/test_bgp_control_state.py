"""State, not history: whatever happened, the end is what a fresh start from the present situation would give."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bgp.announcement import Announcement
from bgp.attributes import words
from bgp.bfd.session import Path as BfdPath
from bgp.bfd.settings import Report
from bgp.control import Control
from bgp.decision import Path, Source
from bgp.model import Peer, SpeakerConfig
from bgp.prefixes import PrefixSet, version
from bgp.resources import Bfd
from bgp.rib import ImportFilter, Rib
from bgp.session import SETTLE
from tests.support.fake_exabgp import FakeExaBGP, FakePeer
from tests.support.thorough import examples

LOCAL_ASN = 65001
BFD = Bfd()
PEERS = {
    "10.9.0.2": Peer(address="10.9.0.2", asn=65000, local_asn=LOCAL_ASN, source_address="10.9.0.1", bfd=BFD),
    "10.10.0.2": Peer(address="10.10.0.2", asn=65100, local_asn=LOCAL_ASN, source_address="10.10.0.1", bfd=BFD),
    "fd09::2": Peer(address="fd09::2", asn=65000, local_asn=LOCAL_ASN, source_address="fd09::1", bfd=BFD),
    "fd0a::2": Peer(
        address="fd0a::2",
        asn=65000,
        local_asn=LOCAL_ASN,
        source_address="fd0a::1",
        families=(4, 6),
        next_hops=("10.9.0.1", "fd0a::1"),
        bfd=BFD,
    ),
    "fd0b::2": Peer(
        address="fd0b::2",
        asn=65000,
        local_asn=LOCAL_ASN,
        source_address="fd0b::1",
        families=(4, 6),
        next_hops=("fd0b::1",),
        bfd=BFD,
    ),
}
BY_IPV6 = "fd0b::2"
"""The peer to which IPv4 prefixes can only go with an IPv6 next hop."""
LEARNABLE = {4: ["10.244.7.0/24", "10.244.8.0/24", "10.245.0.0/16"], 6: ["fd44:7::/64", "fd44:8::/64"]}
OWN = frozenset({"10.244.1.0/24", "10.244.2.0/24", "fd44:1::/64"})
DRESSES = [
    Announcement(""),
    Announcement("", med=7),
    Announcement("", communities=("65000:1",), as_path=(65009,)),
]
FILTER = ImportFilter(PrefixSet(["10.244.0.0/16", "fd44::/16"]), PrefixSet(OWN))

peers = st.sampled_from(sorted(PEERS))
routes = st.builds(
    lambda last, path, med: (last, tuple(path), med),
    st.integers(2, 4),
    st.lists(st.sampled_from([65000, 65100, 65200, LOCAL_ASN]), min_size=1, max_size=3),
    st.integers(0, 1),
)


class BGP(RuleBasedStateMachine):
    @initialize(agrees=st.booleans())
    def start(self, agrees: bool) -> None:
        self.now = 1000.0
        self.exabgp = FakeExaBGP()
        for peer in PEERS.values():
            self.exabgp.add(peer.address, peer.source_address, peer.asn, peer.local_asn, peer.carried)
        self.exabgp.peers[BY_IPV6].extended_next_hop = agrees
        self.exabgp.lazy = True
        self.wanted: dict[str, Announcement] | None = None
        self.kernel: dict[str, tuple[str, ...]] = {}
        self.failed: dict[str, float] = {}
        self.born()

    def born(self) -> None:
        self.control = Control()
        self.control.rib.set_filter(FILTER)
        config = SpeakerConfig(asn=LOCAL_ASN, router_id="10.9.0.1")
        self.control.configure(config, list(PEERS.values()), self.now)
        self.attached = False
        for peer in self.failed:
            self.tell_bfd(peer)

    def tell_bfd(self, peer: str) -> None:
        """What the BFD process says when it has changed, and to a new agent."""
        failed_at = self.failed.get(peer)
        report = Report(
            peer=peer,
            path=BfdPath.UP if failed_at is None else BfdPath.FAILED,
            age=self.now - (self.now if failed_at is None else failed_at),
            state="UP" if failed_at is None else "DOWN",
            remote_state="UP",
            diagnostic=0,
            remote_diagnostic=0,
            independent=False,
            transmit_interval=0,
            detection_time=0,
        )
        self.control.bfd(report, self.now)

    def talk(self) -> None:
        """Carry lines both ways until there is silence."""
        while self.attached:
            data = self.control.channel.data_to_send()
            self.exabgp.write(data)
            answer = self.exabgp.read()
            if not data and not answer:
                break
            self.control.receive(answer, self.now)
        changes = self.control.rib.take()
        assert all(self.kernel.get(prefix, ()) != hops for prefix, hops in changes.items()), "not a change"
        self.kernel |= changes
        self.kernel = {prefix: hops for prefix, hops in self.kernel.items() if hops}

    @rule()
    def attach(self) -> None:
        if not self.attached:
            self.exabgp.connect()
            self.control.attached()
            self.attached = True
            self.talk()

    @rule()
    def exabgp_dies(self) -> None:
        self.exabgp.restart()
        if self.attached:
            self.attached = False
            self.control.detached(self.now)
            self.talk()

    @rule()
    def agent_dies(self) -> None:
        # What it had ExaBGP withdraw is no loss, whatever the next one wants.
        self.exabgp_sends_all()
        self.exabgp.disconnect()
        self.born()
        self.kernel = {}
        if self.wanted is not None:
            self.control.announce(self.wanted.values())

    @rule(peer=peers)
    def up(self, peer: str) -> None:
        self.exabgp.up(peer)
        self.talk()

    @rule(agrees=st.booleans())
    def router_is_configured(self, agrees: bool) -> None:
        """With or without RFC 8950, which is for the next session."""
        if not self.exabgp.peers[BY_IPV6].established:
            self.exabgp.peers[BY_IPV6].extended_next_hop = agrees

    def refused(self, peer: FakePeer) -> set[str]:
        """What is wanted and cannot be announced."""
        wanted = self.wanted.keys() if self.wanted is not None else OWN
        return {p for p in wanted if peer.address == BY_IPV6 and version(p) == 4 and not peer.extended_next_hop}

    @rule(peer=peers, reason=st.sampled_from(["closing connection", "notification received (6,2)"]))
    def down(self, peer: str, reason: str) -> None:
        self.exabgp.down(peer, reason)
        self.talk()

    @rule(peer=peers)
    def bfd_fails(self, peer: str) -> None:
        before = self.exabgp.peers[peer].established
        self.failed[peer] = self.now
        self.tell_bfd(peer)
        self.talk()
        if before and self.attached:
            assert not self.exabgp.peers[peer].established
            assert not self.control.rib.count(peer)

    @rule(peer=peers)
    def bfd_comes_up(self, peer: str) -> None:
        self.failed.pop(peer, None)
        self.tell_bfd(peer)
        self.talk()

    @rule(peer=peers, route=routes, pick=st.integers(0, 5))
    def peer_announces(self, peer: str, route: tuple[int, tuple[int, ...], int], pick: int) -> None:
        last, path, med = route
        prefixes = [prefix for family in PEERS[peer].carried for prefix in LEARNABLE[family]]
        hop = f"{peer.rpartition('::' if ':' in peer else '.')[0]}{'::' if ':' in peer else '.'}{last}"
        self.exabgp.announce(peer, prefixes[pick % len(prefixes)], (hop, path, med))
        self.talk()

    @rule(peer=peers, pick=st.integers(0, 5))
    def peer_withdraws(self, peer: str, pick: int) -> None:
        prefixes = [prefix for family in PEERS[peer].carried for prefix in LEARNABLE[family]]
        self.exabgp.withdraw(peer, prefixes[pick % len(prefixes)])
        self.talk()

    @rule(wanted=st.dictionaries(st.sampled_from(sorted(OWN)), st.sampled_from(DRESSES)))
    def agent_wants(self, wanted: dict[str, Announcement]) -> None:
        self.wanted = {prefix: replace(dress, prefix=prefix) for prefix, dress in wanted.items()}
        self.control.announce(self.wanted.values())
        self.talk()

    @rule(peer=peers)
    def exabgp_sends(self, peer: str) -> None:
        self.exabgp.flush(self.exabgp.peers[peer])

    @rule(seconds=st.sampled_from([1.0, 15.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for peer in self.exabgp.peers.values():
            self.exabgp.flush(peer)
            peer.age += int(seconds) if peer.established else 0
        self.control.tick(self.now)
        self.talk()

    @invariant()
    def peers_never_lose_what_is_wanted(self) -> None:
        if not hasattr(self, "exabgp"):
            return
        for peer in self.exabgp.peers.values():
            wanted = self.wanted.keys() if self.wanted is not None else OWN
            assert not set(peer.flaps) & wanted - self.refused(peer)
            peer.flaps.clear()

    def teardown(self) -> None:
        if not hasattr(self, "exabgp"):
            return
        self.attach()
        for address in PEERS:
            self.up(address)
        for _ in range(4):
            self.time_passes(SETTLE + 200)
        self.exabgp_sends_all()
        assert self.kernel == dict(self.control.rib.best) == self.from_scratch()
        for peer in self.exabgp.peers.values():
            if peer.established and self.wanted is not None:
                refused = self.refused(peer)
                assert self.control.refused()[peer.address].keys() == refused
                carried = {
                    p: one for p, one in self.wanted.items() if version(p) in peer.families and p not in refused
                }
                assert peer.installed == peer.adj_out
                assert peer.installed == {
                    prefix: words(replace(one, next_hop=PEERS[peer.address].next_hop(version(prefix))), LOCAL_ASN)
                    for prefix, one in carried.items()
                }
                assert peer.ended == set(peer.families)

    def exabgp_sends_all(self) -> None:
        for peer in self.exabgp.peers.values():
            self.exabgp.flush(peer)

    def from_scratch(self) -> dict[str, tuple[str, ...]]:
        rib = Rib()
        rib.set_filter(FILTER)
        for peer in self.exabgp.peers.values():
            known = PEERS[peer.address]
            rib.set_source(Source(peer.address, "192.0.2.9", LOCAL_ASN, known.source_address, known.external))
            for prefix, (hop, as_path, med) in peer.table.items() if peer.established else ():
                rib.announce(peer.address, prefix, Path(hop, as_path, len(as_path), med=med))
        return rib.take()


BGP.TestCase.settings = settings(max_examples=examples(200), stateful_step_count=40, deadline=None)
TestBGP = BGP.TestCase
