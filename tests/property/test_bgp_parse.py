"""Any JSON in any place of a resource: the object is taken or refused, and nothing of it is lost in silence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp import parse
from bgp.parse import Bad
from tests.support.bgp_resources import CONFIGURATION, FILTER, PEER

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "0", "::", "%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KINDS = {
    parse.CONFIGURATION: (parse.configuration, "default", CONFIGURATION),
    parse.PEER: (parse.peer, "tor", PEER),
    parse.FILTER: (parse.filter_, "f", FILTER),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in items for place in places(one, (*path, key)))]


def with_(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def outcome(kind: str, name: str, spec: Any) -> Any:
    """The record, or the problems."""
    try:
        return KINDS[kind][0](name, spec)
    except Bad as error:
        return error.problems


def told(found: Any, kind: str, name: str) -> bool:
    """Whether these are problems, each with all that people need."""
    return bool(found) and all(one.field and one.reason and (one.kind, one.name) == (kind, name) for one in found)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_one_place_is_something_else(kind: str, data: st.DataObject) -> None:
    _, name, whole = KINDS[kind]
    path = data.draw(st.sampled_from(places(whole)))
    found = outcome(kind, name, with_(whole, path, data.draw(JSON)))
    assert not isinstance(found, tuple) or told(found, kind, name)


@pytest.mark.parametrize("kind", KINDS)
@given(name=st.text(max_size=10), spec=JSON)
def test_anything_at_all(kind: str, name: str, spec: Any) -> None:
    found = outcome(kind, name, spec)
    assert not isinstance(found, tuple) or told(found, kind, name)


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_counts(kind: str) -> None:
    """Without it the record is another one."""
    read, name, whole = KINDS[kind]
    required = {"peerIP", "asNumber"} if kind == parse.PEER else set()
    for field in whole.keys() - required:
        less = {key: value for key, value in whole.items() if key != field}
        assert read(name, less) != read(name, whole), field
