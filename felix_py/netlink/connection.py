"""A netlink socket: messages are sent in batches, and what became of each is known.

A general netlink library encodes slowly and, in its batch mode, drops the acknowledgements. The few messages that
are written in bulk (routes, IP set members, pod interfaces) are therefore packed here, ten to forty times faster.
Source: netlink(7), the kernel's include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Self

from felix_py.netlink.wire import HEADER, NETLINK_ROUTE, NLM_F_ACK, NLM_F_DUMP, attributes

_NLM_F_DUMP_INTR = 0x010
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSG_NOOP, _NLMSG_ERROR, _NLMSG_DONE = 1, 2, 3
_NLMSGERR_ATTR_MSG = 1

_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 10, 11, 12
_SO_RCVBUFFORCE = 33

_INT = struct.Struct("=i")
_ACK_FIELDS = struct.Struct("=IHHIIi")
_SEQUENCE = struct.Struct("=I")

_BATCH_MESSAGES = 256
_BATCH_BYTES = 128 * 1024
"""Below the default send buffer, above which the kernel answers EMSGSIZE."""

_RECEIVE_BUFFER = 1 << 20
"""Room for a batch's errors (under 1 KB of kernel memory each); the default is just too small."""

_LARGEST_DATAGRAM = 1 << 16
"""The kernel makes dump datagrams of 32 KB at most."""

_TIMEOUT = struct.pack("@ll", 10, 0)
"""The kernel answers before send(2) returns; the timeout only keeps a defect from hanging the agent."""

_DUMP_TRIES = 10


