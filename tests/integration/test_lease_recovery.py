"""Whatever happens to the address store's files: no lease of a running pod is lost without a word.

Pods' interfaces are real; a start is :func:`felix_py.cni.recovery.recover`, as the agent calls it.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.cni.recovery import recover
from felix_py.dataplane.link_label import link_label
from felix_py.dataplane.links import Links, PodLink, random_mac
from felix_py.ipam.store import AddressStore, Claim, StoreError
from felix_py.notices import NoticeKind
from felix_py.records import Lease
from policy.model import Family
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]
CIDRS = ("10.65.0.0/24", "fd65::/64")
PODS = 8


@pytest.fixture
def links(netns: None) -> Iterator[Links]:
    with Links() as links:
        yield links


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """In memory: a thousand starts need not wait for a disk."""
    run("mount", "-t", "tmpfs", "felix-py-tests", str(tmp_path))
    yield tmp_path
    run("umount", str(tmp_path))


@pytest.fixture
def folder(place: Path) -> Path:
    return place / "state"


def claim(number: int) -> Claim:
    return Claim(f"{number:064x}", "eth0", "felix-py", "shop", f"web-{number}", f"uid-{number}")


def connect(links: Links, lease: Lease, pod: NetworkNamespace, *, label: bool = True) -> None:
    """What ADD leaves in the kernel: the interface, and the pod's routes."""
    text = link_label(lease) if label else ""
    links.create(PodLink(lease.interface, pod.path, "eth0", lease.addresses, random_mac(), 1500, text))
    for address in lease.addresses.values():
        run("ip", "route", "add", address, "dev", lease.interface, "proto", "88")


def pods(folder: Path, links: Links, make_netns: MakeNetns, *, label: bool = True) -> list[Lease]:
    """Pods of this node, with a history of others that are gone, as the store of a crashed agent has them."""
    store = AddressStore(folder / "leases.db")
    store.set_boot("this")
    for number in range(40):
        store.allocate(claim(100 + number), CIDRS)
    made = [store.allocate(claim(number), CIDRS) for number in range(PODS)]
    for number in range(40):
        store.release(*claim(100 + number).key)
    for lease in made:
        connect(links, lease, make_netns("pod"), label=label)
    after_crash = folder.with_name("crash")
    shutil.copytree(folder, after_crash)
    store.close()
    shutil.rmtree(folder)
    after_crash.rename(folder)
    return made


class Start:
    """One start of the agent on a copy of the folder: what it came to."""

    def __init__(self, folder: Path, links: Links, boot: str = "this") -> None:
        self.said: list[str] = []
        self.kinds: set[NoticeKind] = set()
        self.refusal = ""
        self.alive: list[Lease] = []
        self.next: Lease | None = None
        try:
            store, alive = recover(folder / "leases.db", links, self._say, boot)
        except StoreError as error:
            self.refusal = str(error)
            return
        self.alive = list(alive)
        self.all = store.all()
        self.next = store.allocate(claim(999), CIDRS)
        store.release(*claim(999).key)
        store.close()

    def _say(self, kind: NoticeKind, subject: str, text: str) -> None:
        self.kinds.add(kind)
        self.said.append(text)


def check(start: Start, leases: list[Lease], damage: str) -> str:
    """Never silent, never an address twice; returns which of the three ends it was."""
    if start.refusal:
        assert "the address store" in start.refusal, damage
        return "refused"
    assert [(lease.container, lease.addresses) for lease in start.alive] == [
        (lease.container, lease.addresses) for lease in leases
    ], damage
    assert start.next is not None
    held = {address for lease in leases for address in lease.addresses.values()}
    assert held.isdisjoint(start.next.addresses.values()), damage
    same = list(start.all) == leases
    assert same or NoticeKind.LEASES_REBUILT in start.kinds, damage
    return "rebuilt" if start.kinds else "same"


Damage = Callable[[Path], object]


def truncated(length: int) -> Damage:
    return lambda file: file.write_bytes(file.read_bytes()[:length])


def flipped(offset: int, bit: int) -> Damage:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[offset] ^= 1 << bit
        file.write_bytes(content)

    return flip


