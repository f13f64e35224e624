"""What is malformed in an object, collected while it is read: one "field: reason" for each part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from policy.syntax import shown

_MOST_TEXTS: Final = 50
"""So many parts of one object are named: an object of a megabyte may have tens of thousands that are bad."""


class Rejected(Exception):
    """The object cannot even be named, so nothing can be made of it."""


class Invalid(ValueError):
    """Some part is malformed; the text is one "field: reason" or more."""


class Problems(list[str]):
    """What was found to be malformed, in order of appearance."""

    def note(self, field: str, reason: str) -> None:
        """A part is malformed; ``field`` is its path."""
        self.append(f"{field}: {reason}")

    def check(self, field: str, reason: str | None) -> None:
        """Note the reason, if there is one."""
        if reason is not None:
            self.note(field, reason)

    def texts(self) -> tuple[str, ...]:
        """All of them, or the first and how many more there are."""
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
        """A list; null and what is none are empty. With more than ``most`` entries, none is worth reading."""
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
        """A string; ``bad`` says what is wrong with it."""
        if not isinstance(value, str):
            self.note(field, f"must be a string, not {shown(value)}")
            return None
        if bad is not None:
            self.check(field, bad(value))
        return value

    def number(self, value: object, field: str, bad: Callable[[int], str | None] | None = None) -> int | None:
        """An integer; ``bad`` says what is wrong with it."""
        if not isinstance(value, int) or isinstance(value, bool):
            self.note(field, f"must be a number, not {shown(value)}")
            return None
        if bad is not None:
            self.check(field, bad(value))
        return value

    def choice(self, value: object, field: str, known: tuple[str, ...]) -> tuple[str, Any] | None:
        """The field of an object of which exactly one must be set, and its value."""
        before = len(self)
        obj = self.mapping(value, field, known)
        if obj is None or len(self) > before:
            return None
        found = [key for key in known if obj.get(key) is not None]
        if len(found) == 1:
            return found[0], obj[found[0]]
        what = " and ".join(found) if found else "none"
        self.note(field, f"must have exactly one of {', '.join(known)}, not {what}")
        return None


def metadata_of(obj: object) -> Mapping[str, Any]:
    """An object's metadata.

    Raises:
        Rejected: there is none.
    """
    metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
    if not isinstance(metadata, Mapping):
        raise Rejected("metadata: must be an object")
    return metadata


def name_in(metadata: Mapping[str, Any], key: str, bad: Callable[[str], str | None]) -> str:
    """The object's own name or namespace.

    Raises:
        Rejected: it is missing or malformed.
    """
    problems = Problems()
    text = problems.text(metadata.get(key), f"metadata.{key}", bad)
    if text is None or problems:
        raise Rejected("; ".join(problems))
    return text


def uid_in(metadata: Mapping[str, Any]) -> str:
    """The object's uid; empty where it is none that could be shown to people."""
    uid = metadata.get("uid")
    return uid if isinstance(uid, str) and uid.isprintable() else ""
