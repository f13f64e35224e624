"""A container runtime's side of CNI: executes the plugins of a network configuration list, as libcni does.

Source: CNI 1.1.0, "Section 3: Execution of Network Configurations" and "Section 5: Result Types".
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from felix_py.cni.errors import SUPPORTED_VERSIONS
from lab.program import execute


class PluginError(Exception):
    """A plugin answered with an error, or not at all. ``code`` and ``details`` as in the CNI error."""

    def __init__(self, plugin: str, code: int, message: str, details: str = "") -> None:
        self.plugin = plugin
        self.code = code
        self.details = details
        super().__init__(f"{plugin}: {message} (code {code}){': ' + details if details else ''}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where plugins run. ``enter`` is put before commands (``nsenter …``); ``root`` is where its files are."""

    enter: tuple[str, ...] = ()
    root: Path = Path("/")


class CNIRuntime:
    """Connects containers to the first network of ``conf_dir``, with the plugins in ``bin_dirs``.

    Results are cached, as a runtime must to give plugins their prevResult: in memory, and in the folder ``cache``
    (if given) for the next runtime.
    """

    def __init__(
        self,
        conf_dir: Path,
        bin_dirs: Sequence[Path],
        place: Callable[[], Place] = Place,
        cache: Path | None = None,
    ) -> None:
        """``bin_dirs`` are as seen from ``place``, which raises PluginError while there is none."""
        self._conf_dir = conf_dir
        self._bin_dirs = tuple(bin_dirs)
        self._place = place
        self._cache = cache
        self._results: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
        for file in sorted(cache.glob("*.json")) if cache else ():
            with contextlib.suppress(ValueError):
                kept = json.loads(file.read_text())
                self._results[kept["container"], kept["ifname"]] = (kept["network"], kept["call"])

    def network(self) -> dict[str, Any] | None:
        """The configuration list in use: the first in alphabetical order, or None while there is none."""
        for file in sorted(self._conf_dir.glob("*.conflist")):
            with contextlib.suppress(FileNotFoundError):
                found: dict[str, Any] = json.loads(file.read_text())
                return found
        return None

    async def add(
        self,
        container: str,
        netns: str,
        ifname: str = "eth0",
        args: Mapping[str, str] | None = None,
        capabilities: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run ADD of every plugin in order; returns the last one's result.

        ``args`` become CNI_ARGS; ``capabilities`` are runtimeConfig values, given to the plugins that declare
        them. On an error the caller should :meth:`delete`, as a runtime does.

        Raises:
            PluginError: a plugin's error, or that there is no network yet.
        """
        network = self.network()
        if network is None:
            raise PluginError("runtime", 11, f"no network configuration list in {self._conf_dir}")
        environment = _environment(container, ifname, netns, args)
        call = {"environment": environment, "capabilities": dict(capabilities or {})}
        self._remember(container, ifname, network, call)
        result: dict[str, Any] = {}
        for plugin in network["plugins"]:
            config = _config(network, plugin, call["capabilities"], result or None)
            result = await self._execute("ADD", plugin["type"], environment, config) or {}
        call["result"] = result
        self._remember(container, ifname, network, call)
        return result

    async def check(self, container: str, ifname: str = "eth0") -> None:
        """Run CHECK of every plugin, with the cached result.

        Raises:
            PluginError: a plugin's error, or that the container was never added.
        """
        if (container, ifname) not in self._results:
            raise PluginError("runtime", 3, f"container {container} was not added")
        network, call = self._results[container, ifname]
        for plugin in network["plugins"]:
            config = _config(network, plugin, call["capabilities"], call.get("result"))
            await self._execute("CHECK", plugin["type"], call["environment"], config)

    async def delete(self, container: str, ifname: str = "eth0", netns: str = "") -> None:
        """Run DEL of every plugin in reverse order, with the cached result if there is one.

        Raises:
            PluginError: a plugin's error; calling again later is right.
        """
        network, call = self._results.get((container, ifname), (self.network(), {}))
        if network is None:
            return
        environment = dict(call.get("environment") or _environment(container, ifname, netns, None))
        for plugin in reversed(network["plugins"]):
            config = _config(network, plugin, call.get("capabilities", {}), call.get("result"))
            await self._execute("DEL", plugin["type"], environment, config)
        self._results.pop((container, ifname), None)
        if self._cache:
            self._cached(self._cache, container, ifname).unlink(missing_ok=True)

    def _remember(self, container: str, ifname: str, network: dict[str, Any], call: dict[str, Any]) -> None:
        self._results[container, ifname] = (network, call)
        if self._cache:
            kept = {"container": container, "ifname": ifname, "network": network, "call": call}
            path = self._cached(self._cache, container, ifname)
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(kept))
            fresh.replace(path)

    @staticmethod
    def _cached(cache: Path, container: str, ifname: str) -> Path:
        return cache / f"{container}-{ifname}.json"

    async def _execute(
        self, command: str, plugin: str, environment: Mapping[str, str], config: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        place = self._place()
        program = self._find(plugin, place)
        variables = {"CNI_COMMAND": command, "CNI_PATH": ":".join(map(str, self._bin_dirs)), **environment}
        environment = {"PATH": os.environ.get("PATH", os.defpath), **variables}
        code, stdout, stderr = await execute((*place.enter, program), environment, json.dumps(config).encode())
        try:
            answer: dict[str, Any] | None = json.loads(stdout) if stdout.strip() else None
        except ValueError:
            raise PluginError(plugin, 6, f"answered {stdout[:200]!r}") from None
        if code:
            failure = answer or {}
            message = failure.get("msg") or f"exit {code}, {stderr.decode(errors='replace')}"
            raise PluginError(plugin, failure.get("code", 0), message, failure.get("details", ""))
        return answer

    def _find(self, plugin: str, place: Place) -> str:
        for folder in self._bin_dirs:
            if os.access(_below(place.root, folder) / plugin, os.X_OK):
                return str(folder / plugin)
        raise PluginError(plugin, 5, f"not found in {', '.join(map(str, self._bin_dirs))}")


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _environment(container: str, ifname: str, netns: str, args: Mapping[str, str] | None) -> dict[str, str]:
    environment = {"CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_NETNS": netns}
    if args:
        environment["CNI_ARGS"] = ";".join(f"{name}={value}" for name, value in args.items())
    return environment


def _version(network: Mapping[str, Any]) -> str:
    """The highest version offered that we know, as libcni takes it."""
    offered = [network["cniVersion"], *network.get("cniVersions", ())]
    return str(max(version for version in offered if version in SUPPORTED_VERSIONS))


def _config(
    network: Mapping[str, Any],
    plugin: Mapping[str, Any],
    capabilities: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The plugin's configuration (CNI 1.1.0, "Deriving request configuration from plugin configuration")."""
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    config |= {"cniVersion": _version(network), "name": network["name"]}
    asked = {
        key: capabilities[key] for key, on in plugin.get("capabilities", {}).items() if on and key in capabilities
    }
    if asked:
        config["runtimeConfig"] = asked
    if previous:
        config["prevResult"] = previous
    return config
