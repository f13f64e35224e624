"""``felix-py agent``: read the settings, then run until told to stop."""

from __future__ import annotations

import gc
import os
import socket
from typing import Any

import typer

from felix_py.cli import options
from felix_py.config import BGP_CONFIG, AgentConfig, ConfigError, value_of


@options.takes_all_settings
def agent(*, context: typer.Context, **given: Any) -> None:
    """Run the node agent: routes, policy, CNI and BGP.

    Stopping it (SIGTERM) leaves everything in place; starting it again rewrites nothing that is right. A list
    in an environment variable is separated by spaces.

    Settings that neither option nor environment variable gives are taken from the FelixConfigurations of the
    cluster.

    Exit codes: 0 stopped, 1 could not start (the last log line says why), 2 wrong option, 3 stopped without an
    orderly end, because something did not come to its end within nine seconds, 4 to be started again, because
    FelixConfigurations that could not be read at the start set something else, 5 the event loop stood still for
    30 seconds (the log says where).
    """
    from felix_py import log

    # Imported objects live as long as the process: garbage collection over them would take a tenth of a start.
    gc.disable()
    from felix_py.agent.main import main

    gc.freeze()
    gc.enable()
    if os.geteuid() != 0:
        options.fail("agent", "must run as root (or with CAP_NET_ADMIN and CAP_SYS_ADMIN as uid 0)", 1)
    try:
        config = _config(given)
    except ConfigError as error:
        options.fail("agent", str(error), 2)
    log.configure(config.log_level, config.log_format, node=config.node_name)
    main(config, options.settings_given(given, context))


def _config(given: dict[str, Any]) -> AgentConfig:
    """The configuration: given settings over those derived from the host; ConfigError if one is unusable."""
    from felix_py.cni.runtime_folders import runtime_folders

    folders = runtime_folders()
    values: dict[str, Any] = {
        "node_name": socket.gethostname().lower(),
        "cni_conf_dir": folders.lists,
        "cni_bin_dir": folders.plugins,
        "bgp_config": BGP_CONFIG if BGP_CONFIG.exists() else None,
    }
    values |= {name: value_of(name, value) for name, value in given.items() if value not in (None, "")}
    config = AgentConfig(**values)
    options.marks(config.mark_mask)
    return config
