"""``felix-py plan``: the connections that applying or deleting policies would change. Writes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from felix_py.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from felix_py.cli.plan_report import Change, Flows, Plan
    from felix_py.datastore.client import Api
    from felix_py.datastore.fetch import Fetched
    from felix_py.datastore.manifests import Manifests, Other
    from policy.impact.compare import Changes
    from policy.model import ClusterPolicy, Labels, NetworkPolicy, PolicyKind, PolicyRef
    from policy.oracle.evaluate import Snapshot

_MOST_PROBLEMS = 5
"""Greatest number of not understood objects of the cluster that are named."""


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
            help="Of NetworkPolicies that name none. [default: the context's, else default]",
            show_default=False,
        ),
    ] = None,
    output: options.Output = options.OutputFormat.TEXT,
    limit: options.ListLimit = 50,
    everything: options.AllLines = False,
    flows: Annotated[
        bool,
        typer.Option(
            "--flows/--no-flows", help="Say which flows seen lately would be denied, if the agent answers."
        ),
    ] = True,
    agent_socket: Annotated[
        list[str],
        typer.Option(
            "--agent-socket",
            "--agent",
            envvar="FELIX_PY_AGENT_SOCKET",
            metavar="PATH|URL",
            help="Agent that tells flows; repeat for more nodes, as by sockets or ports that ssh forwards.",
        ),
    ] = [options.DEFAULT_AGENT_SOCKET],  # noqa: B006 - typer copies it
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
) -> None:
    """Show what policies in files would change.

    That is, which connections they would newly deny or allow. The files are compared with the cluster as it is
    now: every pair of live pods, nodes and the world outside, every port of TCP, UDP and SCTP. Pods with the same
    answer are shown together. NetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy and
    BaselineAdminNetworkPolicy are looked at; other objects are skipped with a note. Nothing is written anywhere.

    Exit codes, as of kubectl diff: 0 nothing would change for anybody, 1 something would, 2 there is no answer
    (the message says why).
    """
    from functools import partial

    from felix_py.cli import plan_flows
    from felix_py.config import ConfigError

    try:
        plan_flows.check_places(agent_socket)
    except ConfigError as error:
        _fail(str(error))
    ask = partial(plan_flows.seen_lately, agent_socket) if flows else None
    lines = 0 if everything else limit
    found_by = options.usual_kubeconfig(kubeconfig)
    answer(file, recursive, delete, namespace, output, lines, ask, found_by, context)


def answer(
    file: Sequence[str],
    recursive: bool,
    delete: bool,
    namespace: str | None,
    output: options.OutputFormat,
    limit: int,
    seen_lately: Callable[[Snapshot, Changes], Flows] | None,
    kubeconfig: Path | None,
    context: str | None = None,
) -> NoReturn:
    """Answer and raise typer.Exit; the options are those of :func:`plan`. ``seen_lately`` None: without flows."""
    from felix_py.config import ConfigError
    from felix_py.datastore.client import ApiError, Unreachable, connect, default_namespace
    from felix_py.datastore.manifests import ManifestError, policies_in, read

    try:
        documents = read(file, sys.stdin.buffer.read, recursive=recursive)
        own = namespace or default_namespace(kubeconfig, context)
        manifests = policies_in(documents, own, only=namespace is not None)
        if not manifests.policies:
            _fail(f"no policy in {', '.join(file)}")
        api = connect(kubeconfig, context)
        try:
            found = _planned(api, manifests, delete=delete, seen_lately=seen_lately)
        finally:
            api.close()
    except ManifestError as error:
        _fail(*error.reasons)
    except (ConfigError, ApiError, Unreachable) as error:
        _fail(str(error))
    _print(found, output is options.OutputFormat.JSON, limit)
    raise typer.Exit(1 if found.impact.groups else 0)


def _planned(
    api: Api, manifests: Manifests, *, delete: bool, seen_lately: Callable[[Snapshot, Changes], Flows] | None
) -> Plan:
    from felix_py.cli.plan_report import Plan
    from felix_py.datastore.fetch import fetch
    from policy.impact.compare import impact

    with options.patience("felix-py plan: listing the cluster's objects …"):
        fetched = fetch(api)
    cluster = fetched.snapshot()
    told, changes = _changes(cluster, manifests, delete=delete)
    with options.patience(f"felix-py plan: comparing before and after for {len(fetched.pods):,} pods …"):
        found = impact(cluster, changes)
    flows = None
    if seen_lately is not None:
        with options.patience("felix-py plan: asking for the flows seen lately …"):
            flows = seen_lately(cluster, changes)
    notes = [*_notes(told, fetched, cluster), *_skipped(manifests.others, cluster)]
    return Plan(told, found, flows, notes)


def _changes(cluster: Snapshot, manifests: Manifests, *, delete: bool) -> tuple[list[Change], Changes]:
    """The action on each policy, and the policies that change."""
    from felix_py.cli.plan_report import Action, Change

    told: list[Change] = []
    changes: dict[PolicyRef, NetworkPolicy | ClusterPolicy | None] = {}
    for ref, policy in manifests.policies.items():
        old = cluster.policies.get(ref)
        # The cluster's object has a uid from the server, the file's has none.
        new = replace(policy, uid=old.uid) if old is not None else policy
        if delete:
            action = Action.ABSENT if old is None else Action.DELETED
        elif old is None:
            action = Action.CREATED
        else:
            action = Action.UNCHANGED if new == old else Action.CHANGED
        if action not in (Action.ABSENT, Action.UNCHANGED):
            changes[ref] = None if delete else new
        told.append(Change(ref, action, manifests.where[ref], () if delete else policy.problems))
    return told, changes


def _notes(told: Sequence[Change], fetched: Fetched, cluster: Snapshot) -> Iterator[str]:
    """Notes on the answer."""
    from felix_py.cli.plan_report import Action

    for change in told:
        ref = change.ref
        for part in change.problems:
            yield f"{ref} ({change.where}): {_closed(ref.kind)}: {part}"
        if change.action is Action.ABSENT:
            continue
        if ref.kind in fetched.absent:
            yield f"{ref} ({change.where}): the cluster does not have this kind: install its CRD first"
        elif ref.namespace and cluster.namespace(ref.namespace) is None:
            yield f"{ref} ({change.where}): the namespace does not exist, so it selects nobody"
    waiting = sum(pod.active and not pod.host_network and not pod.addresses for pod in fetched.pods)
    if waiting:
        yield f"pods without an address yet are not looked at: {waiting:,}"
    for problem in fetched.problems[:_MOST_PROBLEMS]:
        name = "/".join(part for part in problem.key if part)
        yield f"{problem.kind} {name} in the cluster is not, or not wholly, understood: {problem.reason}"
    if len(fetched.problems) > _MOST_PROBLEMS:
        yield f"and {len(fetched.problems) - _MOST_PROBLEMS:,} more objects that are not understood"


def _closed(kind: PolicyKind) -> str:
    """The effect of a part that is not understood."""
    from policy.model import PolicyKind

    if kind is PolicyKind.NETWORK:
        return "would allow nothing"
    return "would accept nothing, and deny everything if it denies or passes"


def _skipped(others: Sequence[Other], cluster: Snapshot) -> Iterator[str]:
    """Notes on the files' objects that are no policies."""
    plain: dict[str, int] = {}
    for other in others:
        labels: Labels | None = ()
        if other.kind == "Namespace":
            there = cluster.namespace(other.name)
            labels = there.labels if there else None
        elif other.kind == "Pod":
            pod = cluster.pods.get((other.namespace, other.name))
            labels = pod.labels if pod else None
        name = f"{other.where}: skipped {other.kind} {other.name}"
        if labels is None:
            yield f"{name}: it does not exist yet; policies may mean something else once it does"
        elif other.kind in ("Namespace", "Pod") and not set(other.labels or ()) <= set(labels):
            yield f"{name}: its labels would change; those that it has now are looked at"
        else:
            plain[other.kind] = plain.get(other.kind, 0) + 1
    if plain:
        counted = ", ".join(f"{number} {kind}" for kind, number in plain.items())
        yield f"skipped what is no policy: {counted}"


def _print(found: Plan, as_json: bool, limit: int) -> None:
    from felix_py.cli import plan_report

    if as_json:
        typer.echo(json.dumps(plan_report.as_json(found), indent=2))
        return
    for note in found.notes:
        _say(f"note: {note}")
    for url, reason in (found.flows.silent if found.flows else {}).items():
        _say(f"note: no flows from {url}: {reason}; see --agent-socket and --no-flows")
    for line in plan_report.lines(found, limit):
        typer.echo(options.printable(line))


def _fail(*reasons: str) -> NoReturn:
    for reason in reasons:
        _say(reason)
    raise typer.Exit(2)


def _say(text: str) -> None:
    typer.echo(options.printable(f"felix-py plan: {text}"), err=True)
