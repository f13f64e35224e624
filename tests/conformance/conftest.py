"""What the API server must do, tried with real kubectl and the official client.

By default against the embedded server. ``FELIX_PY_CONFORMANCE_ASSETS`` names a folder with a real kube-apiserver,
kube-controller-manager and kubectl to start instead, with the etcd there or else the system's.
``FELIX_PY_CONFORMANCE_KUBECONFIG`` names the kubeconfig of a server that runs (not as root: its tests
run in a network namespace of their own), ``FELIX_PY_CONFORMANCE_KUBECTL`` another kubectl.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from felix_py.datastore.client import Api, ApiError, connect
from tests.support.real_apiserver import real_apiserver

EXTERNAL = os.environ.get("FELIX_PY_CONFORMANCE_KUBECONFIG", "")
ASSETS = os.environ.get("FELIX_PY_CONFORMANCE_ASSETS", "")

embedded_only = pytest.mark.skipif(bool(EXTERNAL or ASSETS), reason="looks at what only the embedded server does")


@dataclass(frozen=True)
class Kubectl:
    """Runs kubectl with one kubeconfig, in one namespace."""

    program: str
    kubeconfig: Path
    home: Path
    namespace: str = "default"

    def command(self, *args: str) -> list[str]:
        return [self.program, "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace, *args]

    @property
    def environment(self) -> dict[str, str]:
        kept = ("PATH", "GOGC", "GOMEMLIMIT")
        return {name: os.environ[name] for name in kept} | {"HOME": str(self.home)}

    def run(self, *args: str, stdin: object = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it; ``stdin`` may be an object, which is sent as JSON."""
        text = stdin if isinstance(stdin, str | None) else json.dumps(stdin)
        return subprocess.run(
            self.command(*args),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=self.environment | environment,
        )

    def __call__(self, *args: str, stdin: object = None, **environment: str) -> str:
        """Its stdout; it must succeed."""
        done = self.run(*args, stdin=stdin, **environment)
        assert done.returncode == 0, f"kubectl {' '.join(args)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fails(self, *args: str, stdin: object = None) -> str:
        """Its stderr; it must fail."""
        done = self.run(*args, stdin=stdin)
        assert done.returncode != 0, f"kubectl {' '.join(args)} succeeded:\n{done.stdout}"
        return done.stderr

    @contextmanager
    def started(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """Run it in the background; it is stopped at the end."""
        command = self.command(*args)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self.environment) as process:
            try:
                yield process
            finally:
                process.terminate()

    def set_status(self, prefix: str, plural: str, name: str, **status: object) -> None:
        """PUT a status, and whatever else ``status`` holds beside it, as a kubelet or a controller does."""
        path = f"{prefix}/namespaces/{self.namespace}/{plural}/{name}"
        found = json.loads(self("get", "--raw", path))
        self("replace", "--raw", f"{path}/status", "-f", "-", stdin=found | status)

    def get(self, *args: str) -> Any:
        """``get … -o json``, decoded."""
        return json.loads(self("get", *args, "-o", "json"))

    def apply(self, *objects: dict[str, Any], args: tuple[str, ...] = ()) -> str:
        """``apply -f -``."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self("apply", "-f", "-", *args, stdin=listed if len(objects) > 1 else objects[0])


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The server under test."""
    if EXTERNAL:
        yield Path(EXTERNAL)
        return
    state = tmp_path_factory.mktemp("apiserver")
    with real_apiserver(Path(ASSETS), state) if ASSETS else _embedded(state):
        yield state / "kubeconfig"


