"""Schemas of built-in kinds from the official client's models, and decoding by them as the Go types decode."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kubernetes.client import models

from lab.apiserver.errors import bad_request
from lab.apiserver.kinds import Obj, Schema
from lab.apiserver.merge_keys import ATOMIC_MAPS, ATOMIC_STRUCTS, LISTS, QUANTITY_MAPS

REF = "#/components/schemas/"
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
ANY: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
INT_OR_STRING: Schema = {
    "x-kubernetes-int-or-string": True,
    "oneOf": [{"type": "integer"}, {"type": "string"}],
    "format": "int-or-string",
}

_META_MODELS = frozenset({"ObjectMeta", "ManagedFieldsEntry", "OwnerReference", "LabelSelector",
                          "LabelSelectorRequirement", "Condition", "ListMeta"})  # fmt: skip
_MODEL_NAME = re.compile(r"(?:Core|Events|Discovery)?V\d+(?:(?:alpha|beta)\d+)?(?P<name>[A-Z]\w*)")
_SCALARS: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer", "format": "int64"},
    "float": {"type": "number", "format": "double"},
    "bool": {"type": "boolean"},
    "bytes": {"type": "string", "format": "byte"},
    "datetime": {"type": "string", "format": "date-time"},
}


class ModelSchemas:
    """Collects the components that the kinds of one group and version need."""

    def __init__(self, package: str) -> None:
        """``package``: the prefix of component names, e.g. ``io.k8s.api.networking.v1``."""
        self._package = package
        self.components: dict[str, Schema] = {
            QUANTITY: {"oneOf": [{"type": "string"}, {"type": "number"}]},
        }

    def ref(self, model: str) -> Schema:
        """``$ref`` to the component of a model class (``V1Pod``), made when first asked for."""
        match = _MODEL_NAME.fullmatch(model)
        short = match["name"] if match else model
        name = (META if short in _META_MODELS else f"{self._package}.") + short
        if name not in self.components:
            self.components[name] = {}  # models refer to each other in circles
            self.components[name].update(self._struct(getattr(models, model), short))
        return {"$ref": REF + name}

    def _struct(self, model: Any, short: str) -> Schema:
        by_alias = {info.serialization_alias or attr: info for attr, info in model.model_fields.items()}
        properties = {}
        needed = []
        for attribute, type_text in model.openapi_types.items():
            name = model.attribute_map[attribute]
            info = by_alias.get(name)
            annotation = repr(info.annotation) if info else ""
            node = self._node(type_text, annotation)
            if name in QUANTITY_MAPS and type_text == "Dict[str, str]":
                node = {"type": "object", "additionalProperties": {"$ref": REF + QUANTITY}}
            if (short, name) in ATOMIC_MAPS:
                node["x-kubernetes-map-type"] = "atomic"
            properties[name] = self._described(node | LISTS.get((short, name), {}), info)
            if info is not None and info.is_required():
                needed.append(name)
        if short in {"ContainerPort", "ServicePort"}:
            properties["protocol"]["default"] = "TCP"
        struct: Schema = {
            "type": "object",
            "description": _first_paragraph(model.__doc__),
            "properties": properties,
        }
        if needed:
            struct["required"] = needed
        if short in ATOMIC_STRUCTS:
            struct["x-kubernetes-map-type"] = "atomic"
        return struct

    @staticmethod
    def _described(node: Schema, info: Any) -> Schema:
        if info is None or not info.description:
            return node
        if "$ref" in node:
            node = {"allOf": [node], "default": {}}
        return {"description": info.description} | node

    def _node(self, type_text: str, annotation: str) -> Schema:
        if type_text in _SCALARS:
            return dict(_SCALARS[type_text])
        if type_text == "object":
            return dict(INT_OR_STRING if "int" in annotation and "str" in annotation else ANY)
        if found := re.fullmatch(r"List\[(.+)\]", type_text):
            return {"type": "array", "items": self._node(found[1], annotation)}
        if found := re.fullmatch(r"Dict\[str, (.+)\]", type_text):
            return {"type": "object", "additionalProperties": self._node(found[1], annotation)}
        if type_text == "V1JSONSchemaProps":
            return dict(ANY)
        return self.ref(type_text)


def _first_paragraph(doc: str | None) -> str:
    return (doc or "").split("Attributes:")[0].strip()


def resolve(schema: Schema, components: Mapping[str, Schema]) -> Schema:
    """The schema a node stands for: follows ``$ref`` and the single ``allOf`` that carries a description."""
    if "allOf" in schema and len(schema["allOf"]) == 1 and "properties" not in schema:
        schema = schema["allOf"][0]
    reference = schema.get("$ref")
    return components[reference.removeprefix(REF)] if reference else schema


def ref_name(schema: Schema) -> str:
    """Last part of the component a node refers to, or an empty text: the Go type's name."""
    if "allOf" in schema and len(schema["allOf"]) == 1:
        schema = schema["allOf"][0]
    return str(schema.get("$ref", "")).rpartition(".")[2]


