"""Decodes the few protobuf bodies that kubectl sends: objects made by ``kubectl create KIND NAME``.

kubectl uses protobuf for built-in kinds where it has a typed client. The numbers are the field tags of the
generated.proto files in k8s.io/api and k8s.io/apimachinery.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lab.apiserver.errors import bad_request
from lab.apiserver.kinds import Obj

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"


@dataclass(frozen=True, slots=True)
class _Field:
    """One field: its JSON name and type (a scalar's name or a message table); ``many``: list or map."""

    name: str
    type: Any = "string"
    many: str = ""


_Message = dict[int, _Field]

_OBJECT_META: _Message = {
    1: _Field("name"),
    2: _Field("generateName"),
    3: _Field("namespace"),
    5: _Field("uid"),
    6: _Field("resourceVersion"),
    11: _Field("labels", many="map"),
    12: _Field("annotations", many="map"),
    14: _Field("finalizers", many="list"),
}
_INT_OR_STRING: _Message = {1: _Field("type", "int"), 2: _Field("int", "int"), 3: _Field("string")}
_SERVICE_PORT: _Message = {
    1: _Field("name"),
    2: _Field("protocol"),
    3: _Field("port", "int"),
    4: _Field("targetPort", _INT_OR_STRING),
    5: _Field("nodePort", "int"),
    6: _Field("appProtocol"),
}
_SERVICE_SPEC: _Message = {
    1: _Field("ports", _SERVICE_PORT, "list"),
    2: _Field("selector", many="map"),
    3: _Field("clusterIP"),
    4: _Field("type"),
    5: _Field("externalIPs", many="list"),
    7: _Field("sessionAffinity"),
    8: _Field("loadBalancerIP"),
    9: _Field("loadBalancerSourceRanges", many="list"),
    10: _Field("externalName"),
    11: _Field("externalTrafficPolicy"),
}
_REFERENCE: _Message = {
    1: _Field("kind"),
    2: _Field("namespace"),
    3: _Field("name"),
    4: _Field("uid"),
    5: _Field("apiVersion"),
}
_EVENT: _Message = {
    1: _Field("metadata", _OBJECT_META),
    2: _Field("involvedObject", _REFERENCE),
    3: _Field("reason"),
    4: _Field("message"),
    9: _Field("type"),
}
_DELETE_OPTIONS: _Message = {
    1: _Field("gracePeriodSeconds", "int"),
    2: _Field("preconditions", {1: _Field("uid"), 2: _Field("resourceVersion")}),
    4: _Field("propagationPolicy"),
    5: _Field("dryRun", many="list"),
}
_KINDS: dict[tuple[str, str], _Message] = {
    ("v1", "Namespace"): {
        1: _Field("metadata", _OBJECT_META),
        2: _Field("spec", {1: _Field("finalizers", many="list")}),
    },
    ("v1", "ConfigMap"): {
        1: _Field("metadata", _OBJECT_META),
        2: _Field("data", many="map"),
        3: _Field("binaryData", "bytes", "map"),
        4: _Field("immutable", "bool"),
    },
    ("v1", "Secret"): {
        1: _Field("metadata", _OBJECT_META),
        2: _Field("data", "bytes", "map"),
        3: _Field("type"),
        4: _Field("stringData", many="map"),
        5: _Field("immutable", "bool"),
    },
    ("v1", "ServiceAccount"): {1: _Field("metadata", _OBJECT_META)},
    ("v1", "Service"): {1: _Field("metadata", _OBJECT_META), 2: _Field("spec", _SERVICE_SPEC)},
    ("v1", "Event"): _EVENT,
    ("v1", "DeleteOptions"): _DELETE_OPTIONS,
    ("meta.k8s.io/v1", "DeleteOptions"): _DELETE_OPTIONS,
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): {
        2: _Field("spec", {1: _Field("resourceAttributes", {1: _Field("namespace"), 2: _Field("verb")})}),
    },
    ("policy/v1", "Eviction"): {
        1: _Field("metadata", _OBJECT_META),
        2: _Field("deleteOptions", _DELETE_OPTIONS),
    },
}
_UNKNOWN: _Message = {
    1: _Field("typeMeta", {1: _Field("apiVersion"), 2: _Field("kind")}),
    2: _Field("raw", "raw"),
}


def decode(body: bytes) -> Obj:
    """The object in a ``runtime.Unknown`` envelope; 400 for a body or a kind that cannot be read."""
    if not body.startswith(_MAGIC):
        raise bad_request("the body is not Kubernetes protobuf: the magic prefix is missing")
    try:
        envelope = _message(body[len(_MAGIC) :], _UNKNOWN)
        identity: Obj = envelope.get("typeMeta", {})
        key = (identity.get("apiVersion", ""), identity.get("kind", ""))
        table = _KINDS.get(key)
        if table is None:
            raise bad_request(
                f"this server reads no protobuf of {key[0]}, Kind={key[1]}: send it as JSON or YAML "
                "(kubectl: add --dry-run=client -o yaml | kubectl apply -f -)"
            )
        return identity | _message(envelope.get("raw", b""), table)
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise bad_request(f"the protobuf body could not be read: {error}") from error


def _message(data: bytes, table: _Message) -> Obj:
    result: Obj = {}
    for number, value in _fields(data):
        field = table.get(number)
        if field is None:
            continue
        if field.many == "map":
            entry = _message(value, {1: _Field("key"), 2: _Field("value", field.type)})
            result.setdefault(field.name, {})[entry.get("key", "")] = entry.get("value", "")
        elif field.many == "list":
            result.setdefault(field.name, []).append(_value(value, field.type))
        else:
            result[field.name] = _value(value, field.type)
    return {name: value for name, value in result.items() if value not in ("", {})}


def _value(value: Any, kind: Any) -> Any:
    if kind is _INT_OR_STRING:
        either = _message(value, _INT_OR_STRING)
        return either.get("string", "") if either.get("type") else either.get("int", 0)
    if isinstance(kind, dict):
        return _message(value, kind)
    match kind:
        case "string":
            return value.decode()
        case "bytes":
            return base64.b64encode(value).decode()
        case "bool":
            return bool(value)
        case "int":
            return value - (1 << 64) if value >> 63 else value
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value): an int for a varint, bytes for everything with a length."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        match tag & 7:
            case 0:
                value, position = _varint(data, position)
                yield tag >> 3, value
            case 2:
                length, position = _varint(data, position)
                if position + length > len(data):
                    raise ValueError("a field is longer than the message")
                yield tag >> 3, data[position : position + length]
                position += length
            case 1:
                position += 8
            case 5:
                position += 4
            case wire:
                raise ValueError(f"wire type {wire} is not used by Kubernetes")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