@contextmanager
def _embedded(state: Path) -> Iterator[None]:
    argv = [sys.executable, "-m", "lab.apiserver", "--state-dir", str(state), "--tls", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("https://127.0.0.1:")
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.fixture(scope="session")
def serves_watch_list() -> None:
    """For what a kube-apiserver does only with an etcd that tells it how far a watch has come."""
    etcd = shutil.which("etcd", path=os.pathsep.join((ASSETS, os.environ["PATH"])))
    if not ASSETS or not etcd:
        return
    if " 3.4." in subprocess.run([etcd, "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("a real API server serves WatchList from etcd 3.5 on")


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl in the namespace ``default``."""
    named = os.environ.get("FELIX_PY_CONFORMANCE_KUBECTL")
    program = named or shutil.which("kubectl", path=os.pathsep.join((ASSETS, os.environ["PATH"])))
    if not program:
        pytest.skip("no kubectl on PATH")
    return Kubectl(program, kubeconfig, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def modern(cluster: Kubectl) -> None:
    """For what kubectl itself learned later than 1.20, the version of Debian 12."""
    version = json.loads(cluster("version", "--client", "-o", "json"))["clientVersion"]
    if int(version["minor"].rstrip("+")) < 27:
        pytest.skip(f"kubectl {version['gitVersion']} has no --subresource, server-side validation or explain")


@pytest.fixture
def kubectl(cluster: Kubectl, scenery: Scenery) -> Iterator[Kubectl]:
    """kubectl in a new namespace."""
    name = f"conformance-{uuid.uuid4().hex[:8]}"
    scenery.create("/api/v1/namespaces", {"metadata": {"name": name}})
    until(lambda: scenery.exists(f"/api/v1/namespaces/{name}/serviceaccounts/default"))
    yield Kubectl(cluster.program, cluster.kubeconfig, cluster.home, name)
    scenery.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[client.ApiClient]:
    """The official client."""
    with config.new_client_from_config(config_file=str(kubeconfig)) as found:
        yield found


class Scenery:
    """What a test needs and is not about: made and removed without kubectl, of which each call is a program."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def create(self, collection: str, obj: dict[str, Any]) -> None:
        with self._api.request("POST", collection, body=json.dumps(obj).encode()) as answer:
            answer.read()

    def exists(self, path: str) -> bool:
        return self._unless_missing("GET", path)

    def delete(self, path: str) -> None:
        """An object or all of a collection, if it is there."""
        self._unless_missing("DELETE", path)

    def _unless_missing(self, method: str, path: str) -> bool:
        try:
            with self._api.request(method, path) as answer:
                answer.read()
        except ApiError as refusal:
            if refusal.status == 404:
                return False
            raise
        return True


@pytest.fixture(scope="session")
def scenery(kubeconfig: Path) -> Iterator[Scenery]:
    api = connect(kubeconfig)
    yield Scenery(api)
    api.close()


@pytest.fixture
def core(api: client.ApiClient) -> client.CoreV1Api:
    return client.CoreV1Api(api)


def until(condition: Any, seconds: float = 15.0) -> None:
    """Wait until a condition on another process's state holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


CRDS = Path(__file__).parents[2] / "manifests" / "crds"


@contextmanager
def installed(cluster: Kubectl, names: Sequence[str]) -> Iterator[None]:
    """With definitions of ours, by plural name."""
    files = [f"--filename={CRDS / f'felixpy.io_{name}.yaml'}" for name in names]
    if EXTERNAL and cluster.run("get", "crd", f"{names[0]}.felixpy.io").returncode == 0:
        pytest.skip("the server has these definitions already: they are not ours to take away")
    cluster("apply", *files)
    until(lambda: all(cluster.run("get", f"{name}.felixpy.io").returncode == 0 for name in names))
    yield
    cluster("delete", *files)


@contextmanager
def emptied(cluster: Kubectl, scenery: Scenery, collections: Iterable[str]) -> Iterator[Kubectl]:
    """kubectl; objects that a test makes in these collections go with it."""
    yield cluster
    for path in collections:
        scenery.delete(path)


def pod(name: str = "web", **spec: Any) -> dict[str, Any]:
    """A small Pod."""
    container = {
        "name": "main",
        "image": "registry.example/web:1",
        "ports": [{"name": "http", "containerPort": 80}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [container], **spec},
    }


def config_map(name: str = "settings", **data: str) -> dict[str, Any]:
    """A ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def network_policy(name: str = "allow", **spec: Any) -> dict[str, Any]:
    """A NetworkPolicy."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {}, **spec},
    }
