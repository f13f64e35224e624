"""The address families that this node programs, and those that it only closes."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from felix_py.config import SETTINGS, ConfigError
from felix_py.dataplane import sysctl
from policy.model import Family


class Families(Struct, frozen=True):
    """``closed``: families that the kernel has and that are switched off, so pods must not send any of them."""

    programmed: tuple[Family, ...]
    closed: tuple[Family, ...]

    @classmethod
    def of_this_node(cls, wanted: Collection[Family]) -> Families:
        """``wanted``: ``--ip-families``; empty: all of the kernel's. Raises ConfigError if it lacks one."""
        available = sysctl.available_families()
        if lacking := [family for family in wanted if family not in available]:
            it = SETTINGS["ip_families"]
            reason = f"this kernel has no IPv{int(lacking[0])}: built without it, or started with ipv6.disable=1"
            raise ConfigError(f"{it.option} {it.text(wanted)}: {reason}")
        programmed = tuple(family for family in available if not wanted or family in wanted)
        return cls(programmed, tuple(family for family in available if family not in programmed))