class GoDecoder:
    """Decodes one object as a Go struct would: unknown fields and null vanish, empty lists and maps too."""

    def __init__(self, components: Mapping[str, Schema]) -> None:
        self._components = components
        self.unknown: list[str] = []
        """Paths of fields the kind does not have, as strict decoding reports them."""

    def decode(self, obj: Obj, schema: Schema) -> Obj:
        """A new object; 400 where a value has the wrong JSON type."""
        decoded: Obj = self._value(obj, schema, "", ref_name(schema), "")
        return decoded

    def _value(self, value: Any, node: Schema, path: str, struct: str, go_path: str) -> Any:
        schema = resolve(node, self._components)
        if schema.get("x-kubernetes-int-or-string"):
            self._expect(value, (int, str), schema, node, struct, go_path)
            return value
        if "oneOf" in schema:
            return self._quantity(value, node, struct, go_path)
        kind = schema.get("type")
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return value
        if "properties" in schema:
            self._expect(value, dict, schema, node, struct, go_path)
            return self._fields(value, schema, path, ref_name(node) or struct, go_path)
        if kind == "array":
            self._expect(value, list, schema, node, struct, go_path)
            return [
                self._value(item, schema["items"], f"{path}[{i}]", struct, go_path)
                for i, item in enumerate(value)
            ]
        if kind == "object":
            self._expect(value, dict, schema, node, struct, go_path)
            inner = schema["additionalProperties"]
            return {key: self._entry(item, inner, path, key, struct, go_path) for key, item in value.items()}
        return self._scalar(value, schema, node, struct, go_path)

    def _entry(self, item: Any, inner: Schema, path: str, key: str, struct: str, go_path: str) -> Any:
        """A null in a Go map of strings is the empty string."""
        return "" if item is None else self._value(item, inner, f"{path}.{key}", struct, go_path)

    def _fields(self, value: Obj, schema: Schema, path: str, struct: str, go_path: str) -> Obj:
        fields: Obj = {}
        for name, item in value.items():
            inner = schema["properties"].get(name)
            here = f"{path}.{name}" if path else name
            if inner is None:
                self.unknown.append(here)
                continue
            if item is None:
                continue
            decoded = self._value(item, inner, here, struct, f"{go_path}.{name}" if go_path else name)
            if decoded in ([], {}) and not self._is_struct(inner):
                continue
            fields[name] = decoded
        return fields

    def _is_struct(self, node: Schema) -> bool:
        schema = resolve(node, self._components)
        return "properties" in schema or "x-kubernetes-preserve-unknown-fields" in schema

    def _scalar(self, value: Any, schema: Schema, node: Schema, struct: str, go_path: str) -> Any:
        match schema.get("type"):
            case "string":
                self._expect(value, str, schema, node, struct, go_path)
            case "integer":
                if isinstance(value, float) and value.is_integer():
                    return int(value)
                self._expect(value, int, schema, node, struct, go_path)
            case "number":
                self._expect(value, (int, float), schema, node, struct, go_path)
            case "boolean":
                if not isinstance(value, bool):
                    raise self._mismatch(value, schema, node, struct, go_path)
        return value

    def _quantity(self, value: Any, node: Schema, struct: str, go_path: str) -> str:
        self._expect(value, (str, int, float), {}, node, struct, go_path)
        return str(value)

    def _expect(self, value: Any, types: Any, schema: Schema, node: Schema, struct: str, go_path: str) -> None:
        if not isinstance(value, types) or isinstance(value, bool):
            raise self._mismatch(value, schema, node, struct, go_path)

    def _mismatch(self, value: Any, schema: Schema, node: Schema, struct: str, go_path: str) -> Exception:
        names = {str: "string", bool: "bool", dict: "object", list: "array", int: "number", float: "number"}
        got = names.get(type(value), "null")
        if got == "number" and isinstance(value, float):
            got = f"number {value}"
        return bad_request(
            f"json: cannot unmarshal {got} into Go struct field {struct}.{go_path} of type "
            f"{self._go_type(schema, node)}"
        )

    def _go_type(self, schema: Schema, node: Schema) -> str:
        if name := ref_name(node):
            return "resource.Quantity" if name == "Quantity" else f"v1.{name}"
        if schema.get("x-kubernetes-int-or-string"):
            return "intstr.IntOrString"
        match schema.get("type"):
            case "array":
                return "[]" + self._go_type(resolve(schema["items"], self._components), schema["items"])
            case "object" if "additionalProperties" in schema:
                inner = schema["additionalProperties"]
                return "map[string]" + self._go_type(resolve(inner, self._components), inner)
            case "integer":
                return "int32"
            case "boolean":
                return "bool"
            case "number":
                return "float64"
            case "string" if schema.get("format") == "date-time":
                return "v1.Time"
        return "string"
