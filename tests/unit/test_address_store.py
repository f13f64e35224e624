"""The address store: what it gives out, what it refuses, and what survives."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from felix_py.ipam.beside import read_leases
from felix_py.ipam.pool import Pool
from felix_py.ipam.store import (
    AddressStore,
    AddressUnavailable,
    AlreadyLeased,
    Claim,
    PoolExhausted,
    StoreDamaged,
    StoreError,
)
from policy.model import Family
from tests.support.steps import events_of


@contextmanager
def opened(path: Path) -> Iterator[AddressStore]:
    store = AddressStore(path)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases.db"


@pytest.fixture
def store(path: Path) -> Iterator[AddressStore]:
    with opened(path) as store:
        yield store


def claim(number: int, *, ifname: str = "eth0") -> Claim:
    return Claim(f"container-{number}", ifname, "felix-py", "default", f"pod-{number}", f"uid-{number}")


@pytest.mark.parametrize(
    ("cidr", "first", "last"),
    [
        ("10.0.0.0/24", "10.0.0.1", "10.0.0.254"),
        ("10.0.0.4/30", "10.0.0.5", "10.0.0.6"),
        ("10.0.0.4/31", "10.0.0.4", "10.0.0.5"),
        ("10.0.0.4/32", "10.0.0.4", "10.0.0.4"),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::8/127", "fd00::8", "fd00::9"),
        ("fd00::8/128", "fd00::8", "fd00::8"),
    ],
)
def test_usable_addresses_of_a_cidr(cidr: str, first: str, last: str) -> None:
    pool = Pool.of(cidr)
    assert pool.first == int(ipaddress.ip_address(first))
    assert pool.last == int(ipaddress.ip_address(last))


def test_one_address_for_each_family(store: AddressStore) -> None:
    lease = store.allocate(claim(1), ["10.0.0.0/24", "fd00:1::/64"])
    assert lease.addresses == {Family.V4: "10.0.0.1", Family.V6: "fd00:1::1"}
    assert lease.interface.startswith("felix")
    assert len(lease.interface) == 15
    assert store.get("container-1", "eth0") == lease


def test_second_cidr_of_a_family_is_used_when_the_first_is_full(store: AddressStore) -> None:
    cidrs = ["10.0.0.0/30", "10.1.0.0/30"]
    got = [store.allocate(claim(n), cidrs).addresses[Family.V4] for n in range(4)]
    assert got == ["10.0.0.1", "10.0.0.2", "10.1.0.1", "10.1.0.2"]
    with pytest.raises(PoolExhausted, match=r"10\.0\.0\.0/30, 10\.1\.0\.0/30"):
        store.allocate(claim(9), cidrs)
    assert store.full(cidrs) == (Family.V4,)


def test_when_one_family_is_full_nothing_is_taken_from_the_other(store: AddressStore) -> None:
    cidrs = ["10.0.0.0/32", "fd00::/64"]
    store.allocate(claim(1), cidrs)
    with pytest.raises(PoolExhausted):
        store.allocate(claim(2), cidrs)
    assert store.get("container-2", "eth0") is None
    assert store.allocate(claim(3), ["fd00::/64"]).addresses == {Family.V6: "fd00::2"}


def test_how_full_each_cidr_is(store: AddressStore) -> None:
    cidrs = ["10.1.0.0/29", "fd00::/64", "10.9.0.0/30"]
    assert store.usage(cidrs) == {"10.1.0.0/29": (0, 6), "fd00::/64": (0, 2**64 - 1), "10.9.0.0/30": (0, 2)}
    store.allocate(claim(1), cidrs[:2])
    store.allocate(claim(2), cidrs[:2])
    store.record(claim(3), ["10.1.0.7"])  # not a usable one: by another plugin
    assert store.usage(cidrs[:2]) == {"10.1.0.0/29": (2, 4), "fd00::/64": (2, 2**64 - 3)}
    store.release("container-1", "eth0")
    assert store.usage(cidrs[:1]) == {"10.1.0.0/29": (1, 5)}
    assert store.usage([]) == {}


def test_a_node_without_pod_cidrs_has_no_addresses(store: AddressStore) -> None:
    with pytest.raises(PoolExhausted, match="no pod CIDR"):
        store.allocate(claim(1), [])


def test_a_released_address_rests_until_the_pool_has_gone_round(store: AddressStore) -> None:
    cidrs = ["10.0.0.0/29"]  # .1 to .6
    first = store.allocate(claim(1), cidrs)
    store.release("container-1", "eth0")
    others = [store.allocate(claim(n), cidrs).addresses[Family.V4] for n in range(2, 7)]
    assert first.addresses[Family.V4] not in others
    assert store.allocate(claim(7), cidrs).addresses == first.addresses


def test_the_rest_of_a_released_address_survives_a_restart(path: Path) -> None:
    with opened(path) as store:
        store.allocate(claim(1), ["10.0.0.0/24"])
        store.release("container-1", "eth0")
    with opened(path) as store:
        assert store.allocate(claim(2), ["10.0.0.0/24"]).addresses[Family.V4] == "10.0.0.2"


def test_requested_addresses(store: AddressStore) -> None:
    cidrs = ["10.0.0.0/24", "fd00::/64"]
    lease = store.allocate(claim(1), cidrs, ["10.0.0.77"])
    assert lease.addresses == {Family.V4: "10.0.0.77", Family.V6: "fd00::1"}
    for wrong, why in [
        (["10.0.0.77"], "in use by container container-1"),
        (["10.9.0.1"], "not a pod address"),
        (["10.0.0.0"], "not a pod address"),
        (["10.0.0.1", "10.0.0.2"], "second IPv4"),
    ]:
        with pytest.raises(AddressUnavailable, match=why):
            store.allocate(claim(2), cidrs, wrong)
    assert len(store.all()) == 1


def test_an_interface_has_one_lease(store: AddressStore) -> None:
    store.allocate(claim(1), ["10.0.0.0/24"])
    with pytest.raises(AlreadyLeased):
        store.allocate(claim(1), ["10.0.0.0/24"])
    store.allocate(claim(1, ifname="net1"), ["10.0.0.0/24"])


def test_recorded_addresses_are_not_given_out(store: AddressStore) -> None:
    store.record(claim(1), ["10.0.0.1"])
    assert store.allocate(claim(2), ["10.0.0.0/24"]).addresses[Family.V4] == "10.0.0.2"
    with pytest.raises(AddressUnavailable):
        store.record(claim(3), ["10.0.0.2"])


def test_leases_of_a_cidr_the_node_has_lost_stay(path: Path) -> None:
    with opened(path) as store:
        old = store.allocate(claim(1), ["10.0.0.0/24"])
        store.allocate(claim(2), ["10.7.0.0/24"])
    with opened(path) as store:
        assert store.all()[0] == old
        assert store.release("container-1", "eth0") == old


def test_releasing_twice_is_fine(store: AddressStore) -> None:
    store.allocate(claim(1), ["10.0.0.0/24"])
    assert store.release("container-1", "eth0") is not None
    assert store.release("container-1", "eth0") is None
    assert store.release("never", "eth0") is None


def test_newer_leases_are_newer_even_when_the_clock_steps_back(
    store: AddressStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.allocate(claim(1), ["10.0.0.0/24"])
    monkeypatch.setattr(time, "time", lambda: 1.0)
    assert store.allocate(claim(2), ["10.0.0.0/24"]).created > first.created


def test_a_group_is_undone_as_a_whole(store: AddressStore) -> None:
    kept = store.allocate(claim(1), ["10.0.0.0/24"])

    def half() -> None:
        with store.group():
            store.allocate(claim(2), ["10.0.0.0/24"])
            store.release("container-1", "eth0")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert store.all() == (kept,)
    assert store.allocate(claim(3), ["10.0.0.0/24"]).addresses[Family.V4] == "10.0.0.2"


def test_a_refusal_inside_a_group_leaves_the_rest(path: Path) -> None:
    with opened(path) as store:
        with store.group():
            store.allocate(claim(1), ["10.0.0.0/32"])
            with pytest.raises(PoolExhausted):
                store.allocate(claim(2), ["10.0.0.0/32"])
        assert len(store.all()) == 1
    with opened(path) as store:
        assert len(store.all()) == 1


def test_a_full_disk_refuses_and_keeps_what_was(path: Path) -> None:
    with opened(path) as store:
        store.allocate(claim(0), ["10.0.0.0/16"])
        limit = store._file._db.execute("PRAGMA page_count").fetchone()[0]
        store._file._db.execute(f"PRAGMA max_page_count={limit}")
        told = 1
        try:
            for number in range(1, 1000):
                store.allocate(claim(number), ["10.0.0.0/16"])
                told += 1
        except sqlite3.OperationalError as error:
            assert "full" in str(error)  # noqa: PT017 - the call that fails is not known beforehand
        assert len(store.all()) == told < 1000
    with opened(path) as store:
        assert len(store.all()) == told


def test_kill_9_between_two_allocations_loses_no_lease(path: Path) -> None:
    code = """
