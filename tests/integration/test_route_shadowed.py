"""Routes and rules of other programs that lead packets away from a pod: the whole agent says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.notices import NoticeKind
from felix_py.records import Backend
from policy.model import Family
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import GATEWAY, LiveNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


def told(node: LiveNode) -> dict[str, str]:
    notices = node.status()["notices"]
    return {one["subject"]: one["text"] for one in notices if one["kind"] == NoticeKind.ROUTE_SHADOWED}


def test_who_comes_before_our_routes_is_said(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> None:
    with LiveNode(tmp_path, Backend.NFT, make_netns) as node:
        node.start()
        node.ready()
        for name in ("web", "api", "db"):
            node.add_pod(name, app=name)
        web, api, db = (node.addresses[name] for name in ("web", "api", "db"))
        run("ip", "-6", "route", "add", f"{web[Family.V6]}/128", "dev", "up0", "metric", "1")
        run("ip", "route", "add", "default", "via", GATEWAY[Family.V4], "table", "100")
        run("ip", "rule", "add", "pref", "100", "to", api[Family.V4], "lookup", "100")
        run("ip", "rule", "add", "pref", "101", "to", db[Family.V4], "prohibit")
        eventually(lambda: len(told(node)) == 3, 60)
        found = told(node)
        assert f"packets to {web[Family.V6]} of pod shop/web leave by up0" in found[web[Family.V6]]
        assert f"packets to {api[Family.V4]} of pod shop/api leave by up0" in found[api[Family.V4]]
        assert f"packets to {db[Family.V4]} of pod shop/db are dropped" in found[db[Family.V4]]
        run("ip", "-6", "route", "del", f"{web[Family.V6]}/128", "dev", "up0", "metric", "1")
        run("ip", "rule", "del", "pref", "100")
        node.delete_pod("db")
        eventually(lambda: told(node) == {}, 60)
