"""The exact text that goes to iptables-restore."""

from __future__ import annotations

from felix_py.dataplane.iptables_restore import Change, in_dependency_order, transaction
from felix_py.dataplane.iptables_text import Rule, render_chain
from felix_py.refs import ChainRef, HookRef
from felix_py.ruleset.model import RuleSpec
from policy.model import Family
from tests.support.rules import rule_of

WEB = rule_of(
    *("-p", "tcp", "-m", "multiport", "--dports", "80,8000:8080"),
    *("-m", "set", "--match-set", "felix4-x", "src"),
    *("-m", "comment", "--comment", 'shop/web "rule" 1\n'),
    *("-g", "FELIX-ALLOW"),
)


def chain(table: str, name: str, *rules: RuleSpec) -> Change:
    rendered = render_chain(rules)
    return Change(
        ChainRef(Family.V4, table, name), tuple(f"-A {name} {rule.text}" for rule in rendered), (), rendered
    )


def gone(table: str, name: str, *targets: str) -> Change:
    before = tuple(Rule("0" * 16, f"-j {target}") for target in targets)
    return Change(ChainRef(Family.V4, table, name), (), before, None)


def hook(table: str, name: str, *lines: str) -> Change:
    return Change(HookRef(Family.V4, table, name), lines, (), ())


GOLDEN = r"""*raw
:FELIX-SOURCE - [0:0]
-A FELIX-SOURCE -m set --match-set felix4-source src,src -j RETURN
-A FELIX-SOURCE -j DROP
-A FELIX-SOURCE -m comment --comment "felix:1a01323470954304 4ae1d5b43bf36235"
-D PREROUTING -m comment --comment felix:0000000000000000 -j FELIX-SOURCE
-I PREROUTING 1 -m comment --comment felix:1111111111111111 -j FELIX-SOURCE
COMMIT
*filter
:FELIX-ALLOW - [0:0]
:FELIX-OLD - [0:0]
:FELIX-P-1 - [0:0]
-A FELIX-ALLOW -j MARK --set-xmark 0x10000/0x10000
-A FELIX-ALLOW -j RETURN
-A FELIX-ALLOW -m comment --comment "felix:47fb23e7fdbeff4e 74922b5e76622c14"
-A FELIX-P-1 -p tcp -m multiport --dports 80,8000:8080 -m set --match-set felix4-x src -g FELIX-ALLOW
-A FELIX-P-1 -j RETURN
-A FELIX-P-1 -m comment --comment "felix:946b87d926115f34 12bb498076622c14 shop/web \"rule\" 1?"
-X FELIX-OLD
COMMIT
"""


def test_transaction() -> None:
    changes = [
        hook(
            *("raw", "PREROUTING"),
            "-D PREROUTING -m comment --comment felix:0000000000000000 -j FELIX-SOURCE",
            "-I PREROUTING 1 -m comment --comment felix:1111111111111111 -j FELIX-SOURCE",
        ),
        chain("filter", "FELIX-P-1", WEB),
        gone("filter", "FELIX-OLD"),
        chain("filter", "FELIX-ALLOW", rule_of("-j", "MARK", "--set-xmark", "0x10000/0x10000")),
        chain(
            *("raw", "FELIX-SOURCE"),
            rule_of("-m", "set", "--match-set", "felix4-source", "src,src", "-j", "RETURN"),
            rule_of("-j", "DROP"),
        ),
    ]
    assert transaction(changes) == GOLDEN


def test_dependency_order() -> None:
    changes = [
        gone("filter", "FELIX-A-GONE"),
        gone("filter", "FELIX-B-GONE", "FELIX-A-GONE"),
        hook("filter", "FORWARD", "-I FORWARD 1 -j FELIX-USER"),
        chain("filter", "FELIX-LEAF", rule_of("-j", "DROP")),
        chain("filter", "FELIX-USER", rule_of("-g", "FELIX-LEAF"), rule_of("-j", "FELIX-Z")),
        chain("filter", "FELIX-Z", rule_of("-j", "ACCEPT")),
    ]
    order = [change.place[1] for change in in_dependency_order(changes)]
    assert order.index("FELIX-LEAF") < order.index("FELIX-USER")
    assert order.index("FELIX-Z") < order.index("FELIX-USER")
    assert order.index("FELIX-B-GONE") < order.index("FELIX-A-GONE")
    assert sorted(order) == sorted(change.place[1] for change in changes)


def test_dependency_order_of_a_loop_has_everything() -> None:
    changes = [
        chain("filter", "FELIX-A", rule_of("-j", "FELIX-B")),
        chain("filter", "FELIX-B", rule_of("-j", "FELIX-A")),
        chain("filter", "FELIX-C", rule_of("-j", "FELIX-A"), rule_of("-j", "FELIX-C")),
    ]
    assert {change.place[1] for change in in_dependency_order(changes)} == {"FELIX-A", "FELIX-B", "FELIX-C"}
