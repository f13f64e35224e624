"""Listens to the kernel for changes that others make to what is ours, and says what to look at.

It decides nothing else: whether something differs is found by looking. What it misses, because events were lost
or there are none (IP sets), the refresh finds.
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
from felix_py.dataplane import link_messages
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.kernel_events import GROUPS, LOST, Hint, HostEvents, host_filter, origin, rules_concern_us
from felix_py.dataplane.lock_watch import LockWatch
from felix_py.dataplane.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Netlink
from felix_py.dataplane.protocols import Look
from felix_py.records import Backend

_NFNLGRP_NFTABLES = 7
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER = 8 << 20
"""Bytes of kernel memory at most; room for a transaction of some 10,000 rules."""

_LARGEST = 1 << 16
_AT_ONCE = 256
"""Datagrams taken in one go (a few milliseconds), so that a storm does not keep the event loop from its work."""

_RENEW = 60.0
"""Seconds between two looks whether the lock's file is still the same."""


class Monitor:
    """Calls back on the event loop. Belongs to the network namespace of the thread that makes it."""

    def __init__(
        self,
        kernel: Kernel,
        has_interface: Callable[[str], bool],
        look: Callable[[Look], None],
        retry: Callable[[], None],
    ) -> None:
        """``look`` is called with what others may have changed; ``retry`` when what failed may work now.

        ``has_interface``: whether a host end of that name is to be there.

        Raises:
            OSError: the kernel does not let us listen.
        """
        self._kernel = kernel
        self._look = look
        self._retry = retry
        self._events = HostEvents(has_interface, kernel.routes.wants)
        self._log = log.get("monitor")
        self._readers: dict[int, Callable[[], None]] = {}
        self._renewal: asyncio.TimerHandle | None = None
        with ExitStack() as stack:
            self._dump = stack.enter_context(Netlink(NETLINK_ROUTE))
            self._host = stack.enter_context(
                closing(listen(NETLINK_ROUTE, GROUPS, host_filter(kernel.routes.port)))
            )
            self._readers[self._host.fileno()] = self._read_host
            if kernel.backend is Backend.NFT:
                self._rules = stack.enter_context(closing(listen(NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))))
                self._readers[self._rules.fileno()] = self._read_rules
            else:
                self._lock = stack.enter_context(closing(LockWatch(kernel.own_processes)))
                self._readers[self._lock.fileno()] = self._read_lock
            self._begin()
            self._stack = stack.pop_all()

    def start(self) -> None:
        """Call back from now on, on the running event loop. What happened before this was made is not told."""
        loop = asyncio.get_running_loop()
        for fd, read in self._readers.items():
            loop.add_reader(fd, self._guarded, fd, read)
        if self._kernel.backend is Backend.LEGACY:
            self._renew()

    def close(self) -> None:
        """Stop listening."""
        loop = asyncio.get_running_loop()
        for fd in self._readers:
            loop.remove_reader(fd)
        if self._renewal is not None:
            self._renewal.cancel()
        self._stack.close()

    def _begin(self) -> None:
        self._events.begin(map(link_messages.read_link, self._dump.dump(link_messages.dump_links())))

    def _guarded(self, fd: int, read: Callable[[], None]) -> None:
        try:
            read()
        except Exception as error:
            # Going on could mean going round in circles; the refresh finds what is not told any more.
            asyncio.get_running_loop().remove_reader(fd)
            self._log.error("changes by others are found at the refresh only from now on", reason=str(error))

    # --- links, addresses, routes, settings ------------------------------------------------------------

    def _read_host(self) -> None:
        hint = Hint()
        datagrams: list[bytes] = []
        for _ in range(_AT_ONCE):
            try:
                data = _receive(self._host)
            except _Lost:
                # Should they keep changing while they are read, what is known of them may be out of date.
                with suppress(OSError):
                    self._begin()
                hint |= LOST
                continue
            if not data:
                break
            datagrams.append(data)
        hint |= self._events.feed(datagrams)
        if hint.look:
            self._look(hint.look)
        if hint.retry:
            self._retry()

    # --- rules -----------------------------------------------------------------------------------------

    def _read_rules(self) -> None:
        concerned = False
        for _ in range(_AT_ONCE):
            try:
                data = _receive(self._rules)
            except _Lost:
                concerned = True
                continue
            if not data:
                break
            concerned = concerned or (origin(data) not in self._kernel.own_processes and rules_concern_us(data))
        if concerned:
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


class _Lost(Exception):
    """The socket's buffer was full, and the kernel has dropped events."""


def _receive(source: socket.socket) -> bytes:
    """The next datagram; empty when there is none."""
    try:
        return source.recv(_LARGEST)
    except BlockingIOError:
        return b""
    except OSError as error:
        if error.errno == errno.ENOBUFS:
            raise _Lost from None
        raise


def listen(protocol: int, groups: tuple[int, ...], program: bytes = b"") -> socket.socket:
    """A netlink socket that hears these groups, through a socket filter (classic BPF) if there is one."""
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
    )
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        if program:
            held = ctypes.create_string_buffer(program, len(program))
            # struct sock_fprog: the number of instructions, and where they are.
            argument = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
            made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        made.close()
        raise
    return made
