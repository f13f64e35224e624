"""The choice among the paths to one prefix: RFC 4271, 9.1, and RFC 4456, 9, with ECMP among what is equal.

The same steps make the choice and explain it. What is equal up to the interior cost, which is always the same
(there is no IGP), becomes one ECMP route; the steps after that only order it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from bgp.fields import named_address
from bgp.resources import BGPFilter

DEFAULT_LOCAL_PREF = 100


@dataclass(frozen=True, slots=True)
class Path:
    """The relevant attributes of one received route (RFC 4271 5.1).

    ``as_path`` is flattened, ``as_path_length`` counts an AS_SET as one and confederation segments as none.
    ``origin``: 0 IGP, 1 EGP, 2 INCOMPLETE. ``communities`` (``65000:1``, RFC 1997) and ``large_communities``
    (``65000:1:2``, RFC 8092) are sorted. ``priority``: the metric that an import filter has set. ``path_id``:
    which of the peer's paths to the prefix it is (RFC 7911), as four numbers with dots; empty: its only one.
    ``confederation``: there are segments of one (RFC 5065) in its AS path.
    """

    next_hop: str
    as_path: tuple[int, ...] = ()
    as_path_length: int = 0
    origin: int = 0
    med: int = 0
    local_pref: int = DEFAULT_LOCAL_PREF
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    originator_id: str = ""
    cluster_list: tuple[str, ...] = ()
    priority: int | None = None
    path_id: str = ""
    confederation: bool = False

    @property
    def neighbor_asn(self) -> int:
        """The AS that sent the route to us; 0 inside our own."""
        return self.as_path[0] if self.as_path else 0


@dataclass(frozen=True, slots=True)
class Source:
    """What the choice needs to know of a path's peer.

    ``client``: of this route reflector (RFC 4456). ``filters``: their import rules are asked one after the other.
    ``prefix_limit``: as many prefixes are kept at most. ``address``: :attr:`bgp.model.Peer.key`.
    """

    address: str
    router_id: str = "0.0.0.0"
    local_asn: int = 0
    local_address: str = ""
    external: bool = True
    allowed_own_asns: int = 0
    client: bool = False
    filters: tuple[BGPFilter, ...] = ()
    prefix_limit: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """This speaker. ``cluster_id``: it is a route reflector (RFC 4456) of this cluster; empty: it is none."""

    router_id: str = ""
    cluster_id: str = ""


Candidate = tuple[Source, Path]


class Step(Enum):
    """By what a candidate lost. The first five exclude it, the others only order equal ones."""

    LOCAL_PREF = "local preference is lower (RFC 4271, 9.1.1)"
    AS_PATH = "AS path is longer (RFC 4271, 9.1.2.2 a)"
    ORIGIN = "origin is worse (RFC 4271, 9.1.2.2 b)"
    MED = "MED is higher than another path's of the same neighbouring AS (RFC 4271, 9.1.2.2 c)"
    EXTERNAL = "it is iBGP, and there is eBGP (RFC 4271, 9.1.2.2 d)"
    ROUTER_ID = "BGP identifier of its originator is higher (RFC 4271, 9.1.2.2 f)"
    CLUSTER_LIST = "cluster list is longer (RFC 4456, 9)"
    ADDRESS = "address of the peer is higher (RFC 4271, 9.1.2.2 g)"
    SESSION = "interface or port of the peer comes later"
    PATH_ID = "path identifier is higher (RFC 7911)"


@lru_cache(maxsize=4096)
def _number(address: str) -> int:
    return int(ipaddress.ip_address(address))


@lru_cache(maxsize=4096)
def _peer_number(address: str) -> int:
    return _number(named_address(address))


Cost = Callable[[Candidate], int]

_EXCLUDING: tuple[tuple[Step, Cost], ...] = (
    (Step.LOCAL_PREF, lambda c: -c[1].local_pref),
    (Step.AS_PATH, lambda c: c[1].as_path_length),
    (Step.ORIGIN, lambda c: c[1].origin),
)
_ORDERING: tuple[tuple[Step, Callable[[Candidate], Any]], ...] = (
    # RFC 4456, 9: ORIGINATOR_ID stands for the BGP identifier of the peer.
    (Step.ROUTER_ID, lambda c: _number(c[1].originator_id or c[0].router_id)),
    (Step.CLUSTER_LIST, lambda c: len(c[1].cluster_list)),
    (Step.ADDRESS, lambda c: _peer_number(c[0].address)),
    (Step.SESSION, lambda c: c[0].address),
    (Step.PATH_ID, lambda c: _number(c[1].path_id) if c[1].path_id else 0),
)


def loop(source: Source, path: Path, own: Identity) -> str:
    """Why a path would lead back to us, or may; empty if it does not."""
    # RFC 4271, 5.1.2: another AS puts its number in front. ExaBGP shows an empty AS_PATH as none at all.
    if source.external and not path.as_path:
        return "its AS path is empty"
    # RFC 4271, 9.1.2: a route whose AS_PATH has our own AS is a loop; Calico's numAllowedLocalASNumbers lets
    # racks that share one AS number exchange routes.
    if path.as_path.count(source.local_asn) > source.allowed_own_asns:
        return "our own AS number is in its AS path"
    # RFC 5065, 5: only inside of a confederation, and we are in none but those of our own AS.
    if source.external and path.confederation:
        return "its AS path has members of another AS's confederation"
    # 5.1.3: our own address as next hop would be a loop.
    if path.next_hop == source.local_address:
        return "its next hop is our own address"
    # RFC 4456, 8.
    if path.originator_id and path.originator_id == own.router_id:
        return "we are its originator"
    if own.cluster_id and own.cluster_id in path.cluster_list:
        return "our own cluster ID is in its cluster list"
    return ""


def multipath(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The equally good candidates, the best first. The order of the input does not matter."""
    left = list(candidates)
    if len(left) < 2:
        return left
    *_, (_, equal) = _survivors(left)
    return sorted(equal, key=lambda c: tuple(cost(c) for _, cost in _ORDERING))


def lost_by(candidates: Iterable[Candidate]) -> dict[tuple[str, str], Step]:
    """Peer's address and path identifier of each candidate but the best -> by what it lost against that."""
    left = list(candidates)
    lost: dict[tuple[str, str], Step] = {}
    if not left:
        return lost
    for step, survivors in _survivors(left):
        lost |= {(c[0].address, c[1].path_id): step for c in left if c not in survivors}
        left = survivors
    best, *others = sorted(left, key=lambda c: tuple(cost(c) for _, cost in _ORDERING))
    for other in others:
        step = next(step for step, cost in _ORDERING if cost(other) != cost(best))
        lost[other[0].address, other[1].path_id] = step
    return lost


def _survivors(candidates: list[Candidate]) -> Iterator[tuple[Step, list[Candidate]]]:
    """What each excluding step leaves."""
    left = candidates
    for step, cost in _EXCLUDING:
        left = _best(left, cost)
        yield step, left
    # 9.1.2.2 c: the lowest MULTI_EXIT_DISC, but only among routes of the same neighbouring AS.
    least: dict[int, int] = {}
    for _, path in left:
        least[path.neighbor_asn] = min(path.med, least.get(path.neighbor_asn, path.med))
    left = [c for c in left if c[1].med == least[c[1].neighbor_asn]]
    yield Step.MED, left
    yield Step.EXTERNAL, _best(left, lambda c: not c[0].external)


def _best(candidates: list[Candidate], cost: Cost) -> list[Candidate]:
    least = min(map(cost, candidates))
    return [c for c in candidates if cost(c) == least]