class Closing:
    """A context manager that calls its own :meth:`close`."""

    def close(self) -> None:
        """Release what is held; closing twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


class Netlink(Closing):
    """Socket of the network namespace it was made in; one thread at a time. Methods raise OSError if it fails."""

    def __init__(self, protocol: int) -> None:
        """``protocol``: NETLINK_ROUTE or NETLINK_NETFILTER."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            if protocol == NETLINK_ROUTE:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0
        self._buffer = bytearray(_LARGEST_DATAGRAM)
        self._view = memoryview(self._buffer)

    def close(self) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """The socket's port id (nl_pid)."""
        port: int = self._socket.getsockname()[0]
        return port

    def request(self, messages: Sequence[bytes]) -> list[OSError | None]:
        """Send the messages in order; returns for each None or the kernel's error.

        The error's text is the kernel's extended acknowledgement where it gives one. A message whose
        answer may be lost (ENOBUFS) may or may not have been carried out.
        """
        results: list[OSError | None] = []
        start = 0
        while start < len(messages):
            end, size = start, 0
            while end < len(messages) and end - start < _BATCH_MESSAGES:
                size += len(messages[end])
                if size > _BATCH_BYTES and end > start:
                    break
                end += 1
            results += self._batch(messages[start:end])
            start = end
        return results

    def carry_out(self, messages: Sequence[bytes]) -> None:
        """Send the messages in order.

        Raises:
            OSError: the kernel's first error; the other messages were sent all the same.
        """
        for error in self.request(messages):
            if error is not None:
                raise error

    def dump(self, request: bytes) -> list[memoryview]:
        """Send a dump request and return the payload of each answer (what follows the message header).

        A dump that a change has interrupted (NLM_F_DUMP_INTR) is begun again, so the answers are complete.

        Raises:
            OSError: the kernel's error; EAGAIN when every try was interrupted.
        """
        for _ in range(_DUMP_TRIES):
            payloads, interrupted = self._receive_dump(self._send_one(request, NLM_F_DUMP))
            if not interrupted:
                return payloads
        raise OSError(errno.EAGAIN, "the kernel's table kept changing while it was read")

    def stream(self, request: bytes) -> Iterator[bytes]:
        """Send a dump request and yield the payload of each answer as it comes; the caller must take all.

        For tables that always change and are too big to keep: an interrupted dump is not begun again, and other
        threads may run at every datagram.

        Raises:
            OSError: the kernel's error.
        """
        sequence = self._send_one(request, NLM_F_DUMP)
        unpack = HEADER.unpack_from
        while True:
            data = bytes(self._receive())
            offset, end = 0, len(data) - 16
            while offset <= end:
                length, kind, _, answered, _ = unpack(data, offset)
                if answered == sequence and kind != _NLMSG_NOOP:
                    if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                        if error := _error(memoryview(data)[offset : offset + length]):
                            raise error
                        return
                    yield data[offset + 16 : offset + length]
                offset += (length + 3) & ~3

    def get(self, request: bytes) -> memoryview:
        """Send a request and return the payload of its one answer.

        Raises:
            OSError: the kernel's error.
        """
        sequence = self._send_one(request, 0)
        while True:
            data = self._receive()
            _length, kind, _flags, answered, _port = HEADER.unpack_from(data)
            if answered != sequence:
                continue
            if kind == _NLMSG_ERROR:
                raise _error(data) or OSError(errno.EIO, "the kernel acknowledged but did not answer")
            return data[16:]

    def _send_one(self, request: bytes, flags: int) -> int:
        self._sequence = self._sequence % 0x7FFFFFFF + 1
        length, kind, own_flags, _, _ = HEADER.unpack_from(request)
        self._socket.send(HEADER.pack(length, kind, own_flags | flags, self._sequence, 0) + request[16:])
        return self._sequence

    def _batch(self, batch: Sequence[bytes]) -> list[OSError | None]:
        """The kernel carries messages out in order and reports every error; only the last one is acknowledged in
        any case, and with it all those before that have no error (netlink(7))."""
        if self._sequence + len(batch) > 0x7FFFFFFF:
            self._sequence = 0
        first = self._sequence + 1
        data = bytearray(b"".join(batch))
        offset = last = 0
        for part in batch:
            self._sequence += 1
            _SEQUENCE.pack_into(data, offset + 8, self._sequence)
            last, offset = offset, offset + len(part)
        data[last + 6] |= NLM_F_ACK
        self._socket.send(data)
        return self._answers(first, len(batch))

    def _answers(self, first: int, count: int) -> list[OSError | None]:
        """The errors of a batch, up to the answer to its last message."""
        results: list[OSError | None] = [None] * count
        view = self._view
        while True:
            try:
                length = self._socket.recv_into(view)
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # overrun: some were dropped, the queued ones still come
                    return self._drained(results, first)
                raise
            _, kind, _, sequence, _, code = _ACK_FIELDS.unpack_from(view)
            index = sequence - first
            if kind != _NLMSG_ERROR or not 0 <= index < count:
                continue  # the answer to an earlier request that was given up
            if code:
                results[index] = _error(view[:length])
            if index == count - 1:
                return results

    def _drained(self, results: list[OSError | None], first: int) -> list[OSError | None]:
        """After an overrun: read the answers that are still queued; messages without one count as failed."""
        lost = OSError(errno.ENOBUFS, "the kernel's answer was lost")
        found: list[OSError | None] = [error or lost for error in results]
        while True:
            try:
                length = self._socket.recv_into(self._view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            _, kind, _, sequence, _, _ = _ACK_FIELDS.unpack_from(self._view)
            if kind == _NLMSG_ERROR and 0 <= sequence - first < len(found):
                found[sequence - first] = _error(self._view[:length])

    def _receive(self) -> memoryview:
        """One datagram, copied out of the buffer."""
        length = self._socket.recv_into(self._view, 0, socket.MSG_TRUNC)
        if length > _LARGEST_DATAGRAM:
            raise OSError(errno.EMSGSIZE, f"a netlink datagram of {length} bytes")
        return memoryview(bytes(self._view[:length]))

    def _receive_dump(self, sequence: int) -> tuple[list[memoryview], bool]:
        payloads: list[memoryview] = []
        interrupted = False
        while True:
            data = self._receive()
            offset = 0
            while offset + 16 <= len(data):
                length, kind, flags, answered, _ = HEADER.unpack_from(data, offset)
                part = data[offset : offset + length]
                offset += (length + 3) & ~3
                if answered != sequence or kind == _NLMSG_NOOP:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    if error := _error(part):
                        raise error
                    return payloads, interrupted
                payloads.append(part[16:])


def _error(data: memoryview) -> OSError | None:
    """Error of an acknowledgement or of the end of a dump; None for success."""
    length, kind, flags, *_ = HEADER.unpack_from(data)
    code = -_INT.unpack_from(data, 16)[0] if length >= 20 else 0
    if not code:
        return None
    text = ""
    if flags & _NLM_F_ACK_TLVS:
        start = 20
        if kind == _NLMSG_ERROR:
            original = HEADER.unpack_from(data, 20)[0]
            start = 36 if flags & _NLM_F_CAPPED else 20 + (original + 3 & ~3)
        said = attributes(data[start:]).get(_NLMSGERR_ATTR_MSG)
        text = bytes(said).rstrip(b"\0").decode(errors="replace") if said else ""
    reason = os.strerror(code)
    return OSError(code, f"{reason} ({text})" if text else reason)
