"""``felix-py agent``: read the settings, then run until told to stop."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from felix_py.cli import options
from felix_py.config import AgentConfig, ConfigError, EndpointToHost
from felix_py.log import LogFormat, LogLevel

_ENV = "FELIX_PY_"


def agent(
    node_name: options.NodeName = "",
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            envvar=[_ENV + "KUBECONFIG", "KUBECONFIG"],
            metavar="FILE",
            help="Credentials for the API server. [default: the pod's service account]",
            show_default=False,
        ),
    ] = None,
    state_dir: options.StateDir = Path("/var/lib/felix-py"),
    run_dir: Annotated[
        Path,
        typer.Option(
            envvar=_ENV + "RUN_DIR",
            metavar="FOLDER",
            help="Sockets, and in its subfolder bgp what the BGP sidecar shares with the agent.",
        ),
    ] = Path("/run/felix-py"),
    cni_conf_dir: options.CniConfDir = None,
    cni_bin_dir: options.CniBinDir = None,
    chained_plugin: Annotated[
        list[str],
        typer.Option(
            envvar=_ENV + "CHAINED_PLUGINS",
            metavar="PLUGIN",
            help="Standard CNI plugin to run after ours; repeat for more; `none` for none.",
        ),
    ] = ["portmap"],  # noqa: B006 - typer copies it
    cluster_cidr: options.ClusterCidrs = [],  # noqa: B006
    service_cidr: Annotated[
        list[str],
        typer.Option(
            envvar=_ENV + "SERVICE_CIDRS",
            metavar="CIDR",
            help="Addresses of Services, which peers may never teach us routes for; repeat per family. "
            "[default: none]",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    backend: options.BackendName = "auto",
    bgp_config: Annotated[
        Path | None,
        typer.Option(
            envvar=_ENV + "BGP_CONFIG",
            metavar="FILE",
            help="YAML file with asNumber, routerID and peers; see docs/bgp.md. [default: no BGP]",
            show_default=False,
        ),
    ] = None,
    mark_mask: options.MarkMask = "0xffff0000",
    nat_outgoing: options.NatOutgoing = True,
    endpoint_to_host: options.EndpointToHostOption = EndpointToHost.RETURN,
    drop_invalid: options.DropInvalid = True,
    revoke_established: options.RevokeEstablished = True,
    mtu: Annotated[
        int,
        typer.Option(
            envvar=_ENV + "MTU", metavar="BYTES", help="MTU of pod interfaces; 0: that of the node's uplinks."
        ),
    ] = 0,
    refresh_interval: Annotated[
        float,
        typer.Option(
            envvar=_ENV + "REFRESH_INTERVAL",
            min=1,
            metavar="SECONDS",
            help="Time between two comparisons with the kernel.",
        ),
    ] = 90,
    cni_timeout: Annotated[
        float,
        typer.Option(
            envvar=_ENV + "CNI_TIMEOUT",
            min=0.1,
            metavar="SECONDS",
            help="How long a CNI ADD may wait for its pod and its policy.",
        ),
    ] = 10,
    discovery_interval: Annotated[
        float,
        typer.Option(
            envvar=_ENV + "DISCOVERY_INTERVAL",
            min=1,
            metavar="SECONDS",
            help="Time until a look for the cluster-scoped policies' CRDs, where they may not be watched; "
            "it grows to 20 times that.",
        ),
    ] = 15,
    health_address: Annotated[
        str,
        typer.Option(
            envvar=_ENV + "HEALTH_ADDRESS",
            metavar="ADDRESS:PORT",
            help="Where to serve /healthz, /readyz and /metrics, to every local user.",
        ),
    ] = "127.0.0.1:9099",
    socket_group: Annotated[
        str,
        typer.Option(
            envvar=_ENV + "SOCKET_GROUP",
            metavar="GROUP",
            help="Who besides root may ask RUN-DIR/agent.sock for /status, /flows and /denies.",
        ),
    ] = "root",
    deny_log: options.DenyLogging = True,
    deny_log_group: options.DenyLogGroup = 88,
    deny_log_rate: options.DenyLogRate = 10,
    deny_log_lines: Annotated[
        bool,
        typer.Option(envvar=_ENV + "DENY_LOG_LINES", help="Write denied packets to the agent's own log, too."),
    ] = True,
    log_level: Annotated[
        LogLevel, typer.Option(envvar=_ENV + "LOG_LEVEL", help="The least important lines to log.")
    ] = LogLevel.INFO,
    log_format: Annotated[
        LogFormat, typer.Option(envvar=_ENV + "LOG_FORMAT", help="auto: text on a terminal, JSON elsewhere.")
    ] = LogFormat.AUTO,
) -> None:
    """Run the node agent: routes, policy, CNI and BGP.

    Stopping it (SIGTERM) leaves everything in place; starting it again rewrites nothing that is right. A list in
    an environment variable is separated by spaces.

    Exit codes: 0 stopped, 1 could not start (the last log line says why), 2 wrong option, 3 stopped without an
    orderly end, because something did not come to its end within nine seconds.
    """
    from felix_py import log

    # What is loaded lives as long as the process: looking through it for garbage, now and later, is a tenth of
    # a start.
    gc.disable()
    from felix_py.agent.main import main

    gc.freeze()
    gc.enable()
    from felix_py.cni.runtime_folders import runtime_folders

    if os.geteuid() != 0:
        typer.echo(
            "felix-py agent: must run as root (or with CAP_NET_ADMIN and CAP_SYS_ADMIN as uid 0)", err=True
        )
        raise typer.Exit(1)
    folders = runtime_folders()
    try:
        config = AgentConfig(
            node_name=node_name or socket.gethostname().lower(),
            kubeconfig=kubeconfig,
            state_dir=state_dir,
            run_dir=run_dir,
            cni_conf_dir=cni_conf_dir or folders.lists,
            cni_bin_dir=cni_bin_dir or folders.plugins,
            chained_plugins=tuple(name for name in chained_plugin if name not in ("", "none")),
            cluster_cidrs=tuple(cluster_cidr),
            service_cidrs=tuple(service_cidr),
            backend=options.backend(backend),
            bgp_config=bgp_config,
            mark_mask=options.mask(mark_mask),
            nat_outgoing=nat_outgoing,
            endpoint_to_host=endpoint_to_host,
            drop_invalid=drop_invalid,
            revoke_established=revoke_established,
            mtu=mtu,
            refresh_interval=refresh_interval,
            cni_timeout=cni_timeout,
            discovery_interval=discovery_interval,
            health_address=health_address,
            socket_group=socket_group,
            deny_log=deny_log,
            deny_log_group=deny_log_group,
            deny_log_rate=deny_log_rate,
            deny_log_lines=deny_log_lines,
        )
    except ConfigError as error:
        typer.echo(f"felix-py agent: {error}", err=True)
        raise typer.Exit(2) from None
    log.configure(log_level, log_format, node=config.node_name)
    main(config)
