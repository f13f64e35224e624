"""Dataplane tests run in a namespace with two pod interfaces and an uplink, on both iptables backends.

Those to which the backend makes no difference are marked ``node_program.one_backend``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from felix_py.dataplane.kernel import Kernel
from felix_py.records import Backend
from policy.model import Family
from tests.support.node_program import make_interfaces


@pytest.fixture
def interfaces(netns: None) -> None:
    make_interfaces()


@pytest.fixture
def kernel(interfaces: None, backend: Backend) -> Iterator[Kernel]:
    """The real dataplane, loaded."""
    with Kernel(list(Family), backend) as kernel:
        kernel.load()
        yield kernel
