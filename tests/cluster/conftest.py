"""Clusters for tests. Each shape is brought up once and shared by all tests that want it, one after the other.

``FELIX_PY_CLUSTER_INSTALL`` names how felix-py is installed: ``by-hand`` (the default) or ``image``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.cluster import cgroups
from tests.cluster.cluster import Cluster
from tests.cluster.installers import INSTALLERS, Installer
from tests.cluster.plan import MAIN, Shape
from tests.cluster.workloads import HTTP, Namespace, deployment, service


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shapes(*shapes): the clusters that a test runs on (default: nft, IPv4)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cluster" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("shapes")
        shapes = mark.args if mark else (MAIN,)
        metafunc.parametrize("cluster", shapes, indirect=True, ids=str, scope="session")


@contextmanager
def running(shape: Shape, installer: Installer, folder: Path) -> Iterator[Cluster]:
    """A cluster, for as long as the ``with`` lasts; its files are below ``folder``."""
    began = time.monotonic()

    def say(text: str) -> None:
        # A worker's standard output goes nowhere.
        print(f"[{shape}: {time.monotonic() - began:.1f} s {text}]", file=sys.__stderr__, flush=True)

    for left in cgroups.left_behind():
        cgroups.remove(left)
    # This process holds the other end: the machines end with this process, also when it is killed.
    lifeline, held = os.pipe()
    name = f"t{os.getpid()}-{folder.name}"
    found = Cluster(name, folder / name, shape, installer, lifeline=lifeline, say=say)
    try:
        found.up()
        yield found
    finally:
        found.down()
        os.close(lifeline)
        os.close(held)
        say("taken down")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with felix-py on each node. Tests leave it as they found it."""
    shape: Shape = request.param
    installer = INSTALLERS[os.environ.get("FELIX_PY_CLUSTER_INSTALL", "image")]()
    with running(shape, installer, tmp_path_factory.mktemp(str(shape))) as found:
        yield found


@pytest.fixture(scope="session")
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Cluster]]:
    """Start a cluster of a test's own: a shape and an installer, to be used in a ``with``."""
    return lambda shape, installer: running(shape, installer, tmp_path_factory.mktemp(f"own-{shape}"))


@pytest.fixture
def make_namespace(cluster: Cluster) -> Iterator[Callable[..., Namespace]]:
    """Make namespaces, with labels if need be; they are deleted after the test."""
    made: list[Namespace] = []

    def make(labels: Mapping[str, str] | None = None) -> Namespace:
        made.append(Namespace(cluster, labels))
        return made[-1]

    yield make
    for namespace in made:
        namespace.delete()


@pytest.fixture
def namespace(make_namespace: Callable[..., Namespace]) -> Namespace:
    """A namespace for one test."""
    return make_namespace()


@pytest.fixture(scope="session")
def web(cluster: Cluster) -> Iterator[Namespace]:
    """A Deployment ``web`` with two pods on each node, and its Service of type NodePort."""
    namespace = Namespace(cluster)
    families = cluster.shape.families
    namespace.apply(deployment("web", 2 * len(cluster.nodes)), service("web", families, "NodePort"))
    namespace.kubectl("rollout", "status", "deployment/web", "--timeout=180s", timeout=190)
    for pod in namespace.pods():
        for address in namespace.addresses(pod):
            cluster.machines["outside"].connects_soon(address, HTTP)
    yield namespace
    namespace.delete()
