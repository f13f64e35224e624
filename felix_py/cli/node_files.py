"""What of ours a node has in its files, for ``felix-py cleanup``.

Names that we give, and no others: a folder is removed only if nothing else is in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from felix_py.cni.conflist import CLIENT, FILE_NAME

KEPT = (
    "configuration.json",
    "bgp.json",
    "blocks.json",
    "pools.json",
    "lent-addresses.json",
    "kept-addresses.json",
)
"""What :class:`felix_py.agent.last_good.Kept` writes into the state folder."""
KEPT_IN_RUN = ("bgp-passwords.json", "bgp-held-down.json")
"""And into that for what is running."""

_STATE = ("leases.db*", *KEPT, *(f".{name}.*" for name in KEPT))
_RUN = ("cni.sock", "agent.sock", "spool", "bgp", *KEPT_IN_RUN, *(f".{name}.*" for name in KEPT_IN_RUN))


def network_list(folder: Path) -> list[Path]:
    """The network list, and what a write of it that was cut off has left."""
    return _found(folder, (FILE_NAME, f".{FILE_NAME}.*"))


def client(folder: Path) -> list[Path]:
    """The CNI client and the file that names its socket, likewise."""
    return _found(folder, (CLIENT, f"{CLIENT}.socket", f".{CLIENT}.*"))


def state(folder: Path) -> list[Path]:
    """Address leases, and the cluster's objects as last known; at last the folder, if nothing else is in it."""
    return _with_folder(folder, _STATE)


def run(folder: Path) -> list[Path]:
    """Sockets, DELs that wait for an agent, what agent and sidecar share; at last the folder, likewise."""
    return _with_folder(folder, _RUN)


def _with_folder(folder: Path, names: Sequence[str]) -> list[Path]:
    found = _found(folder, names)
    whole = folder.is_dir() and not folder.is_mount() and {*folder.iterdir()} <= {*found}
    return [*found, *([folder] if whole else [])]


def _found(folder: Path, names: Sequence[str]) -> list[Path]:
    return sorted({path for name in names for path in folder.glob(name)})


def lines(paths: Sequence[Path]) -> Iterator[str]:
    """A line for each: ``file`` or ``folder``, and the path."""
    for path in paths:
        yield f"{'folder' if path.is_dir() and not path.is_symlink() else 'file'} {path}"


def remove(paths: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """Remove files and folders in this order, those of ``folders`` only if they are empty; what failed, and why.

    What is gone already is no failure, nor is a folder into which others have put something meanwhile.
    """
    failures = []
    for path in paths:
        try:
            with suppress(FileNotFoundError):
                _remove(path, only_empty=path in folders)
        except OSError as error:
            failures.append(f"{path}: {error.strerror or error}")
    return failures


def _remove(path: Path, *, only_empty: bool) -> None:
    if only_empty:
        if not any(path.iterdir()):
            path.rmdir()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
