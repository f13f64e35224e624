"""The best path by RFC 4271, 9.1, and RFC 4456, 9, against the text read literally; and why the others lost."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bgp.announcement import GRACEFUL_SHUTDOWN
from bgp.decision import Candidate, Identity, Path, Source, Step, loop, lost_by, multipath
from bgp.prefixes import PrefixSet
from bgp.resources import BGPFilter, FilterRule, Operations
from bgp.rib import ImportFilter, Reached, Rib

PREFIX = "10.244.7.0/24"
ADDRESSES = ["10.9.0.2", "10.9.0.10", "10.10.0.2", "192.0.2.1", "10.9.0.2:1180", "192.0.2.1:1179"]
few = st.integers(0, 1)

paths = st.builds(
    lambda hop, asns, origin, med, pref, originator, clusters: Path(
        f"10.9.9.{hop}",
        tuple(asns),
        len(asns),
        origin,
        med,
        pref,
        originator_id=originator,
        cluster_list=tuple(clusters),
    ),
    st.integers(1, 3),
    st.lists(st.sampled_from([65010, 65020]), max_size=2),
    few,
    few,
    st.sampled_from([100, 100, 200]),
    st.sampled_from(["", "", "192.0.2.7", "10.0.0.9"]),
    st.lists(st.sampled_from(["1.1.1.1", "2.2.2.2"]), max_size=2),
)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for address in draw(st.lists(st.sampled_from(ADDRESSES), unique=True)):
        router_id = draw(st.sampled_from([address.partition(":")[0], "10.0.0.1"]))
        source = Source(address, router_id, 65001, "10.9.0.1", external=draw(st.booleans()))
        # Several paths of one peer are told apart by their identifiers (RFC 7911).
        ids = draw(st.lists(st.sampled_from(["0.0.0.1", "0.0.0.2", "0.0.0.10"]), max_size=2, unique=True))
        found += [(source, replace(draw(paths), path_id=path_id)) for path_id in ids or [""]]
    return found


def key_of(candidate: Candidate) -> tuple[str, str]:
    return candidate[0].address, candidate[1].path_id


def number(address: str) -> int:
    return int(ipaddress.IPv4Address(address.partition(":")[0]))


def beaten(one: Candidate, other: Candidate, left: list[Candidate], step: Step) -> bool:
    """Whether a step, read as a comparison of two, excludes ``one`` since there is ``other``."""
    (source, path), (source2, path2) = one, other
    asn, asn2 = (c[1].as_path[0] if c[1].as_path else 0 for c in (one, other))
    identifier = [number(p.originator_id if p.originator_id else s.router_id) for s, p in (one, other)]
    assert one in left
    return {
        Step.LOCAL_PREF: path2.local_pref > path.local_pref,
        Step.AS_PATH: len(path2.as_path) < len(path.as_path),
        Step.ORIGIN: path2.origin < path.origin,
        Step.MED: asn == asn2 and path2.med < path.med,
        Step.EXTERNAL: source2.external and not source.external,
        Step.ROUTER_ID: identifier[1] < identifier[0],
        Step.CLUSTER_LIST: len(path2.cluster_list) < len(path.cluster_list),
        Step.ADDRESS: number(source2.address) < number(source.address),
        Step.SESSION: source2.address < source.address,
        Step.PATH_ID: number(path2.path_id or "0.0.0.0") < number(path.path_id or "0.0.0.0"),
    }[step]


def tournament(whole: list[Candidate], steps: list[Step]) -> list[Candidate]:
    left = whole
    for step in steps:
        left = [one for one in left if not any(beaten(one, other, left, step) for other in left)]
    return left


STEPS = list(Step)
EQUAL = STEPS[: STEPS.index(Step.EXTERNAL) + 1]


@given(candidates(), st.randoms())
def test_the_text_of_the_rfcs_in_any_order(whole: list[Candidate], random: Callable[[], float]) -> None:
    chosen = multipath(whole)
    assert {key_of(c) for c in chosen} == {key_of(c) for c in tournament(whole, EQUAL)}
    assert chosen[:1] == tournament(whole, STEPS)
    shuffled = list(whole)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert multipath(shuffled) == chosen


@given(candidates())
def test_each_loser_lost_by_the_step_that_is_named(whole: list[Candidate]) -> None:
    lost = lost_by(whole)
    assert lost == lost_by(whole[::-1])
    winner = tournament(whole, STEPS)
    assert lost.keys() == {key_of(c) for c in whole} - {key_of(c) for c in winner}
    for one in whole:
        if one not in winner:
            step = lost[key_of(one)]
            at = STEPS.index(step)
            # Before it, nothing had excluded it. By MED it may have lost against another than the best one.
            left = tournament(whole, [before for before in STEPS[:at] if before in EQUAL])
            assert one in left
            assert any(beaten(one, other, left, step) for other in (left if step is Step.MED else winner))


@given(candidates(), st.integers(1, 3), st.sets(st.sampled_from(["10.9.9.1", "10.9.9.2"])))
def test_explained_as_decided(whole: list[Candidate], most: int, unreachable: set[str]) -> None:
    rejecting = BGPFilter(name="no", import_v4=(FilterRule(accept=False, as_path_prefix=(65020,)),))
    rib = Rib(max_paths=most)
    rib.set_filter(ImportFilter(PrefixSet(["10.244.0.0/16"]), PrefixSet()))
    rib.set_own(Identity("192.0.2.7", "2.2.2.2"))
    rib.set_reach(lambda hop: Reached(problem="down") if hop in unreachable else Reached("eth0", 24))
    for source, path in whole:
        rib.set_source(replace(source, filters=(rejecting,)))
        rib.announce(source.address, PREFIX, path)
    hops = rib.take().get(PREFIX, ())
    explained = rib.explain(PREFIX)
    assert {(one.peer, one.path.path_id) for one in explained} == set(map(key_of, whole))
    assert {one.path.next_hop for one in explained if one.used} == set(hops)
    assert len(hops) <= most
    assert sum(not one.reason for one in explained) == bool(hops)
    assert not hops or (explained[0].used and not explained[0].reason)
    for one in explained:
        source, path = next(c for c in whole if key_of(c) == (one.peer, one.path.path_id))
        if one.reason and one.reason not in {step.value for step in Step}:
            rejected = not loop(source, path, Identity("192.0.2.7", "2.2.2.2")) and path.as_path[:1] == (65020,)
            assert ("no rejects" in one.reason) == rejected
            assert one.reason != "down" or path.next_hop in unreachable


def test_a_prefix_outside_and_one_nobody_has() -> None:
    rib = Rib()
    source = Source("10.9.0.2")
    rib.set_source(source)
    rib.announce(source.address, "10.0.0.0/8", Path("10.9.0.2"))
    assert [(one.used, one.reason) for one in rib.explain("10.0.0.0/8")] == [
        (False, "the prefix is none that this node learns")
    ]
    assert rib.explain(PREFIX) == []


def test_filters_change_the_choice_without_another_update() -> None:
    rib = Rib()
    rib.set_filter(ImportFilter(PrefixSet(["10.244.0.0/16"]), PrefixSet()))
    better = FilterRule(accept=True, operations=Operations(local_preference=200, priority=512))
    for address in ADDRESSES[:2]:
        rib.set_source(Source(address))
        rib.announce(address, PREFIX, Path(address, (65010,), 1, local_pref=7))
    assert rib.take() == {PREFIX: tuple(sorted(ADDRESSES[:2]))}
    rib.set_source(Source(ADDRESSES[1], filters=(BGPFilter(name="up", import_v4=(better,)),)))
    assert rib.take() == {PREFIX: (ADDRESSES[1],)}
    assert dict(rib.priorities) == {PREFIX: 512}
    other = replace(better, operations=Operations(local_preference=200, priority=1024))
    rib.set_source(Source(ADDRESSES[1], filters=(BGPFilter(name="up", import_v4=(other,)),)))
    assert rib.take() == {PREFIX: (ADDRESSES[1],)}, "the kernel's metric changes"
    rib.set_source(Source(ADDRESSES[1]))
    assert rib.take() == {PREFIX: tuple(sorted(ADDRESSES[:2]))}
    assert dict(rib.priorities) == {}


def test_rfc8326_who_is_about_to_go_is_used_only_while_there_is_nobody_else() -> None:
    rib = Rib()
    rib.set_filter(ImportFilter(PrefixSet(["10.244.0.0/16"]), PrefixSet()))
    leaving = Path(ADDRESSES[0], (65010,), 1, communities=(GRACEFUL_SHUTDOWN,))
    for address, path in zip(ADDRESSES, (leaving, Path(ADDRESSES[1], (65010, 65020), 2)), strict=False):
        rib.set_source(Source(address))
        rib.announce(address, PREFIX, path)
    assert rib.take() == {PREFIX: (ADDRESSES[1],)}
    rib.withdraw(ADDRESSES[1], PREFIX)
    assert rib.take() == {PREFIX: (ADDRESSES[0],)}
