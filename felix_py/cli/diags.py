"""``felix-py diags``: a bundle of this node's state for somebody who helps, without secrets."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, NoReturn

import typer

from felix_py.cli import options
from felix_py.config import AgentConfig, ConfigError


def diags(
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.tar.gz",
            help="Where to write it; `-` is standard output. [default: felix-py-diags-NODE-TIME.tar.gz]",
            show_default=False,
        ),
    ] = "",
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
    run_dir: Annotated[Path, options.option("run_dir")] = AgentConfig.run_dir,
    state_dir: options.StateDir = AgentConfig.state_dir,
    cni_conf_dir: options.CniConfDir = None,
    bgp_config: Annotated[Path | None, options.option("bgp_config", otherwise="the agent's")] = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Collect this node's state in one file.

    Rules of both backends, IP sets, routes, links, connection table's counts, sysctls, what the agent says,
    metrics, BGP state, network lists, versions, the tail of logs. Passwords, tokens and keys are taken out. What
    cannot be read is a line in its MANIFEST. A running agent is asked where its files are.

    Exit codes: 0 written, 1 it cannot be written, 2 wrong option.
    """
    from felix_py.diagnose import bundle, node_parts
    from felix_py.diagnose.redact import Redactor

    if output == "-" and sys.stdout.isatty():
        options.fail("diags", "--output -: will not write an archive to a terminal", 2)
    try:
        agent = node_parts.Agent(agent_socket)
    except ConfigError as error:
        options.fail("diags", str(error), 2)
    given = node_parts.Places(
        agent_socket, run_dir, state_dir, cni_conf_dir or Path("/etc/cni/net.d"), bgp_config, kubeconfig
    )
    status = agent.status()
    places = given.as_the_agent_has_them(status)
    clean = Redactor()
    for known in (given, places):
        node_parts.learn_secrets(clean, known)
    name = f"felix-py-diags-{_node(status)}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    try:
        with _target(output or f"{name}.tar.gz") as to:
            lines = bundle.write(to, name, node_parts.parts(places, agent), clean, _say)
    except OSError as error:
        options.fail("diags", f"cannot write {output or name}: {error.strerror or error}", 1)
    failed = sum(line.startswith("FAILED") for line in lines)
    told = f"{len(lines)} parts, {failed} of which could not be read (MANIFEST says why)"
    typer.echo(f"{output or f'{name}.tar.gz'}: {told}", err=True)


def _say(path: str) -> None:
    typer.echo(f"… {path}", err=True)


def _node(status: object) -> str:
    node = status.get("node") if isinstance(status, dict) else None
    return re.sub(r"[^\w.-]", "_", str(node or socket.gethostname()))[:100]


@contextmanager
def _target(output: str) -> Iterator[IO[bytes]]:
    """What to write to. A file has its name once it is complete, and only its owner may read it."""
    if output == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)
