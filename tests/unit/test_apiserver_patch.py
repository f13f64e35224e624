from __future__ import annotations

from typing import Any

import pytest

from lab.apiserver.errors import ApiError
from lab.apiserver.patch import StrategicMerge, json_patch, merge_patch

ITEM = {"type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "string"}}}
SCHEMA = {
    "type": "object",
    "properties": {
        "keyed": {
            "type": "array",
            "items": ITEM,
            "x-kubernetes-patch-strategy": "merge",
            "x-kubernetes-patch-merge-key": "name",
        },
        "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-patch-strategy": "merge"},
        "whole": {"type": "array", "items": ITEM},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


@pytest.mark.parametrize(
    ("operations", "result"),
    [
        ([{"op": "add", "path": "/a", "value": 1}], {"a": 1, "l": [1, 2]}),
        ([{"op": "add", "path": "/l/1", "value": 9}], {"l": [1, 9, 2]}),
        ([{"op": "add", "path": "/l/-", "value": 9}], {"l": [1, 2, 9]}),
        ([{"op": "remove", "path": "/l/0"}], {"l": [2]}),
        ([{"op": "replace", "path": "/l", "value": 0}], {"l": 0}),
        ([{"op": "copy", "from": "/l/0", "path": "/c"}], {"l": [1, 2], "c": 1}),
        ([{"op": "move", "from": "/l", "path": "/m"}], {"m": [1, 2]}),
        ([{"op": "add", "path": "/x~1y~0z", "value": 1}], {"l": [1, 2], "x/y~z": 1}),
        ([{"op": "test", "path": "/l/0", "value": 1}], {"l": [1, 2]}),
        ([{"op": "add", "path": "", "value": {"new": True}}], {"new": True}),
    ],
)
def test_json_patch(operations: Any, result: Any) -> None:
    document = {"l": [1, 2]}
    assert json_patch(document, operations) == result
    assert document == {"l": [1, 2]}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/absent"},
        {"op": "replace", "path": "/absent", "value": 1},
        {"op": "add", "path": "/l/7", "value": 1},
        {"op": "add", "path": "/l/x", "value": 1},
        {"op": "add", "path": "l", "value": 1},
        {"op": "add", "path": "/l"},
        {"op": "test", "path": "/l/0", "value": 2},
        {"op": "invent", "path": "/l"},
        {"path": "/l"},
        {"op": "remove", "path": "/l/-1"},
        {"op": "remove", "path": "/l/-"},
        {"op": "remove", "path": ""},
        {"op": "add", "path": "/l/01", "value": 1},
        {"op": "add", "path": 5, "value": 1},
        {"op": "add", "path": None, "value": 1},
        {"op": ["add"], "path": "/l", "value": 1},
        {"op": "move", "from": "/absent", "path": "/l"},
        {"op": "move", "from": 7, "path": "/l"},
        {"op": "move", "path": "/l"},
        {"op": "copy", "path": "/l"},
        {"op": "test", "path": "/l/0", "value": True},
        {"op": "test", "path": "/l/0"},
        {"op": "add", "path": "/l/0/x", "value": True},
        {"op": "replace", "path": "/l/x/y", "value": True},
        {"op": "test", "path": "/absent/x", "value": 1},
        {},
    ],
)
def test_a_json_patch_that_does_not_apply_is_422(operation: Any) -> None:
    with pytest.raises(ApiError) as error:
        json_patch({"l": [1, 2]}, [operation])
    assert error.value.code == 422


@pytest.mark.parametrize("operations", [{}, [1], "x", None])
def test_a_malformed_json_patch_is_400(operations: Any) -> None:
    with pytest.raises(ApiError) as error:
        json_patch({}, operations)
    assert error.value.code == 400


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "b"}, ["c"], ["c"]),
    ],
)
def test_merge_patch_as_in_rfc_7396(document: Any, patch: Any, result: Any) -> None:
    assert merge_patch(document, patch) == result


def strategic(document: Any, patch: Any) -> Any:
    return StrategicMerge({}).apply(document, patch, SCHEMA)


def item(name: str, value: str = "") -> dict[str, str]:
    return {"name": name, "value": value}


@pytest.mark.parametrize(
    ("patch", "result"),
    [
        ([item("b", "new")], [item("a"), item("b", "new")]),
        ([item("c")], [item("a"), item("b"), item("c")]),
        ([{"name": "a", "$patch": "delete"}], [item("b")]),
        ([{"$patch": "replace"}, item("z")], [item("z")]),
        ([{"name": "a", "value": None}], [{"name": "a"}, item("b")]),
    ],
)
def test_strategic_merge_of_a_keyed_list(patch: Any, result: Any) -> None:
    assert strategic({"keyed": [item("a"), item("b")]}, {"keyed": patch}) == {"keyed": result}


@pytest.mark.parametrize(
    ("patch", "result"),
    [
        ({"whole": [item("c")]}, {"whole": [item("c")], "set": ["x", "y"], "map": {"a": "1", "b": "2"}}),
        ({"set": ["z"]}, {"whole": [item("a")], "set": ["x", "y", "z"], "map": {"a": "1", "b": "2"}}),
        (
            {"$deleteFromPrimitiveList/set": ["x"]},
            {"whole": [item("a")], "set": ["y"], "map": {"a": "1", "b": "2"}},
        ),
        ({"map": {"a": None}}, {"whole": [item("a")], "set": ["x", "y"], "map": {"b": "2"}}),
        (
            {"map": {"$patch": "replace", "c": "3"}},
            {"whole": [item("a")], "set": ["x", "y"], "map": {"c": "3"}},
        ),
        ({"$retainKeys": ["map"], "map": {"c": "3"}}, {"map": {"a": "1", "b": "2", "c": "3"}}),
        (
            {"$setElementOrder/set": ["y", "x"]},
            {"whole": [item("a")], "set": ["y", "x"], "map": {"a": "1", "b": "2"}},
        ),
    ],
)
def test_strategic_merge(patch: Any, result: Any) -> None:
    document = {"whole": [item("a")], "set": ["x", "y"], "map": {"a": "1", "b": "2"}}
    assert strategic(document, patch) == result


def test_element_order_of_a_keyed_list() -> None:
    patch = {"$setElementOrder/keyed": [{"name": "c"}, {"name": "a"}], "keyed": [item("c")]}
    merged = strategic({"keyed": [item("a"), item("b")]}, patch)
    assert [entry["name"] for entry in merged["keyed"]] == ["c", "a", "b"]


@pytest.mark.parametrize(
    "patch", [[], "x", {"keyed": [{"value": "no key"}]}, {"keyed": ["text"]}, {"map": {"$patch": "invent"}}]
)
def test_a_malformed_strategic_patch_is_400(patch: Any) -> None:
    with pytest.raises(ApiError) as error:
        strategic({"keyed": [item("a")]}, patch)
    assert error.value.code == 400
