"""Released addresses rest, also over restarts; who had which address is remembered; a full CIDR is told early."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from felix_py.cni.fullness import Fullness
from felix_py.ipam import history as history_module
from felix_py.ipam.history import History, history_of, read_history
from felix_py.ipam.store import AddressStore, Claim
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from policy.model import Family

SMALL, NEXT = "10.0.0.0/30", "10.1.0.0/24"


class Machine:
    """A store whose clock a test moves; ``restart`` is the agent's, ``reboot`` the machine's."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.now = 1000.0
        self.boot = "first"
        for module in ("felix_py.ipam.store", "felix_py.ipam.history"):
            monkeypatch.setattr(f"{module}.since_boot", lambda: self.now)
        self.store = self._opened()
        self._number = 0

    def _opened(self) -> AddressStore:
        return AddressStore(self.path, history=History(history_of(self.path), self.boot))

    def restart(self) -> None:
        self.store.close()
        self.store = self._opened()

    def reboot(self) -> None:
        self.boot, self.now = "second", 5.0
        self.restart()

    def add(self, *cidrs: str) -> str:
        self._number += 1
        claim = Claim(f"c{self._number}", "eth0", "felix-py", "default", f"pod-{self._number}", "u")
        return self.store.allocate(claim, cidrs).addresses[Family.V4]

    def delete(self, address: str) -> None:
        lease = next(lease for lease in self.store.all() if address in lease.addresses.values())
        self.store.release(lease.container, lease.ifname)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path / "leases.db", monkeypatch)
    yield machine
    machine.store.close()


@pytest.mark.parametrize("restart", [False, True])
def test_a_released_address_rests_for_the_cooldown(machine: Machine, restart: bool) -> None:
    first, second = machine.add(SMALL, NEXT), machine.add(SMALL, NEXT)
    machine.delete(second)
    machine.now += 10
    machine.delete(first)
    if restart:
        machine.restart()
    assert machine.store.resting([SMALL, NEXT]) == {SMALL: 2, NEXT: 0}
    machine.now += 49
    assert machine.add(SMALL, NEXT) == "10.1.0.1"
    machine.now += 1
    assert machine.add(SMALL, NEXT) == second
    assert machine.add(SMALL, NEXT) == "10.1.0.2"
    machine.now += 10
    assert machine.add(SMALL, NEXT) == first


def test_no_pod_is_refused_while_an_address_rests(machine: Machine) -> None:
    first, second = machine.add(SMALL), machine.add(SMALL)
    machine.delete(second)
    machine.delete(first)
    assert (machine.add(SMALL), machine.add(SMALL)) == (second, first)


def test_without_cooldown_the_first_cidr_is_used(machine: Machine) -> None:
    machine.store.cooldown = 0
    first = machine.add("10.0.0.1/32", NEXT)
    machine.delete(first)
    assert machine.add("10.0.0.1/32", NEXT) == first


def test_after_a_reboot_a_rest_has_lasted_since_the_boot_at_least(machine: Machine) -> None:
    released = machine.add("10.0.0.1/32", NEXT)
    machine.delete(released)
    machine.reboot()
    assert machine.store.rested(released) == 5
    assert machine.add("10.0.0.1/32", NEXT) == "10.1.0.1"
    machine.now = 60
    assert machine.add("10.0.0.1/32", NEXT) == released


def test_a_release_that_a_crash_kept_from_the_history_rests_from_the_restart(machine: Machine) -> None:
    address = machine.add("10.0.0.1/32", NEXT)
    before = history_of(machine.path).read_bytes()
    machine.delete(address)
    history_of(machine.path).write_bytes(before)
    machine.now += 1000
    machine.restart()
    assert machine.store.rested(address) == 0
    assert machine.add("10.0.0.1/32", NEXT) == "10.1.0.1"


def test_what_is_rolled_back_has_not_happened(machine: Machine) -> None:
    address = machine.add(SMALL)

    def half() -> None:
        with machine.store.group():
            machine.delete(address)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert machine.store.rested(address) is None
    assert [entry.what for entry in read_history(history_of(machine.path))] == ["leased"]


def test_the_history_says_who_had_an_address(machine: Machine) -> None:
    address = machine.add("10.0.0.1/32")
    machine.delete(address)
    machine.add("10.0.0.1/32")
    told = [(entry.what, entry.pod, *entry.addresses) for entry in read_history(history_of(machine.path))]
    assert told == [("leased", "pod-1", address), ("released", "pod-1", address), ("leased", "pod-2", address)]


def test_a_history_is_bounded_and_keeps_the_newest(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MOST_BYTES", 2000)
    for _ in range(50):
        machine.delete(machine.add(NEXT))
    files = list(machine.path.parent.glob("leases.db.history*"))
    assert len(files) == 2
    assert all(file.stat().st_size <= 2000 for file in files)
    assert list(read_history(history_of(machine.path)))[-1].pod == "pod-50"


def test_a_torn_line_loses_only_itself(machine: Machine) -> None:
    address = machine.add(NEXT)
    with history_of(machine.path).open("ab") as file:
        file.write(b'{"what": "leased", "ti')
    machine.restart()
    machine.delete(address)
    assert [entry.what for entry in read_history(history_of(machine.path))] == ["leased", "released"]


def test_a_history_that_cannot_be_written_or_read_keeps_no_pod(machine: Machine) -> None:
    history_of(machine.path).unlink(missing_ok=True)
    history_of(machine.path).mkdir()
    address = machine.add(NEXT)
    machine.delete(address)
    assert machine.store.rested(address) == 0
    machine.restart()
    assert machine.add(NEXT) == "10.1.0.2"  # round robin, as far as the store itself knows
    os.rmdir(history_of(machine.path))
    machine.add(NEXT)
    assert len(list(read_history(history_of(machine.path)))) == 1


def test_a_full_family_is_told_before_the_first_pod_is_refused(machine: Machine) -> None:
    notices, events = Notices(Metrics()), list[str]()
    fullness = Fullness(notices, lambda reason, _text: events.append(reason))
    cidrs = ["10.1.0.0/28", "fd00::/64"]  # 14 addresses of IPv4
    held: list[str] = []

    def add(number: int) -> dict[str, str]:
        held.extend(machine.add(*cidrs) for _ in range(number))
        fullness.look(machine.store.usage(cidrs))
        return dict(notices.of(NoticeKind.ADDRESSES_SCARCE))

    assert add(12) == {}
    assert "nearly all IPv4 addresses of 10.1.0.0/28" in add(1)["IPv4"]
    assert "no new pod gets one" in add(1)["IPv4"]
    fullness.look(machine.store.usage(cidrs), lambda: {Family.V4})  # its node can claim another block
    assert not notices.of(NoticeKind.ADDRESSES_SCARCE)
    add(0)
    for least in (12, 11):
        while len(held) > least:
            machine.delete(held.pop())
        assert bool(add(0)) == (least == 12)  # 85 % of them
    told = ["AddressesScarce", "AddressesExhausted"]
    assert events == [*told, "AddressesExhausted", "AddressesScarce"]
