"""The agent's BGP side with a fake ExaBGP and its peers, in one thread and with a clock of its own."""

from __future__ import annotations

from bgp.control import Control
from bgp.model import Peer, SpeakerConfig
from bgp.prefixes import PrefixSet
from bgp.rib import ImportFilter
from tests.support.fake_exabgp import FakeExaBGP, FakePeer

V4, V6 = "10.244.1.0/24", "fd44:1::/64"
"""Our own prefixes."""


class Scene:
    """A control and its ExaBGP, and the lines carried between them."""

    def __init__(self, *peers: Peer) -> None:
        self.now = 100.0
        self.exabgp = FakeExaBGP()
        for peer in peers:
            self.add(peer)
        self.config = SpeakerConfig(asn=peers[0].local_asn if peers else 65001, router_id="10.9.0.1", peers=peers)
        self.reborn()

    def settle(self) -> None:
        """Carry lines until what follows of them is said, too."""
        while self.talk() or self.control.channel.pending:
            pass

    def add(self, peer: Peer) -> FakePeer:
        return self.exabgp.add(peer.key, peer.source_address, peer.asn, peer.local_asn, peer.carried)

    def reborn(self) -> None:
        """A new agent; ExaBGP goes on."""
        self.exabgp.disconnect()
        self.control = Control()
        self.control.rib.set_filter(ImportFilter(PrefixSet(["10.244.0.0/16", "fd44::/16"]), PrefixSet([V4, V6])))
        self.control.configure(self.config, self.config.peers, self.now)

    def attach(self) -> None:
        self.exabgp.connect()
        self.control.attached()
        self.talk()

    def talk(self) -> dict[str, tuple[str, ...]]:
        while (data := self.control.channel.data_to_send()) or (answer := self.exabgp.read()):
            if data:
                self.exabgp.write(data)
                answer = self.exabgp.read()
            self.control.receive(answer, self.now)
        return self.control.take()

    def wait(self, seconds: float) -> dict[str, tuple[str, ...]]:
        self.now += seconds
        for peer in self.exabgp.peers.values():
            peer.age += int(seconds) if peer.established else 0
        self.control.tick(self.now)
        return self.talk()
