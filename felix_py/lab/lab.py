"""One lab: up, down, what runs, and ways in."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from felix_py.lab import requirements
from felix_py.lab.build import Builder, Options
from felix_py.lab.machine import Running, Spec
from felix_py.lab.namespaces import NETNS_DIR
from felix_py.lab.state import (
    STATE_ROOT,
    LabError,
    Phase,
    Process,
    Record,
    StateDir,
    remove_namespaces,
    stop_all,
)
from felix_py.lab.topology import TOR, machine_netns, netns_prefix

Say = Callable[[str], None]
_DEFAULT = Options()


def _quiet(_text: str) -> None:
    pass


class Lab:
    """A lab by its name. Nothing exists until :meth:`up`."""

    def __init__(self, name: str = "lab", state_root: Path = STATE_ROOT) -> None:
        """Raises:
        BadName: ``name`` cannot be one.
        """
        self.state = StateDir(state_root, name)

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def kubeconfig(self) -> Path:
        """Credentials of the administrator."""
        return self.state.kubeconfig

    # --- up and down -------------------------------------------------------------------------------------

    def up(self, options: Options = _DEFAULT, say: Say = _quiet) -> bool:
        """Bring it up and wait until pods run and the router has all routes; false when it was up already.

        Raises:
            LabError: it cannot be; what had been made is removed again.
        """
        requirements.check(options.shape)
        with self.state.locked():
            record = self.state.read()
            if record is not None and self._stands(record, options, say):
                return False
            self._clear(record)
            self._build(options, say)
        return True

    def _stands(self, record: Record, options: Options, say: Say) -> bool:
        """Whether the lab is up as wanted; false when it has to be made (again).

        Raises:
            LabError: it is up in another shape.
        """
        dead = [name for name, process in record.processes.items() if not process.alive]
        if record.phase is not Phase.UP or dead:
            why = f"{', '.join(dead)} died" if record.phase is Phase.UP else "an earlier `lab up` did not finish"
            say(f"starting anew: {why}")
            return False
        if record.shape != options.shape:
            raise LabError(
                f"lab {self.name!r} is up already with {record.shape}, not {options.shape}; "
                f"take it down first, or use another --name"
            )
        return True

    def _build(self, options: Options, say: Say) -> None:
        try:
            asyncio.run(Builder(self.state, options, say).build())
        except BaseException:
            # Also Ctrl-C: half a lab is of no use. The logs of what failed are quoted in the error.
            if not options.keep_failed:
                self._clear(self.state.read())
                self.state.remove()
            raise

    def down(self) -> bool:
        """Remove all of it, in whatever state it is; false when there was none.

        Raises:
            LabError: not root, or somebody is bringing it up just now.
        """
        exists = self.state.path.is_dir() or any(NETNS_DIR.glob(f"{netns_prefix(self.name)}*"))
        if not exists:
            return False
        requirements.check_root()
        with self.state.locked():
            try:
                record = self.state.read()
            except LabError:
                record = None  # unreadable: without the token its processes cannot be told, all else can
            self._clear(record)
            self.state.remove()
        return True

    def _clear(self, record: Record | None) -> None:
        if record is not None:
            stop_all(record.token)
        remove_namespaces(self.name)
        self.state.empty()

    # --- what runs ---------------------------------------------------------------------------------------

    def record(self) -> Record:
        """What the lab is made of.

        Raises:
            LabError: there is no such lab.
        """
        record = self.state.read()
        if record is None:
            others = [name for name in self.state.lab_names() if name != self.name]
            hint = f" (there is: {', '.join(others)})" if others else ""
            raise LabError(f"lab {self.name!r} is not up{hint}; start it with `felix-py lab up`")
        return record

    def machine(self, name: str) -> Process:
        """The supervisor of a node or of the router.

        Raises:
            LabError: there is no such machine, or it is not running.
        """
        processes = self.record().processes
        machines = [TOR, *sorted(name for name in processes if name.startswith("node"))]
        if name not in machines:
            raise LabError(f"{name}: no such machine; there are {', '.join(machines)}")
        if not processes[name].alive:
            raise LabError(f"{name} is not running; `felix-py lab up` starts the lab anew")
        return processes[name]

    def programs(self, machine: str) -> dict[str, Running]:
        """The programs of a machine: agent and bgp on a node, bird on the router."""
        path = self.state.machine(machine) / "status.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Running])
        except FileNotFoundError:
            raise LabError(f"{machine}: no such machine, or it has not started") from None

    def log_file(self, machine: str, component: str) -> Path:
        """Where a program's output is; ``kubelet`` and ``apiserver`` are the lab's own.

        Raises:
            LabError: there is no such log.
        """
        self.record()
        lab_log = self.state.log(component)
        path = lab_log if component in {"kubelet", "apiserver"} else self.state.machine(machine) / "log"
        path = path if path.suffix == ".log" else path / f"{component}.log"
        if not path.is_file():
            raise LabError(f"{machine} has no log of {component}")
        return path

    # --- ways in -----------------------------------------------------------------------------------------

    def enter(self, target: str) -> list[str]:
        """What to put before a command so that it runs on the router, a node, or (NAMESPACE/POD) in a pod.

        Raises:
            LabError: there is no such place.
        """
        if "/" in target:
            return ["nsenter", f"--net={self.pod_netns(target)}", "--"]
        pid = self.machine(target).pid
        return ["nsenter", "-t", str(pid), "-m", "-n", "--"]

    def environment(self, target: str) -> dict[str, str]:
        """Environment for a command that runs there: on a node, felix-py and kubectl know where they are.

        Raises:
            LabError: there is no such place.
        """
        environment = dict(os.environ)
        if "/" in target or target == TOR:
            return environment
        self.machine(target)
        spec = msgspec.json.decode((self.state.machine(target) / "spec.json").read_bytes(), type=Spec)
        environment |= next(program.env for program in spec.programs if program.name == "agent")
        environment["KUBECONFIG"] = environment["FELIX_PY_KUBECONFIG"]
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}"
        return environment

    def pod_netns(self, pod: str) -> Path:
        """Network namespace of NAMESPACE/POD: the newest, should a predecessor still be ending.

        Raises:
            LabError: no such pod runs.
        """
        self.record()
        namespace, _, name = pod.partition("/")
        prefix = f"{machine_netns(self.name, namespace)}.{name}."
        found = [
            path
            for path in NETNS_DIR.iterdir()
            if path.name.startswith(prefix) and "." not in path.name[len(prefix) :]
        ]
        if not found:
            raise LabError(f"{pod}: no such pod is running; see `felix-py lab kubectl -- get pods -A`")
        return max(found, key=lambda path: path.stat().st_ctime)

    def run(self, target: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command somewhere in the lab and wait for it.

        Raises:
            LabError: there is no such place, or (with ``check``) the command failed.
        """
        return _run([*self.enter(target), *argv], self.environment(target), None, check)

    def kubectl(
        self, *argv: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl against the lab.

        Raises:
            LabError: no kubectl, no lab, or (with ``check``) the command failed.
        """
        return _run([requirements.check_kubectl(), *argv], self.kubectl_environment(), stdin, check)

    def kubectl_environment(self) -> dict[str, str]:
        """Environment for kubectl; its caches stay in the lab's folder."""
        self.record()
        return {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.state.path / "kubectl-cache"),
        }


def _run(
    argv: Sequence[str], env: dict[str, str], stdin: str | None, check: bool
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done
