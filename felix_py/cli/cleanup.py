"""``felix-py cleanup``: list and remove everything of ours on this node, and nothing else."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from felix_py.cli import options
from felix_py.config import AgentConfig, ConfigError
from felix_py.records import Backend

_PAUSE = 5.0
"""Seconds between two looks: many nodes may ask the API server at once."""


def cleanup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--everything", help="Also address leases, the CNI client, sockets: felix-py is not to come back."
        ),
    ] = False,
    unless_daemonset: Annotated[
        str,
        typer.Option(
            metavar="NAMESPACE/NAME",
            help="Refuse while the cluster has this DaemonSet: it would bring all back.",
            show_default=False,
        ),
    ] = "",
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="How long to wait for that DaemonSet's and the agent's end."),
    ] = 0,
    output: options.Output = options.OutputFormat.TEXT,
    cni_conf_dir: options.CniConfDir = None,
    cni_bin_dir: options.CniBinDir = None,
    state_dir: options.StateDir = AgentConfig.state_dir,
    run_dir: Annotated[
        Path,
        typer.Option(
            envvar="FELIX_PY_RUN_DIR", metavar="FOLDER", help="The agent's sockets; it must not be running."
        ),
    ] = AgentConfig.run_dir,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Remove everything of ours from this node.

    That is: interfaces, routes, rules, IP sets and the network list. Pods that still run lose their network.
    Address leases and the CNI client stay, unless --everything is given. Rules, routes and sets of others are not
    touched, nor are settings that others may rely on by now (IP forwarding).

    It may be repeated. Exit codes: 0 done, 1 not or not all of it (the messages say why), 2 wrong option.
    """
    from felix_py.cli import node_files
    from felix_py.cni.runtime_folders import runtime_folders
    from felix_py.dataplane.backend import ToolError

    if os.geteuid() != 0:
        options.fail("cleanup", "must run as root", 1)
    if not dry_run:
        _wait_until_unwanted(unless_daemonset, kubeconfig, run_dir / "cni.sock", wait)
    usual = runtime_folders()
    lists = node_files.network_list(cni_conf_dir or usual.lists)
    rest: list[Path] = []
    if everything:
        rest += node_files.client(cni_bin_dir or usual.plugins)
        rest += [*node_files.state(state_dir), *node_files.run(run_dir)]
    try:
        found = [*node_files.lines(lists), *_owned(), *node_files.lines(rest)]
        failures: list[str] = []
        if not dry_run:
            # First the list, so that no pod is connected meanwhile; at last what a repetition needs.
            failures = node_files.remove(lists, ()) + _remove_from_kernel()
            if not failures:
                failures = node_files.remove(rest, (state_dir, run_dir))
    except (ToolError, OSError) as error:
        options.fail("cleanup", str(error), 1)
    _tell(found, output, dry_run)
    for failure in failures:
        typer.echo(f"felix-py cleanup: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


def _tell(found: list[str], output: options.OutputFormat, dry_run: bool) -> None:
    if output is options.OutputFormat.JSON:
        typer.echo(json.dumps(found, indent=2))
        return
    for line in found:
        typer.echo(line)
    typer.echo(f"{len(found)} objects {'would be' if dry_run else 'were'} removed", err=True)


def _wait_until_unwanted(daemonset: str, kubeconfig: Path | None, agent: Path, seconds: float) -> None:
    """Exit with 1 if the DaemonSet is there, or may be there, or an agent answers, and it does not end."""
    if daemonset and not re.fullmatch("[^/]+/[^/]+", daemonset):
        options.fail("cleanup", f"--unless-daemonset {daemonset}: not NAMESPACE/NAME", 2)
    end, said = time.monotonic() + seconds, ""
    while True:
        reason = _daemonset_is_there(daemonset, kubeconfig) if daemonset else ""
        if not reason and _agent_answers(agent):
            reason = f"an agent is running here ({agent} answers); stop it first"
        if not reason:
            return
        if time.monotonic() >= end:
            options.fail("cleanup", reason, 1)
        if reason != said:
            typer.echo(f"felix-py cleanup: waiting: {reason}", err=True)
            said = reason
        time.sleep(min(_PAUSE, max(0.0, end - time.monotonic())))


def _daemonset_is_there(daemonset: str, kubeconfig: Path | None) -> str:
    """Why it must be taken for there; empty if it is not."""
    from felix_py.datastore.client import ApiError, Unreachable

    namespace, _, name = daemonset.partition("/")
    path = f"/apis/apps/v1/namespaces/{quote(namespace, safe='')}/daemonsets/{quote(name, safe='')}"
    try:
        with options.connect_api(kubeconfig, None).request("GET", path) as answer:
            answer.read()
    except ApiError as error:
        # Without that reason it is a server that is just starting, and knows no paths yet.
        if (error.status, error.reason) == (404, "NotFound"):
            return ""
        return f"whether DaemonSet {daemonset} is there cannot be known: {error}"
    except (ConfigError, Unreachable, OSError) as error:
        return f"whether DaemonSet {daemonset} is there cannot be known: {error}"
    return f"DaemonSet {daemonset} is still there and would bring all back; delete it first"


def _owned() -> list[str]:
    """Our objects in both backends: the node may have switched between them."""
    from felix_py.dataplane import sysctl
    from felix_py.dataplane.kernel import Kernel
    from felix_py.dataplane.service_drops import ServiceDrops

    lines: dict[str, None] = {}
    for backend in _backends():
        with Kernel(sysctl.available_families(), backend) as kernel:
            kernel.load()
            lines |= dict.fromkeys(kernel.owned())
    return [*lines, *ServiceDrops(sysctl.available_families()).owned()]


def _remove_from_kernel() -> list[str]:
    from felix_py.dataplane import sysctl
    from felix_py.dataplane.kernel import Kernel
    from felix_py.dataplane.service_drops import ServiceDrops

    failures: dict[str, str] = {}
    for backend in _backends():
        with Kernel(sysctl.available_families(), backend) as kernel:
            # A set that the other backend's rules use is removed in the other backend's turn.
            failures = {str(failure.ref): failure.reason for failure in kernel.remove_all().failures}
    try:
        ServiceDrops(sysctl.available_families()).apply([])
    except OSError as error:
        failures["routing rules"] = str(error)
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
