"""Field sets: which parts of an object a manager owns (KEP-555; structured-merge-diff's FieldsV1).

A path is a tuple of FieldsV1 elements: ``f:name`` a field, ``k:{…}`` an element of a keyed list, ``v:…`` a member
of a set. Lists and maps marked atomic, and lists without a mark, are owned as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lab.apiserver.kinds import Obj, Schema
from lab.apiserver.schema import resolve

Path = tuple[str, ...]

PRESENT = object()
"""Value of a path that only says "this element exists"."""

_SERVER_METADATA = frozenset(
    {"name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation", "selfLink",
     "managedFields", "deletionTimestamp", "deletionGracePeriodSeconds"}
)  # fmt: skip


class Typed:
    """Walks objects by one version's schema."""

    def __init__(self, schema: Schema, components: Mapping[str, Schema]) -> None:
        self._schema = schema
        self._components = components

    def leaves(self, obj: Obj, only_status: bool | None = None) -> dict[Path, Any]:
        """Owned paths and their values. ``only_status`` true/false: just the status / all but the status."""
        found: dict[Path, Any] = {}
        for name, value in obj.items():
            if name in {"apiVersion", "kind"} or (name == "metadata" and not value):
                continue
            if only_status is not None and name != "metadata" and (name == "status") != only_status:
                continue
            content = value
            if name == "metadata":
                content = {key: item for key, item in value.items() if key not in _SERVER_METADATA}
                if not content:
                    continue
            self._walk(content, child(resolve(self._schema, self._components), name), (f"f:{name}",), found)
        return found

    def _walk(self, value: Any, node: Schema, path: Path, found: dict[Path, Any]) -> None:
        schema = resolve(node, self._components)
        if isinstance(value, dict) and value and not is_atomic_map(node, schema):
            for name, item in value.items():
                self._walk(item, child(schema, name), (*path, f"f:{name}"), found)
        elif list_type := _list_type(value, node):
            for item in value:
                here = (*path, self._element(item, node, list_type))
                found[here] = PRESENT
                if list_type == "map":
                    self._walk(item, node["items"], here, found)
        else:
            found[path] = value

    def _element(self, item: Any, node: Schema, list_type: str) -> str:
        return "v:" + _compact(item) if list_type == "set" else "k:" + _compact(self.keys(item, node))

    def keys(self, item: Obj, node: Schema) -> Obj:
        """The identifying fields of an element of a keyed list; an absent one has its default."""
        properties = resolve(node["items"], self._components).get("properties", {})
        keys = {}
        for name in sorted(node["x-kubernetes-list-map-keys"]):
            value = item.get(name, properties.get(name, {}).get("default"))
            if value is not None:
                keys[name] = value
        return keys

    def merge(self, live: Obj, applied: Obj) -> Obj:
        """``applied`` merged into ``live``; a new document that shares no changed part with it."""
        merged: Obj = self._merged(live, applied, self._schema)
        return merged

    def _merged(self, live: Any, applied: Any, node: Schema) -> Any:
        schema = resolve(node, self._components)
        if isinstance(applied, dict) and isinstance(live, dict) and not is_atomic_map(node, schema):
            result = dict(live)
            for name, item in applied.items():
                result[name] = self._merged(live.get(name), item, child(schema, name))
            return result
        kind = _list_type(applied, node)
        if kind == "" or kind != _list_type(live, node):
            return applied
        return self._merged_list(live, applied, node, kind)

    def _merged_list(self, live: list[Any], applied: list[Any], node: Schema, kind: str) -> list[Any]:
        """Applied elements in their order; before each, what stands only in ``live`` before the same element."""
        old = {self._element(item, node, kind): item for item in live}
        new = {self._element(item, node, kind): item for item in applied}
        order = _merged_order(list(old), list(new))
        return [self._merged(old.get(one), new[one], node["items"]) if one in new else old[one] for one in order]

    def remove(self, obj: Obj, paths: Iterable[Path], kept: Iterable[Path]) -> Obj:
        """A new document without ``paths``; a list element stays while something under it is in ``kept``."""
        result: Obj = json.loads(json.dumps(obj))
        kept = set(kept)
        for path in sorted(paths, key=len):  # an element before its fields: without its key it is not found
            if any(other[: len(path)] == path for other in kept):
                continue
            self._remove(result, path, self._schema)
        return result

    def _remove(self, value: Any, path: Path, node: Schema) -> None:
        schema = resolve(node, self._components)
        first, rest = path[0], path[1:]
        if first.startswith("f:"):
            name = first[2:]
            if not isinstance(value, dict) or name not in value:
                return
            if rest:
                self._remove(value[name], rest, child(schema, name))
            if not rest or value[name] in ({}, []):
                del value[name]
            return
        list_type = _list_type(value, node)
        for index, item in enumerate(value if list_type else ()):
            if self._element(item, node, list_type) == first:
                if rest:
                    self._remove(item, rest, node["items"])
                else:
                    del value[index]
                return


def _merged_order(live: list[str], applied: list[str]) -> list[str]:
    """The order that structured-merge-diff gives to the elements of a merged list (merge.go, visitListItems)."""
    shared = [one for one in applied if one in live]
    out: list[str] = []
    rest = list(applied)
    for one in live:
        if one not in applied:
            out.append(one)
        elif shared and one == shared[0]:
            upto = rest.index(one) + 1
            out += rest[:upto]
            del rest[:upto]
            shared = [other for other in shared if other in rest]
    return out + rest


def _list_type(value: Any, node: Schema) -> str:
    """``map`` or ``set`` for a list that merges by element; empty for anything else."""
    kind = node.get("x-kubernetes-list-type")
    if not isinstance(value, list) or kind not in {"map", "set"}:
        return ""
    keyed = kind == "set" or all(isinstance(item, dict) for item in value)
    return str(kind) if keyed else ""


def child(schema: Schema, name: str) -> Schema:
    """The schema node of one field; empty where the schema says nothing."""
    node: Any = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
    return node if isinstance(node, dict) else {}


def is_atomic_map(node: Schema, schema: Schema) -> bool:
    return "atomic" in (node.get("x-kubernetes-map-type"), schema.get("x-kubernetes-map-type"))


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def to_fields_v1(paths: Iterable[Path]) -> Obj:
    """The nested FieldsV1 document; ``.`` marks a path that is owned itself and has owned children."""
    root: Obj = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    return {key: _simplified(value) for key, value in root.items()}


def _simplified(node: Obj) -> Obj:
    if node.keys() == {"."}:
        return {}
    return {key: _simplified(value) if key != "." else {} for key, value in node.items()}


def from_fields_v1(fields: Obj, prefix: Path = ()) -> set[Path]:
    """The owned paths of a FieldsV1 document; malformed parts own nothing."""
    paths: set[Path] = set()
    for element, inner in fields.items():
        if element == ".":
            paths.add(prefix)
        elif isinstance(inner, dict):
            paths |= from_fields_v1(inner, (*prefix, element)) if inner else {(*prefix, element)}
    return paths


def shown(path: Path) -> str:
    """As conflict messages print it: ``.spec.ports[port=80,protocol="TCP"].targetPort``."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        match kind:
            case "f":
                text += f".{rest}"
            case "k":
                pairs = (f"{key}={json.dumps(value)}" for key, value in json.loads(rest).items())
                text += f"[{','.join(pairs)}]"
            case _:
                text += f"[={rest}]"
    return text
