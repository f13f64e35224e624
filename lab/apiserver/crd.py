"""CustomResourceDefinitions: checked when written, served at once, and gone with all their objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from lab.apiserver.builtin import field_labels
from lab.apiserver.cel import CelError, compiled
from lab.apiserver.columns import AGE, NAME, since
from lab.apiserver.errors import FieldError, forbidden, invalid, not_supported, required
from lab.apiserver.kinds import Column, Obj, Resource, Schema, Strategy, Version
from lab.apiserver.metadata import dns1035_label, dns_subdomain, now
from lab.apiserver.schema import META, REF, ModelSchemas
from lab.apiserver.validate import immutable

_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_FORBIDDEN = ("$ref", "definitions", "dependencies", "id", "patternProperties", "uniqueItems")
_NOT_IN_JUNCTORS = ("type", "additionalProperties", "default", "description", "nullable")
_KEYWORDS: dict[str, Any] = {
    **dict.fromkeys(("type", "format", "pattern", "description"), str),
    **dict.fromkeys(("properties", "not"), dict),
    "x-kubernetes-validations": list,
    **dict.fromkeys(("required", "enum", "allOf", "anyOf", "oneOf", "x-kubernetes-list-map-keys"), list),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), int),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), (int, float)),
    **dict.fromkeys(("items", "additionalProperties"), (dict, bool)),
}
_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_APPROVED = "api-approved.kubernetes.io"
_APPROVAL_RULES = "https://github.com/kubernetes/enhancements/pull/1111"


def crd_strategy() -> Strategy:
    """How definitions are written."""
    return Strategy(_default, _prepare, _validate, field_labels=field_labels())


def _default(obj: Obj) -> None:
    spec = obj.setdefault("spec", {})
    names = spec.setdefault("names", {})
    names.setdefault("singular", names.get("kind", "").lower())
    names.setdefault("listKind", names.get("kind", "") + "List" if names.get("kind") else "")
    spec.setdefault("conversion", {"strategy": "None"})


def _prepare(new: Obj, old: Obj | None) -> None:
    """The status that a real server's controllers would set a moment later."""
    _default(new)
    if old is not None and old.get("status", {}).get("conditions"):
        new["status"] = dict(old["status"])
    else:
        reasons = {"NamesAccepted": ("NoConflicts", "no conflicts found"),
                   "Established": ("InitialNamesAccepted", "the initial names have been accepted")}  # fmt: skip
        conditions = [
            {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
            for kind, (reason, message) in reasons.items()
        ]
        new["status"] = {"conditions": conditions, "storedVersions": []}
    new["status"]["acceptedNames"] = new["spec"]["names"]
    stored = new["status"].get("storedVersions") or []
    current = [v.get("name") for v in new["spec"].get("versions") or [] if v.get("storage")]
    new["status"]["storedVersions"] = stored + [name for name in current if name not in stored]


def _validate(obj: Obj, old: Obj | None) -> list[FieldError]:
    spec = obj["spec"]
    names, versions = spec["names"], spec.get("versions") or []
    errors = [required(f"spec.names.{field}") for field in ("plural", "kind") if not names.get(field)]
    expected = f"{names.get('plural')}.{spec.get('group')}"
    if obj["metadata"]["name"] != expected:
        why = 'must be spec.names.plural+"."+spec.group'
        errors.append(invalid("metadata.name", obj["metadata"]["name"], why))
    group = spec.get("group", "")
    errors += (
        [invalid("spec.group", group, p) for p in dns_subdomain(group)] if group else [required("spec.group")]
    )
    errors += _validate_approval(group, obj["metadata"].get("annotations") or {})
    if "." not in group:
        errors.append(invalid("spec.group", group, "should be a domain with at least one dot"))
    for field in ("plural", "singular"):
        errors += [
            invalid(f"spec.names.{field}", names.get(field, ""), p) for p in dns1035_label(names.get(field, ""))
        ]
    if spec.get("scope") not in {"Cluster", "Namespaced"}:
        errors.append(not_supported("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced")))
    if sum(bool(version.get("storage")) for version in versions) != 1:
        errors.append(invalid("spec.versions", "...", "must have exactly one version marked as storage version"))
    if (spec["conversion"] or {}).get("strategy") != "None":
        errors.append(forbidden("spec.conversion.strategy", "this server converts by strategy None only"))
    for index, version in enumerate(versions):
        errors += _validate_version(version, f"spec.versions[{index}]")
    if old is not None:
        errors += immutable(spec.get("scope"), old["spec"].get("scope"), "spec.scope")
        for field in ("plural", "kind"):
            errors += immutable(names.get(field), old["spec"]["names"].get(field), f"spec.names.{field}")
    return errors


