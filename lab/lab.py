"""One lab: up, down, what runs, and ways in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from lab import requirements
from lab.build import Builder, Options
from lab.machine import Running, Spec
from lab.namespaces import NETNS_DIR, is_netns, named_netns
from lab.processes import Process, dwelling, homes, marked, stop_all
from lab.state import (
    STATE_ROOT,
    KeeperState,
    LabError,
    Phase,
    Record,
    Shape,
    StateDir,
    remove_namespaces,
)
from lab.topology import TOR, machine_netns, netns_prefix, nodes

Say = Callable[[str], None]
_DEFAULT = Options()
_OWN = frozenset({"keeper", "kubelet", "apiserver"})


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

    def shape(self, nodes: int | None, families: tuple[int, ...] | None, backend: str | None) -> Shape:
        """The lab's shape, or that of a new one, with what is wanted otherwise.

        Raises:
            LabError: not root, or what there is cannot be read.
        """
        requirements.check_root()
        record = self.state.read()
        own = record.shape if record else Shape()
        return Shape(nodes or own.nodes, families or own.families, backend or own.backend)

    # --- up and down -------------------------------------------------------------------------------------

    def up(self, options: Options = _DEFAULT, say: Say = _quiet) -> bool:
        """Bring it up and wait until pods run and the router has all routes; false when all of it ran already.

        A lab that is there keeps its shape and what is in it; what has died is started again.

        Raises:
            LabError: it cannot be, or is there in another shape. What was made of a new one is removed again.
        """
        requirements.check_root()
        with self.state.locked():
            record = self.state.read()
            if record is None:
                try:
                    self._check_free()
                except LabError:
                    self.state.remove()  # was made for the lock
                    raise
                self._build(options.shape or Shape(), options, say)
                return True
            self._check_shape(record, options)
            if ruined := self._ruined(record):
                say(f"starting anew: {ruined}")
                self._build(record.shape, options, say)
                return True
            return self._revive(record, say)

    def _check_free(self) -> None:
        """Raises:
        LabError: what is left of a lab, or another one of this name, is in the way.
        """
        self._check_remains()
        self._check_elsewhere()

    def _check_remains(self) -> None:
        """Raises:
        LabError: there is no record of a lab of which something runs.
        """
        if marked(self.state.path):
            raise LabError(
                f"lab {self.name!r} runs, but {self.state.path}/lab.json is gone; "
                "`felix-py lab down` removes what is left"
            )

    def _check_elsewhere(self) -> None:
        """Raises:
        LabError: the network namespaces of this name are those of a lab below another root.
        """
        others = [home for home in homes() if home.name == self.name and home != self.state.path]
        if others and named_netns(netns_prefix(self.name)):
            raise LabError(f"lab {self.name!r} is there with --state-root {others[0].parent}")

    def _check_shape(self, record: Record, options: Options) -> None:
        """Raises:
        LabError: another shape is wanted than the lab has.
        """
        if options.shape not in (None, record.shape):
            raise LabError(
                f"lab {self.name!r} is there already with {record.shape}, not {options.shape}; "
                f"take it down first, or use another --name"
            )

    def _ruined(self, record: Record) -> str:
        """Why it has to be made anew; empty when starting what has died is enough."""
        if record.phase is not Phase.UP:
            return "an earlier `lab up` or `lab down` did not finish"
        machines = [TOR, *(node.name for node in nodes(record.shape.nodes, record.shape.address_families))]
        gone = [name for name in machines if not is_netns(NETNS_DIR / machine_netns(self.name, name))]
        return f"the network of {', '.join(gone)} is gone" if gone else ""

    def _build(self, shape: Shape, options: Options, say: Say) -> None:
        try:
            requirements.check(shape)
            self._clear()
            record = Record(name=self.name, shape=shape)
            asyncio.run(Builder(self.state, record, say).build(options.manifest))
        except BaseException:
            # Also Ctrl-C: half a lab is of no use. The logs of what failed are quoted in the error.
            if not options.keep_failed:
                self._clear()
                self.state.remove()
            raise

    def _revive(self, record: Record, say: Say) -> bool:
        dead = [name for name, process in self.processes().items() if process is None or not process.alive]
        if dead:
            say(f"starting again: {', '.join(dead)}")
            asyncio.run(Builder(self.state, record, say).revive())
        return bool(dead)

    def down(self) -> bool:
        """Remove all of it, in whatever state it is; false when there was none.

        Raises:
            LabError: not root, or somebody is bringing it up just now.
        """
        requirements.check_root()
        if not ((self.state.path / "lab.json").exists() or marked(self.state.path)):
            self._check_elsewhere()
            if not (self.state.path.is_dir() or named_netns(netns_prefix(self.name))):
                return False
        with self.state.locked():
            with contextlib.suppress(LabError):
                if record := self.state.read():
                    # Should this be interrupted, nobody must take what is left for a lab.
                    self.state.write(msgspec.structs.replace(record, phase=Phase.STARTING))
            self._clear()
            self.state.remove()
        return True

    def _clear(self) -> None:
        if (state := self.state.read_keeper()) and state.keeper.alive:
            stop_all(lambda: [state.keeper.pid] if state.keeper.alive else [])  # or it would start what ends
        stop_all(lambda: [*marked(self.state.path), *dwelling(named_netns(netns_prefix(self.name)))])
        remove_namespaces(self.name)
        self.state.empty()

    def all_names(self) -> list[str]:
        """Every lab below the same root, also one whose folder is gone.

        Raises:
            LabError: this is not root, who alone may see them.
        """
        requirements.check_root()
        running = [home.name for home in homes() if home.parent == self.state.root]
        return sorted({*self.state.lab_names(), *running})

    # --- what runs ---------------------------------------------------------------------------------------

    def record(self) -> Record:
        """What the lab is made of.

        Raises:
            LabError: there is no such lab, or this is not root.
        """
        requirements.check_root()
        record = self.state.read()
        if record is None:
            self._check_remains()
            others = [name for name in self.state.lab_names() if name != self.name]
            hint = f" (there is: {', '.join(others)})" if others else ""
            raise LabError(f"lab {self.name!r} is not up{hint}; start it with `felix-py lab up`")
        return record

    def keeper(self) -> KeeperState | None:
        """What the lab's keeper says of its programs; None before it has said anything."""
        return self.state.read_keeper()

    def processes(self) -> dict[str, Process | None]:
        """The lab's own programs, its keeper and the machines' supervisors; None where none runs.

        Raises:
            LabError: there is no such lab.
        """
        state = self.keeper()
        kept = state.programs if state else {}
        found: dict[str, Process | None] = {"keeper": state.keeper if state else None}
        for program in self.record().programs:
            found[program.name] = kept[program.name].process if program.name in kept else None
        return found

    def machine(self, name: str) -> Process:
        """The supervisor of a node or of the router.

        Raises:
            LabError: there is no such machine, or it is not running.
        """
        machines = [TOR, *self.node_names()]
        if name not in machines:
            raise LabError(f"{name}: no such machine; there are {', '.join(machines)}")
        process = self.processes().get(name)
        if process is None or not process.alive:
            raise LabError(f"{name} is not running; `felix-py lab up` starts again what has died")
        return process

    def node_names(self) -> list[str]:
        """All nodes.

        Raises:
            LabError: there is no such lab.
        """
        shape = self.record().shape
        return [node.name for node in nodes(shape.nodes, shape.address_families)]

    def programs(self, machine: str) -> dict[str, Running]:
        """The programs of a machine: agent and bgp on a node, bird on the router."""
        path = self.state.machine(machine) / "status.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Running])
        except FileNotFoundError:
            raise LabError(f"{machine}: no such machine, or it has not started") from None

    def log_file(self, machine: str, component: str) -> Path:
        """Where a program's output is; ``keeper``, ``kubelet`` and ``apiserver`` are the lab's own.

        Raises:
            LabError: there is no such log.
        """
        self.record()
        lab_log = self.state.log(component)
        path = lab_log if component in _OWN else self.state.machine(machine) / "log"
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

    def run(
        self, target: str, *argv: str, check: bool = True, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command somewhere in the lab and wait for it, ``timeout`` seconds at most.

        Raises:
            LabError: there is no such place, it takes too long, or (with ``check``) the command failed.
        """
        return _run([*self.enter(target), *argv], self.environment(target), None, check, timeout)

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
    argv: Sequence[str], env: dict[str, str], stdin: str | None, check: bool, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            argv, env=env, input=stdin, capture_output=True, text=True, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"nothing for {timeout:.0f} s") from None
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done
