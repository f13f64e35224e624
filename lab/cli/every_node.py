"""Commands of ``felix-py lab`` that ask all nodes. Each is its namesake of ``felix-py``, for the whole lab."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from felix_py.cli import denies as one_nodes_denies
from felix_py.cli import options
from felix_py.cli.asking import ending_quietly
from felix_py.config import AgentConfig
from lab.cli.options import Name, StateRoot, errors, lab_of
from lab.state import STATE_ROOT

if TYPE_CHECKING:
    from felix_py.cli.plan_report import Flows
    from felix_py.diagnose.explain import Connection
    from felix_py.diagnose.explain_report import Explained
    from felix_py.records import Backend
    from lab.lab import Lab
    from policy.impact.compare import Changes
    from policy.model import LocalEndpoint
    from policy.oracle.evaluate import Snapshot

_WORKERS = 8
_PATIENCE = 120.0
_FLOWS_PATIENCE = 5.0


# --- explain -----------------------------------------------------------------------------------------


def explain(
    source: options.Source,
    destination: options.Destination,
    port: options.DestinationPort = "",
    namespace: options.PodNamespace = "default",
    ipv4: options.IPv4Only = False,
    ipv6: options.IPv6Only = False,
    no_kernel: options.NoKernel = False,
    output: options.Output = options.OutputFormat.TEXT,
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Say whether a connection is allowed, and why.

    As felix-py explain, and the kernels of both ends' nodes are asked. Exit codes: 0 allowed, 1 denied, 2 wrong
    call, 3 not known or a kernel does something else.
    """
    from felix_py.cli import explain as one_nodes

    with errors():
        it = lab_of(name, state_root)
        backend = options.backend(it.record().shape.backend)
        families = one_nodes.families(ipv4, ipv6)
        question = one_nodes.Question(source, destination, port, namespace, families)
        look = partial(_look_everywhere, it, backend, asked=not no_kernel)
        kernels = one_nodes.Kernels(partial(_endpoints_everywhere, it), look)
        one_nodes.answer(options.connect_api(it.kubeconfig, None), question, kernels, output)


def _endpoints_everywhere(it: Lab) -> tuple[LocalEndpoint, ...]:
    """The pod interfaces of all nodes; those of one that does not run are not known."""
    from felix_py.cli.explain import endpoints
    from lab.inhabit import inside_machine
    from lab.state import LabError

    found: list[LocalEndpoint] = []
    for node in it.node_names():
        with contextlib.suppress(LabError):
            found += inside_machine(it, node, partial(endpoints, AgentConfig.state_dir))
    return tuple(found)


def _look_everywhere(
    it: Lab, backend: Backend | None, connection: Connection, *, asked: bool
) -> tuple[list[Explained], str]:
    """What the kernels on the way do, and why one could not be read."""
    from felix_py.cli.explain import ask_kernel
    from felix_py.diagnose.packets import Agreement
    from lab.inhabit import inside_machine

    explained = connection.explained("", None)
    unread = []
    for node in it.node_names() if asked else ():
        if not connection.passes(node):
            continue
        seen, reason = inside_machine(it, node, partial(ask_kernel, connection, node, backend, asked=True))
        unread += [reason] if reason else []
        for index, one in enumerate(seen):
            views = {view.node: view for view in explained[index].nodes}
            views |= {view.node: view for view in one.nodes if view.agreement is not Agreement.ELSEWHERE}
            # The destination's node alone knows all its own addresses, from which its pods are always reached.
            whole = one if one.destination.node == node else explained[index]
            explained[index] = replace(whole, nodes=tuple(views.values()))
    return explained, "; ".join(unread)


# --- verify ------------------------------------------------------------------------------------------


