"""What of the host is said, and taken back."""

from __future__ import annotations

import pytest

from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from felix_py.observe.host_notices import HostNotices
from tests.support.isolate import run


class Host:
    gone_interfaces: frozenset[str] = frozenset()


def test_an_interface_that_is_gone() -> None:
    notices, host = Notices(Metrics()), Host()
    told = HostNotices(notices, host, {"felix1": ("shop", "web")}.get)
    told.look()
    assert notices.all() == []
    host.gone_interfaces = frozenset({"felix1"})
    told.look()
    (notice,) = notices.all()
    assert (notice.kind, notice.subject) == (NoticeKind.INTERFACE_GONE, "felix1")
    assert "of shop/web is gone" in notice.text
    host.gone_interfaces = frozenset()
    told.look()
    assert notices.all() == []


@pytest.mark.root
@pytest.mark.usefixtures("netns")
def test_kube_proxy_in_ipvs_mode() -> None:
    notices = Notices(Metrics())
    told = HostNotices(notices, Host(), lambda _: None)
    run("ip", "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "p")
    told.look()
    assert [notice.kind for notice in notices.all()] == [NoticeKind.IPVS]
    run("ip", "link", "del", "kube-ipvs0")
    told.look()
    assert notices.all() == []
