"""A BGP peer that says what a test wants, right or wrong: RFC 4271's messages as bytes, over a socket."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.isolate import NetworkNamespace

OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4
PORT = 179
PATIENCE = 60.0
AS_TRANS = 23456

ORIGIN, AS_PATH, NEXT_HOP, MED, LOCAL_PREF, COMMUNITIES, LARGE_COMMUNITIES = 1, 2, 3, 4, 5, 8, 32
WELL_KNOWN, OPTIONAL, OPTIONAL_TRANSITIVE, EXTENDED = 0x40, 0x80, 0xC0, 0x10


def message(kind: int, body: bytes = b"") -> bytes:
    """RFC 4271, section 4.1."""
    return b"\xff" * 16 + struct.pack("!HB", 19 + len(body), kind) + body


def opening(asn: int, identifier: str, hold_time: int = 240) -> bytes:
    """RFC 4271, section 4.2; with IPv4 unicast and four-octet AS numbers (RFC 6793)."""
    capabilities = struct.pack("!BBHBB", 1, 4, 1, 0, 1) + struct.pack("!BBI", 65, 4, asn)
    parameters = struct.pack("!BB", 2, len(capabilities)) + capabilities
    fixed = struct.pack(
        "!BHH4sB", 4, asn if asn < 65536 else AS_TRANS, hold_time, socket.inet_aton(identifier), len(parameters)
    )
    return message(OPEN, fixed + parameters)


def attribute(flags: int, kind: int, value: bytes) -> bytes:
    """RFC 4271, section 4.3; longer than 255 bytes: with the extended length."""
    if len(value) > 255:
        return struct.pack("!BBH", flags | EXTENDED, kind, len(value)) + value
    return struct.pack("!BBB", flags, kind, len(value)) + value


def attributes(next_hop: str, as_path: Sequence[int], *more: bytes) -> bytes:
    """The mandatory ones and ``more``."""
    segments = (as_path[first : first + 255] for first in range(0, len(as_path), 255))
    path = b"".join(struct.pack(f"!BB{len(one)}I", 2, len(one), *one) for one in segments)
    hop = socket.inet_aton(next_hop)
    mandatory = ((ORIGIN, b"\0"), (AS_PATH, path), (NEXT_HOP, hop))
    return b"".join([*(attribute(WELL_KNOWN, kind, value) for kind, value in mandatory), *more])


def nlri(*prefixes: str) -> bytes:
    """RFC 4271, section 4.3: the length in bits, and as many bytes as that takes."""
    encoded = b""
    for prefix in prefixes:
        address, _, length = prefix.partition("/")
        encoded += bytes([int(length)]) + socket.inet_aton(address)[: (int(length) + 7) // 8]
    return encoded


def update(attributes: bytes = b"", announced: bytes = b"", withdrawn: bytes = b"") -> bytes:
    """RFC 4271, section 4.3."""
    body = struct.pack("!H", len(withdrawn)) + withdrawn + struct.pack("!H", len(attributes)) + attributes
    return message(UPDATE, body + announced)


END_OF_RIB = update()


def messages(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Whole messages at the start of some bytes, each with its type and body; and the rest."""
    found = []
    while len(data) >= 19 and len(data) >= (length := int.from_bytes(data[16:18], "big")):
        found.append((data[18], data[19:length]))
        data = data[length:]
    return found, data


def announced(update: bytes) -> int:
    """How many IPv4 prefixes an UPDATE's body announces, without multiprotocol extensions."""
    withdrawn = int.from_bytes(update[:2], "big")
    at = 4 + withdrawn + int.from_bytes(update[2 + withdrawn : 4 + withdrawn], "big")
    count = 0
    while at < len(update):
        at += 1 + (update[at] + 7) // 8
        count += 1
    return count


@dataclass
class Conversation:
    """One connection with a speaker."""

    socket: socket.socket

    def send(self, *messages: bytes) -> None:
        """Whole messages, or parts of one. Who has hung up does not hear it."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(b"".join(messages))

    def receive(self) -> tuple[int, bytes]:
        """The next message: its type and its body. EOFError: the connection has ended."""
        length, kind = struct.unpack("!HB", self._take(19)[16:])
        return kind, self._take(length - 19)

    def _take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            try:
                piece = self.socket.recv(size - len(taken))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError
            taken += piece
        return taken

    def until(self, kind: int) -> bytes:
        """The body of the next message of a type; others are skipped."""
        while (received := self.receive())[0] != kind:
            pass
        return received[1]

    def ended(self) -> tuple[int, int] | None:
        """Wait for the end: code and subcode of the speaker's NOTIFICATION; None: it has hung up without one."""
        try:
            code, subcode = self.until(NOTIFICATION)[:2]
        except EOFError:
            return None
        return code, subcode

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


class RawPeer:
    """A peer at an address of a namespace, which waits for a speaker's connections there."""

    def __init__(self, namespace: NetworkNamespace, address: str, asn: int) -> None:
        self.address, self.asn = address, asn
        self._namespace = namespace
        with namespace.enter():
            self._listener = socket.create_server((address, PORT))
        self._listener.settimeout(PATIENCE)
        self._conversations: list[Conversation] = []

    def accept(self) -> Conversation:
        """The speaker's next connection."""
        return self._begun(self._listener.accept()[0])

    def connect(self, speaker: str) -> Conversation:
        """A connection to the speaker."""
        with self._namespace.enter():
            return self._begun(socket.create_connection((speaker, PORT), PATIENCE, (self.address, 0)))

    def establish(self, hold_time: int = 240) -> Conversation:
        """A session that is Established at both ends."""
        while True:
            conversation = self.accept()
            conversation.send(opening(self.asn, self.address, hold_time), message(KEEPALIVE))
            try:
                conversation.until(KEEPALIVE)
            except EOFError:
                continue  # the speaker has thought better of it
            return conversation

    def _begun(self, connection: socket.socket) -> Conversation:
        connection.settimeout(PATIENCE)
        self._conversations.append(Conversation(connection))
        return self._conversations[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for conversation in self._conversations:
            conversation.close()
