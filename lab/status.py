"""What of a lab works: programs, nodes, sessions, pods, and what is wrong with each."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from lab.agents import ask
from lab.apiclient import ApiClient, ApiError, Obj
from lab.lab import Lab
from lab.namespaces import NETNS_DIR
from lab.processes import is_stopped
from lab.state import LabError, Phase
from lab.topology import TOR, pod_netns

_BGP_LINE = re.compile(r"^(node\d+)_ipv([46])\s+BGP\s+\S+\s+\S+\s+\S+\s*(\S*)", re.MULTILINE)
_ANSWER = 10.0
"""Seconds in which a program answers, or hangs."""

_VERIFY = 60.0
_YOUNG = 30.0
"""A program that has been started again more than once and is no older than this keeps dying."""

_WORKERS = 8
_TAIL = 65_536

STOPPED = "is stopped (SIGSTOP)"
"""A program's problem."""


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """One program of a machine, or (machine "") of the lab itself. ``problem`` empty: it runs."""

    machine: str
    name: str
    pid: int
    restarts: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PodStatus:
    """One pod. ``problem`` empty: it runs and has its interface and addresses."""

    name: str
    node: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node. ``agent``: its ``/status``, or why it is ``silent``; ``kernel``: what ``felix-py verify`` found,
    or why it is ``unverified``."""

    name: str
    agent: dict[str, Any] | None = None
    silent: str = ""
    kernel: dict[str, Any] | None = None
    unverified: str = ""


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A whole lab. ``sessions`` maps "node1 IPv4" to BIRD's word for the session's state.

    ``problems``: what is wrong with the lab as a whole; ``router``: why the router does not tell of its sessions.
    """

    name: str
    shape: str
    up: bool
    kubeconfig: str
    programs: tuple[ProgramStatus, ...]
    sessions: dict[str, str]
    nodes: tuple[NodeReport, ...]
    pods: tuple[PodStatus, ...]
    problems: tuple[str, ...] = ()
    router: str = ""


def collect(lab: Lab, *, verify: bool = True) -> LabStatus:
    """Look at everything; whatever does not answer in time is a problem. ``verify``: compare the kernels, too.

    Raises:
        LabError: there is no such lab.
    """
    record = lab.record()
    programs = tuple(_programs(lab))
    with ThreadPoolExecutor(_WORKERS) as workers:
        reports = workers.map(lambda name: _node(lab, name, verify=verify), lab.node_names())
        sessions, router = _sessions(lab)
        pods, api = _pods(lab, workers)
        nodes = tuple(reports)
    unfinished = (
        "" if record.phase is Phase.UP else "an `up` or `down` has not finished; `felix-py lab up` goes on"
    )
    return LabStatus(
        name=lab.name,
        shape=str(record.shape),
        up=record.phase is Phase.UP,
        kubeconfig=str(lab.kubeconfig),
        programs=programs,
        sessions=sessions,
        nodes=nodes,
        pods=pods,
        problems=tuple(filter(None, (unfinished, api))),
        router=router,
    )


# --- programs ----------------------------------------------------------------------------------------


def _programs(lab: Lab) -> Iterator[ProgramStatus]:
    keeper = lab.keeper()
    for name, process in lab.processes().items():
        kept = keeper.programs.get(name) if keeper else None
        pid = process.pid if process is not None and process.alive else 0
        restarts, since = (kept.restarts, kept.since) if kept else (0, 0.0)
        problem = _program_problem(pid, restarts, since, lab.state.log(name))
        if not lab.state.machine(name).is_dir():
            yield ProgramStatus("", name, pid, restarts, problem)
            continue
        if problem:
            yield ProgramStatus(name, "machine", pid, restarts, problem)
        if pid:
            yield from _machine_programs(lab, name)


def _machine_programs(lab: Lab, machine: str) -> Iterator[ProgramStatus]:
    try:
        programs = lab.programs(machine)
    except LabError as error:
        yield ProgramStatus(machine, "machine", 0, problem=str(error))
        return
    for name, running in programs.items():
        log = lab.state.machine(machine) / "log" / f"{name}.log"
        problem = _program_problem(running.pid, running.restarts, running.since, log)
        yield ProgramStatus(machine, name, running.pid, running.restarts, problem)


def _program_problem(pid: int, restarts: int, since: float, log: Path) -> str:
    """What is wrong with a program, with its last words unless it is stopped; empty: nothing."""
    age, stopped = time.time() - since, is_stopped(pid)
    if restarts > 1 and age < _YOUNG:
        problem = f"keeps dying: {restarts} times, last started {age:.0f} s ago"
    elif not pid:
        problem = "does not run"
    else:
        return STOPPED if stopped else ""
    words = "" if stopped else _last_words(log)
    return f"{problem}; last words: {words}" if words else problem


