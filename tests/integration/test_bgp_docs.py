"""What docs/bgp.md prints works: each configuration runs against the real sidecar, with the test's addresses."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import yaml

from bgp.model import parse_bgp_config
from felix_py.bgp_file import load_bgp_config
from tests.support import routers
from tests.support.bgp import NODE4, NODE6, TOR4, TOR6, Sidecar, agent
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "bgp.md"
ADDRESSES = {"10.0.0.11": NODE4, "10.0.0.1": TOR4, "fd00:10::11": NODE6, "fd00:10::1": TOR6}
V4, V6 = "10.244.1.0/24", "fd00:10:244:1::/64"

Routes = Callable[[], dict[str, bool]]
"""Prefixes that the router has from the node -> whether they are stale."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def block(language: str, index: int = 0) -> str:
    text = blocks(language)[index]
    for printed, ours in ADDRESSES.items():
        text = re.sub(rf"(?<![\w.:]){re.escape(printed)}(?![\w:]|\.\d)", ours, text)
    return text


@contextmanager
def bird(namespace: NetworkNamespace, folder: Path) -> Iterator[Routes]:
    router = Bird(namespace, folder, block("bird"))

    def routes() -> dict[str, bool]:
        text = router.birdc("show", "route")
        found = re.findall(r"^(\S+/\d+) +unicast \[node1\w+ \S+?( from \S+)?\] (.*)$", text, re.MULTILINE)
        return {prefix: "s)" in rest for prefix, _, rest in found}

    with router:
        yield routes


@contextmanager
def frr(namespace: NetworkNamespace, folder: Path) -> Iterator[Routes]:
    with routers.frr(namespace, folder, block("frr")) as ask:
        yield lambda: routers.frr_routes(ask)


@contextmanager
def gobgp(namespace: NetworkNamespace, folder: Path) -> Iterator[Routes]:
    with routers.gobgp(namespace, folder, block("toml")) as ask:
        yield lambda: routers.gobgp_routes(ask)


@pytest.mark.root
@pytest.mark.usefixtures("netns")
@pytest.mark.parametrize("router", [bird, frr, gobgp], ids=["bird", "frr", "gobgp"])
async def test_printed_router_takes_our_routes_and_keeps_them_by_graceful_restart(
    tmp_path: Path,
    tor: NetworkNamespace,
    sidecar: Sidecar,
    router: Callable[[NetworkNamespace, Path], AbstractContextManager[Routes]],
) -> None:
    (tmp_path / "bgp.yaml").write_text(block("yaml"))
    config = load_bgp_config(tmp_path / "bgp.yaml", router_id=NODE4)
    fresh = {V4: False, V6: False}
    with router(tor, tmp_path / "tor") as routes:
        # Not a pod CIDR, and too long: the router's filter is there for these.
        async with agent(sidecar.run_dir, config, announce={V4, V6, "192.168.0.0/24"}) as node:
            await until(lambda: node.up() and routes() == fresh, 30)
            os.kill(sidecar.exabgp(), signal.SIGKILL)
            await until(lambda: not node.up())
            assert routes().keys() == fresh.keys()
            await until(lambda: node.up() and routes() == fresh, 30)


def test_printed_defaults_are_the_defaults() -> None:
    """The block with every field says the same as one without all that has a default."""
    document = yaml.safe_load(blocks("yaml")[1])
    short = {"asNumber": document["asNumber"], "routerID": document["routerID"]}
    short["peers"] = [{key: peer[key] for key in ("peerIP", "asNumber")} for peer in document["peers"]]
    assert parse_bgp_config(document) == parse_bgp_config(short)


def test_every_field_is_printed() -> None:
    from bgp import model

    text = PAGE.read_text()
    fields = {*model._CONFIG_FIELDS, *model._PEER_FIELDS}
    assert [name for name in sorted(fields) if f"| `{name}` |" not in text] == []
