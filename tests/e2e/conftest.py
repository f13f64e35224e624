"""Labs for end-to-end tests: each combination is brought up once and shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.state import Shape
from tests.support.lab import LabUnderTest, bring_up


@pytest.fixture(scope="session", params=["legacy", "nft"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    """A dual-stack lab of two nodes with the example pods, on each iptables backend.

    Tests leave it as they found it.
    """
    shape = Shape(nodes=2, families=(4, 6), backend=request.param)
    yield from bring_up(f"e2e{request.param}", tmp_path_factory.mktemp("lab"), shape)


@pytest.fixture(scope="session")
def plain_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    """A lab of two nodes, IPv4, nft: for what is about the lab itself. Tests leave it as they found it."""
    yield from bring_up(
        "e2eplain", tmp_path_factory.mktemp("plain"), Shape(nodes=2, families=(4,), backend="nft")
    )


@pytest.fixture(scope="module")
def definitions(lab: LabUnderTest) -> Iterator[None]:
    """The definitions of the cluster-scoped policies."""
    with lab.definitions():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where labs may be made; none is left."""
    root = tmp_path / "labs"
    yield root
    for name in Lab("any", root).all_names():
        Lab(name, root).down()
