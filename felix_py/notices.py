"""What is not as it should be and needs a person: said once in the log, and shown in ``/status`` while it lasts.

A failed write, drift and a malformed object have their own places there. A notice is for a state that the agent
cannot mend by itself, such as an interface that somebody has renamed or an address that two pods claim: readiness
alone would not tell of it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from felix_py import log
from felix_py.metrics import Metrics

_MOST = 1000
"""Notices kept of one kind. More are counted and not told apart: they would be no news to anybody."""


class NoticeKind(enum.StrEnum):
    """Kinds of notices: the label of the metric. docs/operations.md says of each what to do."""

    ADDRESS_CLAIMED_TWICE = "address-claimed-twice"
    ADDRESS_IN_USE = "address-in-use"
    BGP = "bgp"
    CONNECTIONS_FULL = "connections-full"
    INTERFACE_GONE = "interface-gone"
    IPVS = "ipvs"
    KERNEL_FEATURE = "kernel-feature"
    LEASES_NOT_WRITTEN = "leases-not-written"
    LEASES_REBUILT = "leases-rebuilt"
    LOST_SANDBOX = "lost-sandbox"
    NEXT_HOP = "next-hop"
    NODE_ELSEWHERE = "node-elsewhere"
    OTHER_NETWORK = "other-network"
    PLUGIN_ABSENT = "plugin-absent"
    PODS_OUTSIDE_POD_CIDR = "pods-outside-pod-cidr"
    POD_CIDR_SHARED = "pod-cidr-shared"
    RULES_IN_OTHER_BACKEND = "rules-in-other-backend"
    STRAY_INTERFACE = "stray-interface"


class Notice(NamedTuple):
    """One thing that is not as it should be: of which kind, what it concerns, and what there is to do."""

    kind: NoticeKind
    subject: str
    text: str


class Notices:
    """What holds now, by kind and subject. On the event loop only."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._now: dict[NoticeKind, dict[str, str]] = {}
        self._log = log.get("notices")
        for kind in NoticeKind:
            metrics.notices.labels(kind.value).set(0)

    def say(self, kind: NoticeKind, subject: str, text: str) -> None:
        """Something holds from now on (again is fine): ``text`` says what, and what to do, in one sentence."""
        held = self._now.setdefault(kind, {})
        if held.get(subject) == text or (subject not in held and len(held) >= _MOST):
            return
        held[subject] = text
        self._metrics.notices.labels(kind.value).set(len(held))
        self._log.warning(text, kind=kind.value, subject=subject)

    def clear(self, kind: NoticeKind, subject: str) -> None:
        """It does not hold any more; one that never did is fine."""
        held = self._now.get(kind, {})
        if held.pop(subject, None) is not None:
            self._metrics.notices.labels(kind.value).set(len(held))
            self._log.info("no longer the case", kind=kind.value, subject=subject)

    def replace(self, kind: NoticeKind, now: Mapping[str, str]) -> None:
        """All of one kind that holds: subject -> text. What held before and is not named holds no more."""
        for subject in self._now.get(kind, {}).keys() - now.keys():
            self.clear(kind, subject)
        for subject, text in now.items():
            self.say(kind, subject, text)

    def all(self) -> list[Notice]:
        """Everything that holds, of each kind the oldest first."""
        return [Notice(kind, *held) for kind, of in self._now.items() for held in of.items()]
