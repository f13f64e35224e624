"""The seal of a chain says which of its rules are ours."""

from __future__ import annotations

import pytest

from felix_py.dataplane.iptables_text import Rule, parse_save, render, render_chain
from felix_py.ruleset import seal
from felix_py.ruleset.model import DROP, RETURN, SOURCE, AddressIn, Goto, Jump, Rules, RuleSpec, SetMark
from policy.ir import Origin
from policy.model import Direction, PolicyKind, PolicyRef

A, B, C = (RuleSpec((AddressIn(SOURCE, f"10.0.0.{n}/32"),), Jump("FELIX-X")) for n in (1, 2, 3))
END = RuleSpec((), DROP)
CHAIN = (A, B, A, C, END)
FOREIGN = "-j ACCEPT"


def texts_of(rules: Rules) -> list[str]:
    return [rule.text for rule in render_chain(rules)]


def read(texts: list[str]) -> list[Rule]:
    """What is read of a chain with these rules."""
    lines = "\n".join(["*filter", ":FELIX-A - [0:0]", *(f"-A FELIX-A {text}" for text in texts), "COMMIT"])
    return parse_save(lines)["filter"].chains["FELIX-A"]


def hashes(rules: list[Rule] | tuple[Rule, ...]) -> list[str]:
    return [rule.hash for rule in rules]


WANTED = hashes(render_chain(CHAIN))


def test_no_rule_for_packets_has_a_comment_and_none_reaches_the_seal() -> None:
    *rules, last = render_chain((A, RuleSpec((), SetMark(1, 1))))
    assert not any("comment" in rule.text for rule in rules)
    assert rules[-1].text == "-j RETURN"
    assert last.is_seal
    assert render_chain(()) == ()


@pytest.mark.parametrize(
    ("rules", "is_closed"),
    [((A,), False), ((END,), True), ((A, RuleSpec((), Goto("X"))), True), ((RuleSpec((), Jump("X")),), False)],
)
def test_what_no_packet_passes_needs_no_return(rules: Rules, is_closed: bool) -> None:
    assert seal.closed(rules) == (rules if is_closed else (*rules, RuleSpec((), RETURN)))
    assert seal.closed(()) == ()


def test_what_was_written_is_read_again() -> None:
    assert hashes(read(texts_of(CHAIN))) == WANTED
    long = tuple(RuleSpec((AddressIn(SOURCE, f"10.0.{n}.0/24"),), DROP, f"rule {n}") for n in range(100))
    written = render_chain(long)
    assert sum(rule.is_seal for rule in written) == 7
    assert hashes(read([rule.text for rule in written])) == hashes(written)


def edited(*places: tuple[int, list[str]]) -> list[str]:
    """The chain's texts with the rules at these places replaced, the last place first."""
    texts = texts_of(CHAIN)
    for at, new in places:
        texts[at : at + 1] = new
    return texts


TEXTS = texts_of(CHAIN)
ALTERED = TEXTS[1].replace("FELIX-X", "FELIX-Y")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (edited((0, [FOREIGN, TEXTS[0]])), ["", *WANTED]),
        ([*TEXTS, FOREIGN], [*WANTED, ""]),
        (edited((0, [TEXTS[0], TEXTS[1], TEXTS[1]]), (3, [])), [*WANTED[:2], "", *WANTED[2:]]),
        (edited((1, [])), [WANTED[0], *WANTED[2:]]),
        (edited((1, [ALTERED])), WANTED),
        (edited((1, [ALTERED, FOREIGN])), [*WANTED[:2], "", *WANTED[2:]]),
        (edited((4, [FOREIGN])), WANTED),
        ([TEXTS[1], TEXTS[0], *TEXTS[2:]], [WANTED[1], WANTED[0], *WANTED[2:]]),
        ([TEXTS[0].replace("/32", ""), *TEXTS[1:]], WANTED),
        (TEXTS[-1:], WANTED[-1:]),
        (TEXTS[:-1], [""] * 5),
        ([*TEXTS[:-1], TEXTS[-1].replace(WANTED[0], WANTED[1])], [""] * 6),
        ([*TEXTS[:-1], TEXTS[-1] + " -j ACCEPT"], [""] * 6),
        ([], []),
    ],
    ids=[
        *("a foreign rule first", "a foreign rule behind the seal", "a copy", "a rule is missing"),
        *("a rule is altered", "altered, and a foreign rule", "the last rule is altered", "two are exchanged"),
        *("printed otherwise", "only the seal is left", "no seal", "a damaged seal", "the seal has a target"),
        "an empty chain",
    ],
)
def test_which_rules_are_ours(texts: list[str], expected: list[str]) -> None:
    assert hashes(read(texts)) == expected


def test_the_seals_of_two_chains_are_none() -> None:
    assert hashes(read([*TEXTS, *texts_of((B, END))])) == [""] * 9


def test_rules_of_before_have_comments_of_their_own() -> None:
    written = [render(rule) for rule in CHAIN]
    assert hashes(read([*(rule.text for rule in written), FOREIGN])) == [*hashes(written), ""]


def test_its_text_says_whose_the_rules_are() -> None:
    policy = PolicyRef(PolicyKind.NETWORK, "shop", "web")
    rules = tuple(RuleSpec((), DROP, Origin(policy, Direction.INGRESS, n)) for n in range(3))
    assert render_chain(rules)[-1].text.endswith(' NetworkPolicy shop/web ingress"')
    other = RuleSpec((), DROP, 'b"\\\n\udcff' + "ä" * 300)
    (_, last) = render_chain((other,))
    assert "\n" not in last.text
    assert len(last.text.encode()) < 300
    assert hashes(read([last.text])) == [last.hash]


def test_another_text_is_another_seal() -> None:
    """A policy's name in it would be wrong for ever."""
    one, two = (render_chain((RuleSpec((), DROP, why),)) for why in ("a", "b"))
    assert one[0].hash == two[0].hash
    assert one[1].hash != two[1].hash
