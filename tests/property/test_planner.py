"""Whatever endpoints do, no packet is ever judged by a class its endpoint is not, or was not just now, in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.desired.marks import Marks
from felix_py.desired.names import DISPATCH, ChainName, SetNames, parse_chain_name
from felix_py.desired.planner import Planner
from felix_py.desired.render import class_numbers
from felix_py.desired.static import StaticOptions
from felix_py.records import Update
from felix_py.refs import ChainRef
from felix_py.ruleset.model import DROP, RETURN, InSet, MarkIs, Match, Rules
from policy.ir import Chain, ChainId, ChainKind, Delta, Deny, Rule
from policy.model import Direction, Family
from tests.support.thorough import examples

MARKS = Marks.from_mask(0xFFFF0000)
V4, EGRESS = Family.V4, Direction.EGRESS
FILLER = "10.9."
MAP = SetNames.of(V4).egress


class Kernel:
    """Applies updates in the dataplane's order and looks between every two steps."""

    def __init__(self) -> None:
        self.chains: dict[str, Rules] = {}
        self.marks: dict[str, int] = {}
        self.sets: dict[str, set[str]] = {}

    def apply(self, update: Update) -> None:
        for name, spec in update.sets.items():
            if spec is not None:
                self.sets.setdefault(name, set())
        for name, members in update.members.items():
            if name != MAP:
                self.sets.setdefault(name, set()).update(m for m, mark in members.items() if mark is not None)
        changed = {key.name: rules for key, rules in update.chains.items() if key.table == "filter"}
        self.chains |= {name: rules for name, rules in changed.items() if rules is not None}
        self.check()
        for member, mark in update.members.get(MAP, {}).items():
            if mark is not None:
                self.marks[member] = mark
                self.check()
        for name, members in update.members.items():
            if name != MAP:
                self.sets[name].difference_update(m for m, mark in members.items() if mark is None)
        for member, mark in update.members.get(MAP, {}).items():
            if mark is None:
                self.marks.pop(member, None)
        for name, rules in changed.items():
            if rules is None:
                self.chains.pop(name, None)
        for name, spec in update.sets.items():
            if spec is None:
                self.sets.pop(name, None)
        self.check()

    def class_of(self, address: str) -> ChainName | None:
        """Follow the dispatch tree by its rules, as the kernel would."""
        mark = self.marks.get(address, 0)
        chain = DISPATCH[EGRESS]
        while chain.startswith(DISPATCH[EGRESS]):
            for rule in self.chains[chain]:
                if not all(self.holds(match, address, mark) for match in rule.matches):
                    continue
                if rule.target == RETURN:
                    return None
                assert rule.target != DROP, f"{address} (mark {mark:#x}) is dropped by dispatch"
                chain = rule.leads_to
                break
        assert chain in self.chains, f"{address} is sent to {chain}, which is not there"
        return parse_chain_name(chain)

    def holds(self, match: Match, address: str, mark: int) -> bool:
        match match:
            case MarkIs(value, mask, False):
                return mark & mask == value
            case InSet(name, _, False):
                return address in self.sets[name]
        raise AssertionError(match)

    def check(self) -> None:
        for address in self.marks:
            if not address.startswith(FILLER):
                self.class_of(address)
        for rules in self.chains.values():
            for rule in rules:
                for match in rule.matches:
                    if isinstance(match, InSet) and match.name.startswith("felix4-ce"):
                        assert match.name in self.sets


def class_chain(number: int) -> ChainId:
    return ChainId(ChainKind.CLASS, EGRESS, f"{number:016x}")


moves = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 4)), min_size=1, max_size=4),
    max_size=12,
)


def run(steps: list[list[tuple[int, int | None]]], classes_before: int = 0) -> None:
    planner, kernel = Planner([V4], StaticOptions(MARKS), {}), Kernel()
    desired: dict[str, ChainId] = {}
    filler = {f"{FILLER}{n // 250}.{n % 250 + 1}": class_chain(0xF000 + n) for n in range(classes_before)}

    def change(new: dict[str, ChainId | None]) -> None:
        before = set(desired.values())
        delta = Delta(V4)
        for address, chain in new.items():
            if chain is None:
                desired.pop(address, None)
            else:
                desired[address] = chain
            delta.classes[EGRESS, address] = chain
        after = set(desired.values())
        delta.chains |= {chain: Chain(chain, (Rule(Deny()),)) for chain in after - before}
        delta.chains |= dict.fromkeys(before - after)
        planner.policy(delta)
        kernel.apply(planner.take())
        assert {a: kernel.class_of(a) for a in desired} == desired
        kernel.apply(planner.confirm())
        assert {a: kernel.class_of(a) for a in desired} == desired

    change(dict(filler))
    for step in steps:
        change({f"10.0.0.{who}": None if what is None else class_chain(what) for who, what in step})
    change(dict.fromkeys(list(desired)))
    assert not [name for name in kernel.chains if name.startswith("FELIX-CE-")]
    assert not [name for name in kernel.sets if name.startswith("felix4-ce-")]
    assert not kernel.marks


@given(moves)
@settings(max_examples=examples(150), deadline=None)
def test_endpoints_move_between_classes(steps: list[list[tuple[int, int | None]]]) -> None:
    run(steps)


@given(moves)
@settings(max_examples=examples(15), deadline=None)
def test_the_same_when_class_numbers_run_out(steps: list[list[tuple[int, int | None]]]) -> None:
    run(steps, classes_before=125)


def test_a_restarted_agent_keeps_the_numbers_the_kernel_has() -> None:
    first, kernel = Planner([V4], StaticOptions(MARKS), {}), Kernel()
    chains = [class_chain(n) for n in range(20)]
    delta = Delta(V4, chains={chain: Chain(chain, (Rule(Deny()),)) for chain in chains})
    delta.classes = {(EGRESS, f"10.0.0.{n}"): chain for n, chain in enumerate(chains)}
    first.policy(delta)
    kernel.apply(first.take())
    saved = [
        rule.body for name, rules in kernel.chains.items() if name.startswith(DISPATCH[EGRESS]) for rule in rules
    ]
    held = class_numbers(saved, EGRESS, MARKS)
    assert set(held) == set(chains)

    second = Planner([V4], StaticOptions(MARKS), {(V4, EGRESS): held})
    again = Delta(V4, chains=delta.chains)
    again.classes = dict(reversed(delta.classes.items()))
    second.policy(again)
    update = second.take()
    dispatch = {k.name: r for k, r in update.chains.items() if r is not None and k.name in kernel.chains}
    assert dispatch == {name: kernel.chains[name] for name in dispatch}
    assert {m: k for m, k in update.members[MAP].items() if k is not None} == kernel.marks
    leftovers = second.confirm()
    assert not [key for key in leftovers.chains if isinstance(key, ChainRef)]
