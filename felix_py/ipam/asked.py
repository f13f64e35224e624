"""What the annotations of a pod and of its namespace ask for of its addresses.

Ours, and Calico's of the same meaning, which count where there is none of ours. A pod's own count before its
namespace's. An annotation that cannot be understood is an error: a pod in the wrong pool, or with another address
than a firewall outside expects, is worse than one that does not start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from msgspec import Struct, field

from felix_py.ipam.pool import address_number, address_text
from policy.model import Family, Labels
from policy.syntax import bad_name, canonical_address, canonical_cidr

T = TypeVar("T")

POOLS = {Family.V4: "felixpy.io/ipv4-pools", Family.V6: "felixpy.io/ipv6-pools"}
ADDRESSES = "felixpy.io/ip-addresses"
MAC = "felixpy.io/mac"
KEEP = "felixpy.io/keep-address"

_CALICO = {
    POOLS[Family.V4]: "cni.projectcalico.org/ipv4pools",
    POOLS[Family.V6]: "cni.projectcalico.org/ipv6pools",
    ADDRESSES: "cni.projectcalico.org/ipAddrs",
    MAC: "cni.projectcalico.org/hwAddr",
}
"""Our key -> Calico's of the same meaning."""

_MOST_QUOTED = 200
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


class BadAnnotation(Exception):
    """An annotation that cannot be understood. ``key``: its name; ``whose``: ``pod`` or ``namespace``."""

    def __init__(self, whose: str, key: str, value: str, reason: str) -> None:
        self.key = key
        super().__init__(f"annotation {key} of the {whose} ({value[:_MOST_QUOTED]!r}): {reason}")


class Asked(Struct, frozen=True):
    """``pools``: names or canonical CIDRs of the pools that one family's address must be from, in order.

    ``addresses``: the pod's own, at most one a family, canonical. ``mac``: its own, or empty. ``keep``: its
    addresses stay with its name.
    """

    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    mac: str = ""
    keep: bool = False


def asked(pod: Labels, namespace: Labels = (), *, foreign: bool = False) -> Asked:
    """Read the annotations of a pod and of its namespace. ``foreign``: Calico's count, too.

    Raises:
        BadAnnotation: one of them cannot be understood.
    """
    own, shared = dict(pod), dict(namespace)

    def read(key: str, parse: Callable[[str], T], default: T, places: Mapping[str, Mapping[str, str]]) -> T:
        for whose, given in places.items():
            for source in (key, *((_CALICO[key],) if foreign and key in _CALICO else ())):
                if value := given.get(source):
                    try:
                        return parse(value)
                    except ValueError as error:
                        raise BadAnnotation(whose, source, value, str(error)) from None
        return default

    of_pod, of_both = {"pod": own}, {"pod": own, "namespace": shared}
    nothing: tuple[str, ...] = ()
    pools = {family: read(key, partial(_pools, family), nothing, of_both) for family, key in POOLS.items()}
    return Asked(
        {family: names for family, names in pools.items() if names},
        read(ADDRESSES, _addresses, nothing, of_pod),
        read(MAC, unicast_mac, "", of_pod),
        read(KEEP, _boolean, False, of_pod),
    )


def unicast_mac(text: str) -> str:
    """The canonical text of a MAC address that an interface may have; ValueError for any other."""
    octets = bytes.fromhex(text.replace(":", "")) if _MAC.fullmatch(text) else b""
    if not any(octets) or octets[0] & 1:
        raise ValueError("it is not a unicast MAC address, such as 02:00:00:12:34:56")
    return octets.hex(":")


def _items(text: str) -> list[str]:
    """A JSON list of texts, or texts with commas between them."""
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not a JSON list: {error}") from None
    if not all(isinstance(one, str) for one in found):
        raise ValueError("it is not a JSON list of texts")
    return [str(one).strip() for one in found]


def _pools(family: Family, text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(_pool(family, item) for item in _items(text)))
    if not found:
        raise ValueError("it names no pool")
    return found


def _pool(family: Family, item: str) -> str:
    if "/" not in item:
        if reason := bad_name(item):
            raise ValueError(f"it names no IPPool: {reason}")
        return item
    cidr = canonical_cidr(item)
    if (":" in cidr) is not (family is Family.V6):
        raise ValueError(f"{cidr} is not an IPv{int(family)} CIDR")
    return cidr


def _addresses(text: str) -> tuple[str, ...]:
    found: dict[Family, str] = {}
    for item in _items(text):
        family, number = address_number(canonical_address(item))
        if family in found:
            raise ValueError(f"{item} is a second IPv{int(family)} address; an interface has one")
        found[family] = address_text(family, number)
    if not found:
        raise ValueError("it names no address")
    return tuple(found.values())


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError('it must be "true" or "false"')
    return text == "true"
