"""Policies from files: what is read, what it is called in errors, and which namespace counts."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from felix_py.datastore.manifests import ManifestError, Manifests, policies_in, read
from policy.model import ClusterPolicy, NetworkPolicy, PolicyKind, PolicyRef, Tier

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: NAME}
spec: {podSelector: {}}
"""


def no_stdin() -> bytes:
    raise AssertionError("nobody asked for stdin")


def policy(name: str) -> str:
    return POLICY.replace("NAME", name)


def taken(tmp_path: Path, text: str, namespace: str = "here", *, only: bool = False) -> Manifests:
    file = tmp_path / "file.yaml"
    file.write_text(dedent(text))
    return policies_in(read([str(file)], no_stdin), namespace, only=only)


def refused(tmp_path: Path, text: str, namespace: str = "here", *, only: bool = False) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        taken(tmp_path, text, namespace, only=only)
    return [reason.removeprefix(f"{tmp_path}/") for reason in caught.value.reasons]


def names(found: Manifests) -> list[str]:
    return [str(ref) for ref in found.policies]


# --- what is read ---------------------------------------------------------------------------------------------


def test_documents_of_a_file_are_counted_without_the_empty_ones(tmp_path: Path) -> None:
    found = taken(tmp_path, f"---\n{policy('a')}---\n---\n# nothing\n---\n{policy('b')}")
    assert names(found) == ["NetworkPolicy here/a", "NetworkPolicy here/b"]
    assert [where.rpartition("/")[2] for where in found.where.values()] == [
        "file.yaml, document 1",
        "file.yaml, document 2",
    ]


@pytest.mark.parametrize("typed", [False, True], ids=["List", "NetworkPolicyList"])
def test_lists_are_opened(tmp_path: Path, typed: bool) -> None:
    item = {"metadata": {"name": "a"}, "spec": {"podSelector": {}}}
    what = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    whole = {**what, "kind": "NetworkPolicyList", "items": [item]}
    plain = {"apiVersion": "v1", "kind": "List", "items": [{**what, **item}]}
    found = taken(tmp_path, json.dumps(whole if typed else plain))
    assert next(iter(found.where.values())).endswith("file.yaml, items[0]")


def test_json_documents_may_follow_each_other(tmp_path: Path) -> None:
    one, other = (
        json.dumps(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": n},
                "spec": {"podSelector": {}},
            },
            indent="\t",
        )
        for n in "ab"
    )
    assert names(taken(tmp_path, f"{one}\n{other}")) == ["NetworkPolicy here/a", "NetworkPolicy here/b"]


def test_yaml_may_begin_with_a_brace(tmp_path: Path) -> None:
    text = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {podSelector: {}}}"
    assert names(taken(tmp_path, text)) == ["NetworkPolicy here/a"]


def test_stdin(tmp_path: Path) -> None:
    found = policies_in(read(["-"], lambda: policy("a").encode()), "here")
    assert found.where == {PolicyRef(PolicyKind.NETWORK, "here", "a"): "stdin"}


def test_folders_as_kubectl_reads_them(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json", "readme.txt", "deep/d.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(policy(Path(name).stem))

    def found(*, recursive: bool) -> list[str]:
        return [r.name for r in policies_in(read([str(tmp_path)], no_stdin, recursive=recursive), "n").policies]

    assert found(recursive=False) == ["a", "b", "c"]
    assert found(recursive=True) == ["a", "b", "c", "d"]


def test_the_last_of_several_documents_about_one_policy_counts(tmp_path: Path) -> None:
    found = taken(
        tmp_path, policy("a") + "---\n" + policy("a").replace("podSelector", "egress: [{}], podSelector")
    )
    (only,) = found.policies.values()
    assert isinstance(only, NetworkPolicy)
    assert only.egress


def test_text_that_looks_like_a_date_is_text(tmp_path: Path) -> None:
    found = taken(
        tmp_path, policy("a").replace("{podSelector: {}}", "{podSelector: {matchLabels: {v: 2024-01-31}}}")
    )
    assert [p.problems for p in found.policies.values()] == [()]


# --- what it becomes ------------------------------------------------------------------------------------------


def test_cluster_kinds_of_each_version(tmp_path: Path) -> None:
    def cluster(kind: str, version: str, name: str, spec: str) -> str:
        return (
            f"apiVersion: policy.networking.k8s.io/{version}\nkind: {kind}\n"
            f"metadata: {{name: {name}}}\nspec: {{subject: {{namespaces: {{}}}}, {spec}}}\n"
        )

    found = taken(
        tmp_path,
        "---\n".join(
            (
                cluster("ClusterNetworkPolicy", "v1alpha2", "c", "tier: Baseline, priority: 3"),
                cluster("AdminNetworkPolicy", "v1alpha1", "a", "priority: 3"),
                cluster("BaselineAdminNetworkPolicy", "v1alpha1", "default", ""),
            )
        ),
    )
    tiers = [p.tier for p in found.policies.values() if isinstance(p, ClusterPolicy)]
    assert tiers == [Tier.BASELINE, Tier.ADMIN, Tier.BASELINE]
    assert [p.problems for p in found.policies.values()] == [(), (), ()]


def test_what_is_not_understood_of_a_policy_is_kept_as_a_problem(tmp_path: Path) -> None:
    found = taken(tmp_path, policy("a").replace("podSelector: {}", "podSelector: {}, ingress: [{form: []}]"))
    assert [p.problems for p in found.policies.values()] == [("spec.ingress[0]: unknown field 'form'",)]


def test_other_objects_are_kept_apart_with_their_labels(tmp_path: Path) -> None:
    found = taken(
        tmp_path,
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n---\n"
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n---\n"
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: theirs}\n",
    )
    assert found.policies == {}
    assert [(o.kind, o.namespace, o.name, o.labels) for o in found.others] == [
        ("Namespace", "here", "shop", (("team", "a"),)),
        ("Deployment", "shop", "web", ()),
        ("NetworkPolicy", "here", "theirs", ()),
    ]


