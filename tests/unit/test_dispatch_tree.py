"""The tree of mark matches from a class number to the class's chain."""

from __future__ import annotations

import pytest

from felix_py.desired.marks import OVERFLOW, Marks
from felix_py.desired.names import DISPATCH, chain_name, parse_chain_name
from felix_py.desired.render import class_number, dispatch_chains
from felix_py.ruleset.model import DROP, RETURN, Goto, InSet, MarkIs, Rules
from policy.ir import ChainId, ChainKind
from policy.model import Direction, Family

MARKS = Marks.from_mask(0xFFFF0000)
EVERY = tuple(range(1, OVERFLOW + 1))


def chain_of(direction: Direction, number: int) -> ChainId:
    return ChainId(ChainKind.CLASS, direction, f"{number:016x}")


def tree_of(direction: Direction, numbers: tuple[int, ...]) -> dict[str, Rules]:
    return dispatch_chains(Family.V4, direction, {chain_of(direction, n): n for n in numbers}, MARKS)


def walk(tree: dict[str, Rules], direction: Direction, mark: int) -> tuple[str, int]:
    """Returns the chain that a mark leads to, or the verdict; and how many rules were compared."""
    at, compared = DISPATCH[direction], 0
    while at in tree:
        for rule in tree[at]:
            compared += 1
            # The sets of the classes without numbers have every packet here.
            if all(isinstance(match, InSet) or _is_marked(match, mark) for match in rule.matches):
                if isinstance(rule.target, Goto):
                    at = rule.target.chain
                    break
                return ("DROP" if rule.target == DROP else "RETURN"), compared
        else:
            raise AssertionError(f"{at} ends without a verdict")
    return at, compared


def _is_marked(match: object, mark: int) -> bool:
    assert isinstance(match, MarkIs)
    return mark & match.mask == match.value


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(
    "numbers", [(), (1,), tuple(range(1, 7)), tuple(range(1, 11)), (1, 50, 126), EVERY[:50], EVERY]
)
def test_each_number_leads_to_its_class_and_every_other_is_dropped(
    direction: Direction, numbers: tuple[int, ...]
) -> None:
    tree = tree_of(direction, numbers)
    others = MARKS.all & ~MARKS.class_mask(direction)
    for number in EVERY:
        mark = MARKS.class_mark(direction, number) | others
        wanted = chain_name(chain_of(direction, number)) if number in numbers else "DROP"
        assert walk(tree, direction, mark)[0] == wanted
    assert walk(tree, direction, others)[0] == "RETURN"


@pytest.mark.parametrize("direction", Direction)
def test_no_way_is_long(direction: Direction) -> None:
    tree = tree_of(direction, EVERY[:-1])
    assert max(walk(tree, direction, MARKS.class_mark(direction, n))[1] for n in EVERY[:-1]) <= 1 + 8 + 4 + 4
    six = tree_of(direction, EVERY[:6])
    assert max(walk(six, direction, MARKS.class_mark(direction, n))[1] for n in EVERY[:6]) <= 8
    ten = tree_of(direction, EVERY[:10])
    assert max(walk(ten, direction, MARKS.class_mark(direction, n))[1] for n in EVERY[:10]) <= 8


@pytest.mark.parametrize("direction", Direction)
def test_a_class_more_does_not_change_what_all_others_depend_on(direction: Direction) -> None:
    root = DISPATCH[direction]
    assert {tree_of(direction, EVERY[:n])[root] for n in range(1, 16)} == {tree_of(direction, EVERY[:1])[root]}


@pytest.mark.parametrize("direction", Direction)
def test_names_and_numbers_are_read_back(direction: Direction) -> None:
    tree = tree_of(direction, EVERY)
    assert all(chain_name(parsed) == name for name in tree if (parsed := parse_chain_name(name)))
    assert all(map(parse_chain_name, tree))
    read = dict(
        filter(None, (class_number(rule.body, direction, MARKS) for rules in tree.values() for rule in rules))
    )
    assert read == {chain_of(direction, n): n for n in EVERY}
    assert RETURN in {rule.target for rule in tree[DISPATCH[direction]]}
