"""The whole agent as a process of its own on a node in the current network namespace, with an API server that
tests control, pods that CNI ADD has connected, and a machine outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from felix_py.cni.conflist import install_client
from felix_py.observe import ask
from felix_py.records import Backend
from felix_py.refs import KINDS
from lab.apiserver.kubeconfig import write_kubeconfig
from lab.runtime import CNIRuntime
from policy.model import Family, Packet, Protocol
from tests.support import kernel_state
from tests.support.asking import get
from tests.support.cni import WaitingRuntime, built_client, pod_args
from tests.support.fakeapi import NAMESPACES, NODES, PODS, POLICIES, FakeApi, Json
from tests.support.isolate import NetworkNamespace, run
from tests.support.streams import Stream, Streams
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

CIDRS = {Family.V4: "10.1.0.0/24", Family.V6: "fd00:1::/64"}
NODE = {Family.V4: "192.0.2.1", Family.V6: "2001:db8::1"}
GATEWAY = {Family.V4: "192.0.2.9", Family.V6: "2001:db8::9"}
_NAMESPACE = "shop"

POLICY = {("api", "db"), ("api", "web"), ("db", "web"), ("web", "api"), ("db", "api")}
"""Who reaches whom while policy is in force, and without it."""
OPEN = POLICY | {("web", "db")}


class LiveNode:
    """Use it in a ``with``. ``places`` and ``addresses`` of pods by name; all are in the namespace shop."""

    def __init__(
        self,
        folder: Path,
        backend: Backend | None,
        make: Callable[[str], NetworkNamespace],
        api: FakeApi | None = None,
    ) -> None:
        """``backend`` None: the agent finds it by itself. ``api``: another API server than a plain one."""
        self.folder = folder
        self.backend = backend
        self._make = make
        self.api = api or FakeApi()
        self.places: dict[str, NetworkNamespace] = {}
        self.addresses: dict[str, dict[Family, str]] = {}
        self.annotations: dict[str, dict[str, str]] = {}
        """Of pods by name, written with their objects."""
        self._process: subprocess.Popen[bytes] | None = None
        client = folder / "bin"
        install_client(client, folder / "run/cni.sock", built_client())
        self._runtime = WaitingRuntime(CNIRuntime(folder / "net.d", [client]))

    def __enter__(self) -> Self:
        self.world = self._make("world")
        run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", self.world.name)
        run("ip", "link", "set", "up0", "up")
        self.world.run("ip", "link", "set", "eth0", "up")
        for family, length in ((Family.V4, 24), (Family.V6, 64)):
            nodad = ["nodad"] if family is Family.V6 else []
            run("ip", "addr", "add", f"{NODE[family]}/{length}", "dev", "up0", *nodad)
            self.world.run("ip", "addr", "add", f"{GATEWAY[family]}/{length}", "dev", "eth0", *nodad)
        self.api.__enter__()
        addresses = [{"type": "InternalIP", "address": address} for address in NODE.values()]
        spec = {"podCIDRs": list(CIDRS.values())}
        self.api.put(NODES, {"metadata": _meta("", "n1"), "spec": spec, "status": {"addresses": addresses}})
        self.api.put(NAMESPACES, {"metadata": _meta("", _NAMESPACE, {"team": _NAMESPACE})})
        write_kubeconfig(self.kubeconfig, self.api.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.api.__exit__()
        if error is not None:
            sys.stderr.write(self.log)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def log(self) -> str:
        """What all lives of the agent have logged."""
        return (self.folder / "agent.log").read_text() if (self.folder / "agent.log").exists() else ""

    # --- the agent -----------------------------------------------------------------------------------

    def start(self, *options: str) -> None:
        """Start the agent. It need not be ready yet."""
        argv = [str(Path(sys.executable).with_name("felix-py")), "agent", "--node-name", "n1"]
        folders = {"state-dir": "state", "run-dir": "run", "cni-conf-dir": "net.d", "cni-bin-dir": "bin"}
        for option, folder in {"kubeconfig": "kubeconfig", **folders}.items():
            argv += [f"--{option}", str(self.folder / folder)]
        argv += ["--chained-plugin", "none", "--log-level", "debug"]
        argv += ["--backend", self.backend.value] if self.backend else []
        with (self.folder / "agent.log").open("ab") as log:
            self._process = subprocess.Popen([*argv, *options], stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def exit_code(self) -> int:
        """Wait until the agent has ended by itself."""
        assert self._process is not None
        return self._process.wait(60)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The agent does nothing meanwhile, until :meth:`go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.go_on()

    def go_on(self) -> None:
        """After :meth:`paused`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def ask(self, path: str) -> tuple[int, str]:
        """GET from the agent's own socket: (status, body); (0, reason) when nobody answers."""
        return get(ask.connection(str(self.folder / "run" / "agent.sock"), 10), path)

    def ready(self) -> None:
        """Until the agent says that it is."""
        eventually(lambda: self._alive() and self.ask("/readyz")[0] == 200, 60)

    def until_unready(self, words: str) -> None:
        """Until the agent says that it is not ready, in these words."""
        eventually(lambda: self._alive() and words in self.ask("/readyz")[1], 60)

    def _alive(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log[-3000:]
        return True

    def status(self) -> dict[str, Any]:
        """What /status says."""
        code, body = self.ask("/status")
        assert code == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def metric(self, name: str) -> float:
        """A metric, 0 where there is none; ``name`` with its labels."""
        for line in self.ask("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    # --- the cluster ---------------------------------------------------------------------------------

    def add_pod(self, name: str, **labels: str) -> None:
        """A pod comes: its object, its namespace, ADD, and what the kubelet writes into its status."""
        self.places[name] = self._make(name)
        self.relabel(name, **labels)
        args = pod_args(name, _NAMESPACE)
        result = self._runtime.add(name, self.places[name].path, args=args)
        found = [entry["address"].partition("/")[0] for entry in result["ips"]]
        self.addresses[name] = {Family.V6 if ":" in address else Family.V4: address for address in found}
        self.relabel(name, **labels)

    def delete_pod(self, name: str) -> None:
        """The kubelet's DEL; the object stays."""
        self._runtime.delete(name)

    def relabel(self, name: str, **labels: str) -> None:
        """Write a pod's object."""
        found = [{"ip": address} for address in self.addresses.get(name, {}).values()]
        status = {"phase": "Running", "podIPs": found, **({"podIP": found[0]["ip"]} if found else {})}
        meta = {**_meta(_NAMESPACE, name, labels), "annotations": self.annotations.get(name, {})}
        self.api.put(PODS, {"metadata": meta, "spec": {"nodeName": "n1"}, "status": status})

    def allow(self, name: str, selected: Mapping[str, str], *clients: Mapping[str, str]) -> None:
        """Write a policy: ingress to what is selected comes from pods with one of these sets of labels only."""
        peers = [{"podSelector": {"matchLabels": dict(labels)}} for labels in clients]
        spec = {"podSelector": {"matchLabels": dict(selected)}, "policyTypes": ["Ingress"]}
        rules = [{"from": peers}] if peers else []
        self.api.put(POLICIES, {"metadata": _meta(_NAMESPACE, name), "spec": {**spec, "ingress": rules}})

    def forbid_nothing(self, name: str) -> None:
        """Delete a policy."""
        self.api.delete(POLICIES, _NAMESPACE, name)

    # --- packets -------------------------------------------------------------------------------------

    def stream(self, streams: Streams, family: Family, source: str, destination: str, port: int) -> Stream:
        """A connection between two pods that goes on."""
        ends = [self.addresses[name][family] for name in (source, destination)]
        return streams.open(self.places[source], ends[0], self.places[destination], ends[1], port)


class PolicedNode(LiveNode):
    """The pod db lets in api and nobody else; web lets in everybody. The agent has run, and was killed."""

    def prepare(self) -> None:
        self.allow("db", {"app": "db"}, {"app": "api"})
        self.start()
        self.ready()
        for name in ("web", "api", "db"):
            self.add_pod(name, app=name)
        self.settled()
        self.kill()

    def set_up(self, *options: str) -> None:
        """:meth:`prepare`; then an agent runs, is ready, and policy is right."""
        self.prepare()
        self.start(*options)
        self.ready()
        self.settled()

    def settled(self) -> None:
        """Until policy is right on real packets."""
        eventually(lambda: self.reached() == POLICY, 20)

    def reached(self) -> set[tuple[str, str]]:
        """Who gets an answer from whom on TCP port 80, in both families; in one of them, it says so."""
        tries = {
            Packet(source, target, Protocol.TCP, 80): (client, server)
            for client in self.places
            for server in self.places
            if client != server
            for source, target in zip(
                self.addresses[client].values(), self.addresses[server].values(), strict=True
            )
        }
        places = [(self.places[n], a, Protocol.TCP, 80) for n, of in self.addresses.items() for a in of.values()]
        with serve(places):
            answered = attempt([(self.places[pair[0]], packet) for packet, pair in tries.items()], 1)
        families = [tries[packet] for packet in answered]
        both = {pair for pair in families if families.count(pair) == len(Family)}
        return both | {(f"{client}, one family", server) for client, server in set(families) - both}

    def start_alone(self) -> None:
        """Start while the API server refuses connections, until the agent answers."""
        self.api.refuse()
        self.start()
        eventually(lambda: self.ask("/readyz")[0] == 503, 60)

    def kernel(self) -> dict[str, object]:
        assert self.backend is not None
        return kernel_state.everything(self.backend)

    def drift(self) -> float:
        """How much others have changed so far."""
        return sum(self.metric(f'felix_py_drift_total{{kind="{kind}"}}') for kind in KINDS)

    def do(self, commands: str) -> None:
        """Run commands of another program, for each family."""
        for family in Family:
            tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{self.backend}"
            names = {"iptables": tool, "ours": f"felix{int(family)}", "n": str(int(family))}
            for name, addresses in self.addresses.items():
                names[name] = addresses[family]
            for command in commands.format(**names).split(";"):
                run(*command.split())


def _meta(namespace: str, name: str, labels: Mapping[str, str] | None = None) -> Json:
    named: Json = {"name": name, "uid": f"uid-{name}"}
    if namespace:
        named["namespace"] = namespace
    return {**named, "labels": dict(labels or {})}
