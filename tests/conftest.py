"""Root tests run in namespaces of their own; without root they skip and say so."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support import leftovers, nursery
from tests.support.isolate import NetworkNamespace, isolate_process, new_netns
from tests.support.thorough import ALL, examples

ROOT = Path(__file__).parents[1]

# Tests start hundreds of interpreters; without bytecode on disk each of them compiles all of felix-py anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Go's collector of garbage takes a quarter of what each of hundreds of kubectl computes, and frees nothing it
# needs. What lives longer collects at the limit.
os.environ |= {"GOGC": "off", "GOMEMLIMIT": "256MiB"}

hypothesis.settings.register_profile("ours", max_examples=examples(300), deadline=None)
hypothesis.settings.load_profile("ours")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in the background with SIGINT ignored, and whatever that starts ignores it as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if os.geteuid() == 0 and not config.option.collectonly:
        if leftovers.mark():
            config.add_cleanup(leftovers.end_all)  # type: ignore[arg-type]
        isolate_process()
    nursery.install()
    config.add_cleanup(nursery.close)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is collected lives as long as the process: the collector of garbage need not look at it, ever."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("heavy") and not ALL:
            target = "FELIX_PY_TESTS=all make test-cluster" if "cluster" in item.path.parts else "make test-all"
            item.add_marker(pytest.mark.skip(reason=f"heavy: `{target}` runs it"))
        if item.get_closest_marker("image") and os.environ.get("FELIX_PY_TESTS") != "image":
            item.add_marker(pytest.mark.skip(reason="needs the image, built twice: `make test-image`"))
        if (item.get_closest_marker("root") or item.get_closest_marker("e2e")) and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces"))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return Sharing(config, log)


class Sharing(LoadScopeScheduling):  # type: ignore[misc]
    """Shares tests out among workers one by one, but keeps together what has one expensive thing in common."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file.startswith("tests/e2e/") and (found := re.search(r"\[.*\b(legacy|nft)\b", test)):
            return f"the lab of {found[1]}"
        if file.startswith("tests/e2e/") and _wants_plain_lab(file):
            return "the plain lab"
        if file.startswith("tests/cluster/"):
            # A file has one of its own where its tests name none; then they build on each other.
            found = re.search(r"\b(legacy|nft)-(ipv4|ipv6|dual)\b", test)
            return f"the cluster {found[0]}" if found else file
        if file.startswith("tests/conformance/") and _installs_definitions(file):
            return file
        return file if file.startswith("tests/packaging/") else nodeid


@cache
def _wants_plain_lab(file: str) -> bool:
    """By the fixture's name: the scheduler knows names of tests and nothing else."""
    return "plain_lab: " in (ROOT / file).read_text()


@cache
def _installs_definitions(file: str) -> bool:
    """For all of its tests, which takes longer than most of them."""
    return 'scope="module"' in (ROOT / file).read_text()


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test that configures logging binds it to a stream that is closed behind it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def started(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test starts that is marked so is really started."""
    with nursery.really_started() if request.node.get_closest_marker("started") else nullcontext():
        yield


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
