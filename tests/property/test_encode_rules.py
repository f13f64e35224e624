"""Any rule that the plan can emit means the same when its words, or its text, are read again."""

from __future__ import annotations

import ipaddress
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from felix_py.dataplane.iptables_text import render
from felix_py.desired.icmp_errors import PROTOCOL, about_others
from felix_py.ruleset import model as m
from felix_py.ruleset.model import RuleSpec
from felix_py.ruleset.words import parse, parse_text
from policy.ir import Origin
from policy.model import Direction, Family, PolicyKind, PolicyRef
from tests.support.rules import words

NAMES = st.sampled_from(["felix", "eth0", "a.b-c", "0", "x" * 15])
SETS = st.sampled_from(["felix4-source", "felix6-0123456789abcdef", "felix4-ce-0123456789abcdef"])
CHAINS = st.sampled_from(["FELIX-ALLOW", "FELIX-EGRESS-SETS", "FELIX-DE-0123456789abcdef-99"])
FLAGS = st.lists(st.sampled_from(["src", "dst"]), min_size=1, max_size=2).map(tuple)
STATES = st.sets(st.sampled_from(["NEW", "ESTABLISHED", "RELATED", "INVALID"]), min_size=1)
TYPES = st.sets(st.sampled_from(["LOCAL", "UNICAST"]), min_size=1)
BITS = st.integers(0, m.FULL)
SIDES = st.sampled_from([m.SOURCE, m.DESTINATION])
INTERFACES = st.sampled_from([m.IN, m.OUT])
BOTH = st.booleans()


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """In order, and none touches the next."""
    bounds = sorted(draw(st.sets(st.integers(0, 32767), min_size=2, max_size=8)))
    return tuple((2 * low, 2 * (low if draw(BOTH) else beyond - 1)) for low, beyond in pairwise(bounds))


@st.composite
def networks(draw: st.DrawFn, family: Family) -> str:
    address, length = draw(st.integers(0, 2**family.bits - 1)), draw(st.integers(1, family.bits))
    kind = ipaddress.IPv4Network if family is Family.V4 else ipaddress.IPv6Network
    return str(kind((address, length), strict=False))


def matches(family: Family) -> st.SearchStrategy[m.Match]:
    icmp = PROTOCOL[family]
    return st.one_of(
        st.builds(m.InterfaceIs, INTERFACES, NAMES, BOTH, BOTH),
        st.builds(m.AddressIn, SIDES, networks(family), BOTH),
        st.builds(m.ProtocolIs, st.sampled_from([6, 17, 132, icmp.number]), BOTH),
        st.builds(m.PortIn, SIDES, ranges(), BOTH),
        st.builds(m.TCPFlags, st.integers(1, 63), st.integers(0, 63), BOTH),
        st.builds(m.InSet, SETS, FLAGS, BOTH),
        st.builds(m.MarkIs, BITS, BITS, BOTH),
        st.builds(m.StateIn, STATES.map(sorted).map(tuple), BOTH),
        st.builds(m.ICMPType, st.just(icmp.number), st.integers(0, 254), st.none() | st.integers(0, 255), BOTH),
        st.builds(m.InGroup, INTERFACES, BITS, BITS, BOTH),
        st.builds(m.AddressType, SIDES, TYPES.map(sorted).map(tuple), BOTH),
        st.builds(m.Limit.a_second, st.integers(1, 10_000), st.integers(1, 50_000)),
        st.builds(m.HopLimit, st.integers(0, 255), BOTH),
        st.builds(m.ReversePath, BOTH),
        st.just(about_others(family)[-1]),
    )


TARGETS: st.SearchStrategy[m.Target] = st.one_of(
    st.sampled_from([m.ACCEPT, m.DROP, m.RETURN, m.Masquerade(), m.Masquerade(("--random-fully",))]),
    st.builds(m.Jump, CHAINS),
    st.builds(m.Goto, CHAINS),
    st.builds(m.SetMark, BITS, BITS),
    st.builds(m.MapSet, SETS, FLAGS, st.just(("mark",))),
    st.builds(
        m.Log,
        st.integers(0, 65535),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20),
        st.just((("--nflog-size", "128"),)),
    ),
)
ORIGINS = st.builds(
    Origin,
    st.builds(PolicyRef, st.just(PolicyKind.NETWORK), NAMES, NAMES)
    | st.builds(PolicyRef, st.just(PolicyKind.CLUSTER), st.just(""), NAMES),
    st.sampled_from(Direction),
    st.integers(0, 200),
    st.text(max_size=20),
)
RULES = st.sampled_from(Family).flatmap(
    lambda family: st.builds(
        RuleSpec, st.lists(matches(family), max_size=4).map(tuple), TARGETS, ORIGINS | st.text(max_size=50)
    )
)


@given(RULES)
def test_the_words_of_a_rule_mean_the_rule(rule: RuleSpec) -> None:
    again, comments = parse(words(rule))
    assert again.body == rule.body
    assert not again.body.opaque
    assert again.matches == rule.matches, "in the order in which they are tried"
    assert words(again) == words(rule), "the same words, or a rule would be written again"
    assert comments == ()


@given(RULES)
def test_the_text_of_a_rule_means_the_rule(rule: RuleSpec) -> None:
    written = render(rule)
    read = parse_text(written.text)
    assert (read.body, read.hash) == (rule.body, written.hash)


@given(ORIGINS)
def test_a_comment_says_again_which_rule_of_a_policy_it_comes_from(origin: Origin) -> None:
    assert Origin.parse(str(origin)) == origin
