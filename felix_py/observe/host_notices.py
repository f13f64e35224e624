"""Notices of the host's state, updated after every apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from felix_py.dataplane import ipvs
from felix_py.notices import NoticeKind, Notices
from policy.model import ObjectKey

_IPVS = (
    "kube-proxy works in IPVS mode, which hands service traffic on past the place of policy: what goes to or "
    "from a pod that policy restricts is dropped; have kube-proxy use nftables or iptables mode"
)


class _Host(Protocol):
    @property
    def gone_interfaces(self) -> frozenset[str]:
        """See :class:`felix_py.dataplane.kernel.Kernel`."""


class HostNotices:
    """On the event loop only."""

    def __init__(self, notices: Notices, host: _Host, endpoint_at: Callable[[str], ObjectKey | None]) -> None:
        self._notices = notices
        self._host = host
        self._endpoint_at = endpoint_at

    def look(self, _failures: object = None) -> None:
        """Update the notices."""
        gone = {}
        for name in self._host.gone_interfaces:
            pod = "/".join(self._endpoint_at(name) or ("a pod",))
            gone[name] = f"the interface {name} of {pod} is gone, so nothing reaches it: delete the pod"
        self._notices.replace(NoticeKind.INTERFACE_GONE, gone)
        self._notices.replace(NoticeKind.IPVS, {ipvs.INTERFACE: _IPVS} if ipvs.in_ipvs_mode() else {})
