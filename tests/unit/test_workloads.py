"""Which pods belong together, and under which name."""

from __future__ import annotations

import pytest

from policy.impact.workloads import workloads
from policy.model import Labels, Pod


def pods(*named: tuple[str, dict[str, str]], namespace: str = "shop") -> list[Pod]:
    return [Pod(namespace, name, labels=tuple(sorted(labels.items()))) for name, labels in named]


def found(some: list[Pod]) -> dict[str, list[str]]:
    return {str(workload): [pod.name for pod in workload.pods] for workload in workloads(some)}


WEB = {"app": "web"}


@pytest.mark.parametrize(
    ("named", "name"),
    [
        ([("web-6b9d-x1y2z", WEB | {"pod-template-hash": "6b9d"})], "web"),
        ([("web-api-6b9d-x1y2z", WEB | {"pod-template-hash": "6b9d"})], "web-api"),
        (
            # Two generations of a Deployment in the midst of a rollout.
            [
                (f"web-{h}-{n}", WEB | {"pod-template-hash": h})
                for h in ("6b9d", "77aa")
                for n in ("x1y2z", "aaaaa")
            ],
            "web",
        ),
        (
            [
                (
                    f"db-{n}",
                    WEB | {"statefulset.kubernetes.io/pod-name": f"db-{n}", "controller-revision-hash": "db-5"},
                )
                for n in (0, 1)
            ],
            "db",
        ),
        ([("agent-x1y2z", WEB | {"controller-revision-hash": "abc"})], "agent"),
        (
            [
                (f"backup-2873{n}-x1y2z", WEB | {"batch.kubernetes.io/job-name": f"backup-2873{n}000"})
                for n in (1, 2)
            ],
            "backup",
        ),
        ([("migrate-x1y2z", {"job-name": "migrate", "controller-uid": "1"})], "migrate"),
        ([("web-1", WEB), ("web-2", WEB), ("web-10", WEB)], "web"),
        ([("web-1", WEB)], "web-1"),
        ([("left", WEB), ("right", WEB)], "web"),
        ([("left", {}), ("right", {})], "left…"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_name(named: list[tuple[str, dict[str, str]]], name: str) -> None:
    assert list(found(pods(*named))) == [f"shop/{name}"]


def test_other_labels_or_namespaces_are_other_workloads() -> None:
    some = pods(("web-1", WEB), ("web-2", WEB | {"canary": "yes"}), ("api-1", {}))
    some += pods(("web-1", WEB), namespace="dev")
    assert found(some) == {
        "dev/web-1": ["web-1"],
        "shop/api-1": ["api-1"],
        "shop/web-1": ["web-1"],
        "shop/web-2": ["web-2"],
    }


def test_workloads_of_one_name_are_told_apart_by_what_differs() -> None:
    def generation(version: str | None, template: str) -> list[tuple[str, dict[str, str]]]:
        own = WEB | {"pod-template-hash": template} | ({"version": version} if version else {})
        return [(f"web-{template}-{n}", own) for n in ("aaaaa", "bbbbb")]

    some = pods(*generation("1", "x"), *generation("2", "y"), *generation(None, "z"))
    assert list(found(some)) == ["shop/web[no other labels]", "shop/web[version=1]", "shop/web[version=2]"]


def test_every_pod_is_in_one_workload() -> None:
    labels: list[Labels] = [(), (("app", "a"),), (("app", "a"), ("job-name", "b"))]
    some = [Pod("n", f"p-{i}", labels=labels[i % 3]) for i in range(30)]
    assert sorted(pod.name for w in workloads(some) for pod in w.pods) == sorted(pod.name for pod in some)
