"""Best path, one test a step of RFC 4271, and the life of routes in the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bgp.decision import Path, Source
from bgp.prefixes import PrefixSet
from bgp.rib import ImportFilter, Rib

P = "10.244.7.0/24"
A = Source("192.0.2.1", router_id="192.0.2.1", local_asn=65001, local_address="192.0.2.100")
B = Source("192.0.2.2", router_id="192.0.2.2", local_asn=65001, local_address="192.0.2.100")
PATH = Path("192.0.2.1", as_path=(65000, 65010), as_path_length=2, med=5)


def table(*, max_paths: int = 16) -> Rib:
    rib = Rib(max_paths=max_paths)
    rib.set_filter(ImportFilter(PrefixSet(["10.244.0.0/16", "fd44::/16"]), PrefixSet(["10.244.1.0/24"])))
    return rib


def best(*candidates: tuple[Source, Path], max_paths: int = 16) -> tuple[str, ...]:
    """Next hops of P, whichever order the candidates come in."""
    answers = set()
    for order in (candidates, candidates[::-1]):
        rib = table(max_paths=max_paths)
        for source, path in order:
            rib.set_source(source)
            rib.announce(source.address, P, path)
        answers.add(rib.take().get(P, ()))
    assert len(answers) == 1, "the order of arrival matters"
    return answers.pop()


@pytest.mark.parametrize(
    ("step", "better", "worse"),
    [
        ("9.1.1 local preference", {"local_pref": 200}, {"local_pref": 150}),
        ("9.1.2.2 a: AS_PATH length", {"as_path_length": 2}, {"as_path_length": 3}),
        ("9.1.2.2 b: ORIGIN", {"origin": 0}, {"origin": 2}),
        ("9.1.2.2 c: MED of one neighbouring AS", {"med": 5}, {"med": 10}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_step_decides(step: str, better: dict[str, Any], worse: dict[str, Any]) -> None:
    inside = step.startswith("9.1.1")  # local preference counts on iBGP only
    left, right = replace(A, external=not inside), replace(B, external=not inside)
    winner, loser = replace(PATH, **better), replace(PATH, next_hop="192.0.2.2", **worse)
    assert best((left, winner), (right, loser)) == ("192.0.2.1",)
    assert best((left, loser), (right, winner)) == ("192.0.2.1",)


def test_9_1_1_local_preference_of_another_as_is_not_ours() -> None:
    other = replace(PATH, next_hop="192.0.2.2", local_pref=900)
    assert best((A, PATH), (B, other)) == ("192.0.2.1", "192.0.2.2")


def test_9_1_2_2_c_med_of_different_neighbouring_ases_is_not_compared() -> None:
    other = Path("192.0.2.2", as_path=(65500, 65010), as_path_length=2, med=90)
    assert best((A, PATH), (B, other)) == ("192.0.2.1", "192.0.2.2")


def test_9_1_2_2_c_lowest_med_of_a_group_does_not_depend_on_order() -> None:
    third = replace(A, address="192.0.2.3", router_id="192.0.2.3")
    same_as_worse = replace(PATH, next_hop="192.0.2.2", med=6)
    other_as = Path("192.0.2.3", as_path=(65500, 65010), as_path_length=2, med=7)
    assert best((A, PATH), (B, same_as_worse), (third, other_as)) == ("192.0.2.1", "192.0.2.3")


def test_9_1_2_2_d_ebgp_before_ibgp() -> None:
    inside = replace(PATH, next_hop="192.0.2.2")
    assert best((A, PATH), (replace(B, external=False), inside)) == ("192.0.2.1",)


def test_9_1_2_2_e_equal_interior_cost_is_ecmp() -> None:
    assert best((A, PATH), (B, replace(PATH, next_hop="192.0.2.2"))) == ("192.0.2.1", "192.0.2.2")


def test_9_1_2_2_f_lowest_identifier_comes_first_when_paths_are_limited() -> None:
    other = replace(PATH, next_hop="192.0.2.2")
    assert best((A, PATH), (B, other), max_paths=1) == ("192.0.2.1",)
    # Identifiers are numbers: 9.0.0.1 is lower than 10.0.0.1.
    a, b = replace(A, router_id="10.0.0.1"), replace(B, router_id="9.0.0.1")
    assert best((a, PATH), (b, other), max_paths=1) == ("192.0.2.2",)


def test_9_1_2_2_g_lowest_peer_address_comes_first_then() -> None:
    same = replace(B, router_id=A.router_id)
    assert best((A, PATH), (same, replace(PATH, next_hop="192.0.2.2")), max_paths=1) == ("192.0.2.1",)


def test_one_next_hop_from_two_peers_counts_once() -> None:
    assert best((A, PATH), (B, PATH)) == ("192.0.2.1",)


def test_9_1_2_own_as_number_in_the_path_is_a_loop() -> None:
    looped = replace(PATH, as_path=(65000, 65001), as_path_length=2)
    assert best((A, looped)) == ()
    # numAllowedLocalASNumbers: racks that share an AS number.
    assert best((replace(A, allowed_own_asns=1), looped)) == ("192.0.2.1",)
    twice = replace(PATH, as_path=(65001, 65001), as_path_length=2)
    assert best((replace(A, allowed_own_asns=1), twice)) == ()


def test_5_1_3_own_address_as_next_hop_is_unusable() -> None:
    assert best((A, replace(PATH, next_hop="192.0.2.100"))) == ()


@pytest.mark.parametrize(
    ("prefix", "accepted"),
    [
        ("10.244.7.0/24", True),
        ("10.244.0.0/16", True),
        ("fd44:7::/64", True),
        ("10.244.1.0/24", False),  # our own pods
        ("10.244.1.128/25", False),
        ("10.244.0.0/15", False),  # wider than the cluster
        ("10.0.0.0/8", False),
        ("0.0.0.0/0", False),
        ("::/0", False),
        ("192.168.0.0/24", False),
    ],
)
def test_import_filter(prefix: str, accepted: bool) -> None:
    rib = table()
    rib.set_source(A)
    rib.announce(A.address, prefix, PATH)
    assert (prefix in rib.take()) is accepted


def test_new_filter_decides_again_without_the_peer() -> None:
    rib = table()
    rib.set_source(A)
    rib.announce(A.address, P, PATH)
    rib.announce(A.address, "10.250.0.0/24", PATH)
    assert rib.take() == {P: ("192.0.2.1",)}
    rib.set_filter(ImportFilter(PrefixSet(["10.250.0.0/16"]), PrefixSet()))
    assert rib.take() == {P: (), "10.250.0.0/24": ("192.0.2.1",)}


def test_changes_are_told_once() -> None:
    rib = table()
    rib.set_source(A)
    rib.announce(A.address, P, PATH)
    rib.take()
    rib.announce(A.address, P, replace(PATH, med=9))
    assert rib.take() == {}, "the best route is what it was"
    rib.withdraw(A.address, P)
    rib.announce(A.address, P, PATH)
    assert rib.take() == {}, "gone and back in one batch"
    rib.withdraw(A.address, P)
    rib.withdraw(A.address, P)
    assert rib.take() == {P: ()}
    assert rib.count(A.address) == 0


def test_doubted_routes_stay_until_the_peer_has_said_all() -> None:
    rib = table()
    rib.set_source(A)
    for third in (7, 8, 9):
        rib.announce(A.address, f"10.244.{third}.0/24", PATH)
    rib.take()
    rib.doubt(A.address)
    rib.announce(A.address, "10.244.7.0/24", PATH)
    rib.believe(A.address, "10.244.9.0/24")
    assert rib.take() == {}
    rib.confirm(A.address)
    assert rib.take() == {"10.244.8.0/24": ()}


def test_dropping_one_peer_leaves_the_others_paths() -> None:
    rib = table()
    for source in (A, B):
        rib.set_source(source)
        rib.announce(source.address, P, replace(PATH, next_hop=source.address))
    rib.take()
    rib.drop(A.address)
    assert rib.take() == {P: (B.address,)}


def test_fewer_paths_at_runtime() -> None:
    rib = table()
    for source in (A, B):
        rib.set_source(source)
        rib.announce(source.address, P, replace(PATH, next_hop=source.address))
    rib.take()
    rib.set_max_paths(1)
    assert rib.take() == {P: (A.address,)}
