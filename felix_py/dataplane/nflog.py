"""Packets that rules log with ``-j NFLOG``, read from the kernel.

Packed by hand like :mod:`felix_py.netlink`. Source: the kernel's
include/uapi/linux/netfilter/nfnetlink_log.h and net/netfilter/nfnetlink_log.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from msgspec import Struct

from felix_py.dataplane.ip_header import IPHeader, parse_ip
from felix_py.netlink.wire import NETLINK_NETFILTER, NLM_F_ACK, attr, attributes, message, messages
from policy.model import Family

_ULOG: Final = 4 << 8
_MSG_PACKET, _MSG_CONFIG = _ULOG | 0, _ULOG | 1
_NLMSG_ERROR = 2

_CFG_CMD, _CFG_MODE, _CFG_NLBUFSIZ, _CFG_TIMEOUT, _CFG_QTHRESH, _CFG_FLAGS = range(1, 7)
_CMD_BIND = 1
_COPY_PACKET = 2
_F_SEQ = 1

_PACKET_HDR, _MARK, _TIMESTAMP, _INDEV, _OUTDEV = range(1, 6)
_PAYLOAD, _PREFIX, _SEQ = 9, 10, 12

_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_FAMILIES = {int(socket.AF_INET): Family.V4, int(socket.AF_INET6): Family.V6}

_CODE = struct.Struct("=i")
_TIME = struct.Struct(">QQ")

_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 1 << 20
_KERNEL_BUFFER = 32 * 1024
"""The kernel collects a group's packets up to this size, this number or this age, then sends them together."""
_KERNEL_PACKETS = 64
_KERNEL_CENTISECONDS = 10
_LARGEST_DATAGRAM = 1 << 17

_DATAGRAMS_A_TURN = 4
"""Datagrams read in one turn of the event loop; a socket that stays readable is read again."""

_ACK_SECONDS = 5.0


class NflogError(Exception):
    """The group cannot be read; the message is readable."""


class LoggedPacket(Struct, frozen=True):
    """One packet that a rule logged.

    ``prefix`` is the rule's; ``header`` is None if the bytes are no IP header; ``hook`` is the built-in chain's
    name; ``indev`` and ``outdev`` are interface indexes or 0; ``mark`` is the packet mark; ``time`` is the
    kernel's timestamp, or else the time of reading, in seconds since the epoch.
    """

    family: Family
    prefix: str
    header: IPHeader | None
    hook: str
    indev: int
    outdev: int
    mark: int
    time: float


