"""Settings as records: name, type, range, default, meaning, and Calico's name.

A class of settings is a dataclass whose fields are made by :func:`setting`, so each is written once and typed.
Command line, environment, ``/status``, the schema of FelixConfiguration and ``docs/configuration.md`` are
generated from the records.
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
    """Conversion of a value from and to text. ``read`` raises ValueError with the reason."""

    read: Callable[[str], Any]
    show: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Rule:
    """A validation rule of a schema (``x-kubernetes-validations``): an expression of CEL, and what it means."""

    cel: str
    message: str


@dataclass(frozen=True, slots=True)
class Field:
    """A setting's place in the spec of FelixConfiguration, for settings that make sense for many nodes.

    ``name``: after Calico's field if the meaning is the same. ``words``: word -> value, of an enumeration;
    those of an enum class are made from its members. ``rules`` say in CEL what the setting's ``check`` says; of
    a list, for each member. ``choices``: whether the value is a list of some of the ``words``.
    """

    name: str
    words: Mapping[str, Any] | None = None
    rules: tuple[Rule, ...] = ()
    choices: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting. ``otherwise`` describes a default that is determined at the start.

    ``check`` raises ValueError for an invalid value (of a list: for an invalid member). ``calico``: the nearest
    field of FelixConfiguration, or parameter of Felix. ``live``: a change takes effect without a restart.
    ``also``: a second environment variable. ``field``: its place in our FelixConfiguration.
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
    field: Field | None = None

    @property
    def many(self) -> bool:
        """Whether it is a list, of which the command line takes one member at a time."""
        return get_origin(self.type) is tuple and self.form is None

    @property
    def option(self) -> str:
        """Name on the command line."""
        return "--" + (self.name.removesuffix("s") if self.many else self.name).replace("_", "-")

    @property
    def environment(self) -> list[str]:
        """Names of environment variables."""
        return [f"FELIX_PY_{self.name.upper()}", *([self.also] if self.also else [])]

    @property
    def json_name(self) -> str:
        """Name in JSON, in the style of Kubernetes' API."""
        first, *more = self.name.split("_")
        return first + "".join(word.capitalize() for word in more)

    def read(self, given: Any) -> Any:
        """Returns the value of what the command line gives; in a list, ``none`` and empty members are left out.

        Raises ValueError with the option's name if it cannot be parsed.
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
        """Returns a value's text for the environment."""
        if self.form is not None:
            return self.form.show(value)
        if self.many:
            return " ".join(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def as_json(self, value: Any) -> Any:
        """Returns a value's JSON form."""
        if self.form is not None or isinstance(value, (Path, enum.Enum)):
            return self.text(value)
        return list(value) if self.many else value

    def validate(self, value: Any) -> None:
        """Raises ValueError, which names the option, for a value out of range or refused by ``check``."""
        for one in value if self.many else (value,):
            try:
                self._judge(one)
            except ValueError as error:
                given = "is empty" if one == "" else one
                raise ValueError(f"{self.option} {given}: {error}") from None

    def _judge(self, one: Any) -> None:
        if self.least is not None and one < self.least:
            raise ValueError(f"must be {self.least:g} at least")
        if self.most is not None and one > self.most:
            raise ValueError(f"must be {self.most:g} at most")
        if self.check is not None:
            self.check(one)

    # --- in FelixConfiguration -----------------------------------------------------------------------

    @property
    def words(self) -> Mapping[str, Any]:
        """Word -> value in FelixConfiguration; empty if the setting is not an enumeration."""
        assert self.field is not None
        if self.field.words is not None:
            return self.field.words
        if isinstance(self.type, type) and issubclass(self.type, enum.Enum):
            return {str(one.value).capitalize(): one for one in self.type}
        return {}

    def from_field(self, given: Any) -> Any:
        """Returns the value of what FelixConfiguration holds. Raises ValueError with the reason if it is
        unusable.
        """
        value = self._of_json(given)
        for one in value if self.many else (value,):
            try:
                self._judge(one)
            except ValueError as error:
                raise ValueError(f"{one!r:.100}: {error}") from None
        return value

    def _of_json(self, given: Any) -> Any:
        assert self.field is not None
        if self.field.choices:
            return tuple(sorted({self._of_word(word) for word in _list_of_text(given)}))
        if self.many:
            return tuple(_list_of_text(given))
        if self.words:
            return self._of_word(given)
        kind, called = (bool, "true or false") if self.type is bool else (int, "an integer")
        if type(given) is not kind:  # a bool is an int to isinstance
            raise ValueError(f"must be {called}")
        return given

    def _of_word(self, word: Any) -> Any:
        if not isinstance(word, str) or word not in self.words:
            raise ValueError(f"{word!r:.100}: must be {' or '.join(self.words)}")
        return self.words[word]

    def to_field(self, value: Any) -> Any:
        """The opposite of :meth:`from_field`."""
        assert self.field is not None
        words = {held: word for word, held in self.words.items()}
        if self.field.choices:
            return [words[one] for one in value]
        return list(value) if self.many else words.get(value, value) if words else value


def _list_of_text(given: Any) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ValueError("must be a list of strings")
    return given


def setting(default: _T, meaning: str, **known: Any) -> _T:
    """Returns a dataclass field that is a setting; ``known``: further fields of :class:`Setting`."""
    found: _T = field(default=default, metadata={"meaning": meaning, **known})
    return found


def settings_of(config: type) -> Mapping[str, Setting]:
    """Returns the settings of a dataclass by name, in its order."""
    hints = get_type_hints(config)
    return {
        one.name: Setting(name=one.name, type=hints[one.name], default=one.default, **one.metadata)
        for one in fields(config)
    }
