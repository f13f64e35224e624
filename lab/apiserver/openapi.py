"""OpenAPI documents: v3 per group and version, and the least of v2 that old clients need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from lab.apiserver.discovery import version_info
from lab.apiserver.kinds import Obj, Resource, Schema, Version
from lab.apiserver.registry import Registry
from lab.apiserver.rest import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from lab.apiserver.schema import REF

_PATCH_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation", "force")
_WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")


def index(registry: Registry) -> Obj:
    """GET /openapi/v3: one address per group and version; the hash changes with the kinds served."""
    paths = {}
    for group, versions in registry.groups().items():
        for version in versions:
            path = f"apis/{group}/{version}" if group else f"api/{version}"
            text = f"{path} {registry.generation}"
            digest = hashlib.sha256(text.encode()).hexdigest().upper()
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return {"paths": paths}


def document(registry: Registry, group: str, version: str) -> Obj | None:
    """GET /openapi/v3/api/v1 or /openapi/v3/apis/GROUP/VERSION; None when there is no such version."""
    found = registry.of_group_version(group, version)
    if not found:
        return None
    paths: Obj = {}
    components: dict[str, Schema] = {}
    for resource, served in found:
        name = served.schema["$ref"].removeprefix(REF)
        kind = {"x-kubernetes-group-version-kind": [_gvk(resource, served)]}
        components = {**served.components, **components} | {name: served.components[name] | kind}
        paths.update(_paths(resource, served))
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version_info()["gitVersion"]},
        "paths": paths,
        "components": {"schemas": components},
    }


def _gvk(resource: Resource, version: Version) -> Obj:
    return {"group": resource.group, "kind": resource.kind, "version": version.name}


def base_path(resource: Resource, version: Version) -> str:
    """``/apis/GROUP/VERSION[/namespaces/{namespace}]/PLURAL``."""
    root = f"/apis/{resource.group}/{version.name}" if resource.group else f"/api/{version.name}"
    return (
        f"{root}/namespaces/{{namespace}}/{resource.plural}"
        if resource.namespaced
        else f"{root}/{resource.plural}"
    )


def _paths(resource: Resource, version: Version) -> Iterator[tuple[str, Obj]]:
    collection = base_path(resource, version)
    gvk = _gvk(resource, version)

    def operation(action: str, parameters: tuple[str, ...] = ()) -> Obj:
        listed = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in parameters]
        return {
            "parameters": listed,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        }

    kinds = [JSON_PATCH, MERGE_PATCH, APPLY_PATCH, *([STRATEGIC_PATCH] if version.builtin else [])]
    patch = operation("patch", _PATCH_PARAMETERS)
    patch["requestBody"] = {"content": {kind: {"schema": {"type": "object"}} for kind in kinds}}
    yield collection, {"get": operation("list"), "post": operation("post", _WRITE_PARAMETERS)}
    item = {
        "get": operation("get"),
        "put": operation("put", _WRITE_PARAMETERS),
        "patch": patch,
        "delete": operation("delete", ("dryRun", "gracePeriodSeconds", "propagationPolicy")),
    }
    yield f"{collection}/{{name}}", item
    if version.status:
        yield f"{collection}/{{name}}/status", {key: item[key] for key in ("get", "put", "patch")}


def v2_document() -> Obj:
    """GET /openapi/v2 as JSON: without definitions kubectl skips its own validation and leaves it to us."""
    return {
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version_info()["gitVersion"]},
        "paths": {},
        "definitions": {},
    }


def v2_protobuf(registry: Registry) -> bytes:
    """The same as gnostic's openapi.v2.Document.

    It lists one PATCH with ``dryRun`` per kind, which is what kubectl up to 1.26 looks for before it sends
    ``--dry-run=server``. Field numbers: openapiv2/OpenAPIv2.proto of google/gnostic-models.
    """
    info = _text(1, "Kubernetes") + _text(2, version_info()["gitVersion"])
    paths = b""
    for resource in registry:
        for version in resource.versions:
            item = base_path(resource, version) + "/{name}"
            gvk = "".join(f"{key}: {value!r}\n" for key, value in _gvk(resource, version).items())
            query = _text(4, "dryRun")
            parameter = _field(1, _field(2, _field(3, query)))
            extension = _text(1, "x-kubernetes-group-version-kind") + _field(2, _text(2, gvk))
            operation = _field(8, parameter) + _field(13, extension)
            paths += _field(2, _text(1, item) + _field(2, _field(8, operation)))
    return _text(1, "2.0") + _field(2, info) + _field(8, paths)


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode())


def _field(number: int, payload: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