# --- namespaces -----------------------------------------------------------------------------------------------


def test_a_policy_without_a_namespace_gets_the_default(tmp_path: Path) -> None:
    own = policy("b").replace("name: b", "name: b, namespace: there")
    assert names(taken(tmp_path, f"{policy('a')}---\n{own}")) == ["NetworkPolicy here/a", "NetworkPolicy there/b"]


def test_a_namespace_that_was_asked_for_admits_no_other(tmp_path: Path) -> None:
    own = policy("b").replace("name: b", "name: b, namespace: there")
    assert refused(tmp_path, f"{policy('a')}---\n{own}", only=True) == [
        "file.yaml, document 2: metadata.namespace: 'there' is not --namespace here"
    ]
    assert names(taken(tmp_path, own, "there", only=True)) == ["NetworkPolicy there/b"]


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "file.yaml: line 1, column 5: expected the node content, but found '<stream end>'"),
        ("kind: x\nkind: y", "file.yaml: line 2, column 1: the key 'kind' is there twice"),
        ("- a\n", "file.yaml: must be an object, not a list"),
        ("42", "file.yaml: must be an object, not 42"),
        ("kind: NetworkPolicy", "file.yaml: apiVersion: missing"),
        ("apiVersion: v1", "file.yaml: kind: missing"),
        ("apiVersion: v1\nkind: [x]", "file.yaml: kind: must be a string"),
        ("apiVersion: v1\nkind: Pod", "file.yaml: metadata: must be an object, not null"),
        ("kind: List\nitems: 3", "file.yaml: items: must be a list, not 3"),
        ("kind: List\nitems: [3]", "file.yaml: items[0]: must be an object, not 3"),
        (POLICY.replace("NAME", "_"), "file.yaml: NetworkPolicy: metadata.name: '_' is not a DNS subdomain"),
        (
            POLICY.replace("name: NAME", "generateName: x-"),
            "file.yaml: metadata.name: missing; generateName makes a new policy each time",
        ),
        (
            POLICY.replace("networking.k8s.io/v1", "extensions/v1beta1"),
            "file.yaml: apiVersion: NetworkPolicy must be networking.k8s.io/v1, not 'extensions/v1beta1'",
        ),
        (
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: ClusterNetworkPolicy\nmetadata: {name: a}",
            (
                "file.yaml: apiVersion: ClusterNetworkPolicy must be policy.networking.k8s.io/v1alpha2, "
                "not 'policy.networking.k8s.io/v1alpha1'"
            ),
        ),
    ],
)
def test_malformed(tmp_path: Path, text: str, reason: str) -> None:
    assert refused(tmp_path, text) == [reason]


def test_every_malformed_document_is_named(tmp_path: Path) -> None:
    reasons = refused(tmp_path, f"kind: A\n---\n{policy('fine')}---\nkind: B\n")
    assert reasons == ["file.yaml, document 1: apiVersion: missing", "file.yaml, document 3: apiVersion: missing"]


def test_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "missing.yaml"), str(tmp_path / "bytes.yaml"), str(tmp_path / "empty")]
    with pytest.raises(ManifestError) as caught:
        read([*names, "https://example.com/p.yaml"], no_stdin)
    assert [reason.removeprefix(f"{tmp_path}/") for reason in caught.value.reasons] == [
        "missing.yaml: No such file or directory",
        "bytes.yaml: not UTF-8 at byte 3",
        "empty: no file in this folder ends in .json, .yaml, .yml; -R reads its folders, too",
        "https://example.com/p.yaml: cannot read from a URL; download it first, or pipe it to `-f -`",
    ]


def test_deep_nesting_is_an_error_and_no_crash(tmp_path: Path) -> None:
    assert refused(tmp_path, "[" * 5000) == ["file.yaml: nested too deeply"]
