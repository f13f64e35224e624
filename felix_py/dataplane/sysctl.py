"""Sysctls that the agent needs, in the calling thread's network namespace.

A sysctl is written only if it differs; a failure tells what to do about it.
Source: the kernel's Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from pathlib import Path

from felix_py.dataplane.delta import Delta
from felix_py.dataplane.order import Step
from felix_py.dataplane.part import Part, Sweep
from felix_py.dataplane.protocols import Look
from felix_py.layout import INTERFACE_PREFIX
from felix_py.records import Drift, Failure, Report
from felix_py.refs import SysctlRef
from policy.model import Family

_ROOT = Path("/proc/sys/net")

IN_CONTAINER = Path("/host/proc/sys/net")
"""The same folder of the host, where the pod's manifest shows it: /proc/sys is read-only in a container, and
nothing can be mounted over it there (runc's checkProcMount). As in /proc/sys, the writer's namespace is meant."""

_GONE = (errno.EINVAL, errno.ENODEV, errno.ENOENT)
"""Errors of reading a setting whose interface vanishes meanwhile."""


def available_families() -> tuple[Family, ...]:
    """Families of this kernel (IPv6 may be compiled out or switched off at boot)."""
    return (Family.V4, Family.V6) if (_ROOT / "ipv6").is_dir() else (Family.V4,)


def set_up_host(families: Collection[Family]) -> tuple[Failure, ...]:
    """Enable forwarding. Returns what could not be set.

    A host that forwards IPv6 ignores router advertisements, and so would lose its default route from them:
    interfaces that accept them now are set to go on (accept_ra 2).
    """
    failures: list[Failure | None] = []
    if Family.V4 in families:
        failures.append(ensure("ipv4/ip_forward", "1"))
    if Family.V6 in families:
        if read("ipv6/conf/all/forwarding") == "0":
            failures += [
                ensure(f"ipv6/conf/{name}/accept_ra", "2")
                for name in sorted(os.listdir(_ROOT / "ipv6/conf"))
                if _takes_advertisements(name)
            ]
        failures.append(ensure("ipv6/conf/all/forwarding", "1"))
    return tuple(failure for failure in failures if failure)


def _takes_advertisements(interface: str) -> bool:
    if interface in ("all", "default", "lo") or interface.startswith(INTERFACE_PREFIX):
        return False
    return read(f"ipv6/conf/{interface}/accept_ra") == "1"


def read(name: str) -> str | None:
    """Value of a setting, ``name`` being its path below /proc/sys/net; None if it does not exist.

    Raises:
        OSError: it cannot be read (EMFILE, say), and its value is unknown.
    """
    try:
        file = os.open(f"{_ROOT}/{name}", os.O_RDONLY | os.O_CLOEXEC)  # pathlib takes five times as long
    except FileNotFoundError:
        return None
    try:
        return os.read(file, 64).decode(errors="replace").strip()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    finally:
        os.close(file)


def write(name: str, value: str) -> None:
    """Set a value unless it is set already. Raises as :func:`put` does."""
    if read(name) != value:
        put(name, value)


def put(name: str, value: str) -> None:
    """Set a value.

    Raises:
        OSError: the setting does not exist or cannot be written.
    """
    try:
        file = os.open(f"{_ROOT}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EROFS or not IN_CONTAINER.is_dir():
            raise
        file = os.open(f"{IN_CONTAINER}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, value.encode())
    finally:
        os.close(file)


def ensure(name: str, value: str) -> Failure | None:
    """Like :func:`write`, but returns a failure that tells what to do."""
    try:
        write(name, value)
    except OSError as error:
        ref = SysctlRef(name)
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return Failure(ref, f"/proc/sys is read-only here; set {ref.dotted}={value} on the host")
        return Failure(ref, error.strerror or str(error))
    return None


_FORWARDING = {Family.V4: "ipv4/ip_forward", Family.V6: "ipv6/conf/all/forwarding"}


class HostSettings(Part):
    """Keeps forwarding enabled once it is: the start enables it, and a host without it before has no drift."""

    looks = Look.LINKS | Look.SETTINGS

    def __init__(self, families: Collection[Family]) -> None:
        self.steps = {Step.MEND_LINKS: self.mend}
        self._families = tuple(families)
        self._delta: Delta[Family, str, str | None] = Delta()
        self._drift: list[Drift] = []

    def load(self) -> None:
        found = self._delta.load({family: read(_FORWARDING[family]) for family in self._families})
        self._drift += [Drift(SysctlRef(_FORWARDING[family]), "0 instead of 1") for family in sorted(found.lost)]
        for family in self.forwarding:
            self._delta.desire(family, "1")

    @property
    def forwarding(self) -> Collection[Family]:
        """Families that the host forwarded at the last load."""
        return [family for family, value in self._delta.actual.items() if value == "1"]

    def mend(self, _sweep: Sweep = Sweep.NOTHING) -> Report:
        """Enable forwarding again."""
        lost = self._delta.updates()
        failures = set_up_host(lost)
        if lost and not failures:
            self._delta.written(dict.fromkeys(lost, "1"))
        return Report(writes=0 if failures else len(lost), failures=failures)
