"""BFD Control packets (RFC 5880, 4.1): bytes to records and back, and which are valid by themselves."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

VERSION = 1
LENGTH = 24
"""Bytes of a packet without an Authentication Section."""

_LENGTH_WITH_AUTHENTICATION = 26
_FORMAT = struct.Struct("!BBBBIIIII")
_POLL, _FINAL, _INDEPENDENT, _AUTHENTICATION, _DEMAND, _MULTIPOINT = 0x20, 0x10, 0x08, 0x04, 0x02, 0x01


class State(IntEnum):
    """``Sta``: the session's state at the sender."""

    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3


class Diagnostic(IntEnum):
    """``Diag``: why the sender left the state Up last. Other numbers are reserved, and come as they are."""

    NONE = 0
    DETECTION_TIME_EXPIRED = 1
    ECHO_FAILED = 2
    NEIGHBOR_SIGNALED_DOWN = 3
    FORWARDING_PLANE_RESET = 4
    PATH_DOWN = 5
    CONCATENATED_PATH_DOWN = 6
    ADMINISTRATIVELY_DOWN = 7
    REVERSE_CONCATENATED_PATH_DOWN = 8


class BadPacket(ValueError):
    """The packet is to be discarded; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """The mandatory section. Intervals are microseconds, discriminators 32 bits, ``independent`` is the C bit.

    ``authenticated``: an Authentication Section follows. It is not decoded: no session here uses one, so each
    such packet is discarded (6.8.6).
    """

    state: State
    detect_multiplier: int
    my_discriminator: int
    your_discriminator: int = 0
    desired_min_tx: int
    required_min_rx: int
    required_min_echo_rx: int = 0
    diagnostic: int = Diagnostic.NONE
    poll: bool = False
    final: bool = False
    independent: bool = False
    authenticated: bool = False
    demand: bool = False


_Rule = tuple[str, Callable[[Sequence[int], int], bool]]

_RULES: tuple[_Rule, ...] = (
    ("another version", lambda f, size: f[0] >> 5 != VERSION),
    ("its Length is too small", lambda f, size: f[3] < _least(f[1])),
    ("its Length is more than there is", lambda f, size: f[3] > size),
    ("Detect Mult is zero", lambda f, size: not f[2]),
    ("the Multipoint bit is set", lambda f, size: bool(f[1] & _MULTIPOINT)),
    ("My Discriminator is zero", lambda f, size: not f[4]),
    (
        "Your Discriminator is zero, and the state is Init or Up",
        lambda f, size: not f[5] and f[1] >> 6 > State.DOWN,
    ),
)
"""RFC 5880, 6.8.6, in its order: what a packet is discarded for that needs no knowledge of a session.

Each is asked with the fields of ``_FORMAT`` and the number of bytes received.
"""


def _least(flags: int) -> int:
    return _LENGTH_WITH_AUTHENTICATION if flags & _AUTHENTICATION else LENGTH


def decode(data: bytes) -> Packet:
    """Decode the payload of a UDP packet. Raises BadPacket, and nothing else, for one that is to be discarded."""
    if len(data) < LENGTH:
        raise BadPacket("too short")
    fields = _FORMAT.unpack_from(data)
    for reason, broken in _RULES:
        if broken(fields, len(data)):
            raise BadPacket(reason)
    head, flags, multiplier, _, mine, yours, min_tx, min_rx, min_echo_rx = fields
    return Packet(
        state=State(flags >> 6),
        diagnostic=head & 0x1F,
        poll=bool(flags & _POLL),
        final=bool(flags & _FINAL),
        independent=bool(flags & _INDEPENDENT),
        authenticated=bool(flags & _AUTHENTICATION),
        demand=bool(flags & _DEMAND),
        detect_multiplier=multiplier,
        my_discriminator=mine,
        your_discriminator=yours,
        desired_min_tx=min_tx,
        required_min_rx=min_rx,
        required_min_echo_rx=min_echo_rx,
    )


def encode(packet: Packet) -> bytes:
    """The packet's bytes. Raises ValueError for one that has an Authentication Section."""
    if packet.authenticated:
        raise ValueError("cannot encode an Authentication Section")
    flags = (
        packet.state << 6
        | packet.poll * _POLL
        | packet.final * _FINAL
        | packet.independent * _INDEPENDENT
        | packet.demand * _DEMAND
    )
    return _FORMAT.pack(
        VERSION << 5 | packet.diagnostic,
        flags,
        packet.detect_multiplier,
        LENGTH,
        packet.my_discriminator,
        packet.your_discriminator,
        packet.desired_min_tx,
        packet.required_min_rx,
        packet.required_min_echo_rx,
    )
