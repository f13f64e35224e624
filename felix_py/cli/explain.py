"""``felix-py explain``: whether a connection is allowed, which rule decides, and whether the kernel agrees."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from felix_py.cli import options
from felix_py.config import AgentConfig, ConfigError

if TYPE_CHECKING:
    from felix_py.datastore.client import Api
    from felix_py.diagnose.explain import Connection
    from felix_py.diagnose.explain_report import Explained
    from felix_py.records import Backend
    from policy.model import Family, LocalEndpoint

_SECOND_LOOK = 1.0
"""Seconds until everything is read again if the kernel disagrees with policy."""


def explain(
    source: options.Source,
    destination: options.Destination,
    port: options.DestinationPort = "",
    namespace: options.PodNamespace = "default",
    ipv4: options.IPv4Only = False,
    ipv6: options.IPv6Only = False,
    no_kernel: options.NoKernel = False,
    output: options.Output = options.OutputFormat.TEXT,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
    node_name: options.NodeName = "",
    state_dir: options.StateDir = AgentConfig.state_dir,
    backend: options.BackendName = options.AUTO,
) -> None:
    """Say whether a connection is allowed, and why.

    For each direction: the tier, policy and rule that decides, or why no rule allows it. Then, for each end that
    is a pod on this node, whether the kernel's rules, as they are at this moment, do the same. It needs no agent
    that runs; the kernel can only be read as root and on the pod's own node.

    Exit codes: 0 allowed, 1 denied, 2 wrong call (no such pod, no port to choose, an address or node port of a
    Service: the error names what is behind it), 3 not known: the kernel does something else than policy says,
    depends on rules that are not understood, or cannot be read although a pod is on this node; or the API server
    does not answer.
    """
    node = node_name or socket.gethostname().lower()
    try:
        wanted = options.backend(backend)
        question = Question(source, destination, port, namespace, families(ipv4, ipv6))
        api = options.connect_api(kubeconfig, context)
    except ConfigError as error:
        options.fail("explain", str(error), 2)
    kernels = Kernels(
        lambda: endpoints(state_dir), lambda connection: ask_kernel(connection, node, wanted, asked=not no_kernel)
    )
    answer(api, question, kernels, output)


@dataclass(frozen=True, slots=True)
class Question:
    """A connection in the words of the command line."""

    source: str
    destination: str
    port: str
    namespace: str
    families: tuple[Family, ...]


@dataclass(frozen=True, slots=True)
class Kernels:
    """``endpoints``: the holders of addresses; ``look``: the kernels' verdicts, and why one is unreadable."""

    endpoints: Callable[[], tuple[LocalEndpoint, ...]]
    look: Callable[[Connection], tuple[list[Explained], str]]


def answer(api: Api, question: Question, kernels: Kernels, output: options.OutputFormat) -> None:
    """Print the answer, close ``api``, and raise typer.Exit with the exit codes of :func:`explain`."""
    try:
        for pause in (_SECOND_LOOK, 0.0):
            explained, unread = kernels.look(_connection(api, question, kernels.endpoints))
            if not any(one.disagrees for one in explained):
                break
            # An agent may be writing a recent change just now.
            time.sleep(pause)
    finally:
        api.close()
    _print(explained, unread, output is options.OutputFormat.JSON)
    if unread or any(one.disagrees or one.uncertain for one in explained):
        raise typer.Exit(3)
    if not all(one.explanation.allowed for one in explained):
        raise typer.Exit(1)


def families(ipv4: bool, ipv6: bool) -> tuple[Family, ...]:
    """The families of ``--ipv4`` and ``--ipv6``, which exclude each other."""
    from policy.model import Family

    if ipv4 and ipv6:
        options.fail("explain", "--ipv4 and --ipv6 exclude each other; without them it is both", 2)
    return (Family.V4,) if ipv4 else (Family.V6,) if ipv6 else tuple(Family)


def _connection(api: Api, question: Question, endpoints: Callable[[], tuple[LocalEndpoint, ...]]) -> Connection:
    from felix_py.datastore.client import ApiError, Unreachable
    from felix_py.datastore.fetch import container_ports, fetch
    from felix_py.diagnose.ends import WrongEnd, find, find_ports
    from felix_py.diagnose.explain import Connection
    from felix_py.diagnose.intended import pooled_of, with_announced
    from felix_py.diagnose.services import translated

    try:
        with options.patience("felix-py explain: listing the cluster's objects …"):
            cluster = fetch(api)
            cluster.endpoints = endpoints()
            pooled = pooled_of(cluster)
            cluster.pods = with_announced(cluster, pooled)
            start = find(question.source, question.namespace, cluster, pooled)
            end = find(question.destination, question.namespace, cluster, pooled)
            if end.pod is None and (elsewhere := translated(api, end, question.port)):
                raise WrongEnd(elsewhere)
            ports = find_ports(question.port, end, lambda pod: container_ports(api, pod.key))
            return Connection(cluster, start, end, ports, question.families)
    except WrongEnd as error:
        options.fail("explain", str(error), 2)
    except (ApiError, Unreachable) as error:
        options.fail("explain", str(error), 3)


def endpoints(state_dir: Path) -> tuple[LocalEndpoint, ...]:
    """The pod interfaces of this node, which hold its addresses; empty if this is no node, or without root."""
    from felix_py.dataplane.uplink import interface_state
    from felix_py.ipam.beside import read_leases
    from felix_py.ipam.store import StoreError
    from felix_py.records import endpoints_of

    try:
        leases = read_leases(state_dir / "leases.db")
    except (StoreError, OSError):
        return ()
    return endpoints_of(lease for lease in leases if interface_state(lease.interface) is not None)


def ask_kernel(
    connection: Connection, node: str, backend: Backend | None, *, asked: bool
) -> tuple[list[Explained], str]:
    """The verdicts of policy and this node's kernel, and why the kernel could not be read, or empty."""
    from felix_py.dataplane.backend import ToolError
    from felix_py.diagnose.live import Live

    if asked and connection.passes(node):
        try:
            with Live(backend) as live:
                explained = connection.explained(node, live)
                for note in live.notes:
                    typer.echo(f"felix-py explain: {note}", err=True)
                return explained, ""
        except (ToolError, OSError) as error:
            return connection.explained(node, None), f"{node}'s kernel cannot be read: {error}"
    return connection.explained(node, None), ""


def _print(explained: list[Explained], unread: str, as_json: bool) -> None:
    from felix_py.diagnose import explain_report as report

    if as_json:
        typer.echo(json.dumps([report.as_json(one) for one in explained], indent=2))
    else:
        typer.echo(options.printable("\n\n".join(map(report.text, explained))))
    if unread:
        typer.echo(f"felix-py explain: {unread} (--no-kernel does without)", err=True)
