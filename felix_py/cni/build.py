"""Builds the static C client: ``python -m felix_py.cni.build [DESTINATION [ARCHITECTURE]]``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "client" / "felix-py-cni.c"
BUILT = SOURCE.with_suffix("")
"""The client of the machine that it was built on; an image has one for each architecture instead."""

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Architectures of nodes as Kubernetes names them, and as uname(2) does."""

_FLAGS = ("-std=c11", "-static", "-Os", "-s", "-Wall", "-Wextra")


def client_of(architecture: str, folder: Path = SOURCE.parent) -> Path:
    """Where an image keeps the client of one of :data:`ARCHITECTURES`."""
    return folder / f"{SOURCE.stem}-{architecture}"


def build_client(destination: Path = BUILT, architecture: str | None = None) -> None:
    """Compile the client statically, with musl or else the system's libc; for another machine with GCC and glibc.

    Raises:
        RuntimeError: no compiler, or it failed; the message has its output.
    """
    machine = ARCHITECTURES[architecture] if architecture else os.uname().machine
    if machine == os.uname().machine:
        compiler = shutil.which("musl-gcc") or shutil.which("gcc")
        missing = "no C compiler: install musl-tools (or gcc)"
    else:
        compiler = shutil.which(f"{machine}-linux-gnu-gcc")
        missing = f"no C compiler for {architecture}: install gcc-{machine.replace('_', '-')}-linux-gnu"
    if compiler is None:
        raise RuntimeError(missing)
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
        build_client(Path(sys.argv[1]) if sys.argv[1:] else BUILT, *sys.argv[2:3])
    except (OSError, RuntimeError) as problem:
        sys.exit(f"felix_py.cni.build: {problem}")
