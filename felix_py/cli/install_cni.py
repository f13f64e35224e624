"""``felix-py install-cni``: put the CNI client on the host (the DaemonSet's init container)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def install_cni(
    cni_bin_dir: Annotated[
        Path,
        typer.Option(
            envvar="FELIX_PY_CNI_BIN_DIR",
            metavar="FOLDER",
            help="Where the container runtime finds CNI plugins.",
        ),
    ] = Path("/opt/cni/bin"),
    socket: Annotated[
        Path,
        typer.Option(
            envvar="FELIX_PY_CNI_SOCKET", metavar="FILE", help="The agent's socket, as the host sees it."
        ),
    ] = Path("/run/felix-py/cni.sock"),
) -> None:
    """Copy the CNI client to where the runtime finds it.

    The network list (conflist) is written by the agent itself, once it is ready to answer.
    """
    from felix_py.cni.conflist import install_client

    try:
        installed = install_client(cni_bin_dir, socket)
    except OSError as error:
        typer.echo(f"felix-py install-cni: {cni_bin_dir}: {error.strerror or error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"installed {installed}")
