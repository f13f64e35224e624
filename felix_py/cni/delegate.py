"""Runs the IPAM plugin that the network configuration names (CNI 1.1.0, "Plugin Delegation")."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import msgspec

from felix_py.cni.conflist import configuration_of
from felix_py.cni.errors import NOT_JSON, CNIError, Code
from felix_py.cni.protocol import Call
from felix_py.cni.result import Result
from felix_py.cni.talk import talk
from felix_py.cni.types import Command, Request, parse_request
from felix_py.records import Lease

_TIMEOUT = 30.0
"""Seconds: half of the client's timeout."""


class _Failure(msgspec.Struct):
    code: int = Code.DELEGATE
    msg: str = "failed without saying why"
    details: str = ""


async def delegate(request: Request, command: Command) -> Result:
    """Run the request's IPAM plugin with ``command`` and the request's environment and configuration.

    Raises:
        CNIError: the plugin's own error, or it cannot be run.
    """
    name = request.config.delegate
    search = request.call.environment.get("CNI_PATH", "")
    program = shutil.which(name, path=search)
    if program is None:
        raise CNIError(Code.INVALID_CONFIG, f"IPAM plugin {name} is not in CNI_PATH {search}")
    environment = {**request.call.environment, "CNI_COMMAND": command, "PATH": os.environ.get("PATH", os.defpath)}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        stdout, stderr = await talk(process, request.call.stdin, _TIMEOUT)
    except TimeoutError:
        raise CNIError(Code.TRY_AGAIN, f"IPAM plugin {name} did not end within {_TIMEOUT:g} seconds") from None
    if process.returncode:
        raise _failure(name, stdout, stderr)
    if command is not Command.ADD:
        return Result()
    try:
        return msgspec.json.decode(stdout, type=Result)
    except NOT_JSON as error:
        raise CNIError(Code.DELEGATE, f"IPAM plugin {name} answered nonsense: {error}") from None


async def forget(lease: Lease, conf_dir: Path, bin_dir: Path) -> None:
    """Have the IPAM plugin of a lease's network, if that names one, release what it gave: no runtime calls DEL.

    ``conf_dir``, ``bin_dir``: the runtime's network lists and plugins. Raises CNIError if it does not.
    """
    if not (config := configuration_of(conf_dir, lease.network)):
        return
    environment = {
        "CNI_COMMAND": Command.DEL,
        "CNI_CONTAINERID": lease.container,
        "CNI_IFNAME": lease.ifname,
        "CNI_NETNS": "",
        "CNI_PATH": str(bin_dir),
    }
    request = parse_request(Call(environment, config))
    if request.config.delegate:
        await delegate(request, Command.DEL)


def _failure(name: str, stdout: bytes, stderr: bytes) -> CNIError:
    try:
        told = msgspec.json.decode(stdout, type=_Failure)
    except NOT_JSON:
        told = _Failure(details=stderr.decode(errors="replace")[-1000:])
    return CNIError(told.code, f"IPAM plugin {name}: {told.msg}", told.details)
