"""The iptables backend that this host uses, and the backend's commands.

A host has two rule engines side by side (legacy x_tables and nf_tables), and a container has its own commands, so
``iptables --version`` says nothing about the host. The rules that the kernel already holds do.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from felix_py.dataplane.iptables_text import BUILTIN_CHAINS, TABLES
from felix_py.dataplane.processes import Ended, Processes, TooMuch
from felix_py.layout import CHAIN_PREFIX
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import NETLINK_NETFILTER, attributes, message
from felix_py.records import Backend
from policy.model import Family

_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
"""Chains that the kubelet keeps in the backend that it uses (KEP-3178)."""

_CONCERNING = (f"-A {CHAIN_PREFIX}", f":{CHAIN_PREFIX}", *(f"-A {chain} " for chain in sorted(BUILTIN_CHAINS)))
_INCOMPATIBLE = re.compile(rf"^# (Table \W({'|'.join(TABLES)})\W is incompatible.*)", re.MULTILINE)
"""Printed by the nft tool, with exit status 0, instead of a table that was changed with nft(8)."""

_NFT_MSG_GETGEN = 10 << 8 | 16
_NFTA_GEN_ID = 1

_SEARCH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_TIMEOUT = 60.0
_REMEMBERED = 10.0
"""Seconds for which events may name a process that has ended; then its pid is forgotten, as pids are reused."""
_MOST_WORDS = 1000
"""Characters of a tool's error text: it is kept, logged and shown for each object that it concerns."""

_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""Errors that mean a lack of resources, not a kernel without nf_tables."""

_processes = Processes()


class ToolError(Exception):
    """A command is missing, could not be run, or failed; the message is readable."""


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


class OwnProcesses:
    """Pids of the processes that write rules for us, to ignore their events. One thread adds, another asks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[int, float] = {}

    def started(self, pid: int) -> None:
        """Note a running process of ours."""
        now = self._clock()
        self._until = {known: until for known, until in self._until.items() if until > now} | {pid: math.inf}

    def ended(self, pid: int) -> None:
        """Note its end; events about it may still come."""
        self._until[pid] = self._clock() + _REMEMBERED

    def __contains__(self, pid: object) -> bool:
        return isinstance(pid, int) and self._until.get(pid, 0.0) > self._clock()


def run(argv: list[str], stdin: str = "", own: OwnProcesses | None = None, timeout: float = _TIMEOUT) -> str:
    """Run one of the tools in the calling thread's network namespace and return its output.

    ``own`` gets the pid before the process has read any of ``stdin``; ``timeout`` is in seconds.

    Raises:
        ToolError: it could not be run, timed out, printed too much or failed; carries its own error text.
    """
    name = Path(argv[0]).name
    pids: list[int] = []

    def started(pid: int) -> None:
        pids.append(pid)
        if own is not None:
            own.started(pid)

    environment = {"PATH": _SEARCH, "LC_ALL": "C"}
    try:
        code, output, complaint = _processes.run(
            argv, stdin.encode(errors="surrogateescape"), environment, timeout, started
        )
    except TimeoutError:
        raise ToolError(f"{name}: timed out after {timeout:.3g} seconds") from None
    except (OSError, TooMuch, Ended) as error:
        raise ToolError(f"{name}: {error}") from error
    finally:
        for pid in pids:
            if own is not None:
                own.ended(pid)
    if code:
        raise ToolError(_reason(complaint) or f"{name}: exit status {code}")
    return output.decode(errors="surrogateescape")


def end_tools() -> list[str]:
    """Kill the running tools and refuse to run others, as the agent is about to end. Returns their names."""
    return _processes.end()


def _reason(stderr: bytes) -> str:
    """The tool's error text on one line, without its hint at its help; cut if long."""
    lines = (line.strip() for line in stderr.decode(errors="replace").splitlines())
    text = " ".join(line for line in lines if line and not line.startswith(("Try `", "#")))
    return text if len(text) <= _MOST_WORDS else f"{text[:_MOST_WORDS]} …"


def save(family: Family, backend: Backend, timeout: float = _TIMEOUT) -> str:
    """All tables of one family and backend, as iptables-save prints them.

    The legacy tool without ``-t`` reads only tables that exist; with it, it would create the table. The nft tool
    restarts when a rule of any family is written while it reads, and then may print some chains several times
    (seen with 1.8.9). So its output counts if the nf_tables generation has not changed meanwhile, or if two runs
    in a row agree on our chains and the built-in ones.

    Raises:
        ToolError: the tool is missing or failed, or has not finished after ``timeout`` seconds.
    """
    argv = [command(family, backend, "save")]
    if backend is Backend.LEGACY:
        return run(argv, timeout=timeout)
    deadline = time.monotonic() + timeout
    before = None
    while (left := deadline - time.monotonic()) > 0:
        generation = _generation()
        text = run(argv, timeout=left)
        if found := _INCOMPATIBLE.search(text):
            raise ToolError(f"{Path(argv[0]).name}: {found[0]}")
        concerning = [line for line in text.split("\n") if line.startswith(_CONCERNING)]
        if generation == _generation() or concerning == before:
            return text
        before = concerning
    raise ToolError(f"{Path(argv[0]).name}: others keep changing the rules while they are read")


def _generation() -> bytes:
    """Generation id of nf_tables (number of its last transaction); empty if the kernel has no nf_tables."""
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            answer = netlink.get(message(_NFT_MSG_GETGEN, 0, bytes(4)))
    except OSError as error:
        if error.errno in _SCARCE:
            raise ToolError(f"the kernel's rules cannot be compared: {error.strerror}") from error
        return b""
    return bytes(attributes(answer[4:]).get(_NFTA_GEN_ID, b""))


def find_backend(override: Backend | None = None) -> Backend:
    """The backend to write to: ``override``, or the one that the host's other programs use in this namespace.

    Raises:
        ToolError: commands that are needed, if only for detection, are not installed.
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
    # thread-self, because /proc/net shows the namespace of the process's first thread.
    path = Path("/proc/thread-self/net", f"{'ip' if family is Family.V4 else 'ip6'}_tables_names")
    return path.exists() and bool(path.read_text().strip())
