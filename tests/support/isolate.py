"""Namespaces for tests: the whole test process leaves the machine's own network and mounts behind.

Once :func:`isolate_process` has run, no test can reach the machine's tables, routes or CNI folders, whatever it
does, and everything it made vanishes with the process: also after a crash or Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int = CLONE_NEWNET) -> None:
    """setns(2) for the calling thread."""
    _check(_libc.setns(fd, flags), "setns")


def run(*argv: str, stdin: str | None = None, check: bool = True) -> str:
    """Run a command in the current namespace and return its stdout; raise with its stderr when it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def isolate_process() -> None:
    """Move this process into new network and mount namespaces with folders of its own (needs root)."""
    unshare(CLONE_NEWNET | CLONE_NEWNS)
    run("mount", "--make-rprivate", "/")
    scratch = Path(tempfile.mkdtemp(prefix="felix-py-tests-"))
    run("mount", "-t", "tmpfs", "felix-py-tests", str(scratch))
    (scratch / "lock").touch()
    Path("/run/xtables.lock").touch()
    run("mount", "--bind", str(scratch / "lock"), "/run/xtables.lock")
    run("umount", str(scratch))
    scratch.rmdir()
    for folder in ("/run/netns", "/etc/cni"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "felix-py-tests", folder)
    run("ip", "link", "set", "lo", "up")


@contextmanager
def new_netns() -> Iterator[None]:
    """The calling thread in a fresh network namespace (loopback up); back to the old one at the end."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            run("ip", "link", "set", "lo", "up")
            yield
        finally:
            setns(before)
    finally:
        os.close(before)


def veth(name: str, peer: str, *addresses: str) -> None:
    """A pair of interfaces in the current namespace, both up; ``addresses`` (with lengths) are of ``name``."""
    run("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
    for end in (peer, name):
        run("ip", "link", "set", end, "up")
    for address in addresses:
        run("ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))


class NetworkNamespace:
    """A named network namespace (``ip netns``) that a test made; the name is unique."""

    def __init__(self, role: str) -> None:
        self.name = f"fxt-{role}-{uuid.uuid4().hex[:8]}"
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """What a container runtime passes as CNI_NETNS."""
        return f"/run/netns/{self.name}"

    def run(self, *argv: str, stdin: str | None = None, check: bool = True) -> str:
        """Run a command inside and return its stdout; /sys stays as it is outside."""
        with self.enter():
            return run(*argv, stdin=stdin, check=check)

    def popen(self, argv: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Start a command inside."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *argv], text=True, **options)  # type: ignore[call-overload,no-any-return]

    @contextmanager
    def enter(self) -> Iterator[None]:
        """The calling thread inside, for sockets that tests open themselves."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(inside)
            try:
                yield
            finally:
                setns(before)
        finally:
            os.close(inside)
            os.close(before)

    def close(self) -> None:
        """Delete it; deleting twice is fine."""
        run("ip", "netns", "del", self.name, check=False)


class Here(NetworkNamespace):
    """The current network namespace, for what is started in a named one otherwise."""

    def __init__(self) -> None:
        self.name = ""

    def popen(self, argv: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(argv, text=True, **options)  # type: ignore[call-overload,no-any-return]
