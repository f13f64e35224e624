"""What a lab is made of, on disk, so that ``down`` finds all of it whatever has crashed.

One folder a lab. ``lab.json`` says what there should be and is written by whoever brings the lab up, before
anything of it exists; ``keeper.json`` says what runs and is written by the lab's keeper
(:mod:`lab.keeper`). Every process of the lab has the folder's path in its environment, and every network
namespace the lab's name in its own, so nothing is ever lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from lab.namespaces import delete_netns, named_netns
from lab.processes import Process
from lab.topology import check_name, netns_prefix
from policy.model import Family

STATE_ROOT = Path("/run/felix-py-lab")
VERSION = 2


class LabError(RuntimeError):
    """What the lab cannot do, and what to do about it."""


class Phase(StrEnum):
    """STARTING also stands for "an earlier up or down did not finish"."""

    STARTING = "starting"
    UP = "up"


class Shape(msgspec.Struct, frozen=True):
    """What the user asked for. ``backend``: auto, legacy or nft."""

    nodes: int = 2
    families: tuple[int, ...] = (4,)
    backend: str = "auto"

    @property
    def address_families(self) -> tuple[Family, ...]:
        return tuple(map(Family, self.families))

    def __str__(self) -> str:
        names = {(4,): "IPv4", (6,): "IPv6", (4, 6): "dual-stack"}
        return f"{self.nodes} node{'s' * (self.nodes != 1)}, {names[self.families]}, backend {self.backend}"


class Listener(msgspec.Struct, frozen=True):
    """Where a program is reached. ``netns``: name of a network namespace; empty: the host's. ``port`` 0: any."""

    netns: str
    address: str
    port: int


class LabProgram(msgspec.Struct, frozen=True):
    """A program of the lab to keep running. It gets ``--fd NUMBER`` for each listening socket, in order."""

    name: str
    argv: tuple[str, ...]
    listen: tuple[Listener, ...] = ()


class Record(msgspec.Struct, frozen=True):
    """The content of ``lab.json``."""

    name: str
    shape: Shape
    version: int = VERSION
    phase: Phase = Phase.STARTING
    programs: tuple[LabProgram, ...] = ()


class Kept(msgspec.Struct, frozen=True):
    """One program in ``keeper.json``. ``process`` None: waiting to be started again; ``since`` is Unix time."""

    process: Process | None
    restarts: int
    since: float


class KeeperState(msgspec.Struct, frozen=True):
    """The content of ``keeper.json``. ``ports``: of each program, those that it has on the host."""

    keeper: Process
    programs: dict[str, Kept] = {}
    ports: dict[str, list[int]] = {}


class StateDir:
    """The folder of one lab."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root.absolute()
        self.name = check_name(name)
        self.path = self.root / name

    @property
    def sandboxes(self) -> Path:
        """What the kubelets remember of their pods."""
        return self.path / "sandboxes"

    @property
    def apiserver(self) -> Path:
        return self.path / "apiserver"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.apiserver / "kubeconfig"

    def machine(self, name: str) -> Path:
        """Folder of a node or the router."""
        return self.path / "machines" / name

    def log(self, program: str) -> Path:
        """Log of a program of the lab itself."""
        return self.path / f"{program}.log"

    def read(self) -> Record | None:
        """The record; None when there is no lab.

        Raises:
            LabError: another version of felix-py wrote it, or it is damaged.
        """
        try:
            text = (self.path / "lab.json").read_bytes()
            if msgspec.json.decode(text, type=_Versioned).version != VERSION:
                raise LabError(
                    f"lab {self.name!r} was made by another version of felix-py; `felix-py lab down` removes it"
                )
            return msgspec.json.decode(text, type=Record)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise LabError(
                f"{self.path}/lab.json cannot be read: {error}; `felix-py lab down` removes it"
            ) from error

    def write(self, record: Record) -> None:
        """Replace the record."""
        self._replace("lab.json", record)

    def read_keeper(self) -> KeeperState | None:
        """What the keeper says; None when there has been none."""
        try:
            return msgspec.json.decode((self.path / "keeper.json").read_bytes(), type=KeeperState)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def write_keeper(self, state: KeeperState) -> None:
        """Replace it."""
        self._replace("keeper.json", state)

    def _replace(self, name: str, content: msgspec.Struct) -> None:
        fresh = self.path / f".{name}"
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))
        fresh.replace(self.path / name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who makes or removes this lab. The folder exists from here on.

        Raises:
            LabError: another process is at it, or the folder cannot be made.
        """
        fd = self._lock()
        try:
            yield
        finally:
            os.close(fd)

    def _lock(self) -> int:
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # somebody removed it between the two
            except OSError as error:
                raise LabError(f"{self.path}: {error.strerror}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise LabError(
                    f"another felix-py is bringing lab {self.name!r} up or down just now; wait for it, "
                    "or use --name for a lab of your own"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(fd).st_ino == self.path.stat().st_ino:
                    return fd
            os.close(fd)

    def empty(self) -> None:
        """Delete what is in the folder. The folder itself stays, because it is what is locked."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def remove(self) -> None:
        """Delete the folder, and the root when this was the last lab."""
        shutil.rmtree(self.path)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def lab_names(self) -> list[str]:
        """All labs under the same root."""
        return sorted(entry.name for entry in self.root.iterdir()) if self.root.is_dir() else []


class _Versioned(msgspec.Struct):
    version: int = 1


def remove_namespaces(lab: str) -> None:
    """Delete all network namespaces of a lab, and with them all their interfaces and rules."""
    for path in named_netns(netns_prefix(lab)):
        delete_netns(path)
