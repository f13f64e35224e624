"""``felix-py bgp-sidecar``: run ExaBGP for the agent."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from felix_py.config import AgentConfig


def bgp_sidecar(
    run_dir: Annotated[
        Path,
        typer.Option(
            envvar="FELIX_PY_BGP_RUN_DIR",
            metavar="FOLDER",
            help="The folder shared with the agent: bgp in the agent's --run-dir.",
        ),
    ] = AgentConfig.run_dir / "bgp",
) -> None:
    """Run ExaBGP for the agent, as its sidecar.

    It waits for the agent's configuration, then speaks BGP. Stopping it (SIGTERM) lets peers keep the routes for
    their graceful restart time.

    Exit codes: 0 stopped, 1 could not start, 2 wrong option.
    """
    # A new process, without the command line's libraries: they would be two thirds of its memory.
    os.environ["PYTHONSAFEPATH"] = "1"  # do not import from a folder "bgp" in the working directory
    os.execv(sys.executable, [sys.executable, "-m", "bgp.sidecar", "--run-dir", str(run_dir)])
