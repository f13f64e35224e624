"""Path attributes in ExaBGP's JSON and in its commands. Nothing here does I/O.

Events and table listings of ExaBGP write communities in two ways: as numbers and as texts, with names for some.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from bgp.announcement import Announcement
from bgp.decision import DEFAULT_LOCAL_PREF, Path

MOST = 128
"""As many AS numbers, communities of a kind or clusters may be on a route: that bounds the memory it takes."""

_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_ORIGINS = {"igp": 0, "egp": 1, "incomplete": 2}
_WELL_KNOWN = {
    "no-export": "65535:65281",
    "no-advertise": "65535:65282",
    "no-export-subconfed": "65535:65283",
    "no-peer": "65535:65284",
    "blackhole": "65535:666",
}


class Malformed(ValueError):
    """A route counts as withdrawn (RFC 7606): it has AS 0 (RFC 7607), no origin, or more of something than
    :data:`MOST`."""


def received(next_hop: str, attributes: Mapping[str, Any]) -> Path:
    """The attributes of a received route. Raises Malformed, and anything for what ExaBGP never writes."""
    if attributes.get("origin") not in _ORIGINS:
        raise Malformed("no origin")
    return _read(next_hop, attributes)


def _read(next_hop: str, attributes: Mapping[str, Any]) -> Path:
    as_path: list[int] = []
    length, confederation = 0, False
    segments = attributes.get("as-path", {})
    for key in sorted(segments, key=lambda key: number(key, _U16)):
        numbers = [number(value, _U32) for value in _bounded(segments[key]["value"])]
        kind = segments[key]["element"]
        as_path += numbers
        # RFC 4271 9.1.2.2 a: an AS_SET counts as one. RFC 5065 5.3: confederation segments do not count.
        confederation |= kind not in ("as-sequence", "as-set")
        length += {"as-sequence": len(numbers), "as-set": 1}.get(kind, 0)
    if 0 in as_path:
        raise Malformed("AS 0 in the path")
    return _shared(
        Path(
            next_hop=next_hop,
            as_path=tuple(_bounded(as_path)),
            as_path_length=length,
            confederation=confederation,
            origin=_origin(attributes),
            med=number(attributes.get("med", 0), _U32),
            local_pref=number(attributes.get("local-preference", DEFAULT_LOCAL_PREF), _U32),
            communities=_communities(attributes.get("community", ()), 2, _U16),
            large_communities=_communities(attributes.get("large-community", ()), 3, _U32),
            originator_id=_optional_address(attributes.get("originator-id", "")),
            cluster_list=tuple(map(_address, _bounded(attributes.get("cluster-list", ())))),
        )
    )


def sent(prefix: str, next_hop: str, attributes: Mapping[str, Any]) -> Announcement:
    """An announcement of ours as ExaBGP holds it: a path to an eBGP peer has our own AS number in front.

    Raises as :func:`received` does.
    """
    read = _read(next_hop, attributes)
    return Announcement(
        prefix,
        next_hop=next_hop,
        as_path=read.as_path,
        origin=read.origin if "origin" in attributes else 0,
        med=read.med if "med" in attributes else None,
        local_preference=read.local_pref if "local-preference" in attributes else None,
        communities=read.communities,
        large_communities=read.large_communities,
        originator_id=read.originator_id,
        cluster_list=read.cluster_list,
    )


def words(announcement: Announcement, own_asn: int) -> str:
    """The attributes in a command. ``own_asn``: our AS number to an eBGP peer, 0 to an iBGP peer.

    ExaBGP puts our AS number before no path that it is given; an empty one it makes itself.
    """
    return " ".join(_words(announcement, own_asn))


def _words(announcement: Announcement, own_asn: int) -> Iterator[str]:
    yield f"next-hop {announcement.next_hop}"
    if announcement.origin:
        yield f"origin {next(name for name, code in _ORIGINS.items() if code == announcement.origin)}"
    if announcement.as_path:
        ours = (own_asn,) if own_asn else ()
        yield f"as-path [ {' '.join(map(str, ours + announcement.as_path))} ]"
    if announcement.med is not None:
        yield f"med {announcement.med}"
    if announcement.local_preference is not None:
        yield f"local-preference {announcement.local_preference}"
    if announcement.communities:
        yield f"community [ {' '.join(announcement.communities)} ]"
    if announcement.large_communities:
        yield f"large-community [ {' '.join(announcement.large_communities)} ]"
    if announcement.originator_id:
        yield f"originator-id {announcement.originator_id}"
    if announcement.cluster_list:
        yield f"cluster-list [ {' '.join(announcement.cluster_list)} ]"


def number(value: object, most: int) -> int:
    """A JSON number, or a text of digits, within the range of its field in BGP. Raises ValueError."""
    if isinstance(value, str) and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError("not a number, or out of range")
    return value


def _origin(attributes: Mapping[str, Any]) -> int:
    return _ORIGINS.get(attributes.get("origin", ""), 2)


def _communities(values: Any, parts: int, most: int) -> tuple[str, ...]:
    return tuple(sorted(_community(value, parts, most) for value in _bounded(values)))


def _community(value: Any, parts: int, most: int) -> str:
    if isinstance(value, str):
        value = _WELL_KNOWN.get(value, value).split(":")
    if len(value) != parts:
        raise ValueError("not a community")
    return ":".join(str(number(part, most)) for part in value)


def _bounded(values: Any) -> Any:
    if isinstance(values, str | dict):
        raise TypeError("not a list")
    if len(values) > MOST:
        raise Malformed("too many values in an attribute")
    return values


def _optional_address(value: object) -> str:
    return "" if value == "" else _address(value)


def _address(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not an address")
    return str(ipaddress.IPv4Address(value))


@lru_cache(maxsize=1024)
def _shared(path: Path) -> Path:
    """One object for equal paths: a table that is read back has a line for each prefix."""
    return path
