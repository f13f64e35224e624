"""``felix-py cleanup``: list and remove everything of ours on this node, and nothing else."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from felix_py.cli import options
from felix_py.config import AgentConfig
from felix_py.records import Backend


def cleanup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    output: options.Output = options.OutputFormat.TEXT,
    cni_conf_dir: options.CniConfDir = None,
    run_dir: Annotated[
        Path,
        typer.Option(
            envvar="FELIX_PY_RUN_DIR", metavar="FOLDER", help="The agent's sockets; it must not be running."
        ),
    ] = AgentConfig.run_dir,
) -> None:
    """Remove everything of ours from this node.

    That is: interfaces, routes, rules, IP sets and the network list. Pods that still run lose their network.
    Address leases and the CNI client stay; remove them by hand if felix-py is not to come back. Rules, routes and
    sets of others are not touched.

    Exit codes: 0 done, 1 not or not all of it (the messages say why), 2 wrong option.
    """
    from felix_py.cni.conflist import FILE_NAME
    from felix_py.cni.runtime_folders import runtime_folders
    from felix_py.dataplane.backend import ToolError

    if os.geteuid() != 0:
        options.fail("cleanup", "must run as root", 1)
    if not dry_run and _agent_answers(run_dir / "cni.sock"):
        options.fail("cleanup", f"an agent is running here ({run_dir}/cni.sock answers); stop it first", 1)
    network_list = (cni_conf_dir or runtime_folders().lists) / FILE_NAME
    try:
        found = [*([f"file {network_list}"] if network_list.exists() else []), *_owned()]
        failures = [] if dry_run else _remove(network_list)
    except (ToolError, OSError) as error:
        options.fail("cleanup", str(error), 1)
    if output is options.OutputFormat.JSON:
        typer.echo(json.dumps(found, indent=2))
    else:
        for line in found:
            typer.echo(line)
        typer.echo(f"{len(found)} objects {'would be' if dry_run else 'were'} removed", err=True)
    for failure in failures:
        typer.echo(f"felix-py cleanup: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


def _owned() -> list[str]:
    """Our objects in both backends: the node may have switched between them."""
    from felix_py.dataplane import sysctl
    from felix_py.dataplane.kernel import Kernel

    lines: dict[str, None] = {}
    for backend in _backends():
        with Kernel(sysctl.available_families(), backend) as kernel:
            kernel.load()
            lines |= dict.fromkeys(kernel.owned())
    return list(lines)


def _remove(network_list: Path) -> list[str]:
    from felix_py.dataplane import sysctl
    from felix_py.dataplane.kernel import Kernel

    network_list.unlink(missing_ok=True)
    failures: dict[str, str] = {}
    for backend in _backends():
        with Kernel(sysctl.available_families(), backend) as kernel:
            # A set that the other backend's rules use is removed in the other backend's turn.
            failures = {str(failure.ref): failure.reason for failure in kernel.remove_all().failures}
    return [f"{what}: {reason}" for what, reason in failures.items()]


def _backends() -> list[Backend]:
    from felix_py.dataplane.backend import find_backend

    first = find_backend()
    return sorted(Backend, key=lambda backend: backend is first)


def _agent_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
