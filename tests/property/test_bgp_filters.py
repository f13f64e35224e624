"""What filters say of a route, against the words of the API, slow and obvious."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bgp.announcement import Announcement
from bgp.decision import Path
from bgp.filters import Decided, Route, changed_announcement, changed_path, decide
from bgp.resources import BGPFilter, FilterRule, Operations

PREFIXES = {
    4: ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.2.0.0/16", "0.0.0.0/0"],
    6: ["fd00::/8", "fd00:1::/32", "fd00:1:2::/48", "fd00:1:2::3/128", "::/0"],
}
COMMUNITIES = ["65000:1", "65000:2", "65535:65281", "65000:1:2", "65000:2:2"]
INTERFACES = ["", "eth0", "eth1", "bond.7"]

asns = st.lists(st.sampled_from([65001, 65002]), max_size=3).map(tuple)


def lengths(version: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(0, 32 if version == 4 else 128) | st.sampled_from([8, 16, 24, 32])


def rules(version: int) -> st.SearchStrategy[FilterRule]:
    with_cidr = st.fixed_dictionaries(
        {
            "cidr": st.sampled_from(PREFIXES[version]),
            "match_operator": st.sampled_from(["Equal", "NotEqual", "In", "NotIn"]),
            "prefix_length": st.tuples(lengths(version), lengths(version)),
        }
    )
    return st.builds(
        lambda cidr, **rest: FilterRule(**cidr, **rest),
        cidr=st.just({}) | with_cidr,
        accept=st.booleans(),
        source=st.sampled_from(["", "", "RemotePeers"]),
        peer_type=st.sampled_from(["", "", "eBGP", "iBGP"]),
        interface=st.sampled_from(["", "", "eth0", "eth*", "bond.?", "*"]),
        communities=st.just(()) | st.sampled_from(COMMUNITIES).map(lambda c: (c,)),
        as_path_prefix=st.just(()) | asns,
        priority=st.sampled_from([None, None, None, 512, 1024]),
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[BGPFilter], Route, bool]:
    version = draw(st.sampled_from([4, 6]))
    filters = [
        BGPFilter(
            name=f"filter{index}",
            import_v4=tuple(draw(st.lists(rules(4), max_size=3))),
            export_v4=tuple(draw(st.lists(rules(4), max_size=3))),
            import_v6=tuple(draw(st.lists(rules(6), max_size=3))),
            export_v6=tuple(draw(st.lists(rules(6), max_size=3))),
        )
        for index in range(draw(st.integers(0, 2)))
    ]
    marks = draw(st.lists(st.sampled_from(COMMUNITIES), unique=True))
    route = Route(
        draw(st.sampled_from(PREFIXES[version])),
        external=draw(st.booleans()),
        learned=draw(st.booleans()),
        interface=draw(st.sampled_from(INTERFACES)),
        communities=tuple(sorted(c for c in marks if c.count(":") == 1)),
        large_communities=tuple(sorted(c for c in marks if c.count(":") == 2)),
        as_path=draw(asns),
        priority=draw(st.sampled_from([None, 512])),
    )
    return filters, route, draw(st.booleans())


def prefix_matches(rule: FilterRule, prefix: str) -> bool:
    route, cidr = ipaddress.ip_network(prefix), ipaddress.ip_network(rule.cidr)
    least, most = rule.prefix_length
    fits = (least is None or route.prefixlen >= least) and (most is None or route.prefixlen <= most)
    if rule.match_operator in ("Equal", "NotEqual"):
        found = route == cidr and fits
    else:
        found = route.subnet_of(cidr) and fits  # type: ignore[arg-type]
    return found != rule.match_operator.startswith("Not")


def matches(rule: FilterRule, route: Route) -> bool:
    if rule.cidr and not prefix_matches(rule, route.prefix):
        return False
    if rule.source == "RemotePeers" and not route.learned:
        return False
    if rule.peer_type and rule.peer_type != ("eBGP" if route.external else "iBGP"):
        return False
    if rule.interface:
        pattern = re.escape(rule.interface).replace(r"\*", ".*").replace(r"\?", ".")
        if not route.interface or not re.fullmatch(pattern, route.interface):
            return False
    if not set(rule.communities) <= {*route.communities, *route.large_communities}:
        return False
    if any(i >= len(route.as_path) or route.as_path[i] != asn for i, asn in enumerate(rule.as_path_prefix)):
        return False
    return rule.priority is None or rule.priority == route.priority


def expected(filters: list[BGPFilter], route: Route, imported: bool) -> Decided | None:
    family = 6 if ":" in route.prefix else 4
    for one in filters:
        for rule in getattr(one, f"{'import' if imported else 'export'}_v{family}"):
            if matches(rule, route):
                return Decided(one.name, rule)
    return None


@given(situations())
def test_the_first_rule_that_matches_decides(situation: tuple[list[BGPFilter], Route, bool]) -> None:
    filters, route, imported = situation
    assert decide(filters, route, imported=imported) == expected(filters, route, imported)


operations = st.builds(
    Operations,
    add_communities=st.lists(st.sampled_from(COMMUNITIES), max_size=3).map(tuple),
    prepend=asns,
    priority=st.none() | st.just(512),
    med=st.none() | st.integers(0, 2),
    local_preference=st.none() | st.integers(0, 2),
)


@given(operations, st.lists(st.sampled_from(COMMUNITIES), unique=True), asns)
def test_operations(by: Operations, marks: list[str], as_path: tuple[int, ...]) -> None:
    standard = tuple(sorted(c for c in marks if c.count(":") == 1))
    large = tuple(sorted(c for c in marks if c.count(":") == 2))
    path = Path("10.9.0.2", as_path, len(as_path), communities=standard, large_communities=large)
    announcement = Announcement("10.1.0.0/16", as_path=as_path, communities=standard, large_communities=large)
    for before, after in (
        (path, changed_path(path, by)),
        (announcement, changed_announcement(announcement, by)),
    ):
        assert {*after.communities, *after.large_communities} == {*marks, *by.add_communities}
        assert all(c.count(":") == 1 for c in after.communities)
        assert all(c.count(":") == 2 for c in after.large_communities)
        assert list(after.communities) == sorted(set(after.communities))
        assert after.as_path == by.prepend + as_path
        assert after.med == (before.med if by.med is None else by.med)
    changed = changed_path(path, by)
    assert changed.as_path_length == len(changed.as_path)
    assert changed.priority == by.priority
    assert changed.local_pref == (100 if by.local_preference is None else by.local_preference)
    assert changed_announcement(announcement, by).local_preference == by.local_preference
    assert changed_path(path, replace(by, add_communities=(), prepend=(), med=None)).as_path == as_path
