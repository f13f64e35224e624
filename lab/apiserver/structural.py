"""Custom resources: pruning, defaulting and validation by structural schemas (KEP-20200307, CRD v1).

Wording of validation follows kube-openapi, which a real server uses.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from lab.apiserver.cel import CelError, compiled, is_transition
from lab.apiserver.errors import FieldError, against_rule, bad_request, invalid, not_supported, required, too_many
from lab.apiserver.kinds import Obj, Schema, Version
from lab.apiserver.schema import GoDecoder, resolve

_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_EMBEDDED = "x-kubernetes-embedded-resource"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_IDENTITY = ("apiVersion", "kind", "metadata")


class Structural:
    """One version of a custom resource. ``unknown`` collects the paths that pruning removed."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._schema = resolve(version.schema, version.components)
        self.unknown: list[str] = []

    def prune(self, obj: Obj) -> Obj:
        """Without unknown fields, ObjectMeta decoded; a new document."""
        metadata = self._metadata(obj["metadata"])
        pruned: Obj = self._pruned(obj, self._schema, "", root=True)
        return pruned | {"metadata": metadata}

    def _metadata(self, metadata: Any) -> Obj:
        if not isinstance(metadata, dict):
            raise bad_request("metadata must be an object")
        decoder = GoDecoder(self._version.components)
        node = self._schema["properties"]["metadata"]
        decoded = decoder.decode({"metadata": metadata}, {"properties": {"metadata": node}})
        self.unknown += decoder.unknown
        found: Obj = decoded.get("metadata", {})
        return found

    def _pruned(self, value: Any, schema: Schema, path: str, root: bool = False) -> Any:
        if isinstance(value, dict):
            return self._pruned_map(value, schema, path, root or bool(schema.get(_EMBEDDED)))
        if isinstance(value, list) and isinstance(items := schema.get("items"), dict):
            return [self._pruned(item, items, f"{path}[{i}]") for i, item in enumerate(value)]
        return value

    def _pruned_map(self, value: Obj, schema: Schema, path: str, identity: bool) -> Obj:
        properties = schema.get("properties", {})
        additional = schema.get("additionalProperties")
        kept: Obj = {}
        for name, item in value.items():
            here = f"{path}.{name}" if path else name
            if identity and name in _IDENTITY:
                kept[name] = item
            elif name in properties:
                kept[name] = self._pruned(item, properties[name], here)
            elif isinstance(additional, dict):
                kept[name] = self._pruned(item, additional, here)
            elif additional or schema.get(_PRESERVE):
                kept[name] = item
            else:
                self.unknown.append(here)
        return kept

    def default(self, obj: Obj) -> None:
        """Fill in the schema's defaults, in place; a null where a default exists and null is not allowed goes."""
        self._default(obj, self._schema)

    def _default(self, value: Any, schema: Schema) -> None:
        if isinstance(value, list):
            for item in value:
                self._default(item, schema.get("items") or {})
        if not isinstance(value, dict):
            return
        for name, inner in schema.get("properties", {}).items():
            if "default" not in inner or "$ref" in inner or "allOf" in inner:
                continue
            if name not in value or (value[name] is None and not inner.get("nullable")):
                value[name] = copy.deepcopy(inner["default"])
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                self._default(item, inner)

    def validate(self, obj: Obj, old: Obj | None = None) -> list[FieldError]:
        """The causes that make the object invalid, in place of ``old`` where there is one."""
        errors: list[FieldError] = []
        for name, node in self._schema.get("properties", {}).items():
            if name in obj and name not in _IDENTITY:
                _validate(obj[name], node, name, errors)
        errors += [required(name) for name in self._schema.get("required", ()) if name not in obj]
        if not errors:
            # Rules may rely on the schema: they are asked only where it is kept.
            _rules(obj, old, self._schema, "", errors)
        return errors


def _validate(value: Any, schema: Schema, path: str, errors: list[FieldError]) -> None:
    """Append what is wrong with ``value``."""
    if value is None:
        if not schema.get("nullable") and schema.get("type"):
            errors.append(_bad_type(value, schema["type"], path))
        return
    if not _type_fits(value, schema):
        wanted = schema.get("type") or "integer,string"
        errors.append(_bad_type(value, wanted, path))
        return
    if "enum" in schema and value not in schema["enum"]:
        choices = [item if isinstance(item, str) else json.dumps(item) for item in schema["enum"]]
        errors.append(not_supported(path, value, choices))
    if isinstance(value, str):
        _string(value, schema, path, errors)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _number(value, schema, path, errors)
    elif isinstance(value, list):
        _array(value, schema, path, errors)
    elif isinstance(value, dict):
        _object(value, schema, path, errors)
    _combined(value, schema, path, errors)


def _rules(value: Any, old: Any, schema: Schema, path: str, errors: list[FieldError]) -> None:
    """Append the validation rules that a value, or a part of it, does not keep.

    Items of lists have no old value here: rules of theirs that compare with it are not asked.
    """
    for rule in schema.get("x-kubernetes-validations", ()):
        if old is None and is_transition(rule["rule"]):
            continue
        try:
            kept = compiled(rule["rule"])(value, old)
            why = rule.get("message") or f"failed rule: {rule['rule']}"
        except CelError as error:
            kept, why = False, f"rule evaluation error: {error}"
        if not kept:
            errors.append(against_rule(path or "<nil>", value, why))
    if isinstance(value, dict):
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                before = old.get(name) if isinstance(old, dict) else None
                _rules(item, before, inner, f"{path}.{name}".lstrip("."), errors)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _rules(item, None, schema.get("items") or {}, f"{path}[{index}]", errors)


