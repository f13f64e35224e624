"""Validation that several kinds share: label selectors, ports, CIDRs, protocols. Wording as the real server's."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from lab.apiserver.errors import FieldError, forbidden, invalid, not_supported, required
from lab.apiserver.kinds import Obj
from lab.apiserver.metadata import label_value, qualified_name, validate_labels

PROTOCOLS = ("SCTP", "TCP", "UDP")
_OPERATORS = ("DoesNotExist", "Exists", "In", "NotIn")


def label_selector(selector: Obj, path: str) -> list[FieldError]:
    """A metav1.LabelSelector."""
    errors = validate_labels(selector.get("matchLabels") or {}, f"{path}.matchLabels")
    for index, requirement in enumerate(selector.get("matchExpressions") or []):
        errors += _requirement(requirement, f"{path}.matchExpressions[{index}]")
    return errors


def _requirement(requirement: Obj, path: str) -> list[FieldError]:
    operator, values = requirement.get("operator", ""), requirement.get("values") or []
    errors = []
    if operator in {"In", "NotIn"} and not values:
        errors.append(required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
    elif operator in {"Exists", "DoesNotExist"} and values:
        errors.append(
            forbidden(f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        )
    elif operator not in _OPERATORS:
        errors.append(invalid(f"{path}.operator", operator, "not a valid selector operator"))
    key = requirement.get("key", "")
    errors += [invalid(f"{path}.key", key, problem) for problem in qualified_name(key)]
    for index, value in enumerate(values):
        errors += [invalid(f"{path}.values[{index}]", value, problem) for problem in label_value(value)]
    return errors


def port_number(value: Any) -> list[str]:
    """1 to 65535."""
    return [] if 1 <= value <= 65535 else ["must be between 1 and 65535, inclusive"]


def port_name(value: str) -> list[str]:
    """IANA_SVC_NAME, RFC 6335."""
    problems = []
    if len(value) > 15:
        problems.append("must be no more than 15 characters")
    if not re.fullmatch(r"[-a-z0-9]+", value):
        problems.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", value):
        problems.append("must contain at least one letter (a-z)")
    if "--" in value:
        problems.append("must not contain consecutive hyphens")
    if value.startswith("-") or value.endswith("-"):
        problems.append("must not begin or end with a hyphen")
    return problems


def protocol(value: Any, path: str) -> list[FieldError]:
    """TCP, UDP or SCTP."""
    if not value:
        return [required(path)]
    return [] if value in PROTOCOLS else [not_supported(path, value, PROTOCOLS)]


def cidr(value: str, path: str) -> tuple[list[FieldError], Any]:
    """The problems of a CIDR and its network, None where it cannot be read; host bits are allowed as in Go."""
    try:
        if "/" not in value or not value.rpartition("/")[2].isdigit():
            raise ValueError(value)
        return [], ipaddress.ip_network(value, strict=False)
    except ValueError:
        why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
        return [invalid(path, value, why)], None


def ip(value: str, path: str) -> list[FieldError]:
    """An IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return [invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")]
    return []


def immutable(new: Any, old: Any, path: str) -> list[FieldError]:
    """A field that may not change."""
    return [] if new == old else [invalid(path, new, "field is immutable")]
