"""Settings in layers: command line and environment over FelixConfiguration ``node.NAME`` over ``default`` over
what is built in.

Here the objects' values are read and merged, as a function of the objects alone. A value that cannot be used
leaves the last good one of its setting in force, else what is below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from msgspec import Struct

from bgp.fields import UNKNOWN
from felix_py.config import FIELDS, AgentConfig
from felix_py.records import ConfigurationRecord
from felix_py.settings import Setting

DEFAULT = "default"
"""Name of the FelixConfiguration of all nodes."""

LAST_GOOD = "last good"
"""Source of a value that is in force because its object's cannot be used."""

_LONGEST_REASON = 500
_MOST_PROBLEMS = 50
"""Of one object: an object may have any number of fields that nobody knows."""

Values = Mapping[str, Any]
"""Setting's name -> value, of settings that have one in an object."""

Judge = Callable[[str, Any], str]
"""Why this node cannot use a setting's value, or empty."""


class Problem(Struct, frozen=True, order=True):
    """A field that cannot be used, or (``field`` empty) a whole object. ``name`` and ``uid`` are the object's."""

    name: str
    uid: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason


class Merged(Struct, frozen=True):
    """What the objects say. ``sources``: setting's name -> the object that its value is from, or LAST_GOOD."""

    values: Values
    sources: Mapping[str, str]
    problems: tuple[Problem, ...] = ()


def layers_of(node_name: str) -> tuple[str, str]:
    """Names of a node's FelixConfigurations; the first counts before the second."""
    return f"node.{node_name}", DEFAULT


def merge(node_name: str, found: Collection[ConfigurationRecord], last_good: Values, judge: Judge) -> Merged:
    """Merge the objects of one node; others are ignored, and their order does not count.

    An object that cannot be read at all leaves everything as it is, since nobody knows what it sets.
    """
    by_name = {record.name: record for record in found}
    layers = [by_name[name] for name in layers_of(node_name) if name in by_name]
    unread = [Problem(layer.name, layer.uid, "", layer.problem) for layer in layers if layer.problem]
    if unread:
        return Merged(dict(last_good), dict.fromkeys(last_good, LAST_GOOD), tuple(unread))
    problems = [problem for layer in layers for problem in _unknown(layer)]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for it in FIELDS.values():
        for layer in layers:
            given = layer.spec.get(_name(it))
            if given is None:
                continue
            try:
                value = _usable(it, given, judge)
                source = layer.name
            except ValueError as error:
                problems.append(Problem(layer.name, layer.uid, _name(it), str(error)[:_LONGEST_REASON]))
                if it.name not in last_good:
                    continue
                value, source = last_good[it.name], LAST_GOOD
            if it.name not in values:
                values[it.name], sources[it.name] = value, source
    return Merged(values, sources, tuple(problems))


def still_usable(values: Values, judge: Judge) -> Values:
    """The values that this node can use: what was good once need not be, after a program was removed."""
    return {name: value for name, value in values.items() if not judge(name, value)}


def effective(base: AgentConfig, given: Collection[str], values: Values) -> AgentConfig:
    """The configuration by all layers. ``base``: what command line, environment and defaults make; ``given``:
    the settings that the first two set.
    """
    return dataclasses.replace(base, **{name: value for name, value in values.items() if name not in given})


def to_fields(values: Values) -> dict[str, Any]:
    """Values as the spec of a FelixConfiguration has them."""
    return {_name(it): it.to_field(values[it.name]) for it in FIELDS.values() if it.name in values}


def from_fields(fields: Mapping[str, Any]) -> Values:
    """The opposite of :func:`to_fields`; what is unknown or cannot be used is left out."""
    values = {}
    for name, given in fields.items():
        if (it := FIELDS.get(name)) is not None:
            try:
                values[it.name] = it.from_field(given)
            except ValueError:
                continue
    return values


def _name(it: Setting) -> str:
    assert it.field is not None
    return it.field.name


def _unknown(layer: ConfigurationRecord) -> list[Problem]:
    names = sorted(name for name in layer.spec if name not in FIELDS)[:_MOST_PROBLEMS]
    return [Problem(layer.name, layer.uid, name[:100], UNKNOWN) for name in names]


def _usable(it: Setting, given: Any, judge: Judge) -> Any:
    """Raises ValueError with the reason."""
    value = it.from_field(given)
    if reason := judge(it.name, value):
        raise ValueError(reason)
    return value
