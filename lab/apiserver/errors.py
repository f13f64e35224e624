"""API errors as the Status object of meta/v1 tells them, with a real server's reasons and wording."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.apiserver.kinds import GroupResource, Obj


@dataclass(frozen=True, slots=True)
class FieldError:
    """One cause of a 422: the field's path (``spec.ports[0].port``), a meta/v1 CauseType and the detail."""

    path: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


def required(path: str, why: str = "") -> FieldError:
    return FieldError(path, "FieldValueRequired", f"Required value{': ' if why else ''}{why}")


def invalid(path: str, value: object, why: str) -> FieldError:
    return FieldError(path, "FieldValueInvalid", f"Invalid value: {_shown(value)}: {why}")


def against_rule(path: str, value: object, why: str) -> FieldError:
    """A rule of a CRD is not kept. Maps and lists are not shown."""
    if isinstance(value, dict | list):
        return FieldError(path, "FieldValueInvalid", f"Invalid value: {why}")
    return invalid(path, value, why)


def too_many(path: str, found: int, most: int) -> FieldError:
    return FieldError(
        path, "FieldValueTooMany", f"Too many: {found}: must have at most {most} item{'s' if most != 1 else ''}"
    )


def forbidden(path: str, why: str) -> FieldError:
    return FieldError(path, "FieldValueForbidden", f"Forbidden: {why}")


def duplicate(path: str, value: object) -> FieldError:
    return FieldError(path, "FieldValueDuplicate", f"Duplicate value: {_shown(value)}")


def not_supported(path: str, value: object, supported: Iterable[str]) -> FieldError:
    choices = ", ".join(json.dumps(choice) for choice in supported)
    return FieldError(
        path, "FieldValueNotSupported", f"Unsupported value: {_shown(value)}: supported values: {choices}"
    )


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


class ApiError(Exception):
    """Ends a request; ``status()`` is what the client gets. ``code`` is the HTTP status."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details or {})

    def status(self) -> Obj:
        """The meta/v1 Status document."""
        document: Obj = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }
        # A client looks into the details of a 404 without asking whether there are any (kubectl debug crashes).
        return {key: value for key, value in document.items() if key in {"metadata", "details"} or value}


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def not_found(resource: GroupResource, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{resource} "{name}" not found', _details(resource, name))


def no_such_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def already_exists(resource: GroupResource, name: str) -> ApiError:
    return ApiError(409, "AlreadyExists", f'{resource} "{name}" already exists', _details(resource, name))


def conflict(resource: GroupResource, name: str, why: str = "") -> ApiError:
    why = why or ("the object has been modified; please apply your changes to the latest version and try again")
    message = f'Operation cannot be fulfilled on {resource} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(resource, name))


def forbidden_request(resource: GroupResource, name: str, why: str) -> ApiError:
    return ApiError(403, "Forbidden", f'{resource} "{name}" is forbidden: {why}', _details(resource, name))


def method_not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message)


def expired(message: str) -> ApiError:
    return ApiError(410, "Expired", message)


def unsupported_media_type(content_type: str, accepted: Sequence[str]) -> ApiError:
    message = (
        "the body of the request was in an unknown format - accepted media types include: "
        f"{', '.join(accepted)} (got {content_type or 'none'})"
    )
    return ApiError(415, "UnsupportedMediaType", message)


def invalid_object(group: str, kind: str, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422 with one cause per field, worded as apimachinery's NewInvalid does."""
    full = f"{kind}.{group}" if group else kind
    listed = str(errors[0]) if len(errors) == 1 else f"[{', '.join(map(str, errors))}]"
    causes = [{"reason": e.reason, "message": e.detail, "field": e.path} for e in errors]
    details = {"name": name, "group": group, "kind": kind, "causes": causes}
    return ApiError(
        422,
        "Invalid",
        f'{full} "{name}" is invalid: {listed}',
        {key: value for key, value in details.items() if value},
    )


def _details(resource: GroupResource, name: str) -> dict[str, Any]:
    details = {"name": name, "group": resource.group, "kind": resource.plural}
    return {key: value for key, value in details.items() if value}
