"""The address store against a model that is only a dictionary, crashed at any point."""

from __future__ import annotations

import ipaddress
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from felix_py.ipam.history import History, history_of
from felix_py.ipam.store import AddressStore, AllocationError, Claim
from felix_py.records import Lease
from tests.support.thorough import examples

CIDRS = ("10.0.0.0/29", "10.0.0.16/30", "10.0.1.0/32", "fd00::/126", "fd00:0:0:1::/64")
containers = st.integers(0, 11).map("c{}".format)
cidr_lists = st.lists(st.sampled_from(CIDRS), min_size=1, max_size=4, unique=True)


def usable(cidr: str) -> set[str]:
    """Straight from the words: no first address, no IPv4 last one, unless there are at most two."""
    network = ipaddress.ip_network(cidr)
    if network.num_addresses > 256:
        return {str(network[n]) for n in range(1, 200)}
    addresses = [str(address) for address in network]
    if len(addresses) <= 2:
        return set(addresses)
    return set(addresses[1:-1] if network.version == 4 else addresses[1:])


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="felix-py-store-"))
        self.generation = 0
        self.store = self.opened()
        self.model: dict[str, Lease] = {}
        self.released: list[str] = []
        """Addresses, in the order of their last release."""

    @property
    def path(self) -> Path:
        return self.folder / str(self.generation) / "leases.db"

    def opened(self) -> AddressStore:
        return AddressStore(self.path, history=History(history_of(self.path), "boot"))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def held(self) -> set[str]:
        return {a for lease in self.model.values() for a in lease.addresses.values()}

    @rule(container=containers, cidrs=cidr_lists)
    def allocate(self, container: str, cidrs: list[str]) -> None:
        free: dict[int, set[str]] = {
            version: {a for c in cidrs if ipaddress.ip_network(c).version == version for a in usable(c)}
            - self.held()
            for version in {ipaddress.ip_network(c).version for c in cidrs}
        }
        possible = container not in self.model and all(free.values())
        try:
            lease = self.store.allocate(Claim(container, "eth0", "net", "ns", "pod"), cidrs)
        except AllocationError:
            assert not possible
            return
        assert possible
        assert {int(family) for family in lease.addresses} == set(free)
        for family, address in lease.addresses.items():
            assert address in free[int(family)]
            # A released one only if all are, and then the one that rests longest (nobody waits a minute here).
            if address in self.released:
                assert free[int(family)] <= set(self.released)
                assert address == next(a for a in self.released if a in free[int(family)])
        self.lease(container, lease)

    @rule(container=containers, address=st.sampled_from(sorted(usable(CIDRS[0]) | {"10.0.0.0", "10.5.0.1"})))
    def request(self, container: str, address: str) -> None:
        possible = container not in self.model and address in usable(CIDRS[0]) - self.held()
        try:
            lease = self.store.allocate(Claim(container, "eth0", "net", "ns", "pod"), [CIDRS[0]], [address])
        except AllocationError:
            assert not possible
            return
        assert possible
        assert set(lease.addresses.values()) == {address}
        self.lease(container, lease)

    def lease(self, container: str, lease: Lease) -> None:
        self.model[container] = lease
        for address in lease.addresses.values():
            if address in self.released:
                self.released.remove(address)

    @rule(container=containers)
    def release(self, container: str) -> None:
        lease = self.model.pop(container, None)
        assert self.store.release(container, "eth0") == lease
        self.released += lease.addresses.values() if lease else ()

    @rule()
    def crash(self) -> None:
        """What kill -9 leaves: the files as they are at this moment, with nothing closed."""
        before = self.path.parent
        self.generation += 1
        shutil.copytree(before, self.path.parent)
        self.store.close()
        self.store = self.opened()

    @precondition(lambda self: len(self.model) > 1)
    @invariant()
    def newest_last(self) -> None:
        order = [lease.container for lease in self.store.all()]
        assert order == sorted(order, key=lambda c: self.model[c].created)

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def same_leases(self) -> None:
        assert {lease.container: lease for lease in self.store.all()} == self.model


StoreMachine.TestCase.settings = settings(max_examples=examples(40), stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase
