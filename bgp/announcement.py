"""A route as it is announced to one peer."""

from __future__ import annotations

from dataclasses import dataclass

GRACEFUL_SHUTDOWN = "65535:0"
"""The well-known community by which a router is asked to use other paths (RFC 8326, section 5)."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """Attributes of a prefix in an UPDATE (RFC 4271 5.1).

    ``next_hop``: an address, or ``self``. ``as_path``: before the speaker's own AS number is put before it.
    ``originator_id`` and ``cluster_list`` are of reflected routes (RFC 4456). ``communities``: ``65000:1``
    (RFC 1997), ``large_communities``: ``65000:1:2`` (RFC 8092), both sorted.
    """

    prefix: str
    next_hop: str = "self"
    as_path: tuple[int, ...] = ()
    origin: int = 0
    med: int | None = None
    local_preference: int | None = None
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    originator_id: str = ""
    cluster_list: tuple[str, ...] = ()