def _last_words(path: Path) -> str:
    """What a program said before it ended; a machine's supervisor notes the end in the same log."""
    try:
        lines = path.read_bytes()[-_TAIL:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    entries = [entry for line in lines if (entry := _entry(line))]
    ends = [index for index, entry in enumerate(entries) if entry.get("component") == "machine"]
    until = ends[-1] if ends else len(entries)
    said = [entry for entry in entries[:until] if entry.get("component") != "machine"]
    if not said:
        return ""
    words = (said[-1].get("event"), said[-1].get("reason") or said[-1].get("error"))
    return ": ".join(str(word) for word in words if word)


def _entry(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {"event": line}
    return found if isinstance(found, dict) else {"event": line}


# --- nodes and sessions ------------------------------------------------------------------------------


def _node(lab: Lab, name: str, *, verify: bool) -> NodeReport:
    report = NodeReport(name)
    try:
        report = replace(report, agent=json.loads(ask(lab, name, "/status", _ANSWER)))
    except (LabError, ValueError) as error:
        report = replace(report, silent=str(error))
    try:
        return replace(report, kernel=_verify(lab, name)) if verify else report
    except LabError as error:
        return replace(report, unverified=str(error))


def _verify(lab: Lab, node: str) -> dict[str, Any]:
    """
    Raises:
        LabError: there is no answer.
    """
    done = lab.run(node, "felix-py", "verify", "-o", "json", check=False, timeout=_VERIFY)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise LabError((done.stderr or done.stdout).strip() or f"exit {done.returncode}") from None
    return found


def _sessions(lab: Lab) -> tuple[dict[str, str], str]:
    """The state of each session that there should be, and why the router does not say it."""
    families = lab.record().shape.families
    wanted = [f"{node} IPv{family}" for node in lab.node_names() for family in families]
    try:
        answer = lab.run(TOR, "birdc", "show", "protocols", timeout=_ANSWER).stdout
    except LabError as error:
        return dict.fromkeys(wanted, "unknown"), f"tor: bird does not answer: {str(error).splitlines()[-1]}"
    found = {f"{node} IPv{version}": state or "down" for node, version, state in _BGP_LINE.findall(answer)}
    return {name: found.get(name, "down") for name in wanted}, ""


# --- pods --------------------------------------------------------------------------------------------


def _pods(lab: Lab, workers: ThreadPoolExecutor) -> tuple[tuple[PodStatus, ...], str]:
    """All pods, and why the API server does not list them."""
    try:
        listed = asyncio.run(_list_pods(lab))
    except (ApiError, aiohttp.ClientError, OSError) as error:
        reason = str(error) or f"nothing for {_ANSWER:.0f} s"
        return (), f"the API server does not answer: {reason}"
    return tuple(workers.map(lambda pod: _pod(lab, pod), listed)), ""


async def _list_pods(lab: Lab) -> list[Obj]:
    async with asyncio.timeout(_ANSWER), ApiClient(lab.kubeconfig) as api:
        found: list[Obj] = (await api.get("/api/v1/pods"))["items"]
        return found


def _pod(lab: Lab, pod: Obj) -> PodStatus:
    metadata, status = pod["metadata"], pod.get("status") or {}
    node = pod["spec"].get("nodeName", "")
    return PodStatus(f"{metadata['namespace']}/{metadata['name']}", node, _pod_problem(lab, pod, node, status))


def _pod_problem(lab: Lab, pod: Obj, node: str, status: Obj) -> str:
    metadata, phase = pod["metadata"], status.get("phase", "Pending")
    if metadata.get("deletionTimestamp"):
        return "is being deleted"
    if phase != "Running":
        return "" if phase in {"Succeeded", "Failed"} else f"is {phase}, {f'on {node}' if node else 'on no node'}"
    if pod["spec"].get("hostNetwork"):
        return ""
    wanted = {entry["ip"] for entry in status.get("podIPs") or []}
    netns = pod_netns(lab.name, metadata["namespace"], metadata["name"], metadata["uid"])
    if not (NETNS_DIR / netns).exists():
        return "has no network namespace"
    argv = ["ip", "-json", "-n", netns, "address", "show"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_ANSWER)
    except subprocess.TimeoutExpired:
        return f"cannot be looked into: nothing for {_ANSWER:.0f} s"
    if done.returncode:
        return f"cannot be looked into: {done.stderr.strip()}"
    links: Sequence[Obj] = [link for link in json.loads(done.stdout or "[]") if link.get("ifname") == "eth0"]
    if not links:
        return "has no interface eth0"
    if "UP" not in links[0]["flags"] or links[0].get("operstate") not in {"UP", "UNKNOWN"}:
        return "has an interface eth0 that is down"
    missing = wanted - {info["local"] for info in links[0]["addr_info"]}
    return f"lacks its address {', '.join(sorted(missing))}" if missing else ""
