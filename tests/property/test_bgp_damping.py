"""Paths that flap: how often one is used and given up again, and that one that is quiet is always used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bgp.damping import BURST, INTERVAL, Damping
from bgp.decision import Path, Source
from bgp.prefixes import PrefixSet
from bgp.rib import ImportFilter, Rib

KEY = ("10.9.0.2", "10.244.7.0/24", "")
STEP = 0.25


@given(st.lists(st.integers(0, 3), max_size=200))
def test_the_level_of_a_path_is_that_of_all_its_changes(changes: list[int]) -> None:
    """``changes``: how many there are in each step of time. The oracle empties a bucket in small steps."""
    damping, level = Damping(), 0.0
    for number, count in enumerate(changes):
        damping.tick(number * STEP)
        level = max(0.0, level - STEP / INTERVAL) if number else 0.0
        for _ in range(count):
            damping.note(KEY)
            level = min(level + 1, BURST + 1)
        assert damping.suppresses(KEY) == (level > BURST)


@given(st.lists(st.sampled_from(["up", "down", "other hop"]), max_size=300), st.integers(1, 20))
def test_what_a_flapping_route_costs_is_bounded_and_what_is_in_force_is_always_true(
    changes: list[str], per_second: int
) -> None:
    rib = Rib()
    rib.set_filter(ImportFilter(PrefixSet(["10.244.0.0/16"]), PrefixSet()))
    peer, prefix, _ = KEY
    rib.set_source(Source(peer))
    now, written, announced = 0.0, 0, ""
    for number, change in enumerate(changes):
        now = number / per_second
        rib.tick(now)
        if change == "down":
            announced = ""
            rib.withdraw(peer, prefix)
        else:
            announced = "10.9.0.2" if change == "up" else "10.9.0.3"
            rib.announce(peer, prefix, Path(announced, (65000,), 1))
        written += len(rib.take())
        assert rib.best.get(prefix, ()) in ((), (announced,)), "nothing that the peer has withdrawn"
    assert written <= 2 * (BURST + 1 + now / INTERVAL) + 1
    rib.tick(now + 2 * INTERVAL)
    rib.take()
    assert rib.best.get(prefix, ()) == ((announced,) if announced else ())
    rib.tick(now + 100 * INTERVAL)
    rib.tick(now + 200 * INTERVAL)
    assert not rib._damping._flaps, "nothing is kept of it"


def test_another_path_is_used_while_one_flaps() -> None:
    rib = Rib()
    rib.set_filter(ImportFilter(PrefixSet(["10.244.0.0/16"]), PrefixSet()))
    for peer in ("10.9.0.2", "10.10.0.2"):
        rib.set_source(Source(peer))
    rib.announce("10.10.0.2", KEY[1], Path("10.10.0.2", (65000, 65001), 2))
    writes = 0
    for _ in range(100):
        rib.announce(KEY[0], KEY[1], Path("10.9.0.2", (65000,), 1))
        writes += len(rib.take())
        rib.withdraw(*KEY)
        writes += len(rib.take())
    rib.announce(KEY[0], KEY[1], Path("10.9.0.2", (65000,), 1))
    rib.take()
    assert rib.best[KEY[1]] == ("10.10.0.2",)
    assert "it flaps" in rib.explain(KEY[1])[-1].reason
    assert writes < 3 * BURST
    assert rib.flapping == {"10.9.0.2"}
    rib.tick(3 * INTERVAL)
    rib.take()
    assert rib.best[KEY[1]] == ("10.9.0.2",)
