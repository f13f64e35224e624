"""``felix-py install-cni``: put the CNI client on the host (the DaemonSet's init container)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from felix_py.cli import options
from felix_py.config import AgentConfig


def install_cni(
    cni_bin_dir: options.CniBinDir = None,
    socket: Annotated[
        Path,
        typer.Option(
            envvar="FELIX_PY_CNI_SOCKET", metavar="FILE", help="The agent's socket, as the host sees it."
        ),
    ] = AgentConfig.run_dir / "cni.sock",
) -> None:
    """Copy the CNI client to where the runtime finds it.

    Of an image's clients, it is the one for this node's architecture. The network list (conflist) is written by
    the agent itself, once it is ready to answer.
    """
    from felix_py.cni.client_file import NotAClient
    from felix_py.cni.conflist import install_client
    from felix_py.cni.runtime_folders import runtime_folders

    folder = cni_bin_dir or runtime_folders().plugins
    try:
        install_client(folder, socket, say=typer.echo)
    except NotAClient as error:
        options.fail("install-cni", str(error), 1)
    except OSError as error:
        options.fail("install-cni", f"{folder}: {error.strerror or error}", 1)
