"""Builds the static C client: ``python -m felix_py.cni.build [DESTINATION]``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "client" / "felix-py-cni.c"
BUILT = SOURCE.with_suffix("")
_FLAGS = ("-std=c11", "-static", "-Os", "-s", "-Wall", "-Wextra")


def build_client(destination: Path = BUILT) -> None:
    """Compile the client statically, with musl or else the system's libc.

    Raises:
        RuntimeError: no compiler, or it failed; the message has its output.
    """
    compiler = shutil.which("musl-gcc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("no C compiler: install musl-tools (or gcc)")
    # Made beside the destination and then renamed: the old one may be running.
    made = destination.with_name(f".{destination.name}.{os.getpid()}")
    command = [compiler, *_FLAGS, "-o", str(made), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        made.unlink(missing_ok=True)
        raise RuntimeError(f"{compiler} failed:\n{done.stderr}")
    made.replace(destination)


if __name__ == "__main__":
    try:
        build_client(*map(Path, sys.argv[1:2]))
    except (OSError, RuntimeError) as problem:
        sys.exit(f"felix_py.cni.build: {problem}")
