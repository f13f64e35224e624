"""Linux namespaces: named network namespaces, being inside one for a moment, and mounts (setns(2), mount(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

NETNS_DIR = Path("/run/netns")
"""Where ``ip netns`` keeps named network namespaces (ip-netns(8))."""

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class CommandError(RuntimeError):
    """A tool failed; the message is the command and the tool's own words."""


def run(*argv: str, stdin: str | None = None) -> str:
    """Run a tool and return its stdout.

    Raises:
        CommandError: it exited with an error.
    """
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Move the calling thread into a namespace (Python has setns from 3.12 on)."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(kinds: int) -> None:
    """Give the calling process new namespaces."""
    _check(_libc.unshare(kinds), "unshare")


def mount(source: str, target: Path, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    text = [None if part is None else os.fsencode(part) for part in (source, target, kind, data)]
    _check(_libc.mount(text[0], text[1], text[2], ctypes.c_ulong(flags), text[3]), f"mount {target}")


def set_death_signal(number: int) -> None:
    """Have this process killed when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number)), "prctl")


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


@contextlib.contextmanager
def inside(netns: Path) -> Iterator[None]:
    """The calling thread in a network namespace; sockets made in here belong to it for good."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            setns(before)
    finally:
        os.close(before)


ANSWER_ALL = {"ipv4/icmp_ratelimit": "0", "ipv4/icmp_msgs_per_sec": "100000", "ipv6/icmp/ratelimit": "0"}
"""Sysctls of a host whose "port unreachable" many ask for at once, as the matrix does."""


def write_sysctls(netns: Path, values: Mapping[str, str]) -> None:
    """Set sysctls below /proc/sys/net; older kernels do not have all of them in each namespace."""
    with inside(netns):
        for name, value in values.items():
            with contextlib.suppress(FileNotFoundError):
                Path("/proc/sys/net", name).write_text(value)


def add_netns(name: str) -> Path:
    """Make a named network namespace with its loopback up; returns its path.

    Raises:
        CommandError: there is one of that name already, or the kernel cannot.
    """
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    return NETNS_DIR / name


def delete_netns(path: Path) -> None:
    """Delete a named network namespace; one that is gone, or was made only by half, is fine."""
    _libc.umount2(os.fsencode(path), _MNT_DETACH)
    path.unlink(missing_ok=True)


def is_netns(path: Path) -> bool:
    """Whether a named network namespace is there; after a reboot a plain file may be."""
    try:
        return path.stat().st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def named_netns(prefix: str) -> list[Path]:
    """All named network namespaces whose name starts with ``prefix``."""
    return sorted(NETNS_DIR.glob(f"{prefix}*"))
