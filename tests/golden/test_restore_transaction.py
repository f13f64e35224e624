"""The exact text that goes to iptables-restore."""

from __future__ import annotations

from felix_py.dataplane.iptables_restore import Change, in_dependency_order, transaction
from felix_py.dataplane.iptables_text import Rule, render
from felix_py.records import Words
from felix_py.refs import ChainRef, HookRef
from policy.model import Family

WEB: Words = (
    *("-p", "tcp", "-m", "multiport", "--dports", "80,8000:8080"),
    *("-m", "set", "--match-set", "felix4-x", "src"),
    *("-m", "comment", "--comment", 'shop/web "rule" 1\n'),
    *("-g", "FELIX-ALLOW"),
)


def chain(table: str, name: str, *rules: Words) -> Change:
    rendered = tuple(map(render, rules))
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
-A FELIX-SOURCE -m comment --comment felix:4ae1d5b4804a8eb9 -m set --match-set felix4-source src,src -j RETURN
-A FELIX-SOURCE -m comment --comment felix:3bf36235a7e98f9d -j DROP
-D PREROUTING -m comment --comment felix:0000000000000000 -j FELIX-SOURCE
-I PREROUTING 1 -m comment --comment felix:1111111111111111 -j FELIX-SOURCE
COMMIT
*filter
:FELIX-ALLOW - [0:0]
:FELIX-OLD - [0:0]
:FELIX-P-1 - [0:0]
-A FELIX-ALLOW -m comment --comment felix:74922b5e037299b3 -j MARK --set-xmark 0x10000/0x10000
-A FELIX-P-1 -m comment --comment "felix:2edd95d81ac51ecd shop/web \"rule\" 1?" -p tcp -m multiport --dports 80,8000:8080 -m set --match-set felix4-x src -g FELIX-ALLOW
-X FELIX-OLD
COMMIT
"""  # noqa: E501


def test_transaction() -> None:
    changes = [
        hook(
            *("raw", "PREROUTING"),
            "-D PREROUTING -m comment --comment felix:0000000000000000 -j FELIX-SOURCE",
            "-I PREROUTING 1 -m comment --comment felix:1111111111111111 -j FELIX-SOURCE",
        ),
        chain("filter", "FELIX-P-1", WEB),
        gone("filter", "FELIX-OLD"),
        chain("filter", "FELIX-ALLOW", ("-j", "MARK", "--set-xmark", "0x10000/0x10000")),
        chain(
            *("raw", "FELIX-SOURCE"),
            ("-m", "set", "--match-set", "felix4-source", "src,src", "-j", "RETURN"),
            ("-j", "DROP"),
        ),
    ]
    assert transaction(changes) == GOLDEN


def test_dependency_order() -> None:
    changes = [
        gone("filter", "FELIX-A-GONE"),
        gone("filter", "FELIX-B-GONE", "FELIX-A-GONE"),
        hook("filter", "FORWARD", "-I FORWARD 1 -j FELIX-USER"),
        chain("filter", "FELIX-LEAF", ("-j", "DROP")),
        chain("filter", "FELIX-USER", ("-g", "FELIX-LEAF"), ("-j", "FELIX-Z")),
        chain("filter", "FELIX-Z", ("-j", "ACCEPT")),
    ]
    order = [change.place[1] for change in in_dependency_order(changes)]
    assert order.index("FELIX-LEAF") < order.index("FELIX-USER")
    assert order.index("FELIX-Z") < order.index("FELIX-USER")
    assert order.index("FELIX-B-GONE") < order.index("FELIX-A-GONE")
    assert sorted(order) == sorted(change.place[1] for change in changes)


def test_dependency_order_of_a_loop_has_everything() -> None:
    changes = [
        chain("filter", "FELIX-A", ("-j", "FELIX-B")),
        chain("filter", "FELIX-B", ("-j", "FELIX-A")),
        chain("filter", "FELIX-C", ("-j", "FELIX-A"), ("-j", "FELIX-C")),
    ]
    assert {change.place[1] for change in in_dependency_order(changes)} == {"FELIX-A", "FELIX-B", "FELIX-C"}
