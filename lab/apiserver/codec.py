"""From the document a client sent to an object that fits its schema, by the rules of fieldValidation."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from lab.apiserver.errors import ApiError, FieldError, bad_request
from lab.apiserver.kinds import Obj, Resource, Version
from lab.apiserver.schema import GoDecoder
from lab.apiserver.structural import Structural


class FieldValidation(enum.StrEnum):
    """``fieldValidation`` query parameter (KEP-2885)."""

    STRICT = "Strict"
    WARN = "Warn"
    IGNORE = "Ignore"


@dataclass(slots=True)
class Decoded:
    """An object that fits its schema. ``errors``: structural causes that make it invalid (custom resources)."""

    obj: Obj
    unknown: list[str] = field(default_factory=list)
    errors: list[FieldError] = field(default_factory=list)

    @property
    def strict_errors(self) -> list[str]:
        return [f'unknown field "{path}"' for path in self.unknown]


def check_type(body: object, resource: Resource, version: Version) -> Obj:
    """The body as an object of the expected kind; 400 with the real server's words otherwise."""
    if not isinstance(body, dict):
        raise bad_request("the body is not a Kubernetes object: expected a JSON object")
    expected = resource.api_version(version.name)
    api_version, kind = body.get("apiVersion", expected), body.get("kind", resource.kind)
    if kind != resource.kind:
        raise bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}): got kind {kind!r}"
        )
    if api_version != expected:
        raise bad_request(
            f"the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )
    metadata = body.get("metadata")
    if not isinstance(metadata, dict | None):
        raise bad_request("the body is not a Kubernetes object: metadata must be a JSON object")
    return body | {"apiVersion": expected, "kind": kind, "metadata": metadata or {}}


def decode(body: Obj, resource: Resource, version: Version) -> Decoded:
    """Prune and check ``body``; 400 when a field has the wrong JSON type."""
    try:
        if version.builtin:
            decoder = GoDecoder(version.components)
            obj = decoder.decode(body, version.schema)
            obj.setdefault("metadata", {})
            return Decoded(obj, decoder.unknown)
        structural = Structural(version)
        return Decoded(structural.prune(body), structural.unknown)
    except ApiError as error:
        raise bad_request(
            f'{resource.kind} in version "{version.name}" cannot be handled as a {resource.kind}: {error.message}'
        ) from error


def check_unknown(
    decoded: Decoded, validation: FieldValidation, resource: Resource, version: Version
) -> list[str]:
    """The warnings for unknown fields of a created or replaced object; 400 under Strict."""
    if not decoded.unknown or validation is FieldValidation.IGNORE:
        return []
    if validation is FieldValidation.WARN:
        return decoded.strict_errors
    raise bad_request(
        f'{resource.kind} in version "{version.name}" cannot be handled as a {resource.kind}: '
        f"strict decoding error: {', '.join(decoded.strict_errors)}"
    )
