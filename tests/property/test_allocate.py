"""The choice of the next address against an oracle that sorts all candidates."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.ipam.allocate import MOST_RESTING, Resting, choose
from felix_py.ipam.pool import Pool
from felix_py.records import Elsewhere
from policy.model import Family
from tests.support.thorough import examples

POOLS = [Pool.of(cidr) for cidr in ("10.0.0.0/29", "10.0.0.16/30", "10.0.0.32/32")]
ADDRESSES = [number for pool in POOLS for number in range(pool.first, pool.last + 1)]
NOW = 1000.0


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Pool], set[int], dict[int, float], dict[str, int], set[int], float]:
    """Pools in their order, used addresses, releases, cursors, addresses of others, and the cooldown."""
    pools = draw(st.lists(st.sampled_from(POOLS), min_size=1, unique=True))
    states = {number: draw(st.sampled_from(["free", "used", "rests", "rests", "else"])) for number in ADDRESSES}
    resting = [number for number, state in states.items() if state == "rests"]
    times = sorted(draw(st.lists(st.integers(900, 1000), min_size=len(resting), max_size=len(resting))))
    released = dict(zip(draw(st.permutations(resting)), map(float, times), strict=True))
    cursors = {p.cidr: draw(st.integers(p.first - 2, p.last + 2)) for p in pools if draw(st.booleans())}
    used, others = ({n for n, state in states.items() if state == what} for what in ("used", "else"))
    return pools, used, released, cursors, others, float(draw(st.integers(0, 120)))


def expected(
    pools: list[Pool],
    used: set[int],
    released: dict[int, float],
    cursors: dict[str, int],
    others: set[int],
    cooldown: float,
) -> int | None:
    order = list(released)
    found: list[tuple[tuple[float, ...], int]] = []
    for place, pool in enumerate(pools):
        size, cursor = pool.last - pool.first + 1, cursors.get(pool.cidr)
        start = pool.first if cursor is None or cursor not in pool else cursor + 1
        for number in range(pool.first, pool.last + 1):
            if number in used or number in others:
                continue
            if number not in released:
                found.append(((0, place, 0, (number - start) % size), number))
            elif NOW - released[number] >= cooldown:
                found.append(((0, place, 1, order.index(number)), number))
            else:
                # Of two released at one moment, the earlier pool's; within one, the first that was noted.
                found.append(((1, released[number], place, order.index(number)), number))
    return min(found)[1] if found else None


@settings(max_examples=examples(400), deadline=None)
@given(situations())
def test_the_longest_unused_address_comes_next_and_none_is_refused_while_one_rests(
    situation: tuple[list[Pool], set[int], dict[int, float], dict[str, int], set[int], float],
) -> None:
    pools, used, released, cursors, others, cooldown = situation
    resting = Resting()
    for number, at in released.items():
        resting.add(Family.V4, number, at)

    def usable(_pool: Pool, number: int) -> Elsewhere | None:
        return Elsewhere("other", "somebody's", number) if number in others else None

    chosen = choose(pools, dict.fromkeys(used), resting, cursors, usable, NOW, cooldown)
    assert (chosen[1] if chosen else None) == expected(*situation)
    assert chosen is None or chosen[1] in chosen[0]


def test_memory_of_releases_is_bounded_and_forgets_the_oldest() -> None:
    resting = Resting()
    for number in range(MOST_RESTING + 10):
        resting.add(Family.V6, number, float(number))
    assert next(iter(resting.of(Family.V6))) == 10
    assert len(resting.of(Family.V6)) == MOST_RESTING
