"""Settings as records: name, type, range, default, meaning, and what Calico calls it.

A class of settings is a dataclass whose fields are made by :func:`setting`, so that each is written once and the
type checker knows it. Command line, environment, ``/status`` and ``docs/settings.md`` are made from the records.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Form:
    """A value's text where it is not Python's own. ``read`` raises ValueError with what is wrong."""

    read: Callable[[str], Any]
    show: Callable[[Any], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting. ``otherwise``: what stands in place of the default, where that is decided at the start.

    ``check`` raises ValueError for a value (of a list: for one of its members) that cannot be used. ``calico``:
    the nearest field of FelixConfiguration, or parameter of Felix. ``live``: a change takes effect without a
    restart. ``also``: a second environment variable.
    """

    name: str
    type: Any
    default: Any
    meaning: str
    metavar: str = ""
    otherwise: str = ""
    least: float | None = None
    most: float | None = None
    check: Callable[[Any], None] | None = None
    form: Form | None = None
    calico: str = ""
    live: bool = False
    also: str = ""

    @property
    def many(self) -> bool:
        """It is a list, of which the command line takes one member at a time."""
        return get_origin(self.type) is tuple and self.form is None

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return "--" + (self.name.removesuffix("s") if self.many else self.name).replace("_", "-")

    @property
    def environment(self) -> list[str]:
        """Its names in the environment."""
        return [f"FELIX_PY_{self.name.upper()}", *([self.also] if self.also else [])]

    @property
    def json_name(self) -> str:
        """Its name in JSON, in the style of Kubernetes' API."""
        first, *more = self.name.split("_")
        return first + "".join(word.capitalize() for word in more)

    def read(self, given: Any) -> Any:
        """The value of what the command line gives; of a list's members, ``none`` is none.

        Raises:
            ValueError: there is no such value; the message names the option.
        """
        if self.many:
            return tuple(one for one in given if one not in ("", "none"))
        if self.form is None:
            return given
        try:
            return self.form.read(given)
        except ValueError as error:
            raise ValueError(f"{self.option} {given}: {error}") from None

    def text(self, value: Any) -> str:
        """A value as the environment has it."""
        if self.form is not None:
            return self.form.show(value)
        if self.many:
            return " ".join(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def as_json(self, value: Any) -> Any:
        """A value for programs."""
        if self.form is not None or isinstance(value, (Path, enum.Enum)):
            return self.text(value)
        return list(value) if self.many else value

    def validate(self, value: Any) -> None:
        """Refuse what cannot be used.

        Raises:
            ValueError: out of range, or refused by ``check``; the message names the option.
        """
        for one in value if self.many else (value,):
            try:
                if self.least is not None and one < self.least:
                    raise ValueError(f"must be {self.least:g} at least")
                if self.most is not None and one > self.most:
                    raise ValueError(f"must be {self.most:g} at most")
                if self.check is not None:
                    self.check(one)
            except ValueError as error:
                given = "is empty" if one == "" else one
                raise ValueError(f"{self.option} {given}: {error}") from None


def setting(default: _T, meaning: str, **known: Any) -> _T:
    """A dataclass's field that is a setting; ``known``: what else :class:`Setting` has."""
    found: _T = field(default=default, metadata={"meaning": meaning, **known})
    return found


def settings_of(config: type) -> Mapping[str, Setting]:
    """The settings of a dataclass, by name, in its order."""
    hints = get_type_hints(config)
    return {
        one.name: Setting(name=one.name, type=hints[one.name], default=one.default, **one.metadata)
        for one in fields(config)
    }
