"""``felix-py drain`` and ``undrain``: have BGP lead traffic away from a node, and back."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn
from urllib.parse import quote

import typer

from felix_py.cli import options
from felix_py.layout import DRAIN

if TYPE_CHECKING:
    from pathlib import Path

    from felix_py.datastore.client import Api

_LOOK = 1.0
_MERGE_PATCH = "application/merge-patch+json"

Node = Annotated[str, typer.Argument(metavar="NODE", help="Name of the Node.")]
Timeout = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the node; 0: do not wait.")
]


_NO_STATUS = (
    "it has no NodeNetworkStatus, so whether it has moved traffic cannot be known; felix-py must run there, and "
    "the definition of that kind be installed"
)


class _Seen(NamedTuple):
    """What the node's NodeNetworkStatus says. ``asked``: the annotation that it has acted on; None: unknown."""

    asked: str | None
    drained: bool
    words: str


def drain(
    node: Node,
    timeout: Timeout = 120.0,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
) -> None:
    """Have BGP lead traffic away from a node.

    It gets the annotation felixpy.io/bgp-drain. Its agent then asks routers to use other paths (RFC 8326), and
    after half a minute withdraws Service prefixes. Prefixes of its pods stay announced, as the last choice: pods
    are neither moved nor cut off. Then `kubectl drain` moves them.

    The command waits until the agent has told all its peers that are connected. What these and the routers behind
    them make of it, nobody tells. Exit codes: 0 done, 1 not done, or not in time (the message says why), 2 wrong
    option.
    """
    asked = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    _run("drain", node, asked, timeout, kubeconfig, context)


def undrain(
    node: Node,
    timeout: Timeout = 60.0,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
) -> None:
    """Have BGP lead traffic to a node again.

    Takes the annotation felixpy.io/bgp-drain away; a taint of that name stays. Waits until the node's agent
    announces everything again. Exit codes: 0 done, 1 not done, or not in time (the message says why), 2 wrong
    option.
    """
    _run("undrain", node, "", timeout, kubeconfig, context)


def _run(
    command: str, node: str, asked: str, timeout: float, kubeconfig: Path | None, context: str | None
) -> None:
    from felix_py.config import ConfigError
    from felix_py.datastore.client import ApiError, Unreachable

    try:
        api = options.connect_api(kubeconfig, context)
        try:
            _annotate(api, node, asked)
            if timeout:
                return _wait(command, api, node, asked, timeout)
        finally:
            api.close()
        typer.echo(options.printable(f"{node}: asked, not waited for"))
    except ApiError as error:
        reason = f"there is no node {node}" if (error.status, error.reason) == (404, "NotFound") else str(error)
        options.fail(command, options.printable(reason), 1)
    except (ConfigError, Unreachable) as error:
        options.fail(command, options.printable(str(error)), 1)


def _annotate(api: Api, node: str, asked: str) -> None:
    body = json.dumps({"metadata": {"annotations": {DRAIN: asked or None}}}).encode()
    path = f"/api/v1/nodes/{quote(node, safe='')}"
    with api.request("PATCH", path, body=body, content_type=_MERGE_PATCH) as answer:
        answer.read()


def _wait(command: str, api: Api, node: str, asked: str, timeout: float) -> None:
    """Return once the node has done what it was asked; else exit with 1 after the time."""
    end, said = time.monotonic() + timeout, ""
    while True:
        seen = _look(api, node)
        if seen.asked == asked and seen.drained == bool(asked):
            return typer.echo(options.printable(f"{node}: {seen.words}"))
        if not asked and seen.asked == "taint":
            words = f"the Node has the taint {DRAIN} as well: `kubectl taint node {node} {DRAIN}-`"
            options.fail(command, options.printable(words), 1)
        words = seen.words if seen.asked in (asked, None) else "its agent has not noticed yet"
        if words != said:
            typer.echo(options.printable(f"felix-py {command}: {node}: {words}"), err=True)
            said = words
        if time.monotonic() >= end:
            _too_late(command, node, timeout, words)
        time.sleep(min(_LOOK, max(0.0, end - time.monotonic())))


def _too_late(command: str, node: str, timeout: float, words: str) -> NoReturn:
    reason = (
        f"{node} has not done so in {timeout:g} s: {words}. It was asked to; the same command goes on waiting"
    )
    options.fail(command, options.printable(reason), 1)


def _look(api: Api, node: str) -> _Seen:
    """What the node says. Raises ApiError if it may not be read."""
    from felix_py.datastore.client import ApiError, Unreachable
    from felix_py.datastore.status_writer import PATH

    try:
        with api.request("GET", f"{PATH}/{quote(node, safe='')}") as answer:
            return _seen(answer.read())
    except Unreachable as error:
        return _Seen(None, False, str(error))
    except ApiError as error:
        if error.status in (401, 403):
            raise
        if error.status == 404:
            return _Seen(None, False, _NO_STATUS)
        return _Seen(None, False, str(error))


def _seen(body: bytes) -> _Seen:
    from felix_py.datastore.status_writer import DRAINED, READY

    try:
        status = json.loads(body)["status"]
        found = {one["type"]: one for one in status["conditions"]}
        stopped, drained = found[READY]["reason"] == "AgentStopped", found.get(DRAINED)
        asked = status.get("drain")
    except (ValueError, KeyError, TypeError):
        return _Seen(None, False, "its NodeNetworkStatus says nothing yet")
    if stopped:
        return _Seen(None, False, "its agent is stopped; what it announced stays announced until it runs again")
    if drained is None or not isinstance(asked, str):
        return _Seen(None, False, "its felix-py is of a version that cannot drain a node")
    return _Seen(asked, drained.get("status") == "True", str(drained.get("message", "")))
