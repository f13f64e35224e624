"""Files that are never half written."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(target: Path, content: bytes, mode: int) -> None:
    """Replace a file atomically, synced before: others may read or run it at any moment.

    Raises:
        OSError: it cannot be written; the old one stays as it is.
    """

    def permit(fd: int) -> None:
        os.fchmod(fd, mode)

    _replace(target, content, permit)


def replace_private(target: Path, text: str) -> None:
    """The same, and only who the folder is for can read the file, which may be another user.

    That is the folder's owner. Or its group, if files get that by themselves (setgid, as in a volume of a pod
    with ``fsGroup``): then it takes no capability to give the file away, which else is CAP_CHOWN.

    Raises:
        OSError: it cannot be written; the old one stays as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent.stat()

    def permit(fd: int) -> None:
        if folder.st_mode & stat.S_ISGID:
            os.fchmod(fd, 0o640)
        elif os.geteuid() == 0 and folder.st_uid != 0:
            os.fchown(fd, folder.st_uid, folder.st_gid)

    _replace(target, text.encode(), permit)


def _replace(target: Path, content: bytes, permit: Callable[[int], None]) -> None:
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # 0600
    try:
        with open(fd, "wb") as file:  # closed before the rename: a file open for writing cannot be executed
            permit(fd)
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.rename(name, target)
    except BaseException:
        os.unlink(name)
        raise
