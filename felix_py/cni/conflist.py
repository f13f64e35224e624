"""The network configuration list and the CNI client's program, installed for the container runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from felix_py.cni.client_file import NotAClient, architecture_of_node, check_client, client_for
from felix_py.cni.errors import NOT_JSON
from felix_py.cni.types import OUR_IPAM
from felix_py.files import replace_file

FILE_NAME = "10-felix-py.conflist"
NETWORK = "felix-py"
CLIENT = "felix-py-cni"
_EXECUTABLE = 0o755
_CAPABILITIES = {"portmap": {"portMappings": True}, "bandwidth": {"bandwidth": True}}
_OPTIONS: dict[str, dict[str, Any]] = {"portmap": {"snat": True}}


class _Plugin(msgspec.Struct):
    type: str = ""
    ipam: dict[str, Any] | None = None


class _List(msgspec.Struct):
    plugins: list[_Plugin]


def conflist(
    chained: Iterable[str] = (), absent: Collection[str] = (), versions: Sequence[str] = ("1.0.0",)
) -> str:
    """The configuration list: our plugin, then ``chained`` standard plugins in that order, as JSON text.

    Without ``ipam`` the addresses come from our own store. ``absent`` plugins are left out, and our own entry
    declares their capabilities, to refuse pods that need them. ``versions``: of CNI, the lowest first; a runtime
    without ``cniVersions`` (CNI 1.1.0, "Section 1") takes the first, others the highest that they know.
    """
    ours: dict[str, Any] = {"ips": True, "mac": True}
    plugins: list[dict[str, Any]] = [{"type": CLIENT, "capabilities": ours}]
    for name in chained:
        if name in absent:
            ours |= _CAPABILITIES.get(name, {})
            continue
        plugin = {"type": name, **_OPTIONS.get(name, {})}
        if name in _CAPABILITIES:
            plugin["capabilities"] = _CAPABILITIES[name]
        plugins.append(plugin)
    network: dict[str, Any] = {"cniVersion": versions[0]}
    if len(versions) > 1:
        network["cniVersions"] = list(versions)
    return json.dumps({**network, "name": NETWORK, "plugins": plugins}, indent=2) + "\n"


def is_delegated(folder: Path) -> bool:
    """Whether the first network list with our plugin asks another IPAM plugin for addresses."""
    for file in sorted(folder.glob("*.conflist")):
        try:
            found = msgspec.json.decode(file.read_bytes(), type=_List)
        except (OSError, *NOT_JSON):
            continue
        for plugin in found.plugins:
            if plugin.type == CLIENT:
                return (plugin.ipam or {}).get("type", "") not in OUR_IPAM
    return False


def configuration_of(folder: Path, network: str) -> bytes:
    """Our plugin's configuration in the list of a network, as a runtime passes it; empty without such a list."""
    for file in sorted(folder.glob("*.conflist")):
        try:
            found = json.loads(file.read_bytes())
            entry = next(plugin for plugin in found["plugins"] if plugin["type"] == CLIENT)
            if found["name"] == network:
                return json.dumps({**entry, "name": network, "cniVersion": found["cniVersion"]}).encode()
        except (OSError, ValueError, LookupError, TypeError, StopIteration, RecursionError):
            continue
    return b""


def install_conflist(folder: Path, text: str) -> bool:
    """Write the list to the runtime's folder; true if that changed it. Raises OSError if it cannot be written.

    Call it only once pods can be connected: from then on the runtime reports the node ready and starts pods. The
    list stays when the agent stops: a node without it would be tainted, and running pods need nothing new.
    """
    target = folder / FILE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    if target.is_file() and target.read_text(errors="replace") == text:
        return False
    replace_file(target, text.encode(), 0o644)
    return True


def install_client(
    bin_dir: Path, socket: Path, client: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Copy the client to the CNI bin folder, with the socket's path in a file beside it; returns its path.

    ``client``: by default this node's. ``say`` gets a sentence on what was done. A client that a runtime executes
    at the moment is replaced like any other. One that is the same already is left alone.

    Raises:
        FileNotFoundError: the client was not built.
        NotAClient: it is truncated, or another architecture's; what is installed stays.
        OSError: the folder cannot be written.
    """
    architecture = architecture_of_node()
    client = client or client_for(architecture)
    if not client.is_file():
        raise FileNotFoundError(f"{client} is not built: python -m felix_py.cni.build (or make)")
    content, target = client.read_bytes(), bin_dir / CLIENT
    try:
        check_client(content, architecture)
    except NotAClient as error:
        raise NotAClient(f"{client}: {error}") from None
    bin_dir.mkdir(parents=True, exist_ok=True)
    replace_file(bin_dir / f"{CLIENT}.socket", f"{socket}\n".encode(), 0o644)
    found = target.is_file()
    if found and target.read_bytes() == content and target.stat().st_mode & 0o777 == _EXECUTABLE:
        say(f"{target} is this version already ({architecture})")
        return target
    replace_file(target, content, _EXECUTABLE)
    say(f"{'replaced' if found else 'installed'} {target} ({architecture}, {len(content)} bytes)")
    return target