def verify(
    node: Annotated[list[str] | None, typer.Argument(metavar="[NODE]...", help="Which. [default: all]")] = None,
    output: options.Output = options.OutputFormat.TEXT,
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Compare every node's kernel with what it should hold.

    As felix-py verify on each. Exit codes: 0 all as it should be, 1 something differs, 2 something could not be
    read.
    """
    with errors():
        it = lab_of(name, state_root)
        nodes = node or it.node_names()
        argv = ["felix-py", "verify", "-o", output.value]
        done = _on_each(it, nodes, argv)
        for one in done:
            typer.echo(one.stderr, err=True, nl=False)
            if output is options.OutputFormat.TEXT:
                typer.echo(one.stdout, nl=False)
        if output is options.OutputFormat.JSON:
            typer.echo(json.dumps([json.loads(one.stdout) for one in done if one.stdout], indent=2))
    if worst := max(one.returncode for one in done):
        raise typer.Exit(worst)


def _on_each(it: Lab, nodes: Sequence[str], argv: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run a command on nodes, some at a time.

    Raises:
        LabError: there is no such node, it does not run, or it takes too long.
    """
    for node in nodes:
        it.machine(node)
    with ThreadPoolExecutor(_WORKERS) as workers:
        return list(workers.map(lambda node: it.run(node, *argv, check=False, timeout=_PATIENCE), nodes))


# --- denies ------------------------------------------------------------------------------------------


def denies(
    follow: options.Follow = False,
    output: Annotated[
        one_nodes_denies.Form, typer.Option("--output", "-o", help="As of felix-py denies.")
    ] = one_nodes_denies.Form.TEXT,
    since: options.Since = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Only the newest N events. [default: all there are]", show_default=False
        ),
    ] = None,
    namespace: options.DeniedNamespace = "",
    pod: options.DeniedPod = "",
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Show what was denied on any node.

    As felix-py denies on each. Exit codes: 0 done (also with Ctrl-C), 1 an agent does not answer, 2 wrong option.
    """
    with errors():
        it = lab_of(name, state_root)
        nodes = it.node_names()
        argv = ["felix-py", "denies", "-o", "json"]
        for option, value in (("--since", since), ("--namespace", namespace), ("--pod", pod)):
            argv += [option, value] if value else []
        argv += [] if limit is None else ["--limit", str(limit)]
        with ending_quietly():
            show = one_nodes_denies.Shown(output)
            if follow:
                _follow(it, nodes, [*argv, "--follow"], show)
            else:
                _list(it, nodes, argv, limit, show)


def _list(
    it: Lab, nodes: Sequence[str], argv: Sequence[str], limit: int | None, show: one_nodes_denies.Shown
) -> None:
    events: list[dict[str, Any]] = []
    done = _on_each(it, nodes, argv)
    for node, one in zip(nodes, done, strict=True):
        _complain(node, one.stderr)
        events += [json.loads(line) for line in one.stdout.splitlines()]
    events.sort(key=lambda event: str(event.get("until", "")))
    show.all(events if limit is None else events[len(events) - min(limit, len(events)) :])
    # What the others know is shown all the same, but says nothing of the node that does not answer.
    if worst := max(one.returncode for one in done):
        raise typer.Exit(worst)
    if show.for_people and not events and limit != 0:
        typer.echo("felix-py lab denies: nothing like that was denied on any node", err=True)


def _complain(node: str, words: str) -> None:
    for line in words.splitlines():
        typer.echo(f"{node}: {line}", err=True)


def _follow(it: Lab, nodes: Sequence[str], argv: Sequence[str], show: one_nodes_denies.Shown) -> None:
    """Until Ctrl-C, or until every node's command has ended."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        children = [stack.enter_context(_following(it, node, argv)) for node in nodes]
        for child in children:
            assert child.stdout is not None
            selector.register(child.stdout, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                # One line at a time: the pipe is unbuffered, so that what is left in it is seen by the selector.
                if line := key.fileobj.readline():  # type: ignore[union-attr]
                    show.one(json.loads(line))
                else:
                    selector.unregister(key.fileobj)
        if worst := max(child.wait() for child in children):
            raise typer.Exit(worst)


@contextlib.contextmanager
def _following(it: Lab, node: str, argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    words = [*it.enter(node), *argv]
    with subprocess.Popen(words, env=it.environment(node), stdout=subprocess.PIPE, bufsize=0) as child:
        try:
            yield child
        finally:
            child.terminate()


# --- plan --------------------------------------------------------------------------------------------


def plan(
    file: options.PolicyFiles,
    recursive: options.Recursive = False,
    delete: options.Delete = False,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAMESPACE",
            help="Of NetworkPolicies that name none. [default: default]",
            show_default=False,
        ),
    ] = None,
    output: options.Output = options.OutputFormat.TEXT,
    limit: options.ListLimit = 50,
    everything: options.AllLines = False,
    flows: Annotated[
        bool, typer.Option("--flows/--no-flows", help="Say which flows seen lately would be denied.")
    ] = True,
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Show what policies in files would change.

    As felix-py plan, with the flows that the agents of all nodes have seen. Exit codes: 0 nothing would change,
    1 something would, 2 there is no answer.
    """
    from felix_py.cli.plan import answer

    with errors():
        it = lab_of(name, state_root)
        it.record()  # there is one
        seen = partial(_seen_lately, it) if flows else None
        lines = 0 if everything else limit
        answer(file, recursive, delete, namespace, output, lines, seen, it.kubeconfig)


def _seen_lately(it: Lab, cluster: Snapshot, changes: Changes) -> Flows:
    from felix_py.cli.plan_flows import seen_lately
    from lab.agents import ask
    from lab.state import LabError

    def flows_of(node: str) -> object:
        try:
            return json.loads(ask(it, node, "/flows", _FLOWS_PATIENCE))
        except LabError as error:
            raise OSError(str(error)) from None

    return seen_lately(it.node_names(), cluster, changes, flows_of)
