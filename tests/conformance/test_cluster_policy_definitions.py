"""Our definitions of the cluster-scoped policies, with real kubectl: columns, validation, status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance.conftest import EXTERNAL, Kubectl, Scenery, emptied, until

MANIFESTS = Path(__file__).parents[2] / "manifests"
GROUP = "policy.networking.k8s.io"
PLURALS = ("clusternetworkpolicies", "adminnetworkpolicies", "baselineadminnetworkpolicies")
FILES = [f"--filename={MANIFESTS / 'crds' / plural}.yaml" for plural in PLURALS]
EXAMPLES = sorted((MANIFESTS / "examples").glob("7*.yaml"))
ALL: dict[str, Any] = {"namespaces": {}}


@pytest.fixture(scope="module", autouse=True)
def definitions(cluster: Kubectl) -> Iterator[None]:
    if EXTERNAL and cluster.run("get", "crd", f"{PLURALS[0]}.{GROUP}").returncode == 0:
        pytest.skip("the server has these definitions, from elsewhere: they are not ours to exchange")
    cluster("apply", *FILES)
    names = [f"crd/{plural}.{GROUP}" for plural in PLURALS]
    cluster("wait", "--for=condition=Established", *names, "--timeout=10s")
    until(lambda: all(f"{plural} " in cluster("api-resources", "--cached=false") for plural in PLURALS))
    yield
    cluster("delete", *FILES)
    until(lambda: cluster.run("get", f"{PLURALS[0]}.{GROUP}").returncode != 0)


@pytest.fixture
def clean(cluster: Kubectl, scenery: Scenery) -> Iterator[Kubectl]:
    versions = ("v1alpha2", "v1alpha1", "v1alpha1")
    paths = (f"/apis/{GROUP}/{version}/{plural}" for version, plural in zip(versions, PLURALS, strict=True))
    with emptied(cluster, scenery, paths) as found:
        yield found


def rule(far_end: str = "from", **fields: Any) -> dict[str, Any]:
    return {"action": "Deny", far_end: [ALL], **fields}


def cluster_policy(name: str = "guard", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": 10, "subject": ALL, **spec},
    }


def old_policy(kind: str = "AdminNetworkPolicy", name: str = "guard", **spec: Any) -> dict[str, Any]:
    head = {"priority": 10} if kind == "AdminNetworkPolicy" else {}
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {**head, "subject": ALL, **spec},
    }


def test_applying_them_again_changes_nothing(cluster: Kubectl) -> None:
    again = cluster("apply", *FILES).splitlines()
    assert len(again) == 3
    assert all(line.endswith(" unchanged") for line in again), again


def test_columns_and_short_names(clean: Kubectl) -> None:
    clean.apply(cluster_policy())
    clean.apply(old_policy())
    clean.apply(old_policy("BaselineAdminNetworkPolicy", "default"))
    lines = {short: clean("get", short).splitlines() for short in ("cnp", "anp", "banp")}
    assert [line.split()[:4] for line in lines["cnp"]] == [
        ["NAME", "TIER", "PRIORITY", "ACCEPTED"],
        ["guard", "Admin", "10", lines["cnp"][1].split()[3]],
    ]
    assert lines["anp"][0].split() == ["NAME", "PRIORITY", "ACCEPTED", "AGE"]
    assert lines["banp"][0].split() == ["NAME", "ACCEPTED", "AGE"]
    assert lines["banp"][1].split()[0] == "default"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(clean: Kubectl, path: Path) -> None:
    clean("apply", "-f", str(path))
    for obj in yaml.safe_load_all(path.read_text()):
        assert clean.get(obj["kind"], obj["metadata"]["name"])["spec"] == obj["spec"]
    assert "unchanged" in clean("apply", "-f", str(path))
    assert "unchanged" in clean("apply", "-f", str(path), "--dry-run=server")


@pytest.mark.usefixtures("modern")
def test_explain(cluster: Kubectl) -> None:
    explained = cluster("explain", "cnp.spec.egress")
    assert "to\t<[]Object> -required-" in explained
    assert "enum: Accept, Deny, Pass" in explained
    assert "CIDRs of either family" in cluster("explain", "cnp.spec.egress.to.networks")
    assert "From start to end, both included" in cluster("explain", "anp.spec.ingress.ports.portRange")
    assert "subject\t<Object> -required-" in cluster("explain", "banp.spec")


V2 = "spec.egress[0].protocols[0].tcp.destinationPort"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("tier", cluster_policy(tier="NetworkPolicy"), 'spec.tier: Unsupported value: "NetworkPolicy"'),
    ("priority", cluster_policy(priority=1001), "spec.priority in body should be less than or equal to 1000"),
    ("no subject", cluster_policy(subject={}), "spec.subject in body should have at least 1 properties"),
    (
        "two subjects",
        cluster_policy(subject={**ALL, "pods": {"podSelector": {}}}),
        "spec.subject: Too many: 2: must have at most 1 item",
    ),
    ("action", cluster_policy(ingress=[rule(action="Allow")]), "spec.ingress[0].action: Unsupported value"),
    ("no peers", cluster_policy(ingress=[{"action": "Deny"}]), "spec.ingress[0].from: Required value"),
    ("too many peers", cluster_policy(egress=[rule("to", to=[ALL] * 26)]), "spec.egress[0].to: Too many: 26"),
    ("too many rules", cluster_policy(egress=[rule("to")] * 26), "spec.egress: Too many: 26"),
    (
        "port",
        cluster_policy(egress=[rule("to", protocols=[{"tcp": {"destinationPort": {"number": 0}}}])]),
        f"{V2}.number in body should be greater than or equal to 1",
    ),
    (
        "range",
        cluster_policy(
            egress=[rule("to", protocols=[{"tcp": {"destinationPort": {"range": {"start": 2, "end": 1}}}}])]
        ),
        f'{V2}.range: Invalid value: Start port must be less than End port',
    ),
    (
        "network",
        cluster_policy(egress=[rule("to", to=[{"networks": ["10.0.0.0"]}])]),
        'spec.egress[0].to[0].networks[0]: Invalid value: "10.0.0.0": Invalid CIDR format provided',
    ),
    (
        "named port of a network",
        cluster_policy(
            egress=[rule("to", to=[{"networks": ["10.0.0.0/8"]}], protocols=[{"destinationNamedPort": "web"}])]
        ),
        'spec.egress[0]: Invalid value: networks, nodes and domainNames have no named ports',
    ),
    ("old port", old_policy(ingress=[rule(ports=[{"portNumber": {"port": 0}}])]), "greater than or equal to 1"),
    ("no ports", old_policy(ingress=[rule(ports=[])]), "ingress[0].ports in body should have at least 1 items"),
    (
        "pass in baseline",
        old_policy("BaselineAdminNetworkPolicy", "default", ingress=[rule(action="Pass")]),
        'spec.ingress[0].action: Unsupported value: "Pass": supported values: "Allow", "Deny"',
    ),
    (
        "name in baseline",
        old_policy("BaselineAdminNetworkPolicy", "mine"),
        'Only one baseline admin network policy with metadata.name="default" can be created in the cluster',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("obj", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused(cluster: Kubectl, obj: dict[str, Any], words: str) -> None:
    assert words in cluster.fails("create", "-f", "-", stdin=obj)


@pytest.mark.usefixtures("modern")
def test_unknown_fields_are_refused(cluster: Kubectl) -> None:
    refused = cluster.fails("create", "-f", "-", stdin=cluster_policy(ingress=[rule(schedule="night")]))
    assert 'unknown field "spec.ingress[0].schedule"' in refused


def test_the_protocol_of_a_port_defaults_to_tcp(clean: Kubectl) -> None:
    clean.apply(
        old_policy(ingress=[rule(ports=[{"portNumber": {"port": 80}}, {"portRange": {"start": 1, "end": 2}}])])
    )
    ports = clean.get("anp", "guard")["spec"]["ingress"][0]["ports"]
    assert [next(iter(port.values()))["protocol"] for port in ports] == ["TCP", "TCP"]


CONDITION = {
    "type": "felixpy.io/Accepted",
    "status": "False",
    "reason": "NotAppliedAsWritten",
    "message": "spec.egress[0]: why",
    "lastTransitionTime": "2026-01-02T03:04:05Z",
    "observedGeneration": 1,
}


def patch(*conditions: dict[str, Any], **metadata: str) -> str:
    return json.dumps({"metadata": metadata, "status": {"conditions": list(conditions)}})


@pytest.mark.usefixtures("modern")
def test_conditions_are_patched_in_the_status(clean: Kubectl) -> None:
    clean.apply(cluster_policy())
    status = ("patch", "cnp", "guard", "--subresource=status", "--type=merge", "-p")
    before = clean.get("cnp", "guard")["metadata"]
    clean(*status, patch(CONDITION, resourceVersion=before["resourceVersion"]))
    found = clean.get("cnp", "guard")
    assert found["status"]["conditions"] == [CONDITION]
    assert found["metadata"]["generation"] == before["generation"], "a status is no change of what is wanted"
    assert clean("get", "cnp", "guard").splitlines()[1].split()[3] == "False"
    assert "the object has been modified" in clean.fails(
        *status, patch(resourceVersion=before["resourceVersion"])
    )
    clean("patch", "cnp", "guard", "--type=merge", "-p", patch())
    clean.apply(cluster_policy(priority=11))
    found = clean.get("cnp", "guard")
    assert (found["status"]["conditions"], found["metadata"]["generation"]) == ([CONDITION], 2)


@pytest.mark.usefixtures("modern")
@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ([CONDITION, CONDITION], "status.conditions[1]: Duplicate value"),
        ([CONDITION | {"status": "Maybe"}], 'status.conditions[0].status: Unsupported value: "Maybe"'),
        ([CONDITION | {"reason": "two words"}], "conditions[0].reason in body should match"),
        ([CONDITION | {"type": "felixpy.io/"}], "conditions[0].type in body should match"),
        ([{"type": "A", "status": "True"}], "status.conditions[0].reason: Required value"),
    ],
)
def test_bad_conditions_are_refused(clean: Kubectl, conditions: list[dict[str, Any]], words: str) -> None:
    clean.apply(cluster_policy())
    refused = clean.fails(
        "patch", "cnp", "guard", "--subresource=status", "--type=merge", "-p", patch(*conditions)
    )
    assert words in refused


def test_a_protected_group_needs_approval(cluster: Kubectl) -> None:
    crd = yaml.safe_load((MANIFESTS / "crds" / f"{PLURALS[0]}.yaml").read_text())
    crd["spec"]["names"] = {"kind": "Widget", "plural": "widgets"}
    crd["metadata"] = {"name": f"widgets.{GROUP}"}
    refused = cluster.fails("create", "-f", "-", stdin=crd)
    assert 'protected groups must have approval annotation "api-approved.kubernetes.io"' in refused


def test_a_rule_that_is_no_cel_is_refused(cluster: Kubectl) -> None:
    schema = {"type": "object", "x-kubernetes-validations": [{"rule": "self.a <"}]}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.refused.example.com"},
        "spec": {
            "group": "refused.example.com",
            "scope": "Cluster",
            "names": {"kind": "Widget", "plural": "widgets"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }
    assert "compilation failed" in cluster.fails("create", "-f", "-", stdin=crd)
