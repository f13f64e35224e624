"""The container runtime's folders of CNI plugins and network lists, from its own configuration.

Distributions differ: Debian's containerd has its plugins in ``/usr/lib/cni``, most others in ``/opt/cni/bin``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from felix_py.config import AgentConfig

_CONTAINERD = "etc/containerd/config.toml"
_CRIO = ("etc/crio/crio.conf", "etc/crio/crio.conf.d/*.conf")


@dataclass(frozen=True, slots=True)
class RuntimeFolders:
    """The folders of plugins and of network lists; by default those of CNI."""

    plugins: Path = AgentConfig.cni_bin_dir
    lists: Path = AgentConfig.cni_conf_dir


def runtime_folders(root: Path = Path("/")) -> RuntimeFolders:
    """Read the configuration of containerd, else of CRI-O, below ``root``. Unreadable files count as absent."""
    found = _containerd(_read(root / _CONTAINERD))
    if not found:
        for pattern in _CRIO:
            for file in sorted(root.glob(pattern)):
                found |= _crio(_read(file))
    usual = RuntimeFolders()
    return RuntimeFolders(found.get("plugins", usual.plugins), found.get("lists", usual.lists))


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _containerd(config: Mapping[str, Any]) -> dict[str, Path]:
    """The CRI plugin's table ``cni``: ``bin_dir`` (since version 2.1 a list, ``bin_dirs``) and ``conf_dir``."""
    found: dict[str, Path] = {}
    for table in _cni_tables(config.get("plugins")):
        folders = table.get("bin_dirs") or [table.get("bin_dir")]
        _take(found, "plugins", folders[0] if isinstance(folders, list) else folders)
        _take(found, "lists", table.get("conf_dir"))
    return found


def _cni_tables(plugins: object) -> Iterator[Mapping[str, Any]]:
    """In any version of the configuration: the CRI plugin's name has changed with the versions."""
    if not isinstance(plugins, Mapping):
        return
    for name, plugin in plugins.items():
        if "cri" in str(name) and isinstance(plugin, Mapping) and isinstance(table := plugin.get("cni"), Mapping):
            yield table


def _crio(config: Mapping[str, Any]) -> dict[str, Path]:
    """``[crio.network]``: ``plugin_dirs`` and ``network_dir``."""
    found: dict[str, Path] = {}
    crio = config.get("crio")
    network = crio.get("network") if isinstance(crio, Mapping) else None
    if isinstance(network, Mapping):
        folders = network.get("plugin_dirs")
        _take(found, "plugins", folders[0] if isinstance(folders, list) and folders else None)
        _take(found, "lists", network.get("network_dir"))
    return found


def _take(found: dict[str, Path], what: str, value: object) -> None:
    if isinstance(value, str) and value.startswith("/"):
        found[what] = Path(value)
