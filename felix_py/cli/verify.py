"""``felix-py verify``: whether the kernel holds exactly what it should."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from felix_py.cli import options
from felix_py.config import AgentConfig, ConfigError, value_of

if TYPE_CHECKING:
    from felix_py.datastore.client import Api
    from felix_py.diagnose.agent_says import AgentSays
    from felix_py.diagnose.intended import Settings
    from felix_py.diagnose.verify import Findings
    from felix_py.records import Backend


def verify(
    call: typer.Context,
    output: options.Output = options.OutputFormat.TEXT,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
    node_name: options.NodeName = "",
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
    state_dir: options.StateDir = AgentConfig.state_dir,
    cluster_cidrs: options.ClusterCidrs = [],  # noqa: B006 - typer copies it
    backend: options.BackendName = options.AUTO,
    ip_families: options.IpFamilies = "",
    mark_mask: options.MarkMask = options.MARK_MASK,
    nat_outgoing: options.NatOutgoing = AgentConfig.nat_outgoing,
    endpoint_to_host: options.EndpointToHostOption = AgentConfig.endpoint_to_host,
    drop_invalid: options.DropInvalid = AgentConfig.drop_invalid,
    revoke_established: options.RevokeEstablished = AgentConfig.revoke_established,
    deny_log: options.DenyLogging = AgentConfig.deny_log,
    deny_log_group: options.DenyLogGroup = AgentConfig.deny_log_group,
    deny_log_rate: options.DenyLogRate = AgentConfig.deny_log_rate,
) -> None:
    """Compare this node's kernel with what it should hold.

    That is worked out anew from the API server's objects and this node's address leases: chains and rules by what
    they do and in their order, hooks and their place, IP sets with every member and mark, routes, interfaces,
    settings. What differs is named by policy, pod and rule. On legacy hosts the rules are decoded by
    python-iptables, not by the tools that wrote them. Nothing is written.

    A running agent is asked for its settings and for the routes that it has learned. Where none answers, they are
    those with which one would start now: by FelixConfigurations, and by the options from --cluster-cidr on, which
    you give as the agent has them. Learned routes are left out then.

    Exit codes: 0 all as it should be, 1 something differs, 2 wrong call, or something could not be read.
    """
    if os.geteuid() != 0:
        options.fail("verify", "must run as root, on the node", 2)
    given = {
        "cluster_cidrs": cluster_cidrs,
        "backend": backend,
        "ip_families": ip_families,
        "mark_mask": mark_mask,
        "nat_outgoing": nat_outgoing,
        "endpoint_to_host": endpoint_to_host,
        "drop_invalid": drop_invalid,
        "revoke_established": revoke_established,
        "deny_log": deny_log,
        "deny_log_group": deny_log_group,
        "deny_log_rate": deny_log_rate,
    }
    try:
        wanted: Backend | None
        agent = ask_agent(agent_socket)
        api = options.connect_api(kubeconfig, context)
        if agent is not None:
            settings, wanted = _agents_own(agent, node_name)
        else:
            config = _as_started_now(node_name, state_dir, given, call, api)
            settings, wanted = _of_config(config), config.backend
    except ConfigError as error:
        options.fail("verify", str(error), 2)
    try:
        with options.patience("felix-py verify: reading the cluster and the kernel …"):
            found = _compare(settings, wanted, api, state_dir / "leases.db", agent_socket)
    finally:
        api.close()
    _print(settings.node_name, found, output is options.OutputFormat.JSON)
    if found.differences:
        raise typer.Exit(1)


def ask_agent(agent_socket: str) -> AgentSays | None:
    """The answer of this node's agent, or None without one; ConfigError if the address is invalid."""
    from felix_py.diagnose.agent_says import ask

    return ask(agent_socket)