import sys
from pathlib import Path
from felix_py.ipam.store import AddressStore, Claim
store = AddressStore(Path(sys.argv[1]))
for number in range(10**6):
    lease = store.allocate(Claim(f"c{number}", "eth0", "n", "default", "p"), ["10.0.0.0/16", "fd00::/64"])
    print(number, *lease.addresses.values(), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().split() for _ in range(40)]
    os.kill(process.pid, signal.SIGKILL)
    told += [line.split() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    with opened(path) as store:
        for number, v4, v6 in told:
            lease = store.get(f"c{number}", "eth0")
            assert lease is not None
            assert lease.addresses == {Family.V4: v4, Family.V6: v6}
        assert len(store.all()) - len(told) in (0, 1)  # one may have been on disk, but not told yet


def test_two_agents_cannot_use_one_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felix_py.ipam.lease_file._LOCK_WAIT", 0.05)
    with opened(path), pytest.raises(StoreError, match="another felix-py agent"):
        AddressStore(path)


WRITER = """
import sys
from pathlib import Path
from felix_py.ipam.store import AddressStore, Claim

store = AddressStore(Path(sys.argv[1]))
print("open", flush=True)
for number in range(600):
    store.allocate(Claim(f"c{number}", "eth0", "n", "ns", f"pod-{number}"), ["10.0.0.0/20"])
print("done", flush=True)
sys.stdin.read()
"""


def test_leases_can_be_read_beside_an_agent_that_writes(path: Path) -> None:
    """Each time, what has been committed so far: so many of the first ones, and never fewer than before."""
    argv = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        counts = [0]
        while counts[-1] < 600:
            found = [lease.pod for lease in read_leases(path)]
            assert found == [f"pod-{number}" for number in range(len(found))]
            assert len(found) >= counts[-1]
            counts.append(len(found))
        assert len(set(counts)) > 2  # it was at work while we looked
        assert writer.stdout.readline() == "done\n"
        writer.stdin.close()
    assert len(read_leases(path)) == 600


STEP_WRITER = """
import sys
from pathlib import Path
from felix_py.ipam.store import AddressStore, Claim

store = AddressStore(Path(sys.argv[1]))
for number, _ in enumerate(sys.stdin):
    store.allocate(Claim(f"c{number}", "eth0", "n", "ns", f"pod-{number}"), ["10.0.0.0/20"])
    print(number, flush=True)
"""


def test_an_agent_that_never_rests_does_not_keep_leases_from_being_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit falls between any two reads of the copy, so often that the log begins anew now and then."""
    argv = [sys.executable, "-c", STEP_WRITER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        committed = 0
        read_bytes = Path.read_bytes

        def commit() -> None:
            nonlocal committed
            print(file=writer.stdin, flush=True)
            assert writer.stdout is not None
            assert writer.stdout.readline() == f"{committed}\n"
            committed += 1

        def read_and_commit(file: Path) -> bytes:
            content = read_bytes(file)
            for _ in range(10):
                commit()
            return content

        monkeypatch.setattr(Path, "read_bytes", read_and_commit)
        commit()
        for _ in range(80):
            before = committed
            found = [lease.pod for lease in read_leases(path)]
            assert found == [f"pod-{number}" for number in range(len(found))]
            assert before <= len(found) <= committed
        writer.stdin.close()


def test_reading_what_is_no_store(path: Path) -> None:
    with pytest.raises(StoreError, match=rf"cannot read the address store {path}: No such file"):
        read_leases(path)
    path.write_text("nonsense " * 1000)
    with pytest.raises(StoreError, match=rf"the address store {path} is damaged"):
        read_leases(path)
    assert path.read_text() == "nonsense " * 1000
    assert list(path.parent.iterdir()) == [path]


def test_a_store_of_an_older_agent_that_runs_is_not_read_without_its_log(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE lease (container TEXT)")
    database.commit()
    with pytest.raises(StoreError, match="made by an older felix-py"):
        read_leases(path)
    database.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "row", "table"])
def test_a_damaged_file_is_refused_and_left_alone(path: Path, damage: str) -> None:
    with opened(path) as store, store.group():
        for number in range(500):
            store.allocate(claim(number), ["10.0.0.0/16"])
    if damage == "garbage":
        path.write_bytes(b"not a database at all" * 500)
    elif damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        database = sqlite3.connect(path)
        database.execute("UPDATE held SET v4 = 'x' || v4" if damage == "row" else "DROP TABLE rest")
        database.commit()
        database.close()
    before = path.read_bytes()
    for _attempt in range(2):
        with pytest.raises(StoreDamaged, match=r"damaged"):
            AddressStore(path)
        assert path.read_bytes() == before


def test_a_store_of_a_newer_version_is_refused(path: Path) -> None:
    with opened(path):
        pass
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(StoreError, match="newer"):
        AddressStore(path)


def test_a_store_in_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot open"):
        AddressStore(tmp_path / "file" / "leases.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot"):
        AddressStore(tmp_path / "folder")


def test_thousands_of_leases_do_not_slow_it_down(path: Path, tmp_path: Path) -> None:
    cidrs = ["10.0.0.0/16", "fd00::/64"]
    with opened(path) as store, store.group():
        store.allocate(claim(0), cidrs)
        one = events_of(lambda: store.allocate(claim(1), cidrs))
        for number in range(2, 3_000):
            store.allocate(claim(number), cidrs)
        assert events_of(lambda: store.allocate(claim(3_000), cidrs)) < 2 * one
    shutil.copy(path, tmp_path / "copy.db")
    with opened(tmp_path / "copy.db") as store:
        assert len(store.all()) == 3_001
