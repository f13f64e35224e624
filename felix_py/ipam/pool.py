"""Pod CIDRs as pools: the usable addresses of a CIDR and the choice of the next one. No state."""

from __future__ import annotations

import ipaddress
from collections.abc import Container
from functools import lru_cache
from itertools import chain

from msgspec import Struct

from policy.model import Family


class Pool(Struct, frozen=True):
    """The usable addresses of one CIDR, as integers ``first..last``, inclusive."""

    cidr: str
    family: Family
    first: int
    last: int

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(cidr: str) -> Pool:
        """The pool of a CIDR text; ValueError if it is not one, or has host bits set.

        The pool excludes the first address (IPv4 network address; IPv6 subnet-router anycast, RFC 4291 section
        2.6.1) and IPv4's last (broadcast): no link here uses them so, but other hosts may treat them that way.
        A CIDR of one or two addresses is used whole (RFC 3021).
        """
        network = ipaddress.ip_network(cidr)
        family = Family(network.version)
        first, last = int(network.network_address), int(network.broadcast_address)
        if network.num_addresses > 2:
            first += 1
            last -= family is Family.V4
        return Pool(str(network), family, first, last)

    @property
    def length(self) -> int:
        """The prefix length."""
        return int(self.cidr.partition("/")[2])

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    def next(self, used: Container[int], after: int | None) -> int | None:
        """The first unused address after ``after``, round robin, or None if all are used.

        Round robin, unlike lowest-first, keeps a released address idle for as long as possible: peers still hold
        connections, neighbour entries and policy of the pod that had it.
        """
        start = self.first if after is None or after not in self else after + 1
        candidates = chain(range(start, self.last + 1), range(self.first, start))
        return next((number for number in candidates if number not in used), None)


def address_text(family: Family, number: int) -> str:
    """Canonical text of an address."""
    return str(ipaddress.IPv4Address(number) if family is Family.V4 else ipaddress.IPv6Address(number))


def address_number(text: str) -> tuple[Family, int]:
    """Family and integer of an address text; ValueError if it is not an address, or has a zone."""
    address = ipaddress.ip_address(text)
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    return Family(address.version), int(address)
