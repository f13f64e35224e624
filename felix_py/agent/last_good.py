"""The last good settings of the cluster's objects, on disk: an agent starts with them if the API server is
away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from felix_py.files import replace_file
from felix_py.layers import Values, from_fields, to_fields

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Copy:
    """``values`` None: there is no copy that can be used; ``problem`` says why, and is empty if there is none."""

    values: Values | None
    problem: str = ""


class _File(msgspec.Struct):
    version: int
    sha256: str
    fields: dict[str, Any]


class LastGood:
    """One node's copy. Not thread-safe."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "configuration.json"

    def read(self) -> Copy:
        """Read the copy. Never raises: a damaged one counts as none."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return Copy(None)
        except OSError as error:
            return Copy(None, f"{self.path} cannot be read: {error.strerror}")
        try:
            found = msgspec.json.decode(raw, type=_File)
        except (ValueError, RecursionError):
            return Copy(None, f"{self.path} is damaged")
        if found.version != _VERSION:
            return Copy(None, f"{self.path} is of another version of felix-py ({found.version})")
        if found.sha256 != _digest(found.fields):
            return Copy(None, f"{self.path} is damaged: its check sum is wrong")
        return Copy(from_fields(found.fields))

    def write(self, values: Values) -> None:
        """Replace the copy.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        fields = to_fields(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, msgspec.json.encode(_File(_VERSION, _digest(fields), fields)), 0o600)


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()