def _validate_approval(group: str, annotations: Obj) -> list[FieldError]:
    """Groups of the Kubernetes community need its word (kubernetes/enhancements 1111)."""
    if not f".{group}".endswith((".k8s.io", ".kubernetes.io")):
        return []
    path, value = f"metadata.annotations[{_APPROVED}]", annotations.get(_APPROVED, "")
    if not value:
        why = f'protected groups must have approval annotation "{_APPROVED}", see {_APPROVAL_RULES}'
        return [required(path, why)]
    if value.startswith("unapproved") or urlsplit(value).netloc:
        return []
    why = (
        'protected groups must have approval annotation with either a URL or a reason starting with "unapproved"'
    )
    return [invalid(path, value, f"{why}, see {_APPROVAL_RULES}")]


def _validate_version(version: Obj, path: str) -> list[FieldError]:
    name = version.get("name", "")
    errors = [invalid(f"{path}.name", name, problem) for problem in dns1035_label(name)]
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    here = f"{path}.schema.openAPIV3Schema"
    if not isinstance(schema, dict):
        return [*errors, required(here, "schemas are required")]
    if schema.get("type") != "object":
        errors.append(invalid(f"{here}.type", schema.get("type", ""), "must be object at the root"))
    _structural(schema, here, errors)
    for index, column in enumerate(version.get("additionalPrinterColumns") or []):
        errors += _validate_column(column, f"{path}.additionalPrinterColumns[{index}]")
    for index, field in enumerate(version.get("selectableFields") or []):
        if not re.fullmatch(r"(\.\w+)+", field.get("jsonPath", "")):
            where = f"{path}.selectableFields[{index}].jsonPath"
            errors.append(invalid(where, field.get("jsonPath", ""), "must be a path of plain fields"))
    return errors


def _validate_column(column: Obj, path: str) -> list[FieldError]:
    errors = [required(f"{path}.{name}") for name in ("name", "type", "jsonPath") if not column.get(name)]
    try:
        json_path(column.get("jsonPath", ""))
    except ValueError as error:
        errors.append(invalid(f"{path}.jsonPath", column.get("jsonPath", ""), str(error)))
    return errors


def _structural(schema: Schema, path: str, errors: list[FieldError]) -> None:
    """The rules that make a schema structural; appends what breaks them."""
    if problems := _malformed(schema, path):
        errors += problems
        return
    kind = schema.get("type")
    if not kind and not schema.get(_INT_OR_STRING) and not schema.get(_PRESERVE):
        errors.append(required(f"{path}.type", "must not be empty for specified object fields"))
    if kind and kind not in _TYPES:
        errors.append(not_supported(f"{path}.type", kind, _TYPES))
    errors += [forbidden(f"{path}.{name}", f"{name} is not supported") for name in _FORBIDDEN if name in schema]
    properties, additional = schema.get("properties"), schema.get("additionalProperties")
    if properties and additional:
        errors.append(
            forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
        )
    if kind == "array" and not isinstance(schema.get("items"), dict):
        errors.append(required(f"{path}.items", "must be specified"))
    if "pattern" in schema:
        try:
            re.compile(schema["pattern"])
        except re.error as error:
            errors.append(
                invalid(
                    f"{path}.pattern",
                    schema["pattern"],
                    f"must be a valid regular expression, but isn't: {error}",
                )
            )
    if schema.get("x-kubernetes-list-type") == "map" and not schema.get("x-kubernetes-list-map-keys"):
        errors.append(
            required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
        )
    errors += _validate_rules(schema.get("x-kubernetes-validations"), f"{path}.x-kubernetes-validations")
    for name, inner in (properties or {}).items():
        _structural(inner, f"{path}.properties[{name}]", errors)
    if isinstance(additional, dict):
        _structural(additional, f"{path}.additionalProperties", errors)
    if isinstance(schema.get("items"), dict):
        _structural(schema["items"], f"{path}.items", errors)
    if not schema.get(_INT_OR_STRING):
        _junctors(schema, path, errors)


