"""How rules differ, in words."""

from __future__ import annotations

import pytest

from felix_py.dataplane.differences import (
    chain_difference,
    hook_difference,
    in_the_way,
    stray_chain,
    stray_rules,
)
from felix_py.dataplane.iptables_text import Rule, render
from felix_py.ruleset.model import DROP, SOURCE, AddressIn, Jump, RuleSpec
from tests.support.rules import rule_of

A, B, C = (
    render(RuleSpec((AddressIn(SOURCE, address),), DROP)) for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3")
)
NAMED = render(rule_of("-p", "tcp", "-m", "comment", "--comment", "shop/db rule 1", "-j", "FELIX-ALLOW"))
OTHERS = Rule("", "-s 192.0.2.1/32 -j ACCEPT")
DENIES = Rule("", "-s 192.0.2.1/32 -j DROP")
JUMP = render(rule_of("-j", "FELIX-FORWARD"))
ACCEPT = render(rule_of("-i", "felix+", "-j", "ACCEPT"))


@pytest.mark.parametrize(
    ("wanted", "actual", "words"),
    [
        ([A], None, "missing"),
        ([A, B], [A, B], ""),
        ([A, B], [], "2 rules (-s 10.0.0.1 -j DROP, -s 10.0.0.2 -j DROP) missing"),
        ([A, NAMED], [A], '1 rule (-p tcp -j FELIX-ALLOW "shop/db rule 1") missing'),
        ([A], [OTHERS, A], "1 rule (-s 192.0.2.1/32 -j ACCEPT) too many"),
        ([A], [A, A], "1 rule (-s 10.0.0.1 -j DROP) too many"),
        ([A, B, C], [C, A, B], "1 rule moved"),
        ([A], [B], "1 rule (-s 10.0.0.1 -j DROP) missing; 1 rule (-s 10.0.0.2 -j DROP) too many"),
    ],
)
def test_a_chain(wanted: list[Rule], actual: list[Rule] | None, words: str) -> None:
    assert chain_difference(wanted, actual) == words


def test_a_rule_that_was_altered_under_its_hash() -> None:
    other = Rule(A.hash, A.text.replace("DROP", "ACCEPT"))
    assert chain_difference([A], [other], [other]) == "1 rule (-s 10.0.0.1 -j ACCEPT) altered"
    assert hook_difference("filter", [JUMP], [], [JUMP], [JUMP]) == "1 rule (-j FELIX-FORWARD) altered"


def test_a_long_list_is_cut() -> None:
    many = [render(RuleSpec((AddressIn(SOURCE, f"10.0.0.{n}"),), Jump("X" * 200))) for n in range(10)]
    words = chain_difference(many, [])
    assert "and 7 more" in words
    assert len(words) < 500


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        ([ACCEPT], "1 rule (-j FELIX-FORWARD) missing"),
        ([OTHERS, JUMP, ACCEPT], "1 rule (-s 192.0.2.1/32 -j ACCEPT) of others above ours"),
        ([JUMP, ACCEPT, DENIES], "1 rule (-s 192.0.2.1/32 -j DROP) of others behind ours"),
        ([JUMP, JUMP, OTHERS, ACCEPT], "1 rule (-j FELIX-FORWARD) too many"),
        ([ACCEPT, JUMP], "in another order"),
        ([], "2 rules (-j FELIX-FORWARD, -i felix+ -j ACCEPT) missing"),
    ],
)
def test_hooks(actual: list[Rule], words: str) -> None:
    assert hook_difference("filter", [JUMP], [ACCEPT], actual) == words


@pytest.mark.parametrize(
    ("table", "rule", "above", "behind"),
    [
        ("filter", "-s 192.0.2.1/32 -j ACCEPT", True, False),
        ("filter", "-s 192.0.2.1/32 -j DROP", False, True),
        ("filter", "-j REJECT --reject-with icmp-host-prohibited", False, True),
        ("filter", '-m comment --comment "-j ACCEPT" -j LOG --log-prefix x', False, False),
        ("filter", "-m comment --comment -j", False, False),
        ("filter", "-j THEIRS", True, True),
        ("filter", "-g THEIRS", True, True),
        ("filter", "-j RETURN", True, True),
        ("raw", "-j NOTRACK", True, True),
        ("nat", "-j CNI-HOSTPORT-MASQ", False, False),
        ("nat", "-d 10.0.0.0/8 -j ACCEPT", False, False),
    ],
)
def test_who_is_in_the_way(table: str, rule: str, above: bool, behind: bool) -> None:
    others = Rule("", rule)
    found = in_the_way(table, [JUMP], [ACCEPT], [others, JUMP, ACCEPT])
    assert found == ([others] if above else [], [])
    found = in_the_way(table, [JUMP], [ACCEPT], [JUMP, ACCEPT, others])
    assert found == ([], [others] if behind else [])
    assert in_the_way(table, [JUMP], [ACCEPT], [JUMP, others, ACCEPT]) == ([], [])


def test_strays() -> None:
    assert stray_chain([]) == "nobody asked for it"
    assert stray_chain([A]) == "nobody asked for it (1 rule (-s 10.0.0.1 -j DROP))"
    assert stray_rules([A]) == "1 rule (-s 10.0.0.1 -j DROP) that nobody asked for"
