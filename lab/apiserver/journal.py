"""Every change of the store in a file, so that a server that was killed comes back with all objects.

One JSON line a change: ``[group, plural, namespace, name, object or null]``. It survives the process, not the
machine: nothing is synced. A last line that was written only by half is a change that nobody was told of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from lab.apiserver.kinds import GroupResource, Obj

ObjectKey = tuple[str, str]
"""(namespace, name); the namespace of cluster-scoped objects is empty. Lists are in this order."""

_Line = tuple[str, str, str, str, Obj | None]
_SPARE = 16 << 20
"""Bytes by which the file may be longer than what it holds."""


class Kept(NamedTuple):
    """An object as it was last."""

    resource: GroupResource
    key: ObjectKey
    obj: Obj
    version: int


class Journal:
    """The file at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._size = self._needed = 0

    def load(self) -> list[Kept]:
        """What is kept. The file is written anew with that and nothing else.

        Raises:
            RuntimeError: a line in the middle is damaged.
            OSError: the file cannot be read or written.
        """
        found: dict[tuple[GroupResource, ObjectKey], Obj] = {}
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
        decoder = msgspec.json.Decoder(_Line)
        for number, line in enumerate(lines[:-1], 1):
            try:
                group, plural, namespace, name, obj = decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise RuntimeError(f"{self._path}:{number}: {error}") from error
            place = GroupResource(group, plural), (namespace, name)
            found.pop(place, None)
            if obj is not None:
                found[place] = obj
        self.rewrite((*place, msgspec.json.encode(obj)) for place, obj in found.items())
        return [
            Kept(resource, key, obj, int(obj["metadata"]["resourceVersion"]))
            for (resource, key), obj in found.items()
        ]

    @property
    def is_long(self) -> bool:
        """Whether rewriting it is worth the while."""
        return self._size > 2 * self._needed + _SPARE

    def append(self, resource: GroupResource, key: ObjectKey, raw: bytes | None) -> None:
        """Keep a change; ``raw`` is the object as JSON, None: it is gone.

        Raises:
            OSError: the disk is full; the change is not kept.
        """
        line = _line(resource, key, raw)
        try:
            written = os.write(self._fd, line)
            if written < len(line):
                os.write(self._fd, line[written:])  # says why it could not
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)

    def rewrite(self, objects: Iterable[tuple[GroupResource, ObjectKey, bytes]]) -> None:
        """Keep these and nothing else.

        Raises:
            OSError: the disk is full; all is as before.
        """
        fresh = self._path.with_name(f".{self._path.name}")
        with fresh.open("wb") as file:
            file.writelines(_line(*one) for one in objects)
        fresh.replace(self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._size = self._needed = os.fstat(self._fd).st_size


def _line(resource: GroupResource, key: ObjectKey, raw: bytes | None) -> bytes:
    head = msgspec.json.encode([resource.group, resource.plural, *key])
    return head[:-1] + b"," + (b"null" if raw is None else raw) + b"]\n"
