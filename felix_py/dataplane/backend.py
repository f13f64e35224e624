"""Which iptables backend this host uses, and where the commands are.

A host has two rule engines side by side (legacy x_tables and nf_tables) and a container brings commands of its
own, so asking ``iptables --version`` says nothing about the host. What its kernel already holds does.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

from felix_py.records import Backend
from policy.model import Family

_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
"""Chains that the kubelet keeps in the backend it was made for (KEP-3178)."""

_SEARCH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_TIMEOUT = 60.0


class ToolError(Exception):
    """A command is missing, could not be run, or failed; the message is for people."""


@functools.cache
def command(family: Family, backend: Backend, verb: str) -> str:
    """Path of ``iptables-legacy-save`` and the like; ``verb`` is ``save`` or ``restore``.

    Raises:
        ToolError: it is not installed.
    """
    name = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}-{verb}"
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":" + _SEARCH)
    if path is None:
        raise ToolError(f"{name} is not installed; install the iptables package (1.8 or later)")
    return path


def run(argv: list[str], stdin: str = "") -> str:
    """Run one of the tools in the calling thread's network namespace and return what it prints.

    Raises:
        ToolError: it could not be run, took too long or failed; carries its own words.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin.encode(errors="surrogateescape"),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            env={"PATH": _SEARCH, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{Path(argv[0]).name}: {error}") from error
    if done.returncode:
        raise ToolError(_reason(done.stderr) or f"{Path(argv[0]).name}: exit status {done.returncode}")
    return done.stdout.decode(errors="surrogateescape")


def _reason(stderr: bytes) -> str:
    """The tool's complaint on one line, without its advice to read its help."""
    lines = (line.strip() for line in stderr.decode(errors="replace").splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("Try `", "#")))


def save(family: Family, backend: Backend) -> str:
    """Everything that one family and backend hold, as iptables-save prints it.

    The legacy tool without ``-t`` reads only tables that exist; with it, it would create the table.

    Raises:
        ToolError: the tool is missing or failed.
    """
    return run([command(family, backend, "save")])


def find_backend(override: Backend | None = None) -> Backend:
    """Which backend to write to: ``override``, or the one that the host's other programs use in this namespace.

    Raises:
        ToolError: commands that are needed, be it only to find out, are not installed.
    """
    if override is not None:
        command(Family.V4, override, "restore")
        return override
    if not any(map(has_legacy_tables, Family)):
        command(Family.V4, Backend.NFT, "save")
        return Backend.NFT
    saved = {backend: [save(family, backend) for family in Family] for backend in Backend}
    for backend in (Backend.NFT, Backend.LEGACY):
        if any(hint in text for text in saved[backend] for hint in _HINTS):
            return backend
    rules = {backend: sum(text.count("\n-A ") for text in texts) for backend, texts in saved.items()}
    return Backend.LEGACY if rules[Backend.LEGACY] > rules[Backend.NFT] else Backend.NFT


def has_legacy_tables(family: Family) -> bool:
    """Whether the kernel has any legacy table in the calling thread's network namespace."""
    # The thread's own: /proc/net is the namespace of the process's first thread.
    path = Path("/proc/thread-self/net", f"{'ip' if family is Family.V4 else 'ip6'}_tables_names")
    return path.exists() and bool(path.read_text().strip())
