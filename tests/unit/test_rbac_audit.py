"""What the comparison of rights with an audit log finds. The sample is a real API server's: one event a sort.

In it a felix-py agent has used all that it may but for raising an Event's count; its token was then used for two
requests that it may not make. Other accounts have asked, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.manifests import MANIFESTS
from tests.support.rbac_audit import Findings, Right, compare, granted, service_account

SAMPLE = Path(__file__).with_name("audit_sample.jsonl").read_text().splitlines()
USER = service_account("kube-system", "felix-py")
PATCH_EVENTS = Right("", "events", "", "patch")
REFUSED = {"list secrets", "get /logs/"}


def role() -> dict[str, Any]:
    documents = yaml.safe_load_all((MANIFESTS / "base" / "rbac.yaml").read_text())
    found: dict[str, Any] = next(one for one in documents if one["kind"] == "ClusterRole")
    return found


def with_rules(*rules: dict[str, Any]) -> set[Right]:
    return granted({"rules": rules})


# What the manifest may grant besides, for kinds that the sample's agent did not know yet.
LATER = {
    right
    for right in granted(role())
    if "felixpy.io" in f"{right.group} {right.name}"
    or right.resource in ("services", "services/status", "endpointslices")
}
RIGHTS = granted(role()) - LATER


def found(change: Callable[[dict[str, Any]], None] = lambda _: None, rights: set[Right] = RIGHTS) -> Findings:
    events = [json.loads(line) for line in SAMPLE]
    for event in events:
        change(event)
    return compare(rights, map(json.dumps, events), USER)


def test_sample_uses_what_the_manifest_grants() -> None:
    assert found() == Findings({PATCH_EVENTS}, REFUSED, 31)
    assert compare(RIGHTS, SAMPLE, USER, rarely=[PATCH_EVENTS]).unused == set()


def test_right_too_many_is_found() -> None:
    more = with_rules(
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": ["", "apps"], "resources": ["nodes/status", "deployments"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]},
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    )
    unused = {str(right) for right in found(rights=more).unused}
    assert unused == {
        "get pods",
        "patch nodes/status.apps",
        "patch deployments",
        "patch deployments.apps",
        "list secrets",  # asked for, and refused: that the role of then did not grant it
        "* *.*",
    }


def test_right_by_name_is_used_by_that_name_only() -> None:
    rule = {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": ["watch"]}
    names = ["clusternetworkpolicies.policy.networking.k8s.io", "others.example.org"]
    unused = found(rights=with_rules({**rule, "resourceNames": names})).unused
    assert {right.name for right in unused} == {"others.example.org"}
    assert found(rights=with_rules(rule)).unused == set(), "for all names covers one"


def test_what_is_refused_without_a_decision_counts() -> None:
    """An admission plugin's refusal has code 403 and was allowed by RBAC: no matter of rights."""

    def forget(event: dict[str, Any]) -> None:
        refused = event.get("annotations", {}).pop("authorization.k8s.io/decision", "") == "forbid"
        event["responseStatus"] = {"code": 403 if refused else 200}

    assert found(forget).refused == REFUSED

    def by_admission(event: dict[str, Any]) -> None:
        event["responseStatus"] = {"code": 403}

    assert found(by_admission).refused == REFUSED


def test_others_do_not_count() -> None:
    def somebody_else(event: dict[str, Any]) -> None:
        event["user"]["username"] = "system:serviceaccount:kube-system:felix-py-cleanup"

    assert found(somebody_else) == Findings(RIGHTS, set(), 0)


@pytest.mark.parametrize(
    "line", ["null", "[]", "{}", '{"kind": "Event"}', '{"kind": "EventList", "verb": "get"}', "{"]
)
def test_what_is_no_audit_log_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"not an audit event|Expecting property name"):
        compare(RIGHTS, [*SAMPLE, line], USER)


def test_exception_for_what_is_not_granted_is_refused() -> None:
    with pytest.raises(ValueError, match="not granted: delete nodes"):
        compare(RIGHTS, SAMPLE, USER, rarely=[Right("", "nodes", "", "delete")])
