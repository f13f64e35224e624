"""What of a lab runs."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from felix_py.lab.lab import Lab
from felix_py.lab.state import LabError, Phase
from felix_py.lab.topology import TOR

_BGP_LINE = re.compile(r"^(node\d+)_ipv([46])\s+BGP\s+\S+\s+\S+\s+\S+\s*(\S*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """One program of a machine, or (machine "") of the lab itself."""

    machine: str
    name: str
    running: bool
    pid: int
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A whole lab. ``sessions`` maps "node1 IPv4" to BIRD's word for the session's state."""

    name: str
    shape: str
    up: bool
    kubeconfig: str
    programs: tuple[ProgramStatus, ...]
    sessions: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Everything runs and every session is established."""
        running = all(program.running for program in self.programs)
        return self.up and running and all(state == "Established" for state in self.sessions.values())

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "healthy": self.healthy}


def collect(lab: Lab) -> LabStatus:
    """Look at everything.

    Raises:
        LabError: there is no such lab.
    """
    record = lab.record()
    programs = []
    for name, process in lab.processes().items():
        alive = process is not None and process.alive
        pid = process.pid if process is not None else 0
        is_machine = lab.state.machine(name).is_dir()
        programs.append(ProgramStatus(name if is_machine else "", "machine" if is_machine else name, alive, pid))
        if is_machine and alive:
            programs += _machine_programs(lab, name)
    return LabStatus(
        name=lab.name,
        shape=str(record.shape),
        up=record.phase is Phase.UP,
        kubeconfig=str(lab.kubeconfig),
        programs=tuple(programs),
        sessions=_sessions(lab),
    )


def _machine_programs(lab: Lab, machine: str) -> list[ProgramStatus]:
    try:
        programs = lab.programs(machine)
    except LabError:
        return []
    return [
        ProgramStatus(machine, name, bool(running.pid), running.pid, running.restarts)
        for name, running in programs.items()
    ]


def _sessions(lab: Lab) -> dict[str, str]:
    try:
        answer = lab.run(TOR, "birdc", "show", "protocols").stdout
    except LabError:
        return {}
    return {f"{node} IPv{version}": state or "down" for node, version, state in _BGP_LINE.findall(answer)}


def as_table(status: LabStatus) -> Table:
    """For people."""
    table = Table(box=None, show_edge=False)
    for heading in ("machine", "program", "state", "pid", "restarts", "bgp"):
        table.add_column(heading)
    for program in status.programs:
        if program.name == "machine" and program.running:
            continue
        table.add_row(
            program.machine or "(lab)",
            program.name,
            Text("running", "green") if program.running else Text("not running", "bold red"),
            str(program.pid or ""),
            str(program.restarts or ""),
            _session_words(status, program.machine) if program.name == "bgp" else "",
        )
    return table


def _session_words(status: LabStatus, machine: str) -> str:
    states = {
        name.partition(" ")[2]: state for name, state in status.sessions.items() if name.startswith(f"{machine} ")
    }
    if set(states.values()) == {"Established"}:
        return f"{' and '.join(states)} established"
    return ", ".join(f"{family} {state}" for family, state in states.items())
