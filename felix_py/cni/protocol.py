"""The framing between the C client and the agent: one call and one answer per connection.

Call (also a file of the spool): ``felix-py-cni/1 ENVIRONMENT STDIN\\n`` with the two lengths in bytes, then the
CNI_* environment as ``NAME=value\\0`` entries, then stdin as it is. Answer: ``CODE LENGTH\\n`` with the exit
code, then what goes to stdout. The client treats an answer that is cut short as no answer, and takes an ADD that
is answered :data:`HANDED_BACK` to the next agent.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping

from msgspec import Struct

HANDED_BACK = 75
"""Exit code (EX_TEMPFAIL of sysexits.h) of an ADD that is undone because the agent stops; a client of an earlier
version prints the answer's error."""

_HEAD = re.compile(rb"felix-py-cni/1 (\d{1,8}) (\d{1,8})\n")
_MOST_ENVIRONMENT = 1 << 18
_MOST_STDIN = 1 << 22
"""Bytes; a GC for 110 pods has some 10 KB."""

_MOST_HEAD = 64
_PIECE = 1 << 16

MOST_FRAME = _MOST_ENVIRONMENT + _MOST_STDIN + _MOST_HEAD
"""Bytes of a whole call."""


class ProtocolError(Exception):
    """The received bytes are not a call."""


class Call(Struct, frozen=True):
    """One execution of the plugin: its CNI_* environment and its stdin."""

    environment: Mapping[str, str]
    stdin: bytes


class Answer(Struct, frozen=True):
    """The client's output and exit code."""

    code: int
    stdout: bytes = b""

    def encode(self) -> bytes:
        return b"%d %d\n%s" % (self.code, len(self.stdout), self.stdout)


async def read_call(connection: socket.socket) -> Call:
    """Read one call; ProtocolError if it is not one, too large, or cut off; OSError as the socket raises it."""
    loop, frame = asyncio.get_running_loop(), bytearray()
    while (size := _size(frame)) is None or len(frame) < size:
        if not (piece := await loop.sock_recv(connection, _PIECE)):
            raise ProtocolError(f"the connection ended after {len(frame)} bytes")
        frame += piece
    return parse_call(bytes(frame[:size]))


def _size(frame: bytearray) -> int | None:
    """Bytes of the whole frame; None while that is not known. ProtocolError if it is none."""
    end = frame.find(b"\n", 0, _MOST_HEAD)
    if end < 0 and len(frame) < _MOST_HEAD:
        return None
    return end + 1 + sum(_lengths(bytes(frame[: end + 1])))


def parse_call(frame: bytes) -> Call:
    """Parse a whole frame, as stored in the spool; ProtocolError if it is not one."""
    head, newline, rest = frame.partition(b"\n")
    environment, stdin = _lengths(head + newline)
    if len(rest) != environment + stdin:
        raise ProtocolError(f"{len(rest)} bytes instead of {environment + stdin}")
    return _call(rest[:environment], rest[environment:])


def _lengths(head: bytes) -> tuple[int, int]:
    found = _HEAD.fullmatch(head)
    if found is None:
        raise ProtocolError("not a call of felix-py-cni")
    environment, stdin = map(int, found.groups())
    if environment > _MOST_ENVIRONMENT or stdin > _MOST_STDIN:
        raise ProtocolError(f"too large: environment of {environment} bytes, stdin of {stdin} bytes")
    return environment, stdin


def _call(environment: bytes, stdin: bytes) -> Call:
    try:
        entries = [entry.partition("=") for entry in environment.decode().split("\0") if entry]
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the environment is not UTF-8: {error}") from None
    return Call({name: value for name, _, value in entries}, stdin)
