from __future__ import annotations

import pytest

from lab.apiserver.errors import ApiError
from lab.apiserver.selectors import field_matcher, label_matcher, parse_label_selector


def selects(text: str, **labels: str) -> bool:
    matcher = label_matcher(text)
    return matcher is None or matcher({"metadata": {"labels": labels}})


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("a=1", {"a": "1"}, {"a": "2"}),
        ("a==1", {"a": "1"}, {}),
        ("a!=1", {}, {"a": "1"}),
        ("a", {"a": ""}, {}),
        ("!a", {}, {"a": "1"}),
        ("a in (1, 2)", {"a": "2"}, {"a": "3"}),
        ("a notin (1,2)", {}, {"a": "1"}),
        ("a=", {"a": ""}, {"a": "1"}),
        ("a in (x,)", {"a": ""}, {"a": "y"}),
        ("a>5", {"a": "6"}, {"a": "5"}),
        ("a<5", {"a": "4"}, {"a": "words"}),
        ("a=1,b!=2, c", {"a": "1", "c": ""}, {"a": "1", "b": "2", "c": ""}),
        ("example.com/a=x", {"example.com/a": "x"}, {"a": "x"}),
        ("in in (in)", {"in": "in"}, {"in": "notin"}),
    ],
)
def test_label_selectors(text: str, yes: dict[str, str], no: dict[str, str]) -> None:
    assert selects(text, **yes)
    assert not selects(text, **no)


def test_an_empty_selector_selects_everything() -> None:
    assert label_matcher("") is None
    assert field_matcher("", {}) is None


@pytest.mark.parametrize(
    "text",
    ["a in", "a in (", "a in (b", "a in b", ",", "a,", "=a", "a=b=c", "a b", "!", "(a)", "a in (b c)", "a=(b)"],
)
def test_bad_label_selectors(text: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_label_selector(text)
    assert error.value.code == 400


FIELDS = {"x": lambda obj: str(obj["x"]), "y": lambda obj: str(obj["y"])}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("x=1", True),
        ("x==1", True),
        ("x!=1", False),
        ("x=1,y=2", False),
        ("x=1,y!=2", True),
        ("y=a\\,b\\=c", True),
    ],
)
def test_field_selectors(text: str, result: bool) -> None:
    matcher = field_matcher(text, FIELDS)
    assert matcher is not None
    assert matcher({"x": "1", "y": "a,b=c"}) is result


@pytest.mark.parametrize("text", ["x", "z=1", "=1"])
def test_bad_field_selectors(text: str) -> None:
    with pytest.raises(ApiError) as error:
        field_matcher(text, FIELDS)
    assert error.value.code == 400