def _type_fits(value: Any, schema: Schema) -> bool:
    if schema.get(_INT_OR_STRING):
        return isinstance(value, int | str) and not isinstance(value, bool)
    match schema.get("type"):
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            return whole and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
    return True


def _bad_type(value: Any, wanted: str, path: str) -> FieldError:
    names = {str: "string", bool: "boolean", dict: "object", list: "array", int: "integer", float: "number"}
    return invalid(path, names.get(type(value), "null"),
                   f'{path} in body must be of type {wanted}: "{names.get(type(value), "null")}"')  # fmt: skip


def _string(value: str, schema: Schema, path: str, errors: list[FieldError]) -> None:
    if len(value) < schema.get("minLength", 0):
        errors.append(invalid(path, value, f"{path} in body should be at least {schema['minLength']} chars long"))
    if len(value) > schema.get("maxLength", math.inf):
        longest = schema["maxLength"]
        errors.append(FieldError(path, "FieldValueTooLong", f"Too long: may not be more than {longest} bytes"))
    if "pattern" in schema and not re.search(schema["pattern"], value):
        errors.append(invalid(path, value, f"{path} in body should match '{schema['pattern']}'"))
    check = _FORMATS.get(schema.get("format", ""))
    if check is not None:
        try:
            check(value)
        except ValueError:
            wanted = schema["format"]
            errors.append(invalid(path, value, f'{path} in body must be of type {wanted}: "{value}"'))


def _network(version: int) -> Callable[[str], object]:
    def check(text: str) -> object:
        if ipaddress.ip_address(text).version != version:
            raise ValueError(text)
        return None

    return check


_FORMATS: dict[str, Callable[[str], object]] = {
    "date-time": datetime.fromisoformat,
    "ipv4": _network(4),
    "ipv6": _network(6),
    "cidr": lambda text: ipaddress.ip_network(text, strict=False),
}


def _number(value: float, schema: Schema, path: str, errors: list[FieldError]) -> None:
    if "minimum" in schema:
        low, open_end = schema["minimum"], schema.get("exclusiveMinimum")
        if value < low or (open_end and value == low):
            than = "greater than" if open_end else "greater than or equal to"
            errors.append(invalid(path, value, f"{path} in body should be {than} {low}"))
    if "maximum" in schema:
        high, open_end = schema["maximum"], schema.get("exclusiveMaximum")
        if value > high or (open_end and value == high):
            than = "less than" if open_end else "less than or equal to"
            errors.append(invalid(path, value, f"{path} in body should be {than} {high}"))
    if (step := schema.get("multipleOf")) and value % step:
        errors.append(invalid(path, value, f"{path} in body should be a multiple of {step}"))


def _array(value: list[Any], schema: Schema, path: str, errors: list[FieldError]) -> None:
    if len(value) < schema.get("minItems", 0):
        errors.append(
            invalid(path, len(value), f"{path} in body should have at least {schema['minItems']} items")
        )
    if len(value) > schema.get("maxItems", math.inf):
        errors.append(too_many(path, len(value), schema["maxItems"]))
    keys = schema.get("x-kubernetes-list-map-keys")
    seen: list[Any] = []
    for index, item in enumerate(value):
        _validate(item, schema.get("items") or {}, f"{path}[{index}]", errors)
        identity = {key: item.get(key) for key in keys} if keys and isinstance(item, dict) else item
        if schema.get("x-kubernetes-list-type") in {"map", "set"} and identity in seen:
            errors.append(FieldError(f"{path}[{index}]", "FieldValueDuplicate",
                                     f"Duplicate value: {json.dumps(identity)}"))  # fmt: skip
        seen.append(identity)


def _object(value: Obj, schema: Schema, path: str, errors: list[FieldError]) -> None:
    errors += [required(f"{path}.{name}") for name in schema.get("required", ()) if name not in value]
    if len(value) < schema.get("minProperties", 0):
        least = schema["minProperties"]
        errors.append(invalid(path, len(value), f"{path} in body should have at least {least} properties"))
    if len(value) > schema.get("maxProperties", math.inf):
        errors.append(too_many(path, len(value), schema["maxProperties"]))
    for name, item in value.items():
        inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
        if isinstance(inner, dict):
            _validate(item, inner, f"{path}.{name}", errors)


def _combined(value: Any, schema: Schema, path: str, errors: list[FieldError]) -> None:
    def problems(branch: Schema) -> list[FieldError]:
        found: list[FieldError] = []
        _validate(value, branch, path, found)
        return found

    for branch in schema.get("allOf", ()):
        errors += problems(branch)
    if not schema.get(_INT_OR_STRING):
        if "anyOf" in schema and all(problems(branch) for branch in schema["anyOf"]):
            errors.append(invalid(path, value, f"{path} in body must validate at least one schema (anyOf)"))
        if "oneOf" in schema and sum(not problems(branch) for branch in schema["oneOf"]) != 1:
            errors.append(invalid(path, value, f"{path} in body must validate one and only one schema (oneOf)"))
    if "not" in schema and not problems(schema["not"]):
        errors.append(invalid(path, value, f"{path} in body must not validate the schema (not)"))
