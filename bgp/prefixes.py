"""Prefixes: canonical texts outside, integers inside."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from functools import lru_cache

FAMILIES = (4, 6)
"""The IP versions."""

_LENGTHS = {str(length): length for length in range(33)}


class PrefixSet:
    """A set of CIDRs that finds whether one of them covers a prefix by one look-up per distinct length."""

    def __init__(self, cidrs: Iterable[str] = ()) -> None:
        """Raises ValueError for a text that is not a CIDR (host bits must be zero)."""
        self._tables: dict[tuple[int, int], set[int]] = {}
        for cidr in cidrs:
            version, bits, length, value = parse(cidr)
            self._tables.setdefault((version, length), set()).add(value >> (bits - length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrefixSet) and self._tables == other._tables

    __hash__ = None  # type: ignore[assignment]

    def covers(self, prefix: str) -> bool:
        """Whether the prefix lies inside (or is) one of the CIDRs."""
        version, bits, length, value = parse(prefix)
        return any(
            family == version and most <= length and value >> (bits - most) in table
            for (family, most), table in self._tables.items()
        )


@lru_cache(maxsize=65536)
def parse(prefix: str) -> tuple[int, int, int, int]:
    """(IP version, address width in bits, prefix length, address as a number); ValueError if it is no CIDR."""
    if plain := _plain_ipv4(prefix):
        return plain
    network = ipaddress.ip_network(prefix)
    return network.version, network.max_prefixlen, network.prefixlen, int(network.network_address)


def _plain_ipv4(prefix: str) -> tuple[int, int, int, int] | None:
    """What :func:`parse` returns, of a canonical IPv4 prefix; None for any other text.

    In a tenth of the time: tens of thousands of prefixes may come at once.
    """
    address, _, length = prefix.partition("/")
    if length not in _LENGTHS:
        return None
    try:
        value = int.from_bytes(socket.inet_pton(socket.AF_INET, address))
    except (OSError, ValueError):
        return None
    host_bits = 32 - _LENGTHS[length]
    return None if value & (1 << host_bits) - 1 else (4, 32, _LENGTHS[length], value)


def covers(prefix: str, address: str) -> bool:
    """Whether a canonical prefix covers an address (with or without scope); false if the families differ."""
    family, bits, length, value = parse(prefix)
    other, _, _, number = parse(address.partition("%")[0])
    return family == other and value >> (bits - length) == number >> (bits - length)


def version(prefix: str) -> int:
    """IP version of a canonical address or prefix."""
    return 6 if ":" in prefix else 4


def is_link_local(address: str) -> bool:
    """Whether a canonical address is an IPv6 link-local one (RFC 4291)."""
    return address.startswith(("fe8", "fe9", "fea", "feb"))


def canonical(prefix: str) -> str:
    """The canonical text of a prefix, as Python, ExaBGP and the kernel write it. Raises ValueError."""
    return prefix if _plain_ipv4(prefix) else str(ipaddress.ip_network(prefix))
