"""The lab's API server and validation rules: what they mean, and that none is silently not applied."""

from __future__ import annotations

from typing import Any

import pytest

from lab.apiserver.cel import CelError, compiled, is_transition

RULE = {"to": [{"pods": {}}, {"networks": ["10.0.0.0/8"]}], "protocols": [{"tcp": {}}]}


@pytest.mark.parametrize(
    ("rule", "value", "holds"),
    [
        ("self.start < self.end", {"start": 1, "end": 2}, True),
        ("self.start < self.end", {"start": 2, "end": 2}, False),
        ("self.a.b == 'x' && self.c != \"y\"", {"a": {"b": "x"}, "c": "z"}, True),
        ("isCIDR(self)", "10.0.0.0/8", True),
        ("isCIDR(self)", "fd00::/8", True),
        ("isCIDR(self)", "10.0.0.0", False),
        ("isCIDR(self)", "10.0.0.0/33", False),
        ("isIP(self) || self == ''", "", True),
        ("size(self) <= 2 && self.size() > 0", [1, 2], True),
        ("self.exists(x, x > 2)", [1, 3], True),
        ("self.all(x, x > 2)", [1, 3], False),
        ("!(self.to.exists(p, has(p.networks)) && has(self.protocols))", RULE, False),
        ("!(self.to.exists(p, has(p.nodes)) && has(self.protocols))", RULE, True),
        ("has(self.a.b)", {"a": {"c": 1}}, False),
        ("!has(self.b) || self.b.c == 1", {"a": 1}, True),
        ("self.missing == 1 || self.a == 1", {"a": 1}, True),
        ("self in ['a', 'b']", "b", True),
        ("self[1] + 1 == 3 && self[0] - 1 == -1", [0, 2], True),
        (
            "self.startsWith('a') && self.endsWith('c') && self.contains('b') && self.matches('^a.c$')",
            "abc",
            True,
        ),
        ("self == 'it\\'s'", "it's", True),
        ("true && !false && null == null", {}, True),
        ("(1 < 2) == true && 1.5 > 1", {}, True),
        ("  self.a\n  == 1  ", {"a": 1}, True),
    ],
)
def test_rules(rule: str, value: Any, holds: bool) -> None:
    assert compiled(rule)(value) is holds


def test_rules_of_a_change() -> None:
    assert is_transition("self == oldSelf")
    assert not is_transition("self.oldSelfish == 1")
    assert compiled("self.a == oldSelf.a && has(oldSelf.b)")({"a": 1}, {"a": 1, "b": 2})
    assert not compiled("self == oldSelf")(1, 2)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("", "unexpected 'end of the rule'"),
        ("self.a ==", "unexpected 'end of the rule'"),
        ("self.a = 1", "token recognition error at: '= 1'"),
        ("self.a b", "unexpected 'b'"),
        ("(self.a", "')' expected"),
        ("quantity(self)", "undeclared reference to 'quantity'"),
        ("self.map(x, x)", "undeclared reference to 'map'"),
        ("self ? 1 : 2", "token recognition error"),
        ("has(self)", "'.' expected"),
        ("self.exists(1, true)", "a name expected"),
        ("import('os')", "undeclared reference to 'import'"),
        ("(" * 5000 + "self" + ")" * 5000, "nested too deeply"),
    ],
)
def test_what_is_not_understood_is_refused(rule: str, words: str) -> None:
    with pytest.raises(CelError, match=words.replace("(", r"\(").replace(")", r"\)")):
        compiled(rule)


@pytest.mark.parametrize(
    ("rule", "value"), [("self.a == 1", {}), ("self.a.b == 1", {"a": 1}), ("self[3] == 1", [])]
)
def test_a_value_that_the_rule_cannot_be_asked_of(rule: str, value: Any) -> None:
    with pytest.raises(CelError):
        compiled(rule)(value)
