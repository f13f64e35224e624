"""What keeps the deny log's reader going, with a socket pair in the kernel's place."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence

import pytest

from felix_py.dataplane.nflog import LoggedPacket, NflogError
from felix_py.desired.deny_log import SOURCE_DROP
from felix_py.metrics import Metrics
from felix_py.observe import deny_reader
from felix_py.observe.chain_names import ChainNames
from felix_py.observe.denies import WINDOW, Denies
from felix_py.observe.deny_events import Describer
from felix_py.observe.deny_reader import DenyReader
from policy.oracle.evaluate import Snapshot
from tests.support.logged import dropped
from tests.support.waiting import running, until


class Group:
    """An NFLOG group: who reads it, and what the kernel does. Makes readers like NflogReader's."""

    def __init__(self) -> None:
        self.taken = False
        self.opened = 0
        self.reader: Reader | None = None

    def open(self, _group: int, _copy: int, deliver: Callable[[Sequence[LoggedPacket]], None]) -> Reader:
        if self.taken:
            raise NflogError("NFLOG group 88 is read by another process")
        self.opened += 1
        self.reader = Reader(deliver)
        return self.reader


class Reader:
    def __init__(self, deliver: Callable[[Sequence[LoggedPacket]], None]) -> None:
        self._deliver = deliver
        self._ours, self._kernels = socket.socketpair()
        self._waiting: list[list[LoggedPacket] | OSError] = []
        self.lost = self.overruns = 0
        self.closed = False

    def send(self, what: list[LoggedPacket] | OSError) -> None:
        """The kernel sends packets, or the socket fails."""
        self._waiting.append(what)
        self._kernels.send(b"x")

    def fileno(self) -> int:
        return self._ours.fileno()

    def read(self) -> None:
        self._ours.recv(1)
        what = self._waiting.pop(0)
        if isinstance(what, OSError):
            raise what
        self._deliver(what)

    def close(self) -> None:
        self.closed = True
        self._ours.close()
        self._kernels.close()


class Rig:
    def __init__(self) -> None:
        self.metrics = Metrics()
        describer = Describer("n1", Snapshot([], [], []), ChainNames(lambda _name: ()), lambda _name: None)
        self.denies = Denies(describer, self.metrics, lines=False)
        self.reader = DenyReader(88, self.denies, self.metrics, retry=0.001)

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"felix_py_deny_log_{name}_total") or 0.0


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    group = Group()
    monkeypatch.setattr(deny_reader, "NflogReader", group.open)
    return group


async def test_an_event_is_complete_without_another_packet(group: Group) -> None:
    rig = Rig()
    async with running(rig.reader.run()):
        await until(lambda: group.reader)
        assert group.reader
        with rig.denies.follow() as followed:
            group.reader.send([dropped(SOURCE_DROP), dropped(SOURCE_DROP)])
            event = await asyncio.wait_for(followed.get(), WINDOW * 5)
        assert event.count == 2
    assert group.reader
    assert group.reader.closed


async def test_what_is_open_at_the_end_is_told(group: Group) -> None:
    rig = Rig()
    async with running(rig.reader.run()):
        await until(lambda: group.reader)
        assert group.reader
        group.reader.send([dropped(SOURCE_DROP)])
        await until(rig.denies.events)
        assert rig.denies.events(closed=True) == []
    assert len(rig.denies.events(closed=True)) == 1


async def test_a_socket_that_fails_is_opened_again(group: Group) -> None:
    rig = Rig()
    async with running(rig.reader.run()):
        await until(lambda: group.reader)
        first = group.reader
        assert first
        first.send(OSError(errno.EBADF, "Bad file descriptor"))
        await until(lambda: group.opened == 2)
        assert first.closed
        assert group.reader
        group.reader.send([dropped(SOURCE_DROP)])
        await until(rig.denies.events)
        assert rig.reader.unavailable is None


async def test_a_group_that_is_taken_is_tried_again(group: Group) -> None:
    rig = Rig()
    group.taken = True
    async with running(rig.reader.run()):
        await until(lambda: rig.reader.unavailable == "NFLOG group 88 is read by another process")
        group.taken = False
        await until(lambda: rig.reader.unavailable is None)


async def test_losses_are_counted_over_several_sockets(group: Group) -> None:
    rig = Rig()
    async with running(rig.reader.run()):
        await until(lambda: group.reader)
        for lost, overruns in ((3, 1), (5, 1)):
            assert group.reader
            group.reader.lost, group.reader.overruns = lost, overruns
            group.reader.send([])
            opened = group.opened
            group.reader.send(OSError(errno.EIO, "I/O error"))
            await until(lambda opened=opened: group.opened > opened)  # type: ignore[misc]
        assert (rig.metric("lost"), rig.metric("overruns")) == (8, 2)


async def test_a_defect_over_one_batch_does_not_end_it(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    async with running(rig.reader.run()):
        await until(lambda: group.reader)
        assert group.reader
        note = rig.denies.note
        broken = asyncio.Event()

        def raises(_packets: Sequence[LoggedPacket]) -> None:
            broken.set()
            raise RuntimeError("a defect")

        monkeypatch.setattr(rig.denies, "note", raises)
        group.reader.send([dropped(SOURCE_DROP)])
        await broken.wait()
        monkeypatch.setattr(rig.denies, "note", note)
        group.reader.send([dropped(SOURCE_DROP)])
        await until(rig.denies.events)
        assert group.opened == 1
