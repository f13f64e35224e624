"""BFD packets: no bytes raise anything else, what is written is read, and each rule of RFC 5880, 6.8.6 counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.bfd.packet import LENGTH, BadPacket, Packet, State, decode, encode

WORD = st.integers(0, 2**32 - 1)
PACKETS = st.builds(
    Packet,
    state=st.sampled_from(State),
    diagnostic=st.integers(0, 31),
    detect_multiplier=st.integers(1, 255),
    my_discriminator=st.integers(1, 2**32 - 1),
    your_discriminator=st.integers(1, 2**32 - 1),
    desired_min_tx=WORD,
    required_min_rx=WORD,
    required_min_echo_rx=WORD,
    poll=st.booleans(),
    final=st.booleans(),
    independent=st.booleans(),
    demand=st.booleans(),
)


def valid(data: bytes) -> bool:
    """RFC 5880, 6.8.6, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in data)
    if len(bits) < 24 * 8:
        return False
    state, authentication, multipoint = int(bits[8:10], 2), bits[13] == "1", bits[15] == "1"
    length = int(bits[24:32], 2)
    return (
        int(bits[0:3], 2) == 1
        and length >= (26 if authentication else 24)
        and length <= len(data)
        and int(bits[16:24], 2) != 0
        and not multipoint
        and "1" in bits[32:64]
        and ("1" in bits[64:96] or state in (0, 1))
    )


@given(PACKETS, st.binary(max_size=40))
def test_what_is_written_is_read_whatever_follows_it(packet: Packet, rest: bytes) -> None:
    assert len(encode(packet)) == LENGTH
    assert decode(encode(packet) + rest) == packet


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    try:
        decode(data)
    except BadPacket:
        assert not valid(data)
    else:
        assert valid(data)


@given(PACKETS, st.integers(0, LENGTH - 1), st.integers(0, 255), st.integers(0, LENGTH + 4))
def test_packets_that_are_nearly_right(packet: Packet, position: int, byte: int, size: int) -> None:
    data = bytearray(encode(packet) + bytes(4))
    data[position] = byte
    del data[size:]
    try:
        decode(bytes(data))
    except BadPacket:
        assert not valid(bytes(data))
    else:
        assert valid(bytes(data))


@pytest.mark.parametrize("nothing", [b"", bytes(LENGTH)])
def test_nothing(nothing: bytes) -> None:
    with pytest.raises(BadPacket):
        decode(nothing)
