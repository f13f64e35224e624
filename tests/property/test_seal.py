"""A chain of ours counts as right exactly if it does what was planned, whatever somebody does to it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from felix_py.dataplane.iptables_text import Rule, parse_save, render_chain
from felix_py.dataplane.rule_bodies import RuleBodies
from felix_py.ruleset.model import ACCEPT, DROP, RETURN, SOURCE, AddressIn, Body, Goto, Jump, RuleSpec

ADDRESSES = st.sampled_from([f"10.0.0.{n}/32" for n in range(4)])
TARGETS = st.sampled_from([ACCEPT, DROP, RETURN, Jump("FELIX-X"), Goto("FELIX-X")])
RULES = st.builds(
    RuleSpec,
    st.lists(st.builds(AddressIn, st.just(SOURCE), ADDRESSES, st.booleans()), max_size=1).map(tuple),
    TARGETS,
    st.sampled_from(["", "a", "b"]),
)
CHAINS = st.lists(RULES, max_size=40).map(tuple)
PLACES = st.integers(0, 50)
FOREIGN = st.sampled_from(
    ["-j ACCEPT", "-s 10.0.0.1/32 -j DROP", "-m comment --comment felix:0123456789abcdef -j DROP", "-j RETURN"]
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["insert", "replace"]), PLACES, FOREIGN)
    | st.tuples(st.just("retarget"), PLACES, st.sampled_from(["ACCEPT", "DROP"]))
    | st.tuples(st.sampled_from(["delete", "copy", "swap"]), PLACES, st.just("")),
    max_size=4,
)


def edited(texts: list[str], edits: list[tuple[str, int, str]]) -> list[str]:
    for what, place, value in edits:
        at = place % (len(texts) + 1)
        if what == "insert":
            texts.insert(at, value)
        elif at == len(texts):
            continue
        elif what == "delete":
            del texts[at]
        elif what == "copy":
            texts.insert(at, texts[at])
        elif what == "swap":
            texts[0], texts[at] = texts[at], texts[0]
        elif what == "replace":
            texts[at] = value
        else:
            texts[at] = " ".join((*texts[at].split(" ")[:-1], value))
    return texts


def read(texts: list[str]) -> list[Rule]:
    lines = "\n".join(["*filter", ":FELIX-A - [0:0]", *(f"-A FELIX-A {text}" for text in texts), "COMMIT"])
    return parse_save(lines)["filter"].chains["FELIX-A"]


def bodies(rules: list[Rule] | tuple[Rule, ...]) -> list[Body]:
    return [rule.body for rule in rules if rule.body != Body()]


@given(CHAINS, EDITS)
@example((RuleSpec((), DROP),), [("swap", 1, "")])
@example((RuleSpec((), DROP), RuleSpec((), DROP)), [("delete", 0, "")])
def test_right_is_what_does_the_same(chain: tuple[RuleSpec, ...], edits: list[tuple[str, int, str]]) -> None:
    wanted = render_chain(chain)
    found = read(edited([rule.text for rule in wanted], edits))
    by_hash = {rule.hash: rule for rule in wanted}
    checked = RuleBodies()
    same = [rule.hash for rule in found] == [rule.hash for rule in wanted]
    right = same and not any(checked.altered(by_hash[rule.hash], rule) for rule in found)
    if right:
        assert bodies(found) == bodies(wanted)
    if [rule.text for rule in found] == [rule.text for rule in wanted]:
        assert right


@given(CHAINS, EDITS)
def test_no_rule_is_ours_twice(chain: tuple[RuleSpec, ...], edits: list[tuple[str, int, str]]) -> None:
    wanted = [rule.hash for rule in render_chain(chain)]
    found = [rule.hash for rule in read(edited([rule.text for rule in render_chain(chain)], edits)) if rule.hash]
    foreign = {"0123456789abcdef"}
    assert all(found.count(one) <= wanted.count(one) for one in set(found) - foreign)
