"""A node is the test's own namespace; its iptables backends and families, its sidecar, its top-of-rack router."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.records import Backend
from policy.model import Family
from tests.support.bgp import Sidecar, link
from tests.support.bgp_rack import Rack, bird_config
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace


@pytest.fixture(params=list(Backend), ids=str)
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)


@pytest.fixture(params=list(Family), ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture
def tor(netns: None, make_netns: Callable[[str], NetworkNamespace]) -> NetworkNamespace:
    """The router's namespace, linked with the node's. No router runs yet."""
    namespace = make_netns("tor")
    link(namespace)
    return namespace


@pytest.fixture
def sidecar(netns: None, tmp_path: Path) -> Iterator[Sidecar]:
    """The node's sidecar, which runs."""
    with Sidecar(tmp_path / "run") as running:
        yield running


@pytest.fixture
def rack(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> Iterator[Rack]:
    """The node's sidecar, and BIRD as its router in both families."""
    with Bird(tor, tmp_path / "tor", bird_config()) as bird:
        yield Rack(sidecar, bird, tor, tmp_path)
