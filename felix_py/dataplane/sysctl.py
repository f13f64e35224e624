"""Kernel settings that the agent needs, of the calling thread's network namespace.

Each is read first and written only if it differs; one that cannot be written is reported with what to do.
Source: the kernel's Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from pathlib import Path

from felix_py.plan.layout import INTERFACE_PREFIX
from felix_py.records import Failure
from policy.model import Family

_ROOT = Path("/proc/sys/net")


def available_families() -> tuple[Family, ...]:
    """The families that this kernel has (IPv6 may be compiled out or switched off at boot)."""
    return (Family.V4, Family.V6) if (_ROOT / "ipv6").is_dir() else (Family.V4,)


def set_up_host(families: Collection[Family]) -> tuple[Failure, ...]:
    """Make the node a router. Returns what could not be set.

    A host that forwards IPv6 ignores router advertisements, and so would lose the default route it has from them:
    interfaces that take them now are told to go on (accept_ra 2).
    """
    failures: list[Failure | None] = []
    if Family.V4 in families:
        failures.append(_ensure("ipv4/ip_forward", "1"))
    if Family.V6 in families:
        if _read("ipv6/conf/all/forwarding") == "0":
            failures += [
                _ensure(f"ipv6/conf/{name}/accept_ra", "2")
                for name in sorted(os.listdir(_ROOT / "ipv6/conf"))
                if _takes_advertisements(name)
            ]
        failures.append(_ensure("ipv6/conf/all/forwarding", "1"))
    return tuple(failure for failure in failures if failure)


def _takes_advertisements(interface: str) -> bool:
    if interface in ("all", "default", "lo") or interface.startswith(INTERFACE_PREFIX):
        return False
    return _read(f"ipv6/conf/{interface}/accept_ra") == "1"


def _read(name: str) -> str | None:
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None


def _ensure(name: str, value: str) -> Failure | None:
    path = _ROOT / name
    # sysctl(8)'s spelling: a dot inside an interface name becomes a slash.
    dotted = "net." + ".".join(part.replace(".", "/") for part in name.split("/"))
    try:
        if path.read_text().strip() == value:
            return None
        path.write_text(value)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return Failure(f"sysctl {dotted}", f"/proc/sys is read-only here; set {dotted}={value} on the host")
        return Failure(f"sysctl {dotted}", error.strerror or str(error))
    return None
