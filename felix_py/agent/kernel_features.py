"""Features that this node's kernel lacks: probed once at the start, and reported by notices."""

from __future__ import annotations

from collections.abc import Sequence

from felix_py.dataplane.probe import missing_features
from felix_py.desired.features import LOST, Feature
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Backend
from policy.model import Family


def missing(families: Sequence[Family], backend: Backend, notices: Notices) -> tuple[Feature, ...]:
    """Returns the features that the rules must do without until the agent's next start."""
    found = missing_features(families, backend)
    told = {
        feature.value: f"this node's kernel has no match {feature} ({reason}): {LOST[feature]}; load the module "
        f"xt_{feature} and restart the agent"
        for feature, reason in found.items()
    }
    notices.replace(NoticeKind.KERNEL_FEATURE, told)
    return tuple(found)
