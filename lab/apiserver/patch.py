"""The patch types of the API: JSON patch (RFC 6902), JSON merge patch (RFC 7396), strategic merge patch.

All are pure and return a new document. Strategic merge follows the schema's ``x-kubernetes-patch-*`` marks and
the directives ``$patch``, ``$retainKeys``, ``$deleteFromPrimitiveList/…`` and ``$setElementOrder/…``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from jsonpatch import JsonPatch, JsonPatchException
from jsonpointer import JsonPointerException

from lab.apiserver.errors import ApiError, bad_request
from lab.apiserver.kinds import Obj, Schema
from lab.apiserver.schema import resolve

_DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


def json_patch(document: Obj, operations: Any) -> Any:
    """Apply RFC 6902 operations; 400 for a malformed patch, 422 where one does not apply."""
    if not isinstance(operations, list) or not all(isinstance(op, dict) for op in operations):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    result: Any = copy.deepcopy(document)
    for operation in operations:
        try:
            result = JsonPatch([operation]).apply(result, in_place=True)
        except (JsonPatchException, JsonPointerException, TypeError) as error:
            message = f"the server rejected our request due to an error in our request: {operation}: {error}"
            raise ApiError(422, "Invalid", message) from error
    return result


def merge_patch(document: Any, patch: Any) -> Any:
    """Apply an RFC 7396 merge patch."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


class StrategicMerge:
    """Strategic merge patch by the schemas of one version."""

    def __init__(self, components: Mapping[str, Schema]) -> None:
        self._components = components

    def apply(self, document: Obj, patch: Any, schema: Schema) -> Obj:
        """The patched document; 400 where the patch itself is malformed."""
        if not isinstance(patch, dict):
            raise bad_request("a strategic merge patch must be a JSON object")
        return self._map(document, patch, schema)

    def _map(self, document: Obj, patch: Obj, node: Schema) -> Obj:
        schema = resolve(node, self._components)
        patch = dict(patch)
        match patch.pop("$patch", None):
            case "replace":
                return copy.deepcopy(patch)
            case "delete":
                return {}
            case None | "merge":
                pass
            case other:
                raise bad_request(f"Unknown patch type found: {other}")
        result = dict(document)
        retain = patch.pop("$retainKeys", None)
        if retain is not None:
            result = {key: value for key, value in result.items() if key in retain}
        for key, value in patch.items():
            if not key.startswith("$"):
                self._field(result, key, value, self._child(schema, key), patch.get(_ORDER + key))
        for key, values in patch.items():
            if key.startswith(_DELETE_PRIMITIVES):
                name = key.removeprefix(_DELETE_PRIMITIVES)
                result[name] = [item for item in result.get(name) or [] if item not in values]
        self._order_only(result, patch, schema)
        return result

    @staticmethod
    def _child(schema: Schema, key: str) -> Schema:
        properties = schema.get("properties", {})
        child: Schema = properties.get(key) or schema.get("additionalProperties") or {}
        return child

    def _field(self, result: Obj, key: str, value: Any, node: Schema, order: list[Any] | None) -> None:
        if value is None:
            result.pop(key, None)
            return
        strategies = str(node.get("x-kubernetes-patch-strategy", "")).split(",")
        current = result.get(key)
        if isinstance(value, dict):
            result[key] = self._map(current if isinstance(current, dict) else {}, value, node)
        elif isinstance(value, list) and "merge" in strategies:
            merged = self._list(current or [], value, node)
            result[key] = _ordered(merged, order, node.get("x-kubernetes-patch-merge-key"))
        else:
            result[key] = copy.deepcopy(value)

    def _order_only(self, result: Obj, patch: Obj, schema: Schema) -> None:
        for key, order in patch.items():
            name = key.removeprefix(_ORDER)
            if key.startswith(_ORDER) and name not in patch and result.get(name):
                merge_key = self._child(schema, name).get("x-kubernetes-patch-merge-key")
                result[name] = _ordered(result[name], order, merge_key)

    def _list(self, current: list[Any], patch: list[Any], node: Schema) -> list[Any]:
        merge_key = node.get("x-kubernetes-patch-merge-key")
        if merge_key is None:
            return list(current) + [item for item in patch if item not in current]
        if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
            return [item for item in patch if "$patch" not in item]
        result = list(current)
        for item in patch:
            if not isinstance(item, dict) or merge_key not in item:
                raise bad_request(f"map: {item} does not contain declared merge key: {merge_key}")
            self._element(result, item, merge_key, node["items"])
        return result

    def _element(self, result: list[Any], item: Obj, merge_key: str, node: Schema) -> None:
        found = next((i for i, old in enumerate(result) if old.get(merge_key) == item[merge_key]), None)
        if item.get("$patch") == "delete":
            result[:] = [old for old in result if old.get(merge_key) != item[merge_key]]
        elif found is None:
            result.append(self._map({}, item, node))
        else:
            result[found] = self._map(result[found], item, node)


def _ordered(items: list[Any], order: list[Any] | None, merge_key: str | None) -> list[Any]:
    """Items named by ``$setElementOrder`` in that order; others keep their place behind what preceded them."""
    if order is None:
        return items

    def identity(item: Any) -> Any:
        return item.get(merge_key) if merge_key and isinstance(item, dict) else item

    rank = {identity(item): i for i, item in enumerate(order)}
    placed, last = [], -1
    for position, item in enumerate(items):
        last = rank.get(identity(item), last)
        placed.append((last, identity(item) not in rank, position, item))
    return [entry[3] for entry in sorted(placed, key=lambda entry: entry[:3])]
