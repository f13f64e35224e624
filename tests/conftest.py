"""Root tests run in namespaces of their own; without root they skip and say so."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
import structlog

from tests.support.isolate import NetworkNamespace, isolate_process, new_netns


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in the background with SIGINT ignored, and whatever that starts ignores it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.geteuid() == 0 and not config.option.collectonly:
        isolate_process()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces"))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test that configures logging binds it to a stream that is closed behind it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def netns() -> Iterator[None]:
    """The test runs in an empty network namespace of its own."""
    with new_netns():
        yield


@pytest.fixture
def make_netns() -> Iterator[Callable[[str], NetworkNamespace]]:
    """Make further, named network namespaces; they are deleted after the test."""
    made: list[NetworkNamespace] = []

    def make(role: str) -> NetworkNamespace:
        made.append(NetworkNamespace(role))
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()
