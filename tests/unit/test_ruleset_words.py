"""Rules that mean the same have the same normal form, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_py.dataplane.iptables_text import render
from felix_py.ruleset.compare import Likeness, compare
from felix_py.ruleset.model import (
    DROP,
    Body,
    Goto,
    Jump,
    Log,
    MapSet,
    OpaqueMatch,
    OpaqueTarget,
    PortIn,
    ProtocolIs,
    RuleSpec,
    SetMark,
    TCPFlags,
    Verdict,
)
from felix_py.ruleset.words import BadWords, join, parse, parse_text, split


def body(text: str) -> Body:
    return parse(tuple(split(text)))[0].body


SAME = [
    ("-p tcp -m multiport --dports 80", "-p tcp -m tcp --dport 80", "-p tcp --dport 80:80", "-p 6 --dport 80"),
    ("-p tcp", "-p tcp -m tcp", "-p TCP", "-p 6"),
    ("-p tcp -m multiport --dports 80,443,81", "-p tcp -m multiport --dports 443,80:81"),
    ("-p tcp ! --syn", "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"),
    ("-j MARK --set-xmark 0x1/0x1", "-j MARK --or-mark 1", "-j MARK --set-mark 1/1"),
    ("-j MARK --set-xmark 0x0/0xff", "-j MARK --and-mark 0xffffff00"),
    ("-j MARK --set-xmark 0x5/0xffffffff", "-j MARK --set-mark 5"),
    ("-m mark --mark 16", "-m mark --mark 0x10/0xffffffff", "-m mark --mark 0x10"),
    ("-m conntrack --ctstate RELATED,ESTABLISHED", "-m state --state ESTABLISHED,RELATED"),
    ("-s 10.0.0.1", "-s 10.0.0.1/32", "-s 10.0.0.1/255.255.255.255"),
    ("-s 10.0.0.0/8", "-s 10.1.2.3/8", "-s 10.0.0.0/255.0.0.0"),
    ("-d fd00::/64", "-d fd00:0::1/64", "-d fd00::/ffff:ffff:ffff:ffff::"),
    ("-j DROP", "-s 0.0.0.0/0 -d ::/0 -i + -p all -j DROP", "-j DROP -m comment --comment x"),
    ("-i a -p udp -o b", "-o b -i a -p 17"),
    ("-m set --match-set A src -m mark --mark 1", "-m mark --mark 0x1 -m set --match-set A src"),
    (
        "-p ipv6-icmp -m icmp6 --icmpv6-type 135",
        "-p icmpv6 --icmpv6-type 135",
        "-p 58 -m icmp6 --icmpv6-type 135",
    ),
    ("-p icmp -m icmp --icmp-type any", "-p icmp"),
    ("-m limit --limit 60/minute", "-m limit --limit 1/sec --limit-burst 5"),
    ("-m limit", "-m limit --limit 3/hour --limit-burst 5"),
    ("-j NFLOG", "-j NFLOG --nflog-group 0"),
    ("-j MASQUERADE --random-fully --to-ports 1-2", "-j MASQUERADE --to-ports 1-2 --random-fully"),
]


@pytest.mark.parametrize("texts", SAME, ids=lambda texts: texts[0])
def test_spellings_of_one_rule(texts: tuple[str, ...]) -> None:
    first, *others = map(body, texts)
    assert not first.opaque
    for text, other in zip(texts[1:], others, strict=True):
        assert other == first, text


DIFFERENT = [
    ("-p tcp --dport 80", "-p udp --dport 80"),
    ("-p tcp --dport 80", "-p tcp --sport 80"),
    ("-p tcp --dport 80", "-p tcp ! --dport 80"),
    ("-p tcp -m multiport --ports 80", "-p tcp -m multiport --dports 80"),
    ("-i felix+", "-i felix"),
    ("-i felix+", "-o felix+"),
    ("-i felix+", "! -i felix+"),
    ("-s 10.0.0.0/8", "-s 10.0.0.0/9"),
    ("-s 10.0.0.0/8", "-d 10.0.0.0/8"),
    ("-s 10.0.0.0/8", ""),
    ("! -s 0.0.0.0/0", ""),
    ("-m set --match-set A src", "-m set --match-set B src"),
    ("-m set --match-set A src", "-m set --match-set A dst"),
    ("-m set --match-set A src,src", "-m set --match-set A src,dst"),
    ("-m set --match-set A src", "-m set ! --match-set A src"),
    ("-m mark --mark 1", "-m mark --mark 1/1"),
    ("-m mark --mark 1", "-m mark ! --mark 1"),
    ("-m conntrack --ctstate NEW", "-m conntrack ! --ctstate NEW"),
    ("-j MARK --set-mark 1", "-j MARK --or-mark 1"),
    ("-j ACCEPT", "-j RETURN"),
    ("-j FELIX-ALLOW", "-g FELIX-ALLOW"),
    ("-j SET --map-set A src --map-mark", "-j SET --map-set A src --map-prio"),
    ("-m limit --limit 1/sec", "-m limit --limit 1/min"),
    ("-j NFLOG --nflog-group 1", "-j NFLOG --nflog-group 2"),
    ("-j NFLOG --nflog-prefix a", "-j NFLOG --nflog-prefix b"),
    ("-p tcp --syn", "-p tcp --tcp-flags SYN SYN"),
    # A limit counts only what comes as far as to it.
    ("-m mark --mark 1 -m limit --limit 1/s", "-m limit --limit 1/s -m mark --mark 1"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_rules_that_mean_something_else(one: str, other: str) -> None:
    assert body(one) != body(other)
    assert compare(body(one), body(other)) is Likeness.DIFFERENT


def test_what_a_rule_of_ours_is_made_of() -> None:
    assert body("-p tcp -m multiport --dports 80,8000:8080 -g FELIX-ALLOW") == Body(
        (ProtocolIs(6), PortIn("dst", ((80, 80), (8000, 8080)))), Goto("FELIX-ALLOW")
    )
    assert body("-i felix+ -j SET --map-set felix4-egress src --map-mark").target == MapSet(
        "felix4-egress", ("src",), ("mark",)
    )
    assert body("-j MARK --set-xmark 0x0/0xffff0000").target == SetMark(0, 0xFFFF0000)
    assert body("-p tcp -m tcp ! --syn").matches == (ProtocolIs(6), TCPFlags(0x17, 0x02, negated=True))
    assert body("-m limit --limit 10/sec -j NFLOG --nflog-group 7 --nflog-prefix felix:").target == Log(
        7, "felix:"
    )
    assert body("-j DROP").target == Verdict("DROP")
    assert body("-j FELIX-PE-1").target == Jump("FELIX-PE-1")
    assert body("-m mark --mark 1").target is None


OPAQUE = {
    "-m statistic --mode random --probability 0.5 -j DROP": OpaqueMatch(
        "statistic", ("--mode", "random", "--probability", "0.5")
    ),
    "-m set --match-set A src ! --update-counters -j DROP": OpaqueMatch(
        "set", ("--match-set", "A", "src", "!", "--update-counters")
    ),
    "-m conntrack --ctstate NEW --ctdir REPLY": OpaqueMatch(
        "conntrack", ("--ctstate", "NEW", "--ctdir", "REPLY")
    ),
    "-p tcp -m tcp --tcp-option 7": OpaqueMatch("tcp", ("--tcp-option", "7")),
    "-m mark --mark x": OpaqueMatch("mark", ("--mark", "x")),
    "-p nonsense": OpaqueMatch("protocol", ("nonsense",)),
    "! -f": OpaqueMatch("fragment", ("!", "-f")),
    "-j REJECT --reject-with icmp-port-unreachable": OpaqueTarget(
        "REJECT", ("--reject-with", "icmp-port-unreachable")
    ),
    "-j SET --add-set A src": OpaqueTarget("SET", ("--add-set", "A", "src")),
}


@pytest.mark.parametrize("text", OPAQUE)
def test_what_is_not_understood_is_kept_as_it_is(text: str) -> None:
    assert body(text).opaque == (OPAQUE[text],)


@pytest.mark.parametrize(
    "text", ["!", "-s", "-s nowhere", "--dport 80", "-j A -j B", "80", "-g A --b", "! ! -s 10.0.0.1"]
)
def test_nonsense_is_no_rule_but_no_crash_either(text: str) -> None:
    with pytest.raises(BadWords):
        body(text)
    rule = parse_text(text)
    assert rule.body.opaque
    assert rule.text == text
    assert compare(body("-j DROP"), rule.body) is Likeness.UNKNOWN


def test_a_comment_may_look_like_options() -> None:
    rule = parse_text('-m comment --comment "--dport" -m comment --comment ! -p tcp -j NFLOG --nflog-prefix "-j"')
    assert rule.comment == "--dport !"
    assert rule.body == Body((ProtocolIs(6),), Log(0, "-j"))


def test_the_hash_is_that_of_our_own_comment() -> None:
    ours = "felix:0123456789abcdef"
    assert parse_text(f'-m comment --comment "{ours} shop/db" -j DROP').hash == "0123456789abcdef"
    assert (
        parse_text(f"-m comment --comment other -m comment --comment {ours} -j DROP").hash == "0123456789abcdef"
    )
    assert parse_text(f'-m comment --comment "not {ours}" -j DROP').hash == ""


def test_a_foreign_extension_is_a_difference_and_a_dialect_is_not() -> None:
    wanted = body("-m mark --mark 1 -j ACCEPT")
    assert (
        compare(wanted, body("-m mark --mark 1 -m statistic --mode nth --every 2 -j ACCEPT"))
        is Likeness.DIFFERENT
    )
    assert compare(wanted, body("-m mark --mark 1 -j TPROXY --on-port 1")) is Likeness.DIFFERENT
    assert compare(wanted, body("-m mark --brand one -j ACCEPT")) is Likeness.UNKNOWN
    assert compare(body("-m string --string x -j DROP"), body("-m string --string x --algo bm -j DROP")) is (
        Likeness.UNKNOWN
    )


@pytest.mark.parametrize(
    ("wanted", "altered"),
    [
        (
            '-p icmp -m bpf --bytecode "1,6 0 0 1" -g FELIX-ERROR',
            '-p icmp -m bpf --bytecode "1,6 0 0 1" -j RETURN',
        ),
        (
            '-p icmp -m bpf --bytecode "1,6 0 0 1" -g FELIX-ERROR',
            '-p icmp -m bpf --bytecode "1,6 0 0 0" -g FELIX-ERROR',
        ),
        ("-p icmpv6 -m hl --hl-eq 255 -j RETURN", "-p icmpv6 -m hl --hl-eq 64 -j RETURN"),
        ("-p icmpv6 -m hl --hl-eq 255 -j RETURN", "-p icmpv6 -j RETURN"),
    ],
)
def test_every_match_of_ours_is_understood_so_that_an_altered_rule_is_a_difference(
    wanted: str, altered: str
) -> None:
    assert compare(body(wanted), body(altered)) is Likeness.DIFFERENT


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20), max_size=6))
def test_join_and_split_are_each_other_s_reverse(words: list[str]) -> None:
    assert list(split(join(words))) == words


@given(st.text(max_size=60))
def test_any_comment_leaves_the_meaning_alone(text: str) -> None:
    rule = render(RuleSpec((ProtocolIs(6),), DROP, text))
    parsed = parse_text(rule.text)
    assert parsed.body == body("-p tcp -j DROP")
    assert parsed.hash == rule.hash
