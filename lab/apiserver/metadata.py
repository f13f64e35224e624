"""ObjectMeta: what the server sets, what clients may not change, and the rules for names and labels.

Wording follows k8s.io/apimachinery pkg/util/validation and pkg/api/validation.
"""

from __future__ import annotations

import random
import re
import uuid
from datetime import UTC, datetime, timedelta

from lab.apiserver.errors import FieldError, forbidden, invalid, required
from lab.apiserver.kinds import Obj, Resource

_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_LABEL_RE = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN_RE = rf"{_LABEL_RE}(\.{_LABEL_RE})*"
_RFC1035_RE = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED_RE = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE_RE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_MAX_ANNOTATIONS = 256 * 1024


def now(offset_seconds: float = 0) -> str:
    """The current time, whole seconds, as metav1.Time."""
    return (datetime.now(UTC) + timedelta(seconds=offset_seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def stamp_new(obj: Obj, namespace: str) -> None:
    """Give a new object its identity: name from generateName, namespace, uid, creation time; in place."""
    metadata = obj["metadata"]
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = metadata["generateName"] + "".join(random.choices(_SUFFIX_ALPHABET, k=5))
    if namespace:
        metadata["namespace"] = namespace
    else:
        metadata.pop("namespace", None)
    for name in (
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
    ):
        metadata.pop(name, None)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now()


def carry_over(new: Obj, old: Obj) -> None:
    """What an update may not touch comes from the old object; in place."""
    metadata, before = new["metadata"], old["metadata"]
    metadata.pop("selfLink", None)
    for name in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation",
                 "name", "namespace", "generateName", "resourceVersion"):  # fmt: skip
        if name in before:
            metadata[name] = before[name]
        else:
            metadata.pop(name, None)


def dns_label(value: str) -> list[str]:
    """RFC 1123 label."""
    return _checked(
        value,
        63,
        _LABEL_RE,
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
        "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
        "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
    )


def dns_subdomain(value: str) -> list[str]:
    """RFC 1123 subdomain: most object names."""
    return _checked(
        value,
        253,
        _SUBDOMAIN_RE,
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
        "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
        r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    )


def dns1035_label(value: str) -> list[str]:
    """RFC 1035 label: Service names."""
    return _checked(
        value,
        63,
        _RFC1035_RE,
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
        "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for "
        "validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
    )


def path_segment(value: str) -> list[str]:
    """The least a name must be."""
    if value in {".", ".."}:
        return [f"may not be '{value}'"]
    return [f"may not contain '{part}'" for part in "/%" if part in value]


def _checked(value: str, longest: int, pattern: str, message: str) -> list[str]:
    problems = [f"must be no more than {longest} characters"] if len(value) > longest else []
    if not re.fullmatch(pattern, value):
        problems.append(message)
    return problems


def qualified_name(value: str) -> list[str]:
    """A label key: ``[prefix/]name``."""
    prefix, slash, name = value.rpartition("/")
    problems = []
    if slash and not prefix:
        problems.append("prefix part must be non-empty")
    elif slash:
        problems += [f"prefix part {problem}" for problem in dns_subdomain(prefix)]
    if not name:
        problems.append("name part must be non-empty")
    elif len(name) > 63:
        problems.append("name part must be no more than 63 characters")
    if not re.fullmatch(_QUALIFIED_RE, name):
        problems.append(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
            "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
            "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        )
    return problems


def label_value(value: str) -> list[str]:
    """A label's value."""
    return _checked(
        value,
        63,
        _LABEL_VALUE_RE,
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
        "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used "
        "for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
    )


def validate_labels(labels: dict[str, str], path: str) -> list[FieldError]:
    """Keys and values of a label map."""
    errors = []
    for key, value in labels.items():
        errors += [invalid(path, key, problem) for problem in qualified_name(key)]
        errors += [invalid(path, value, problem) for problem in label_value(value)]
    return errors


def validate_metadata(obj: Obj, old: Obj | None, resource: Resource) -> list[FieldError]:
    """Name, labels, annotations, finalizers; ``old`` is the object before an update."""
    metadata = obj["metadata"]
    name = metadata.get("name", "")
    errors = []
    if not name:
        errors.append(required("metadata.name", "name or generateName is required"))
    elif old is None:
        check = resource.strategy.name_check or dns_subdomain
        errors += [invalid("metadata.name", name, problem) for problem in check(name)]
    errors += validate_labels(metadata.get("labels") or {}, "metadata.labels")
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        errors += [invalid("metadata.annotations", key, p) for p in qualified_name(key.lower())]
    if sum(len(k) + len(v) for k, v in annotations.items()) > _MAX_ANNOTATIONS:
        errors.append(
            FieldError("metadata.annotations", "FieldValueTooLong",
                       f"Too long: may not be more than {_MAX_ANNOTATIONS} bytes")
        )  # fmt: skip
    finalizers = metadata.get("finalizers") or []
    for finalizer in finalizers:
        errors += [invalid("metadata.finalizers", finalizer, p) for p in qualified_name(finalizer)]
    if old is not None and old["metadata"].get("deletionTimestamp"):
        added = sorted(set(finalizers) - set(old["metadata"].get("finalizers") or []))
        if added:
            listed = ", ".join(f'"{finalizer}"' for finalizer in added)
            errors.append(
                forbidden(
                    "metadata.finalizers",
                    "no new finalizers can be added if the object is being deleted, "
                    f"found new finalizers []string{{{listed}}}",
                )
            )
    return errors
