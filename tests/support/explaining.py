"""``felix-py explain`` on a :class:`LiveNode`, beside what a real packet does there."""

from __future__ import annotations

from typer.testing import CliRunner

from felix_py.cli.main import app
from policy.model import Packet, Protocol
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import LiveNode
from tests.support.traffic import attempt, serve

ALLOWED, DENIED, WRONG, UNKNOWN = range(4)


def explain(node: LiveNode, *words: str) -> tuple[int, str]:
    """What the command prints for people, and its exit code."""
    places = (
        "--kubeconfig",
        str(node.kubeconfig),
        "--state-dir",
        str(node.folder / "state"),
        "--node-name",
        "n1",
    )
    done = CliRunner().invoke(app, ["explain", *words, *places])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout + done.stderr


def gets_through(
    source: tuple[NetworkNamespace, str], destination: tuple[NetworkNamespace, str], port: int = 80
) -> bool:
    """Whether a TCP connection between two (place, address) comes about."""
    with serve([(*destination, Protocol.TCP, port)]):
        return bool(attempt([(source[0], Packet(source[1], destination[1], Protocol.TCP, port))], 1))
