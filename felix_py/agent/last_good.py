"""What was good last of the cluster's objects, on disk: an agent starts with the settings if the API server is
away.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from felix_py.files import replace_file
from felix_py.ipam.errors import StoreError
from felix_py.layers import Values, from_fields, to_fields

_VERSION = 1


class Copy(Struct, frozen=True):
    """``values`` None: there is no copy that can be used; ``problem`` says why, and is empty if there is none."""

    values: Values | None
    problem: str = ""


class _Head(msgspec.Struct):
    version: int


class _File(_Head):
    sha256: str
    fields: dict[str, Any]


class Kept:
    """A file of fields, for their owner only, which is whole or counts as none. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, *, alone: bool = False) -> tuple[dict[str, Any] | None, str]:
        """The fields, or None and why not; no reason: there is no file.

        Raises:
            StoreError: made by a newer felix-py, if ``alone``: nothing else says what is in it, so that it must
                not be overwritten.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"{self.path} cannot be read: {error.strerror}"
        try:
            version = msgspec.json.decode(raw, type=_Head).version
            found = msgspec.json.decode(raw, type=_File) if version == _VERSION else None
        except (ValueError, RecursionError):
            return None, f"{self.path} is damaged"
        if found is None:
            if alone and version > _VERSION:
                raise StoreError(
                    f"{self.path} was made by a newer felix-py: install that one again, or see docs/upgrade.md"
                )
            return None, f"{self.path} is of another version of felix-py ({version})"
        if found.sha256 != _digest(found.fields):
            return None, f"{self.path} is damaged: its check sum is wrong"
        return found.fields, ""

    def write(self, fields: dict[str, Any]) -> None:
        """Replace the file.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, msgspec.json.encode(_File(_VERSION, _digest(fields), fields)), 0o600)


class LastGood:
    """One node's copy of its settings. Not thread-safe."""

    def __init__(self, state_dir: Path) -> None:
        self._kept = Kept(state_dir / "configuration.json")
        self.path = self._kept.path

    def read(self) -> Copy:
        """Read the copy. Never raises: a damaged one counts as none."""
        fields, problem = self._kept.read()
        return Copy(None if fields is None else from_fields(fields), problem)

    def write(self, values: Values) -> None:
        """Replace the copy.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        self._kept.write(to_fields(values))


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()
