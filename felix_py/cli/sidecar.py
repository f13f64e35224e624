"""``felix-py bgp-sidecar``: run ExaBGP for the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bgp_sidecar(
    run_dir: Annotated[
        Path,
        typer.Option(envvar="FELIX_PY_BGP_RUN_DIR", help="The folder shared with the agent."),
    ] = Path("/run/felix-py/bgp"),
) -> None:
    """Run the ExaBGP sidecar: wait for the agent's configuration, then speak BGP."""
    from bgp.sidecar import main

    raise typer.Exit(main(["--run-dir", str(run_dir)]))
