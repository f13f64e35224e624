"""Notices: conditions that need an operator, logged once and shown in ``/status`` while they last.

``/status`` lists failed writes, drift and malformed objects separately. A notice is for a condition that the
agent cannot mend and that readiness does not show, such as a renamed interface or an address that two pods claim.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from felix_py import log
from felix_py.metrics import Metrics

_MOST = 1000
"""Notices kept of one kind; further ones are ignored."""


class NoticeKind(enum.StrEnum):
    """Kinds of notices, the label of the metric. docs/operations.md says for each what to do."""

    ADDRESSES_SCARCE = "addresses-scarce"
    ADDRESS_CLAIMED_TWICE = "address-claimed-twice"
    ADDRESS_IN_USE = "address-in-use"
    BGP = "bgp"
    BGP_RESOURCES = "bgp-resources"
    CONFIGURATION = "configuration"
    CONNECTIONS_FULL = "connections-full"
    INTERFACE_GONE = "interface-gone"
    IP_POOLS = "ip-pools"
    IPVS = "ipvs"
    KERNEL_FEATURE = "kernel-feature"
    KIND_REFUSED = "kind-refused"
    LEASES_NOT_WRITTEN = "leases-not-written"
    LEASES_REBUILT = "leases-rebuilt"
    LOST_SANDBOX = "lost-sandbox"
    NEXT_HOP = "next-hop"
    NODE_ELSEWHERE = "node-elsewhere"
    NODE_ROUTE = "node-route"
    OTHER_NETWORK = "other-network"
    PLUGIN_ABSENT = "plugin-absent"
    PODS_OUTSIDE_POD_CIDR = "pods-outside-pod-cidr"
    POD_ADDRESS = "pod-address"
    POD_CIDR_SHARED = "pod-cidr-shared"
    RESTART_DUE = "restart-due"
    ROUTE_SHADOWED = "route-shadowed"
    RULES_IN_OTHER_BACKEND = "rules-in-other-backend"
    STRAY_INTERFACE = "stray-interface"


class Notice(NamedTuple):
    """One condition: its kind, the object concerned, and what is wrong and what to do."""

    kind: NoticeKind
    subject: str
    text: str


class Notices:
    """Current notices by kind and subject. On the event loop only."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._now: dict[NoticeKind, dict[str, str]] = {}
        self._log = log.get("notices")
        for kind in NoticeKind:
            metrics.notices.labels(kind.value).set(0)

    def say(self, kind: NoticeKind, subject: str, text: str) -> None:
        """Add or update a notice; ``text`` says in one sentence what is wrong and what to do."""
        held = self._now.setdefault(kind, {})
        if held.get(subject) == text or (subject not in held and len(held) >= _MOST):
            return
        held[subject] = text
        self._metrics.notices.labels(kind.value).set(len(held))
        self._log.warning(text, kind=kind.value, subject=subject)

    def tell(self, kind: NoticeKind, subject: str, text: str) -> None:
        """:meth:`say` a text, or :meth:`clear` the notice if it is empty."""
        if text:
            self.say(kind, subject, text)
        else:
            self.clear(kind, subject)

    def clear(self, kind: NoticeKind, subject: str) -> None:
        """Remove a notice, if there is one."""
        held = self._now.get(kind, {})
        if held.pop(subject, None) is not None:
            self._metrics.notices.labels(kind.value).set(len(held))
            self._log.info("no longer the case", kind=kind.value, subject=subject)

    def replace(self, kind: NoticeKind, now: Mapping[str, str]) -> None:
        """Make ``now`` (subject -> text) all notices of one kind; others of the kind are removed."""
        for subject in self._now.get(kind, {}).keys() - now.keys():
            self.clear(kind, subject)
        for subject, text in now.items():
            self.say(kind, subject, text)

    def of(self, kind: NoticeKind) -> Mapping[str, str]:
        """Current notices of one kind: subject -> text."""
        return dict(self._now.get(kind, {}))

    def all(self) -> list[Notice]:
        """All current notices, oldest first within each kind."""
        return [Notice(kind, *held) for kind, of in self._now.items() for held in of.items()]