class Decoder:
    """Decodes one group's datagrams and counts missing packets. Never raises, whatever the bytes are."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._next: int | None = None
        self.lost = 0
        """Packets that the kernel logged and could not deliver (gaps in its sequence numbers)."""

    def decode(self, datagram: memoryview) -> Iterator[LoggedPacket]:
        """The packets in one datagram."""
        for kind, payload in _messages(datagram):
            if kind != _MSG_PACKET or len(payload) < 4:
                continue
            found = attributes(payload[4:])
            self._count(_number(found, _SEQ))
            family = _FAMILIES.get(payload[0])
            if family is not None:
                yield self._packet(family, found)

    def _count(self, sequence: int | None) -> None:
        if sequence is None:
            return
        if self._next is not None:
            gap = (sequence - self._next) & 0xFFFFFFFF
            # More than half the number space is an older number, which cannot be and is ignored.
            if gap < 1 << 31:
                self.lost += gap
        self._next = (sequence + 1) & 0xFFFFFFFF

    def _packet(self, family: Family, found: Mapping[int, memoryview]) -> LoggedPacket:
        hdr = found.get(_PACKET_HDR, b"")
        hook = hdr[2] if len(hdr) >= 3 else len(_HOOKS)
        stamp = found.get(_TIMESTAMP, b"")
        seconds, micro = _TIME.unpack_from(stamp) if len(stamp) >= _TIME.size else (0, 0)
        return LoggedPacket(
            family,
            bytes(found.get(_PREFIX, b"")).split(b"\0", 1)[0].decode("ascii", "replace"),
            parse_ip(family, found.get(_PAYLOAD, b"")),
            _HOOKS[hook] if hook < len(_HOOKS) else "",
            _number(found, _INDEV) or 0,
            _number(found, _OUTDEV) or 0,
            _number(found, _MARK) or 0,
            seconds + micro / 1e6 if seconds else self._clock(),
        )


def _messages(datagram: memoryview) -> Iterator[tuple[int, memoryview]]:
    with suppress(ValueError):
        yield from messages(datagram)


def _number(found: Mapping[int, memoryview], kind: int) -> int | None:
    """A 32-bit number in network byte order."""
    data = found.get(kind, b"")
    return int.from_bytes(data[:4], "big") if len(data) >= 4 else None


class NflogReader:
    """Reads one NFLOG group of the network namespace it is made in.

    For an event loop: call :meth:`read` whenever :meth:`fileno` is readable. Never blocks; packets that are not
    read in time are lost and counted.
    """

    def __init__(self, group: int, copy: int, deliver: Callable[[Sequence[LoggedPacket]], None]) -> None:
        """``copy``: bytes of each packet; ``deliver`` takes the packets of one datagram.

        Raises:
            NflogError: another process reads the group, or the kernel has no NFLOG.
        """
        self._deliver = deliver
        self._decoder = Decoder()
        self._buffer = memoryview(bytearray(_LARGEST_DATAGRAM))
        self.overruns = 0
        """Times that the kernel has dropped log messages because the socket's buffer was full."""
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        except OSError as error:
            raise NflogError(f"no netfilter netlink socket: {error.strerror}") from None
        try:
            self._open(group, copy)
        except BaseException:
            self._socket.close()
            raise

    @property
    def lost(self) -> int:
        """Packets that were logged but never arrived."""
        return self._decoder.lost

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Release the group; closing twice is fine."""
        self._socket.close()

    def read(self) -> None:
        """Read and deliver waiting datagrams, up to a bounded number."""
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                length = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self.overruns += 1
                    continue
                raise
            if packets := list(self._decoder.decode(self._buffer[:length])):
                self._deliver(packets)

    def _open(self, group: int, copy: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            self._socket.bind((0, 0))
            self._socket.settimeout(_ACK_SECONDS)
            self._socket.send(_config(group, copy))
            code = self._acknowledgement()
            self._socket.setblocking(False)
        except OSError as error:
            raise NflogError(f"NFLOG group {group}: {error.strerror or error}") from None
        if code in (errno.EPERM, errno.EBUSY):
            raise NflogError(
                f"NFLOG group {group} is read by another process (or CAP_NET_ADMIN is missing); "
                "choose another --deny-log-group"
            )
        if code == errno.EINVAL:
            raise NflogError("this kernel has no NFLOG (module nfnetlink_log)")
        if code:
            raise NflogError(f"NFLOG group {group}: {os.strerror(code)}")

    def _acknowledgement(self) -> int:
        """The error number that answers the configuration; earlier log messages are skipped."""
        deadline = time.monotonic() + _ACK_SECONDS
        while time.monotonic() < deadline:
            length = self._socket.recv_into(self._buffer)
            for kind, payload in _messages(self._buffer[:length]):
                if kind == _NLMSG_ERROR and len(payload) >= _CODE.size:
                    return -int(_CODE.unpack_from(payload)[0])
        raise TimeoutError(errno.ETIMEDOUT, "the kernel does not answer")


def _config(group: int, copy: int) -> bytes:
    """Bind and configure a group in one message, so that no packet is logged with other settings.

    Without PF_BIND on purpose: it would make NFLOG the logger of each protocol family that has none.
    """
    return message(
        _MSG_CONFIG,
        NLM_F_ACK,
        struct.pack(">BBH", socket.AF_UNSPEC, 0, group)
        + attr(_CFG_CMD, bytes((_CMD_BIND,)))
        + attr(_CFG_MODE, struct.pack(">IBB", copy, _COPY_PACKET, 0))
        + attr(_CFG_NLBUFSIZ, struct.pack(">I", _KERNEL_BUFFER))
        + attr(_CFG_TIMEOUT, struct.pack(">I", _KERNEL_CENTISECONDS))
        + attr(_CFG_QTHRESH, struct.pack(">I", _KERNEL_PACKETS))
        + attr(_CFG_FLAGS, struct.pack(">H", _F_SEQ)),
    )