def _validate_rules(rules: Any, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, rule in enumerate(rules or ()):
        here = f"{path}[{index}].rule"
        text = rule.get("rule", "")
        if not text:
            errors.append(required(here, "rule is not specified"))
            continue
        try:
            compiled(text)
        except CelError as error:
            errors.append(invalid(here, text, f"compilation failed: {error}"))
    return errors


def _malformed(schema: Any, path: str) -> list[FieldError]:
    """Keywords whose values have the wrong JSON type: nothing may rely on them further down."""
    if not isinstance(schema, dict):
        return [invalid(path, schema, "must be an object")]
    wrong = [name for name in _KEYWORDS.keys() & schema.keys() if not isinstance(schema[name], _KEYWORDS[name])]
    return [invalid(f"{path}.{name}", schema[name], "has the wrong type") for name in sorted(wrong)]


def _junctors(schema: Schema, path: str, errors: list[FieldError]) -> None:
    branches = [(f"{path}.{name}[{i}]", branch) for name in ("allOf", "anyOf", "oneOf")
                for i, branch in enumerate(schema.get(name) or [])]  # fmt: skip
    if isinstance(schema.get("not"), dict):
        branches.append((f"{path}.not", schema["not"]))
    for here, branch in branches:
        if problems := _malformed(branch, here):
            errors += problems
            continue
        errors += [
            forbidden(f"{here}.{name}", "must be empty to be structural")
            for name in _NOT_IN_JUNCTORS
            if name in branch
        ]


def resource_of(crd: Obj) -> Resource:
    """The resource that a valid definition defines."""
    spec = crd["spec"]
    names = spec["names"]
    versions = sorted(spec["versions"], key=lambda version: _priority(version["name"]))
    return Resource(
        group=spec["group"],
        plural=names["plural"],
        singular=names["singular"],
        kind=names["kind"],
        namespaced=spec["scope"] == "Namespaced",
        versions=[_version(spec, version) for version in versions],
        storage_version=next(version["name"] for version in versions if version.get("storage")),
        strategy=Strategy(field_labels=field_labels(*_selectable(versions))),
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        list_kind=names["listKind"],
    )


def _selectable(versions: Sequence[Obj]) -> list[str]:
    fields = [field["jsonPath"] for version in versions for field in version.get("selectableFields") or []]
    return [field.lstrip(".") for field in fields]


def _priority(name: str) -> tuple[int, int, int, str]:
    """Sort key of KEP version priority: v2, v1, v1beta2, v1beta1, v1alpha1, then the rest."""
    found = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", name)
    if found is None:
        return (3, 0, 0, name)
    stage = {None: 0, "beta": 1, "alpha": 2}[found[2]]
    return (stage, -int(found[1]), -int(found[3] or 0), name)


def _version(spec: Obj, version: Obj) -> Version:
    schemas = ModelSchemas(META.rstrip("."))
    meta = schemas.ref("V1ObjectMeta")
    root = dict(version["schema"]["openAPIV3Schema"])
    root["properties"] = (root.get("properties") or {}) | {
        "apiVersion": {
            "type": "string",
            "description": "APIVersion defines the versioned schema of this object.",
        },
        "kind": {"type": "string", "description": "Kind is the REST resource this object represents."},
        "metadata": {"allOf": [meta], "description": "Standard object's metadata."},
    }
    component = ".".join([*reversed(spec["group"].split(".")), version["name"], spec["names"]["kind"]])
    schemas.components[component] = root
    return Version(
        name=version["name"],
        schema={"$ref": REF + component},
        components=schemas.components,
        builtin=False,
        columns=_columns(version),
        status="status" in (version.get("subresources") or {}),
        served=bool(version.get("served")),
    )


def _columns(version: Obj) -> list[Column]:
    listed = version.get("additionalPrinterColumns")
    if not listed:
        return [NAME, AGE]
    return [NAME, *(_column(column) for column in listed)]


def _column(column: Obj) -> Column:
    read = json_path(column["jsonPath"])
    kind = column.get("type", "string")

    def cell(obj: Obj) -> object:
        values = read(obj)
        if not values:
            return None
        if kind == "date":
            return since(values[0])
        return values[0] if kind in {"integer", "number", "boolean"} else ",".join(map(str, values))

    return Column(column["name"], cell, kind, column.get("format", ""), column.get("description", ""),
                  column.get("priority", 0))  # fmt: skip


_STEP = re.compile(
    r"""\.(?P<name>[\w\-]+)|\[(?P<index>\d+|\*)\]|\[['"](?P<quoted>[^'"]+)['"]\]"""
    r"""|\[\?\(@\.(?P<key>[\w\-]+)\s*==\s*['"](?P<value>[^'"]*)['"]\)\]"""
)


def json_path(text: str) -> Callable[[Any], list[Any]]:
    """A reader for the JSON paths of printer columns: fields, indexes, ``[*]``, ``[?(@.type=="Ready")]``.

    ValueError for any other path.
    """
    steps, position = [], 0
    plain = text.replace("\\.", "\0")
    while position < len(plain):
        found = _STEP.match(plain, position)
        if found is None:
            raise ValueError(f"is not a simple JSON path: {text!r}")
        steps.append(
            {key: value.replace("\0", ".") for key, value in found.groupdict().items() if value is not None}
        )
        position = found.end()
    if not steps:
        raise ValueError("is not a JSON path")

    def read(value: Any) -> list[Any]:
        values = [value]
        for step in steps:
            values = [inner for outer in values for inner in _step(outer, step)]
        return [inner for inner in values if inner is not None]

    return read


def _step(value: Any, step: dict[str, str]) -> list[Any]:
    name = step.get("name") or step.get("quoted")
    if name is not None:
        return [value[name]] if isinstance(value, dict) and name in value else []
    if not isinstance(value, list):
        return []
    if "key" in step:
        return [item for item in value if isinstance(item, dict) and item.get(step["key"]) == step["value"]]
    if step["index"] == "*":
        return value
    return value[int(step["index"]) : int(step["index"]) + 1]
