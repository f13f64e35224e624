"""Selectors: what is parsed matches as Calico's documentation says, by an oracle that evaluates a tree."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.selector import parse

KEYS = ("rack", "a/b.c-d_e", "in", "not", "contains", "has", "all", "0")
VALUES = ("", "r1", "r2", "rack1", "it's", 'a "b"', "a && b", "1")
LABELS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=4)
BLANKS = st.sampled_from(["", " ", "\t", "  "])

comparisons = st.tuples(
    st.sampled_from(["==", "!=", "contains", "starts with", "ends with"]),
    st.sampled_from(KEYS),
    st.sampled_from(VALUES),
)
memberships = st.tuples(
    st.sampled_from(["in", "not in"]), st.sampled_from(KEYS), st.lists(st.sampled_from(VALUES), max_size=3)
)
leaves = st.one_of(
    st.just(("all",)),
    st.just(("global",)),
    st.tuples(st.just("has"), st.sampled_from(KEYS)),
    comparisons,
    memberships,
)
trees: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("!"), inner),
        st.tuples(st.sampled_from(["&&", "||"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=6,
)


def quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def written(tree: Any, blank: str) -> str:
    """The tree as a selector with every parenthesis that it may need."""
    match tree:
        case ("all",) | ("global",):
            return f"{tree[0]}({blank})"
        case ("has", key):
            return f"has({blank}{key}{blank})"
        case ("!", inner):
            return f"!{blank}({written(inner, blank)})"
        case ("&&" | "||", parts):
            return f"{blank}{tree[0]}{blank}".join(f"({written(part, blank)})" for part in parts)
        case ("in" | "not in", key, values):
            return f"{key} {tree[0]}{blank}{{{','.join(map(quoted, values))}}}"
        case (operator, key, value):
            return f"{key} {operator}{blank}{quoted(value)}"
    raise AssertionError(tree)


def holds(tree: Any, labels: dict[str, str]) -> bool:
    """The oracle: case by case."""
    match tree:
        case ("all",) | ("global",):
            return True
        case ("has", key):
            return key in labels
        case ("!", inner):
            return not holds(inner, labels)
        case ("&&", parts):
            return all(holds(part, labels) for part in parts)
        case ("||", parts):
            return any(holds(part, labels) for part in parts)
        case ("in", key, values):
            return key in labels and labels[key] in values
        case ("not in", key, values):
            return key not in labels or labels[key] not in values
        case ("==", key, value):
            return key in labels and labels[key] == value
        case ("!=", key, value):
            return key not in labels or labels[key] != value
        case ("contains", key, value):
            return key in labels and value in labels[key]
        case ("starts with", key, value):
            return key in labels and labels[key][: len(value)] == value
        case ("ends with", key, value):
            return key in labels and (not value or labels[key][-len(value) :] == value)
    raise AssertionError(tree)


@given(trees, LABELS, BLANKS)
def test_it_matches_as_the_oracle_says_and_so_does_its_text(
    tree: Any, labels: dict[str, str], blank: str
) -> None:
    selector = parse(written(tree, blank))
    assert selector.matches(labels) == holds(tree, labels)
    assert parse(str(selector)).matches(labels) == holds(tree, labels)


@given(st.text("rackhsinotl()!&|={}'\", \t01", max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        selector = parse(text)
    except ValueError as error:
        refused = str(error)
    else:
        refused = "at character" if str(parse(str(selector))) == str(selector) else "read back as another one"
    assert "at character" in refused


@pytest.mark.parametrize(
    ("text", "labels", "matched"),
    [
        ("", {}, True),
        ("  ", {"a": "b"}, True),
        ("a == 'b' || c == 'd' && e == 'f'", {"a": "b"}, True),
        ("(a == 'b' || c == 'd') && e == 'f'", {"a": "b"}, False),
        ("!!has(a)", {"a": ""}, True),
        ("!has(a) && b in {'1', \"2\",}", {"b": "2"}, True),
        ("a in {}", {"a": ""}, False),
        ("a not in {}", {}, True),
        ("route-reflector == 'true'", {"route-reflector": "true"}, True),
        ("projectcalico.org/rack starts with 'r'", {"projectcalico.org/rack": "r1"}, True),
        ("a contains'b'&&c notin{'d'}", {"a": "abc"}, True),
        ("in in {'in'}", {"in": "in"}, True),
    ],
)
def test_examples(text: str, labels: dict[str, str], matched: bool) -> None:
    assert parse(text).matches(labels) is matched


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "expected an operator after the label a at character 2, where it ends"),
        ("a = 'b'", "expected an operator after the label a at character 3: \"= 'b'\""),
        ("a == b", "expected a text in quotes at character 6: 'b'"),
        ("a == 'b", 'unexpected character at character 6: "\'b"'),
        ("a in 'b'", "expected { at character 6"),
        ("a in {'b'", "expected } at character 10, where it ends"),
        ("(a == 'b'", "expected ) at character 10, where it ends"),
        ("a == 'b' c == 'd'", "expected && or || or the end at character 10"),
        ("all()all()", "expected && or || or the end at character 6"),
        ("all ()", "expected an operator after the label all at character 5: '()'"),
        ("&& all()", "expected a label, all(), global(), has(label) or ( at character 1"),
        ("a starts 'b'", "expected an operator after the label a at character 3"),
        ("has()", "expected an operator after the label has at character 4"),
        ("(" * 60 + "all()" + ")" * 60, "nested too deeply at character 52"),
        ("é == 'a'", "unexpected character at character 1"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)
