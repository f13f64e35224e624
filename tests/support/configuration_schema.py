"""The CustomResourceDefinition of FelixConfiguration, as the table of settings gives it."""

from __future__ import annotations

import math
from typing import Any

import yaml

from felix_py.config import SETTINGS
from felix_py.settings import Rule, Setting

Schema = dict[str, Any]

HEAD = """\
# FelixConfiguration (felixpy.io/v1alpha1): settings of all nodes (`default`) and of one (`node.NAME`).
#
# Made from the table in felix_py/config.py by `UPDATE_GOLDEN=1 make test TESTS=tests/golden`: do not edit.
# Needs Kubernetes 1.31 or later (the CIDR functions of validation rules).
"""

_NAMES = Rule(
    "self.metadata.name == 'default' || self.metadata.name.startsWith('node.')",
    "the name must be default, for all nodes, or node.NAME, for the node of that name",
)
_COLUMNS = ("log_level", "backend", "mtu")
_LONGEST = 253
"""Characters of a list's member: a CIDR has 43 at most, a file name 255."""
_MOST = 64


def definition() -> str:
    """The text of ``manifests/crds/felixpy.io_felixconfigurations.yaml``."""
    fields = {it.field.name: _field(it) for it in SETTINGS.values() if it.field is not None}
    schema = {
        "description": "Settings of felix-py. Command line and environment of an agent count before node.NAME, "
        "that before default, and that before what is built in.",
        "type": "object",
        "required": ["metadata"],
        "x-kubernetes-validations": _rules(_NAMES),
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {"description": "What is not here is not set.", "type": "object", "properties": fields},
        },
    }
    columns = [_column(SETTINGS[name]) for name in _COLUMNS]
    columns.append({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    names = {
        "kind": "FelixConfiguration",
        "listKind": "FelixConfigurationList",
        "plural": "felixconfigurations",
        "singular": "felixconfiguration",
        "shortNames": ["felixconfig"],
    }
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "felixconfigurations.felixpy.io"},
        "spec": {"group": "felixpy.io", "scope": "Cluster", "names": names, "versions": [version]},
    }
    return HEAD + str(yaml.safe_dump(crd, sort_keys=False, width=120, allow_unicode=True))


def built_in(it: Setting) -> str:
    """What counts where nothing sets it, as FelixConfiguration would write it."""
    if it.otherwise:
        return it.otherwise
    found = it.to_field(it.default)
    return str(found).lower() if isinstance(found, bool) else ", ".join(found) if it.many else str(found)


def _field(it: Setting) -> Schema:
    assert it.field is not None
    taken = "at once" if it.live else "when the agent starts again"
    head = {"description": f"{it.meaning} Built in: {built_in(it)}. A change takes effect {taken}."}
    rules = {"x-kubernetes-validations": _rules(*it.field.rules)} if it.field.rules else {}
    if it.field.choices:
        items: Schema = {"type": "string", "enum": list(it.words)}
        return {
            **head,
            "type": "array",
            "x-kubernetes-list-type": "set",
            "maxItems": len(it.words),
            "items": items,
        }
    if it.many:
        items = {"type": "string", "maxLength": _LONGEST, **rules}
        return {**head, "type": "array", "x-kubernetes-list-type": "atomic", "maxItems": _MOST, "items": items}
    if it.words:
        return {**head, "type": "string", "enum": list(it.words)}
    if it.type is bool:
        return {**head, "type": "boolean"}
    least = {} if it.least is None else {"minimum": math.ceil(it.least)}
    most = {} if it.most is None else {"maximum": math.floor(it.most)}
    return {**head, "type": "integer", **least, **most, **rules}


def _rules(*rules: Rule) -> list[Schema]:
    return [{"rule": rule.cel, "message": rule.message} for rule in rules]


def _column(it: Setting) -> Schema:
    assert it.field is not None
    name = it.field.name
    kind = "string" if it.words else "integer"
    return {"name": name[:1].upper() + name[1:], "type": kind, "jsonPath": f".spec.{name}"}
