"""Pods by the name of their owner: the Deployment, StatefulSet, Job … that created them.

Policy has no owner references. Pods of one owner share their namespace and their labels, except generated ones,
and their names start with the owner's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from policy.model import Labels, ObjectKey, Pod

GENERATED: Final = frozenset(
    {
        "pod-template-hash",  # Deployment
        "controller-revision-hash",  # DaemonSet, StatefulSet
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",  # Job
        "batch.kubernetes.io/controller-uid",
        "job-name",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
    }
)
"""Labels that controllers generate, with another value for each pod or generation (Kubernetes, "Well-Known
Labels, Annotations and Taints")."""

_NAMING: Final = ("app.kubernetes.io/name", "app", "k8s-app")


@dataclass(frozen=True, slots=True)
class Workload:
    """Pods that share namespace and labels. ``name`` is unique in the namespace."""

    namespace: str
    name: str
    pods: tuple[Pod, ...]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def workloads(pods: Iterable[Pod]) -> list[Workload]:
    """All pods, each in one workload; sorted by namespace and name."""
    alike: dict[tuple[str, Labels], list[Pod]] = {}
    for pod in pods:
        kept = tuple(pair for pair in pod.labels if pair[0] not in GENERATED)
        alike.setdefault((pod.namespace, kept), []).append(pod)
    named: dict[ObjectKey, list[tuple[Labels, list[Pod]]]] = {}
    for (namespace, labels), some in alike.items():
        named.setdefault((namespace, _name(labels, some)), []).append((labels, some))
    found = [
        Workload(namespace, name + suffix, tuple(sorted(some, key=lambda pod: pod.name)))
        for (namespace, name), same in named.items()
        for suffix, (_, some) in zip(_suffixes([labels for labels, _ in same]), same, strict=True)
    ]
    return sorted(found, key=lambda workload: (workload.namespace, workload.name))


def _name(labels: Labels, pods: list[Pod]) -> str:
    stems = sorted({_stem(pod) for pod in pods})
    if len(stems) == 1:
        return stems[0]
    # A common start of the first and the last in order is common to all.
    first, last = stems[0].split("-"), stems[-1].split("-")
    common = [one for one, other in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    if common:
        return "-".join(common)
    own = dict(labels)
    return next((own[key] for key in _NAMING if own.get(key)), f"{stems[0]}…")


def _stem(pod: Pod) -> str:
    """A pod's name without what its controller added."""
    own = dict(pod.labels)
    if template := own.get("pod-template-hash"):
        return re.sub(rf"-{re.escape(template)}(-[a-z0-9]+)?$", "", pod.name)
    if "statefulset.kubernetes.io/pod-name" in own:
        return re.sub(r"-[0-9]+$", "", pod.name)
    if job := own.get("batch.kubernetes.io/job-name") or own.get("job-name"):
        return re.sub(r"-[0-9]{6,}$", "", job)  # names of a CronJob's jobs end in a time
    if "controller-revision-hash" in own:
        return re.sub(r"-[a-z0-9]{5}$", "", pod.name)
    return pod.name


def _suffixes(same: list[Labels]) -> list[str]:
    """Suffixes for workloads of one name: the labels that not all of them have."""
    if len(same) == 1:
        return [""]
    common = set(same[0]).intersection(*same[1:])
    own = [",".join(f"{key}={value}" for key, value in labels if (key, value) not in common) for labels in same]
    return [f"[{text or 'no other labels'}]" for text in own]