def _agents_own(agent: AgentSays, node_name: str) -> tuple[Settings, Backend]:
    from felix_py.agent.families import Families
    from felix_py.diagnose.intended import Settings

    if node_name and node_name != agent.node:
        raise ConfigError(f"--node-name {node_name}: the agent that answers here is {agent.node}'s")
    own = agent.configuration
    closed = Families.of_this_node(own.families).closed
    return Settings(agent.node, own.families, own.cluster_cidrs, own.rules, closed, own.announced), own.backend


def _as_started_now(
    node_name: str, state_dir: Path, given: dict[str, Any], call: typer.Context, api: Api
) -> AgentConfig:
    """The settings with which an agent would start now. ConfigError: one is unusable."""
    from felix_py.agent.starting import settle
    from felix_py.datastore.client import ApiError, Unreachable
    from felix_py.datastore.fetch import configurations

    values = {name: value_of(name, value) for name, value in given.items() if value not in (None, "", [])}
    node = node_name or socket.gethostname().lower()
    base = AgentConfig(node_name=node, state_dir=state_dir, **values)
    try:
        found = configurations(api)
    except ApiError as error:
        if error.status != 404:
            options.fail("verify", str(error), 2)
        found = []
    except Unreachable as error:
        options.fail("verify", str(error), 2)
    return settle(base, options.settings_given(given, call), lambda _base: found).config


def _of_config(config: AgentConfig) -> Settings:
    """Missing kernel features are probed as the agent does."""
    from felix_py.agent.families import Families
    from felix_py.dataplane.backend import ToolError, find_backend
    from felix_py.dataplane.probe import missing_features
    from felix_py.desired.deny_log import DenyLog
    from felix_py.desired.static import StaticOptions
    from felix_py.diagnose.intended import Settings

    families = Families.of_this_node(config.ip_families)
    try:
        missing = tuple(missing_features(families.programmed, find_backend(config.backend)))
    except ToolError as error:
        raise ConfigError(str(error)) from error
    options.marks(config.mark_mask)
    denials = DenyLog(config.deny_log_group, config.deny_log_rate) if config.deny_log else None
    rules = StaticOptions.of(config, denials, missing)
    return Settings(config.node_name, families.programmed, config.cluster_cidrs, rules, families.closed)


def _compare(settings: Settings, backend: Backend | None, api: Api, leases: Path, agent_socket: str) -> Findings:
    from felix_py.dataplane.backend import ToolError
    from felix_py.datastore.client import ApiError, Unreachable
    from felix_py.datastore.fetch import fetch
    from felix_py.diagnose.live import Live
    from felix_py.diagnose.verify import Look, verify
    from felix_py.ipam.beside import read_leases
    from felix_py.ipam.store import StoreError

    def look() -> Look:
        cluster = fetch(api)
        if all(node.name != settings.node_name for node in cluster.nodes):
            options.fail("verify", f"there is no node {settings.node_name} in the cluster; give --node-name", 2)
        return Look(cluster, read_leases(leases), ask_agent(agent_socket))

    try:
        return verify(settings, look, lambda: Live(backend))
    except StoreError as error:
        options.fail("verify", f"{error} (--state-dir says where)", 2)
    except (ApiError, Unreachable, ToolError, OSError) as error:
        options.fail("verify", str(error), 2)


def _print(node: str, found: Findings, as_json: bool) -> None:
    if as_json:
        differences = [difference.as_json() for difference in found.differences]
        notes = {"notes": found.notes, "compared": found.compared}
        typer.echo(
            json.dumps({"node": node, "equal": not differences, "differences": differences, **notes}, indent=2)
        )
        return
    for note in found.notes:
        typer.echo(f"felix-py verify: {note}", err=True)
    for difference in found.differences:
        typer.echo(options.printable(str(difference)))
    counted = ", ".join(f"{number} {what}" for what, number in found.compared.items())
    if found.differences:
        typer.echo(f"{node}: {len(found.differences)} differences in {counted}", err=True)
    else:
        typer.echo(f"{node}: the kernel holds what it should: {counted}")
