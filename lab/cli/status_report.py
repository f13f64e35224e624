"""What ``felix-py lab status`` prints: the verdict, what is wrong and what to do, then everything that works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from felix_py.diagnose import node_status
from felix_py.diagnose.node_status import Problem
from lab.status import STOPPED, LabStatus, NodeReport, ProgramStatus
from lab.topology import TOR

_LISTED = 8
"""So many pods with a problem are named."""


def problems(found: LabStatus) -> list[Problem]:
    """Everything that is wrong, what stops the most first."""
    return list(_problems(found))


def _problems(found: LabStatus) -> Iterator[Problem]:
    yield from (Problem(text, "") for text in found.problems)
    ill = {(program.machine, program.name) for program in found.programs if program.problem}
    for program in found.programs:
        if program.problem:
            yield Problem(f"{program.machine or 'lab'}: {program.name} {program.problem}", _todo(found, program))
    if found.router and (TOR, "bird") not in ill:
        yield Problem(found.router, f"`{_command(found, 'logs')} tor` says more.")
    for name, state in found.sessions.items():
        if state not in {"Established", "unknown"}:
            todo = f"`{_command(found, 'logs')} {name.split()[0]} --component bgp` says more."
            yield Problem(f"{name}: BGP with tor is {state}", todo)
    for report in found.nodes:
        yield from _node_problems(found, report, silence_explained=(report.name, "agent") in ill)
    yield from _pod_problems(found)


def _todo(found: LabStatus, program: ProgramStatus) -> str:
    if program.problem.startswith(STOPPED):
        return f"`kill -CONT {program.pid}` lets it go on."
    if program.name in ("keeper", "machine"):
        return f"`{_command(found, 'up')}` starts again what has died."
    return f"`{_command(found, 'logs')} {program.machine or TOR} --component {program.name}` says more."


def _command(found: LabStatus, command: str) -> str:
    """A command for this lab, as one may type it."""
    return f"felix-py lab {command}" + ("" if found.name == "lab" else f" --name {found.name}")


def _node_problems(found: LabStatus, report: NodeReport, *, silence_explained: bool) -> Iterator[Problem]:
    if report.silent and not silence_explained:
        todo = f"`{_command(found, 'logs')} {report.name}` says more."
        yield Problem(f"{report.name}: the agent does not answer: {report.silent}", todo)
    if report.agent is not None:
        for problem in node_status.read(report.agent).problems:
            yield Problem(f"{report.name}: {problem.what}", problem.todo)
    if report.unverified:
        yield Problem(f"{report.name}: the kernel cannot be judged: {report.unverified}", "")
    if report.kernel is not None and not report.kernel["equal"]:
        count = len(report.kernel["differences"])
        yield Problem(
            f"{report.name}: the kernel is not as it should be ({_differences(count)})",
            f"`{_command(found, 'verify')} {report.name}` names them; a running agent puts right what it can.",
        )


def _differences(count: int) -> str:
    return f"{count} difference{'s' * (count != 1)}"


def _pod_problems(found: LabStatus) -> Iterator[Problem]:
    ill = [pod for pod in found.pods if pod.problem]
    for pod in ill[:_LISTED]:
        namespace, _, name = pod.name.partition("/")
        where = f" on {pod.node}" if pod.node else ""
        todo = f"`{_command(found, 'kubectl')} -- describe pod -n {namespace} {name}` may say more."
        yield Problem(f"{pod.name}{where}: {pod.problem}", todo)
    if len(ill) > _LISTED:
        yield Problem(f"{len(ill) - _LISTED} more pods are not well", "")


def as_json(found: LabStatus) -> dict[str, Any]:
    """For programs."""
    wrong = problems(found)
    return {
        **asdict(found),
        "problems": [{"what": problem.what, "todo": problem.todo} for problem in wrong],
        "healthy": not wrong,
    }


def show(found: LabStatus, console: Console) -> None:
    """For people."""
    console.print(_verdict(found), soft_wrap=True, highlight=False)
    tables = Group(_programs(found), "", _nodes(found))
    # A table that is broken to fit is no table: the terminal may wrap it, or people scroll.
    console.width = max(console.width, console.measure(tables).maximum)
    console.print(tables)


def _verdict(found: LabStatus) -> Text:
    wrong = problems(found)
    count = f"{len(wrong)} problem{'s' * (len(wrong) != 1)}" if wrong else "fine"
    text = Text.assemble(f"lab {found.name!r}, {found.shape}: ", (count, "bold red" if wrong else "green"), "\n")
    for problem in wrong:
        text.append(f"  ! {problem.what}\n", "red")
        if problem.todo:
            text.append(f"    {problem.todo}\n")
    return text


def _programs(found: LabStatus) -> Table:
    table = _table("machine", "program", "state", "pid", "restarts")
    for program in found.programs:
        state = Text("not well", "bold red") if program.problem else Text("running", "green")
        where = program.machine or "(lab)"
        table.add_row(where, program.name, state, str(program.pid or ""), str(program.restarts or ""))
    return table


def _nodes(found: LabStatus) -> RenderableType:
    table = _table("node", "agent", "kernel", "pods", "bgp", "last drift")
    for report in found.nodes:
        table.add_row(
            report.name,
            _ready(report),
            _kernel(report),
            _pods(found, report.name),
            _sessions(found, report.name),
            _drift(report),
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, show_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _ready(report: NodeReport) -> Text:
    if report.agent is None:
        return Text("silent", "bold red")
    return Text("not ready", "bold red") if report.agent.get("unready") else Text("ready", "green")


def _kernel(report: NodeReport) -> Text:
    if report.kernel is None:
        return Text("unknown", "bold red") if report.unverified else Text("not compared")
    if not report.kernel["equal"]:
        return Text(_differences(len(report.kernel["differences"])), "bold red")
    return Text("as it should be", "green")


def _pods(found: LabStatus, node: str) -> Text:
    own = [pod for pod in found.pods if pod.node == node]
    well = sum(not pod.problem for pod in own)
    return Text(f"{well} of {len(own)}", "green" if well == len(own) else "bold red")


def _sessions(found: LabStatus, node: str) -> Text:
    states = {n.partition(" ")[2]: state for n, state in found.sessions.items() if n.startswith(f"{node} ")}
    if set(states.values()) == {"Established"}:
        return Text(f"{' and '.join(states)} established", "green")
    return Text(", ".join(f"{family} {state}" for family, state in states.items()), "bold red")


def _drift(report: NodeReport) -> str:
    if report.agent is None:
        return "?"
    drift = report.agent.get("lastDrift")
    if not drift:
        return "none"
    found = drift.get("found") or ["?"]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{int(drift.get('secondsAgo', 0))} s ago: {found[0]}{more}"
