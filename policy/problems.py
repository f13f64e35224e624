"""Malformed parts of an object, collected while it is parsed: one "field: reason" for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from policy.syntax import shown

_MOST_TEXTS: Final = 50
"""Parts of one object that are named: an object of a megabyte may have tens of thousands of malformed ones."""


class Rejected(Exception):
    """The object has no usable name and cannot be parsed."""


class Invalid(ValueError):
    """Some part is malformed; the text is one "field: reason" or more."""


class Problems(list[str]):
    """Malformed parts, in order of appearance."""

    def note(self, field: str, reason: str) -> None:
        """Add a malformed part; ``field`` is its path."""
        self.append(f"{field}: {reason}")

    def check(self, field: str, reason: str | None) -> None:
        """Add a malformed part if there is a reason."""
        if reason is not None:
            self.note(field, reason)

    def texts(self) -> tuple[str, ...]:
        """All texts, or the first ones and the number of the others."""
        if len(self) <= _MOST_TEXTS:
            return tuple(self)
        return (*self[:_MOST_TEXTS], f"and {len(self) - _MOST_TEXTS} more")

    # --- JSON types: the value, or None where it is absent or of the wrong type -----------------------

    def mapping(self, value: object, field: str, known: tuple[str, ...]) -> Mapping[str, Any] | None:
        """An object with no other fields than the known ones."""
        if not isinstance(value, Mapping):
            self.note(field, f"must be an object, not {shown(value)}")
            return None
        for key in value:
            if key not in known:
                self.note(field, f"unknown field {shown(key)}")
        return value

    def list(self, value: object, field: str, most: int | None = None) -> list[Any]:
        """A list; null, other types and lists of more than ``most`` entries are empty."""
        if value is None:
            return []
        if not isinstance(value, list):
            self.note(field, f"must be a list, not {shown(value)}")
            return []
        if most is not None and len(value) > most:
            self.note(field, f"must have at most {most} entries, not {len(value)}")
            return []
        return value

    def text(self, value: object, field: str, bad: Callable[[str], str | None] | None = None) -> str | None:
        """A string; ``bad`` returns the reason if it is malformed."""
        if not isinstance(value, str):
            self.note(field, f"must be a string, not {shown(value)}")
            return None
        if bad is not None:
            self.check(field, bad(value))
        return value

    def number(self, value: object, field: str, bad: Callable[[int], str | None] | None = None) -> int | None:
        """An integer; ``bad`` returns the reason if it is malformed."""
        if not isinstance(value, int) or isinstance(value, bool):
            self.note(field, f"must be a number, not {shown(value)}")
            return None
        if bad is not None:
            self.check(field, bad(value))
        return value

    def choice(self, value: object, field: str, known: tuple[str, ...]) -> tuple[str, Any] | None:
        """The one field of an object that is set, and its value; exactly one must be."""
        before = len(self)
        obj = self.mapping(value, field, known)
        if obj is None or len(self) > before:
            return None
        found = [key for key in known if obj.get(key) is not None]
        if len(found) == 1:
            return found[0], obj[found[0]]
        what = " and ".join(found) or "none"
        self.note(field, f"must have exactly one of {', '.join(known)}, not {what}")
        return None


def metadata_of(obj: object) -> Mapping[str, Any]:
    """Returns an object's metadata; raises Rejected if there is none."""
    metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
    if not isinstance(metadata, Mapping):
        raise Rejected("metadata: must be an object")
    return metadata


def name_in(metadata: Mapping[str, Any], key: str, bad: Callable[[str], str | None]) -> str:
    """Returns the object's name or namespace; raises Rejected if it is missing or malformed."""
    problems = Problems()
    text = problems.text(metadata.get(key), f"metadata.{key}", bad)
    if text is None or problems:
        raise Rejected("; ".join(problems))
    return text


def uid_in(metadata: Mapping[str, Any]) -> str:
    """Returns the object's uid; empty if it is missing or not printable."""
    uid = metadata.get("uid")
    return uid if isinstance(uid, str) and uid.isprintable() else ""
