"""Listens to kernel events about changes that others make to our objects, and tells what to read back.

Reading back finds whether something differs. Changes without events (of IP sets) are found by the sets' sizes
(:meth:`felix_py.dataplane.ipsets.IPSets.miscounted`), the others and those whose events were lost by the refresh.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress

from felix_py import log
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.kernel_events import GROUPS, LOST, Hint, HostEvents, host_filter, origin, rules_concern_us
from felix_py.dataplane.lock_watch import LockWatch
from felix_py.dataplane.protocols import Look
from felix_py.netlink import links as link_messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import NETLINK_NETFILTER, NETLINK_ROUTE
from felix_py.records import Backend

_NFNLGRP_NFTABLES = 7
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER = 8 << 20
"""Receive buffer in bytes of kernel memory; room for a transaction of some 10,000 rules."""

_LARGEST = 1 << 16
_AT_ONCE = 256
"""Datagrams read in one turn of the event loop (a few milliseconds), so that a storm does not block it."""

_GATHER = 0.01
"""Seconds for which events of the host gather: one ADD causes seven, and each that is read by itself takes the
event loop's time in the midst of it."""

_RENEW = 60.0
"""Seconds between renewals of the watch on the lock's file, which may be replaced."""


class Monitor:
    """Calls back on the event loop. Belongs to the network namespace of the thread that makes it."""

    def __init__(
        self,
        kernel: Kernel,
        has_interface: Callable[[str], bool],
        look: Callable[[Look], None],
        retry: Callable[[], None],
    ) -> None:
        """``look`` is called with what others may have changed; ``retry`` when failed writes may succeed now.

        ``has_interface``: whether a host end of that name is wanted.

        Raises:
            OSError: the kernel refuses to let us listen.
        """
        self._kernel = kernel
        self._look = look
        self._retry = retry
        self._events = HostEvents(has_interface, kernel.routes.wants)
        self._log = log.get("monitor")
        self._readers: dict[int, Callable[[], None]] = {}
        self._renewal: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None
        with ExitStack() as stack:
            self._dump = stack.enter_context(Netlink(NETLINK_ROUTE))
            program = host_filter(kernel.routes.port)
            self._host = stack.enter_context(closing(listen(NETLINK_ROUTE, GROUPS, program)))
            self._readers[self._host.fileno()] = self._gather
            if kernel.backend is Backend.NFT:
                self._rules = stack.enter_context(closing(listen(NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))))
                self._readers[self._rules.fileno()] = self._read_rules
            else:
                self._lock = stack.enter_context(closing(LockWatch(kernel.own_processes)))
                self._readers[self._lock.fileno()] = self._read_lock
            self._begin()
            self._stack = stack.pop_all()

    def start(self) -> None:
        """Start calling back on the running event loop, for events since this was made."""
        loop = asyncio.get_running_loop()
        for fd, read in self._readers.items():
            loop.add_reader(fd, self._guarded, fd, read)
        if self._kernel.backend is Backend.LEGACY:
            self._renew()

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in self._readers:
            loop.remove_reader(fd)
        for timer in (self._renewal, self._gathering):
            if timer is not None:
                timer.cancel()
        self._stack.close()

    def _begin(self) -> None:
        self._events.begin(map(link_messages.read_link, self._dump.dump(link_messages.dump_links())))

    def _gather(self) -> None:
        loop, fd = asyncio.get_running_loop(), self._host.fileno()
        loop.remove_reader(fd)
        self._gathering = loop.call_later(_GATHER, self._guarded, fd, self._read_gathered)

    def _read_gathered(self) -> None:
        self._read_host()
        fd = self._host.fileno()
        asyncio.get_running_loop().add_reader(fd, self._guarded, fd, self._gather)

    def _guarded(self, fd: int, read: Callable[[], None]) -> None:
        try:
            read()
        except Exception as error:
            # Going on could be an endless loop; the refresh finds changes from now on.
            asyncio.get_running_loop().remove_reader(fd)
            self._log.error("changes by others are found at the refresh only from now on", reason=str(error))

    def _read_host(self) -> None:
        """Links, addresses, routes and settings."""
        datagrams, lost = receive(self._host)
        hint = Hint()
        if lost:
            # If links keep changing while they are read, the known ones may be out of date.
            with suppress(OSError):
                self._begin()
            hint = LOST
        hint |= self._events.feed(datagrams)
        if hint.look:
            self._look(hint.look)
        if hint.retry:
            self._retry()

    def _read_rules(self) -> None:
        datagrams, lost = receive(self._rules)
        foreign = (data for data in datagrams if origin(data) not in self._kernel.own_processes)
        if lost or any(map(rules_concern_us, foreign)):
            self._look(Look.RULES)

    def _read_lock(self) -> None:
        if self._lock.used_by_others():
            self._look(Look.RULES)

    def _renew(self) -> None:
        try:
            self._lock.renew()
        except OSError as error:
            self._log.warning("cannot watch the xtables lock", reason=str(error))
        self._renewal = asyncio.get_running_loop().call_later(_RENEW, self._renew)


def receive(source: socket.socket) -> tuple[list[bytes], bool]:
    """The waiting datagrams, up to a bounded number, and whether the kernel has dropped some (ENOBUFS)."""
    datagrams: list[bytes] = []
    lost = False
    for _ in range(_AT_ONCE):
        try:
            datagrams.append(source.recv(_LARGEST))
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            lost = True
    return datagrams, lost


def listen(protocol: int, groups: tuple[int, ...], program: bytes = b"") -> socket.socket:
    """A non-blocking netlink socket in multicast groups, with a socket filter (classic BPF) if given."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    made = socket.socket(socket.AF_NETLINK, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        if program:
            held = ctypes.create_string_buffer(program, len(program))
            # struct sock_fprog: number and address of the instructions.
            argument = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
            made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        made.close()
        raise
    return made
