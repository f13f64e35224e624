"""Files that are never half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_file(target: Path, content: bytes, mode: int) -> None:
    """Replace a file atomically, synced before: others may read or run it at any moment.

    Raises:
        OSError: it cannot be written; the old one stays as it is.
    """
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(fd, "wb") as file:  # closed before the rename: a file open for writing cannot be executed
            file.write(content)
            os.fchmod(fd, mode)
            file.flush()
            os.fsync(fd)
        os.rename(name, target)
    except BaseException:
        os.unlink(name)
        raise
