"""Keeps the network configuration list in line with the installed plugins.

A runtime runs every plugin of the list for each pod: with a missing plugin, pods can neither start nor be
deleted. So a missing plugin is left out and reported by STATUS, by a notice and in the log.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from felix_py import log
from felix_py.cni.conflist import CLIENT, FILE_NAME, NETWORK, conflist, install_conflist
from felix_py.cni.errors import NOT_JSON
from felix_py.cni.talk import talk
from felix_py.notices import NoticeKind, Notices

_TIMEOUT = 10.0
"""Seconds for a plugin to answer VERSION."""

_SUFFIXES = (".conf", ".conflist", ".json")
"""Suffixes of network configurations for libcni, which uses the alphabetically first file."""

_BASE, _LATEST = "1.0.0", "1.1.0"
"""CNI versions: known to every runtime in use; with GC and STATUS."""


class _Versions(msgspec.Struct, rename="camel"):
    supported_versions: list[str]


def absent_plugins(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Those of ``names`` that are in none of the runtime's plugin folders.

    Empty also if our own client is in none of them: then the folders seen here (in a container) are others.
    """
    if not any((folder / CLIENT).is_file() for folder in folders):
        return []
    return [name for name in names if not any(os.access(folder / name, os.X_OK) for folder in folders)]


def first_network(folder: Path) -> Path | None:
    """The file that a runtime prefers to ours, unless it names our network (as Multus's does)."""
    files = [entry for entry in folder.glob("*") if entry.suffix in _SUFFIXES and entry.name < FILE_NAME]
    for file in sorted(files):
        try:
            if NETWORK not in file.read_text(errors="replace"):
                return file
        except OSError:  # just removed, or a folder
            continue
    return None


class NetworkList:
    """The list in ``folder``: our plugin and the ``chained`` ones found in ``bin_dir``. On the event loop."""

    def __init__(self, folder: Path, bin_dir: Path, chained: Sequence[str], notices: Notices) -> None:
        self._folder = folder
        self._bin_dir = bin_dir
        self._chained = tuple(chained)
        self._notices = notices
        self._log = log.get("cni")
        self._versions: dict[Path, tuple[object, bool]] = {}
        self._written = ""

    async def bring_up_to_date(self) -> None:
        """Write the list if it must change, or is missing: without it the runtime reports the node not ready.

        A list that others change meanwhile is left alone.
        """
        absent = absent_plugins(self._chained, [self._bin_dir])
        texts = {
            name: f"the chained plugin {name} is not in {self._bin_dir}, and pods go without it: install it "
            f"there, or start the agent with --chained-plugin for those that there are"
            for name in absent
        }
        self._notices.replace(NoticeKind.PLUGIN_ABSENT, texts)
        await self._write(absent)
        texts = {}
        if (other := first_network(self._folder)) is not None:
            texts[str(other)] = (
                f"{other} comes before our network list, and its plugin connects the pods, not felix-py: "
                f"take it away once no pod of it runs"
            )
        self._notices.replace(NoticeKind.OTHER_NETWORK, texts)

    async def _write(self, absent: Sequence[str]) -> None:
        text = conflist(self._chained, absent, await self._common_versions(absent))
        if text == self._written and (self._folder / FILE_NAME).exists():
            return
        try:
            changed = install_conflist(self._folder, text)
        except OSError as error:
            self._log.error("cannot write the network list", folder=str(self._folder), reason=str(error))
            return
        self._written = text
        if changed:
            self._log.info("wrote the network list", folder=str(self._folder))

    async def _common_versions(self, absent: Sequence[str]) -> tuple[str, ...]:
        """The CNI versions that all plugins of the list know: a runtime uses the newest for all of them."""
        for name in self._chained:
            if name not in absent and not await self._knows_latest(self._bin_dir / name):
                return (_BASE,)
        return (_BASE, _LATEST)

    async def _knows_latest(self, program: Path) -> bool:
        """Whether a plugin knows :data:`_LATEST`; asked again if its file has changed."""
        try:
            stat = program.stat()
        except OSError:  # just removed: the next call leaves it out
            return False
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if program not in self._versions or self._versions[program][0] != identity:
            self._versions[program] = (identity, await self._asked(program))
        return self._versions[program][1]

    async def _asked(self, program: Path) -> bool:
        """Call a plugin with VERSION (CNI 1.1.0, "VERSION: probe plugin version support")."""
        environment = {"CNI_COMMAND": "VERSION", "PATH": os.environ.get("PATH", os.defpath)}
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                program, env=environment, stdin=pipe, stdout=pipe, stderr=null
            )
            stdout, _ = await talk(process, b'{"cniVersion": "%s"}' % _BASE.encode(), _TIMEOUT)
            known = msgspec.json.decode(stdout, type=_Versions).supported_versions
        except (OSError, *NOT_JSON) as error:  # OSError includes TimeoutError
            self._log.warning("a plugin does not say its versions", plugin=str(program), reason=repr(error))
            return False
        if _LATEST not in known:
            self._log.info("no GC and STATUS by the runtime: a plugin is too old", plugin=program.name)
        return _LATEST in known
