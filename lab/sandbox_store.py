"""What a kubelet remembers of its pods' sandboxes on disk, so that the next one goes on with them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec


class Remembered(msgspec.Struct, frozen=True):
    """A pod's sandbox. ``container`` is CNI's id; ``addresses`` are empty until CNI ADD has succeeded."""

    uid: str
    node: str
    netns: str
    container: str
    attempt: int
    addresses: tuple[str, ...] = ()


class SandboxStore:
    """One file a pod, in a folder that is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, uid: str) -> Remembered | None:
        """What is remembered of a pod; None: nothing, or what was being written as the machine went down."""
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            return msgspec.json.decode(self._path(uid).read_bytes(), type=Remembered)
        return None

    def write(self, sandbox: Remembered) -> None:
        """Remember it; before anything of it exists."""
        fresh = self._path(sandbox.uid).with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(sandbox))
        fresh.replace(self._path(sandbox.uid))

    def forget(self, uid: str) -> None:
        """Nothing is left of it."""
        self._path(uid).unlink(missing_ok=True)

    def all(self) -> list[Remembered]:
        """Everything that is remembered."""
        found = (self.find(path.stem) for path in sorted(self._folder.glob("*.json")))
        return [one for one in found if one is not None]

    def _path(self, uid: str) -> Path:
        return self._folder / f"{uid}.json"