def zeroed(start: int, length: int) -> Damage:
    def zero(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[start : start + length] = bytes(len(content[start : start + length]))
        file.write_bytes(content)

    return zero


def damages(size: int) -> Iterator[tuple[str, Damage]]:
    """Of a file of that many bytes: gone, cut at every 512 bytes and elsewhere, bits turned, parts emptied."""
    dice = random.Random(7)
    yield "missing", Path.unlink
    for length in sorted({0, 1, 16, 99, 100, *range(512, size, 512), size - 1}):
        yield f"cut to {length}", truncated(length)
    for _ in range(200):
        offset, bit = dice.randrange(size), dice.randrange(8)
        yield f"bit {bit} of byte {offset} turned", flipped(offset, bit)
    for offset in range(100):  # the header of a database, of a journal, of a log
        yield f"bit of byte {offset} turned", flipped(offset, dice.randrange(8))
    for start in range(0, size, 4096):
        yield f"page at {start} emptied", zeroed(start, 4096)
        yield f"sector at {start} emptied", zeroed(start, 512)


@pytest.mark.parametrize("name", ["leases.db", "leases.db-journal"])
def test_no_damage_of_the_store_is_silent(
    folder: Path, links: Links, make_netns: MakeNetns, place: Path, name: str
) -> None:
    leases = pods(folder, links, make_netns)
    ends = []
    for what, damage in damages((folder / name).stat().st_size):
        copy = place / "copy"
        shutil.copytree(folder, copy)
        damage(copy / name)
        ends.append(check(Start(copy, links), leases, f"{name}: {what}"))
        shutil.rmtree(copy)
    assert len(ends) > 302
    assert ends.count("refused") < 10  # a version that is too new, say: all else is mended
    assert "rebuilt" in ends if name == "leases.db" else set(ends) == {"same"}


def test_a_torn_commit_without_its_journal_is_not_silent(
    folder: Path, links: Links, make_netns: MakeNetns, place: Path
) -> None:
    """The journal of a commit that power loss or kill -9 cut short is lost: old and new pages are mixed."""
    leases = pods(folder, links, make_netns)
    database = folder / "leases.db"
    before = database.read_bytes()
    store = AddressStore(database)
    with store.group():
        for number in range(20):
            store.allocate(claim(200 + number), CIDRS)
        store.release(*claim(0).key)
    store.close()
    after = database.read_bytes()
    pages = [i for i in range(0, len(after), 4096) if before[i : i + 4096] != after[i : i + 4096]]
    assert len(pages) > 3
    for chosen in range(1, 1 << min(len(pages), 6)):
        mixed = bytearray(before + after[len(before) :])
        for number, page in enumerate(pages):
            if chosen >> (number % 6) & 1:
                mixed[page : page + 4096] = after[page : page + 4096]
        copy = place / "copy"
        copy.mkdir()
        (copy / "leases.db").write_bytes(mixed)
        start = Start(copy, links)
        assert not start.refusal
        assert {lease.container for lease in start.alive} == {lease.container for lease in leases}
        assert list(start.all) == leases or start.kinds or len(start.all) == len(leases) + 19
        shutil.rmtree(copy)


def test_everything_is_gone(folder: Path, links: Links, make_netns: MakeNetns) -> None:
    leases = pods(folder, links, make_netns)
    shutil.rmtree(folder)
    start = Start(folder, links)
    assert check(start, leases, "all") == "rebuilt"
    assert "is missing: it was made anew from the interfaces of 8 pods" in start.said[0]
    assert [lease.created for lease in start.alive] == pytest.approx([lease.created for lease in leases])
    assert not Start(folder, links).kinds  # told once


def test_a_backup_is_older_than_the_interfaces(folder: Path, links: Links, make_netns: MakeNetns) -> None:
    """Two pods came and one went since; the address of the one that went was given to another."""
    leases = pods(folder, links, make_netns)
    backup = (folder / "leases.db").read_bytes()
    store = AddressStore(folder / "leases.db")
    links.delete([leases[0].interface])
    store.release(leases[0].container, "eth0")
    new = [
        store.allocate(claim(300), CIDRS, list(leases[0].addresses.values())),
        store.allocate(claim(301), CIDRS),
    ]
    for lease in new:
        connect(links, lease, make_netns("pod"))
    store.close()
    (folder / "leases.db").write_bytes(backup)
    start = Start(folder, links)
    assert check(start, [*leases[1:], *new], "backup") == "rebuilt"
    assert "was older than the pods' interfaces: 2 leases" in start.said[0]


def test_a_backup_knows_the_same_containers_by_addresses_that_are_others_now(
    folder: Path, links: Links, make_netns: MakeNetns
) -> None:
    """Each holds what another one held: its own interface is the witness, whichever is looked at first."""
    leases = pods(folder, links, make_netns)
    backup = (folder / "leases.db").read_bytes()
    store = AddressStore(folder / "leases.db")
    for lease in leases:
        links.delete([lease.interface])
        store.release(lease.container, lease.ifname)
    new = []
    for number, other in enumerate([*leases[1:], leases[0]]):
        new.append(store.allocate(claim(number), CIDRS, list(other.addresses.values())))
        connect(links, new[-1], make_netns("pod"))
    store.close()
    (folder / "leases.db").write_bytes(backup)
    start = Start(folder, links)
    assert check(start, new, "backup") == "rebuilt"
    assert NoticeKind.STRAY_INTERFACE not in start.kinds


def test_a_damaged_store_is_kept_beside(folder: Path, links: Links, make_netns: MakeNetns) -> None:
    leases = pods(folder, links, make_netns)
    for number in (1, 2):
        (folder / "leases.db").write_bytes(b"nonsense")
        start = Start(folder, links)
        assert check(start, leases, "nonsense") == "rebuilt"
        assert (folder / f"leases.db.damaged-{number}").read_bytes() == b"nonsense"
        assert f"leases.db.damaged-{number}" in start.said[0]


def test_nothing_is_lost_where_no_pod_runs(folder: Path, links: Links) -> None:
    """After a reboot, say: then nobody needs the leases, and the node must come up."""
    folder.mkdir()
    (folder / "leases.db").write_bytes(b"nonsense")
    start = Start(folder, links)
    assert not start.refusal
    assert not start.alive
    assert "damaged" in start.said[0]


# --- what an older version has left -----------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE lease (
  container TEXT NOT NULL, ifname TEXT NOT NULL, network TEXT NOT NULL,
  namespace TEXT NOT NULL, pod TEXT NOT NULL, uid TEXT NOT NULL, interface TEXT NOT NULL UNIQUE,
  v4 TEXT UNIQUE, v6 TEXT UNIQUE, created REAL NOT NULL,
  PRIMARY KEY (container, ifname)
) STRICT;
CREATE TABLE cursor (cidr TEXT PRIMARY KEY, last TEXT NOT NULL) STRICT;
PRAGMA user_version=1;
"""


def as_version_1(folder: Path, leases: list[Lease]) -> None:
    """The store as an older version left it after a crash: all in its write-ahead log."""
    shutil.rmtree(folder)
    folder.mkdir()
    work = folder.with_name("v1.db")
    database = sqlite3.connect(work, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA wal_autocheckpoint=0")
    database.executescript(VERSION_1)
    for lease in leases:
        who = (lease.container, lease.ifname, lease.network, lease.namespace, lease.pod, lease.uid)
        addresses = (lease.addresses[Family.V4], lease.addresses[Family.V6])
        row = (*who, lease.interface, *addresses, lease.created)
        database.execute("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    database.execute("INSERT INTO cursor VALUES ('10.65.0.0/24', '10.65.0.77')")
    for suffix in ("", "-wal"):
        shutil.copy(f"{work}{suffix}", folder / f"leases.db{suffix}")
    database.close()


def test_an_older_store_is_taken_over_and_its_interfaces_labelled(
    folder: Path, links: Links, make_netns: MakeNetns
) -> None:
    leases = pods(folder, links, make_netns, label=False)
    as_version_1(folder, leases)
    start = Start(folder, links)
    assert check(start, leases, "") == "same"
    assert start.next is not None
    assert start.next.addresses[Family.V4] == "10.65.0.78"  # the addresses' rest goes on as well
    assert not (folder / "leases.db-wal").exists()
    shutil.rmtree(folder)
    assert check(Start(folder, links), leases, "") == "rebuilt"


def test_no_damage_of_an_older_store_is_silent(
    folder: Path, links: Links, make_netns: MakeNetns, place: Path
) -> None:
    """Its interfaces have no labels, so what is lost is lost: the agent does not start, and says why."""
    leases = pods(folder, links, make_netns, label=False)
    as_version_1(folder, leases)
    ends = []
    for what, damage in damages((folder / "leases.db-wal").stat().st_size):
        copy = place / "copy"
        shutil.copytree(folder, copy)
        damage(copy / "leases.db-wal")
        ends.append(check(Start(copy, links), leases, what))
        shutil.rmtree(copy)
        for end in links.host_ends():
            links.label(end.index, "")
    assert ends.count("refused") > 200


def test_a_refusal_changes_nothing_and_names_the_interfaces(
    folder: Path, links: Links, make_netns: MakeNetns
) -> None:
    leases = pods(folder, links, make_netns, label=False)
    shutil.rmtree(folder)
    for _ in range(2):
        refusal = Start(folder, links).refusal
        assert leases[0].interface in refusal or "more" in refusal
        assert "drain the node" in refusal
        assert not folder.exists()
    folder.mkdir()
    (folder / "leases.db").write_bytes(b"nonsense")
    for _ in range(2):
        assert "drain the node" in Start(folder, links).refusal
        assert (folder / "leases.db").read_bytes() == b"nonsense"


# --- interfaces -------------------------------------------------------------------------------------------------


def test_a_stray_interface_without_route_is_named(folder: Path, links: Links, make_netns: MakeNetns) -> None:
    leases = pods(folder, links, make_netns)
    links.create(PodLink("felix0123456789", make_netns("stray").path, "eth0", {}, random_mac(), 1500))
    start = Start(folder, links)
    assert [lease.interface for lease in start.alive] == [lease.interface for lease in leases]
    assert start.kinds == {NoticeKind.STRAY_INTERFACE}
    assert "felix0123456789" in start.said[0]


def test_an_interface_that_was_being_made_keeps_no_agent_from_starting(
    folder: Path, links: Links, make_netns: MakeNetns
) -> None:
    """kill -9 between the request that makes it and the one that sets it up, with its label."""
    leases = pods(folder, links, make_netns)
    run("ip", "link", "add", "felix0123456789", "type", "veth", "peer", "eth0", "netns", make_netns("half").name)
    for damage in (shutil.rmtree, lambda state: (state / "leases.db").write_bytes(b"nonsense")):
        damage(folder)
        start = Start(folder, links)
        assert check(start, leases, "") == "rebuilt"
        assert start.kinds == {NoticeKind.LEASES_REBUILT, NoticeKind.STRAY_INTERFACE}


def test_a_lease_that_was_being_written_when_the_agent_was_killed_is_no_sign_of_a_lost_store(
    folder: Path, links: Links, make_netns: MakeNetns
) -> None:
    """An interface is labelled while its lease is written, and has no route before that is done."""
    made = pods(folder, links, make_netns)
    store = AddressStore(folder / "leases.db")
    lease = store.allocate(claim(70), CIDRS)
    store.release(*claim(70).key)
    store.close()
    links.create(
        PodLink(
            lease.interface,
            make_netns("pod").path,
            "eth0",
            lease.addresses,
            random_mac(),
            1500,
            link_label(lease),
        )
    )
    start = Start(folder, links)
    assert {one.interface for one in start.alive} == {one.interface for one in (*made, lease)}
    assert start.said == []
    assert start.next is not None
    assert set(start.next.addresses.values()).isdisjoint(lease.addresses.values())


def test_a_label_that_was_taken_away_comes_back(folder: Path, links: Links, make_netns: MakeNetns) -> None:
    leases = pods(folder, links, make_netns)
    for lease in leases:
        run("ip", "link", "set", lease.interface, "alias", "my interface")
    assert check(Start(folder, links), leases, "") == "same"
    assert all(end.lease is not None for end in links.host_ends())


def test_an_interface_that_was_renamed_is_known_by_its_label(
    folder: Path, links: Links, make_netns: MakeNetns
) -> None:
    leases = pods(folder, links, make_netns)
    run("ip", "link", "set", leases[3].interface, "down")
    run("ip", "link", "set", leases[3].interface, "name", "eth77")
    run("ip", "link", "set", "eth77", "up")
    assert check(Start(folder, links), leases, "") == "same"
    assert "UP" in run("ip", "-o", "link", "show", "dev", leases[3].interface)


def test_of_two_pods_with_one_address_the_newer_has_it(folder: Path, links: Links, make_netns: MakeNetns) -> None:
    """As an agent that had lost its leases may have left it."""
    leases = pods(folder, links, make_netns)
    store = AddressStore(folder / "leases.db")
    store.release(leases[0].container, "eth0")
    twice = store.allocate(claim(400), CIDRS, list(leases[0].addresses.values()))
    links.create(
        PodLink(
            twice.interface, make_netns("p").path, "eth0", twice.addresses, random_mac(), 1500, link_label(twice)
        )
    )
    store.close()
    shutil.rmtree(folder)
    start = Start(folder, links)
    assert [lease.container for lease in start.alive] == [lease.container for lease in (*leases[1:], twice)]
    assert NoticeKind.STRAY_INTERFACE in start.kinds
    assert "delete the pod" in " ".join(start.said)


@pytest.mark.parametrize("clock", ["behind", "ahead"])
def test_leases_from_before_a_reboot_are_told_by_the_boot_and_not_by_the_clock(
    folder: Path, links: Links, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.0 if clock == "behind" else 4e9)
    store = AddressStore(folder / "leases.db")
    store.set_boot("before")
    store.allocate(claim(1), CIDRS)
    store.close()
    monkeypatch.undo()
    assert len(Start(folder, links, boot="before").all) == 1
    assert Start(folder, links, boot="after").all == ()
