"""BGPFilter: what a peer's filters say of one route, and what they change about it.

The filters of a peer are asked one after the other, and in each its rules: the first rule that matches decides. A
route that none matches is accepted as it is. All fields of a rule must match (Calico's semantics). Other than in
Calico, ``Equal`` together with ``prefixLength`` is the CIDR itself, if its length is in that range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from bgp.announcement import Announcement
from bgp.decision import Path
from bgp.prefixes import parse, version
from bgp.resources import BGPFilter, FilterRule, Operations


class Route(NamedTuple):
    """What rules look at. ``external``: the peer is an eBGP peer. ``learned``: from a peer, not our own.

    ``interface``: where the route leads; empty: not known, or nowhere.
    """

    prefix: str
    external: bool
    learned: bool = True
    interface: str = ""
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    as_path: tuple[int, ...] = ()
    priority: int | None = None


class Decided(NamedTuple):
    """The rule that decides, and the name of its filter."""

    filter: str
    rule: FilterRule


def decide(filters: Iterable[BGPFilter], route: Route, *, imported: bool) -> Decided | None:
    """The first rule that matches; ``imported``: of the import rules, else of the export rules."""
    for one in filters:
        if version(route.prefix) == 4:
            rules = one.import_v4 if imported else one.export_v4
        else:
            rules = one.import_v6 if imported else one.export_v6
        for rule in rules:
            if _matches(rule, route):
                return Decided(one.name, rule)
    return None


def changed_path(path: Path, by: Operations) -> Path:
    """A received path as an import rule changes it."""
    standard, large = _with(path.communities, path.large_communities, by)
    return replace(
        path,
        communities=standard,
        large_communities=large,
        as_path=by.prepend + path.as_path,
        as_path_length=len(by.prepend) + path.as_path_length,
        priority=path.priority if by.priority is None else by.priority,
        med=path.med if by.med is None else by.med,
        local_pref=path.local_pref if by.local_preference is None else by.local_preference,
    )


def changed_announcement(announcement: Announcement, by: Operations) -> Announcement:
    """An announcement as an export rule changes it; a priority has no meaning on the wire."""
    standard, large = _with(announcement.communities, announcement.large_communities, by)
    return replace(
        announcement,
        communities=standard,
        large_communities=large,
        as_path=by.prepend + announcement.as_path,
        med=announcement.med if by.med is None else by.med,
        local_preference=announcement.local_preference if by.local_preference is None else by.local_preference,
    )


def _with(
    standard: tuple[str, ...], large: tuple[str, ...], by: Operations
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Communities and large communities with those that are added."""
    if not by.add_communities:
        return standard, large
    whole = {*standard, *large, *by.add_communities}
    return tuple(sorted(c for c in whole if c.count(":") == 1)), tuple(
        sorted(c for c in whole if c.count(":") == 2)
    )


def _matches(rule: FilterRule, route: Route) -> bool:
    return (
        (not rule.cidr or _prefix_matches(rule, route.prefix))
        and (not rule.source or route.learned)
        and (not rule.peer_type or (rule.peer_type == "eBGP") == route.external)
        and (not rule.interface or (bool(route.interface) and fnmatchcase(route.interface, rule.interface)))
        and all(c in route.communities or c in route.large_communities for c in rule.communities)
        and route.as_path[: len(rule.as_path_prefix)] == rule.as_path_prefix
        and rule.priority in (None, route.priority)
    )


def _prefix_matches(rule: FilterRule, prefix: str) -> bool:
    _, bits, length, value = parse(prefix)
    _, _, least, network = parse(rule.cidr)
    low, high = rule.prefix_length
    in_range = max(least, low or 0) <= length <= (bits if high is None else high)
    inside = in_range and value >> (bits - least) == network >> (bits - least)
    equal = inside and length == least
    return {"Equal": equal, "NotEqual": not equal, "In": inside, "NotIn": not inside}[rule.match_operator]
