"""The manifests that people apply are what their sources give, with kubectl and with Helm.

``UPDATE_GOLDEN=1 pytest tests/golden`` writes those that are rendered anew; the diff is then the review.
"""

from __future__ import annotations

import copy
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgp.model import parse_bgp_config
from bgp.parse import configuration
from felix_py.config import RouteSource
from tests.support.manifests import (
    CHART,
    IMAGE,
    MANIFESTS,
    ROOT,
    Object,
    helm,
    identity,
    kubectl,
    kustomized,
    objects,
    rendered,
    templated,
)

needs_kubectl = pytest.mark.skipif(not kubectl(), reason="no kubectl with a kustomize that knows components")
needs_helm = pytest.mark.skipif(not helm(), reason="no helm: `make test-cluster` builds one")

OVERLAYS = sorted(path.parent for path in (MANIFESTS / "overlays").glob("*/kustomization.yaml"))
WITH_PEERS = [overlay for overlay in OVERLAYS if (overlay / "bgp.yaml").exists()]
HOST_GATEWAY, MESH = MANIFESTS / "overlays" / "host-gateway", MANIFESTS / "overlays" / "mesh"
COMPONENTS = sorted(path.parent for path in (MANIFESTS / "components").glob("*/kustomization.yaml"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def installed() -> list[Object]:
    return [*objects((MANIFESTS / "felix-py.yaml").read_text()).values()]


def daemonset(text: str, name: str = "felix-py") -> Object:
    return next(
        one for one in objects(text).values() if (one["kind"], one["metadata"]["name"]) == ("DaemonSet", name)
    )


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def source(*names: str) -> list[Object]:
    texts = ((MANIFESTS / name).read_text() for name in names)
    return [one for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if one]


# --- rendered files ----------------------------------------------------------------------------------


@needs_kubectl
def test_rendered_files_are_what_their_sources_give() -> None:
    wanted = rendered()
    if os.environ.get("UPDATE_GOLDEN"):
        for path, text in wanted.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    assert {path: path.read_text() for path in wanted} == wanted
    assert {*(CHART / "crds").glob("*")} == {path for path in wanted if path.parent.name == "crds"}


def test_one_file_has_what_the_sources_have() -> None:
    """Without kubectl: kustomize only puts them together."""
    crds = [f"crds/{path.name}" for path in sorted((MANIFESTS / "crds").glob("felixpy.io_*.yaml"))]
    sources = source(*crds, "base/rbac.yaml", "base/flowcontrol.yaml", "base/daemonset.yaml")
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in sources}
    assert {(one["kind"], one["metadata"]["name"]): one for one in installed()} == by_name
    cleanup = (MANIFESTS / "cleanup" / "cleanup.yaml").read_text()
    assert objects((MANIFESTS / "cleanup.yaml").read_text()) == objects(cleanup)


def test_all_definitions_of_ours_are_installed_and_no_others() -> None:
    """To delete the file must not delete policies: their definitions are not in it."""
    listed = yaml.safe_load((MANIFESTS / "crds" / "Kustomization").read_text())["resources"]
    assert listed == sorted(path.name for path in (MANIFESTS / "crds").glob("felixpy.io_*.yaml"))


def test_nothing_of_the_operators_is_in_the_file() -> None:
    """What the operator has written, the peers above all, survives an upgrade by `kubectl apply`."""
    assert not [one for one in installed() if one["kind"] in ("ConfigMap", "Secret")]


# --- kustomize ---------------------------------------------------------------------------------------


@needs_kubectl
@pytest.mark.parametrize("overlay", WITH_PEERS, ids=lambda path: path.name)
def test_overlay_is_the_base_and_valid_peers(overlay: Path) -> None:
    found = objects(kustomized(overlay))
    config = found.pop(("v1", "ConfigMap", "kube-system", "felix-py"))
    assert found == objects((MANIFESTS / "felix-py.yaml").read_text())
    assert list(config["data"]) == ["bgp.yaml"]
    peers = parse_bgp_config(yaml.safe_load(config["data"]["bgp.yaml"]), router_id="192.0.2.1").peers
    assert {peer.version for peer in peers} == ({4, 6} if overlay.name == "dual-stack" else {4})


@needs_kubectl
def test_without_routers_there_is_no_sidecar() -> None:
    """Nor what it alone needs; all else is the base."""
    found = objects(kustomized(HOST_GATEWAY))
    config = found.pop(("v1", "ConfigMap", "kube-system", "felix-py"))
    assert config["data"] == {"routeSource": RouteSource.KUBERNETES.value}
    wanted = objects((MANIFESTS / "felix-py.yaml").read_text())
    assert found.keys() == wanted.keys()
    for one in wanted.values():
        if one["kind"] == "DaemonSet":
            pod = one["spec"]["template"]["spec"]
            for of in (pod["containers"][0]["volumeMounts"], pod["containers"], pod["volumes"]):
                [sidecars] = [part for part in of if part["name"] == "bgp"]
                of.remove(sidecars)
    assert found == wanted


@needs_kubectl
def test_mesh_is_the_base_and_a_bgp_configuration() -> None:
    found = objects(kustomized(MESH))
    declared = found.pop(("felixpy.io/v1alpha1", "BGPConfiguration", "", "default"))
    assert found == objects((MANIFESTS / "felix-py.yaml").read_text())
    assert configuration("default", declared["spec"]).node_to_node_mesh_enabled


@needs_kubectl
def test_peers_are_there_before_the_pods_that_read_them() -> None:
    for overlay in [*WITH_PEERS, HOST_GATEWAY]:
        kinds = [one["kind"] for one in yaml.load_all(kustomized(overlay), yaml.CSafeLoader)]
        assert kinds.index("ConfigMap") < kinds.index("DaemonSet")
        assert kinds.index("ServiceAccount") < kinds.index("DaemonSet")


def hand_made(folder: Path, *components: str) -> Path:
    """A kustomization as an operator writes it."""
    names = [os.path.relpath(MANIFESTS / "components" / name, folder) for name in components]
    bases = [os.path.relpath(MANIFESTS / name, folder) for name in ("base", "cleanup")]
    images = [{"name": IMAGE, "newName": "registry.example/felix-py", "newTag": "v9"}]
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": bases, "components": names, "images": images})
    )
    return folder


@needs_kubectl
def test_operator_names_a_registry(tmp_path: Path) -> None:
    text = kustomized(hand_made(tmp_path))
    found = {one["image"] for name in ("felix-py", "felix-py-cleanup") for one in containers(spec(text, name))}
    assert found == {"registry.example/felix-py:v9"}


def spec(text: str, name: str) -> Object:
    found: Object = daemonset(text, name)["spec"]["template"]["spec"]
    return found


def host_paths(text: str, name: str) -> dict[str, str]:
    return {one["name"]: one["hostPath"]["path"] for one in spec(text, name)["volumes"] if "hostPath" in one}


@needs_kubectl
@pytest.mark.parametrize(
    ("component", "changed"),
    [
        ("debian-containerd", {"cni-bin": "/usr/lib/cni"}),
        (
            "k3s",
            {"cni-bin": "/var/lib/rancher/k3s/data/cni", "cni-conf": "/var/lib/rancher/k3s/agent/etc/cni/net.d"},
        ),
        ("peers-on-nodes", {"config": "/etc/felix-py"}),
    ],
)
def test_component_changes_folders_and_nothing_else(
    component: str, changed: dict[str, str], tmp_path: Path
) -> None:
    for folder in ("plain", "changed"):
        (tmp_path / folder).mkdir()
    before = kustomized(hand_made(tmp_path / "plain"))
    after = kustomized(hand_made(tmp_path / "changed", component))
    for name in ("felix-py", "felix-py-cleanup"):
        if component == "peers-on-nodes" and name == "felix-py-cleanup":
            assert daemonset(after, name) == daemonset(before, name)
            continue
        assert host_paths(after, name) == host_paths(before, name) | changed
        assert {one["name"] for one in spec(after, name)["volumes"]} == {
            one["name"] for one in spec(before, name)["volumes"]
        }
        for text in (before, after):
            for one in spec(text, name)["volumes"]:
                assert len(one) == 2, "a name and one kind of volume"
        assert containers(spec(after, name)) == containers(spec(before, name))
    assert {path.name for path in COMPONENTS} == {"debian-containerd", "k3s", "peers-on-nodes", "pod-ips"}


@needs_kubectl
def test_announcing_addresses_is_a_right_a_guard_and_a_setting(tmp_path: Path) -> None:
    for folder in ("plain", "changed"):
        (tmp_path / folder).mkdir()
    before = objects(kustomized(hand_made(tmp_path / "plain")))
    after = objects(kustomized(hand_made(tmp_path / "changed", "pod-ips")))
    added = {one: after.pop(one) for one in after.keys() - before.keys()}
    assert sorted(kind for _, kind, _, _ in added) == [
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ]
    [rules] = [one["rules"] for (_, kind, _, _), one in added.items() if kind == "ClusterRole"]
    assert rules == [{"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}]
    [agent] = [one for (_, kind, _, name), one in after.items() if (kind, name) == ("DaemonSet", "felix-py")]
    environment = agent["spec"]["template"]["spec"]["containers"][0]["env"]
    environment.remove({"name": "FELIX_PY_ANNOUNCE_POD_IPS", "value": "true"})
    assert after == before


# --- Helm --------------------------------------------------------------------------------------------


@needs_helm
def test_chart_installs_the_same_objects() -> None:
    assert objects(templated()) == objects((MANIFESTS / "felix-py.yaml").read_text())


@needs_helm
def test_values_of_the_chart_arrive(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "image": {"repository": "registry.example/felix-py", "tag": "v9", "pullPolicy": "Always"},
        "cni": {"binDir": "/usr/lib/cni", "confDir": "/etc/elsewhere"},
        "apiServer": {"host": "10.0.0.10", "port": 6443},
        "bgp": {"asNumber": 65001, "peers": [{"peerIP": "10.0.0.1", "asNumber": 65000, "holdTime": "90s"}]},
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    found = objects(templated("--values", str(file), namespace="network"))
    config = found.pop(("v1", "ConfigMap", "network", "felix-py"))["data"]
    assert yaml.safe_load(config.pop("bgp.yaml")) == values["bgp"]
    assert config == {"KUBERNETES_SERVICE_HOST": "10.0.0.10", "KUBERNETES_SERVICE_PORT": "6443"}
    assert found == {identity(one): one for one in map(expected, installed())}


@needs_helm
@needs_kubectl
@pytest.mark.parametrize(
    ("overlay", "values"),
    [
        (HOST_GATEWAY, {"routeSource": "kubernetes", "bgpSidecar": False}),
        (MESH, {"bgpConfiguration": {"asNumber": 64512, "nodeToNodeMeshEnabled": True}}),
    ],
    ids=["host-gateway", "mesh"],
)
def test_chart_with_these_values_is_the_overlay(overlay: Path, values: Object, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    found, wanted = objects(templated("--values", str(file))), objects(kustomized(overlay))
    config = ("v1", "ConfigMap", "kube-system", "felix-py")
    assert found.pop(config, {}).get("data") == wanted.pop(config, {}).get("data")
    assert found == wanted


def expected(one: Object) -> Object:
    """An object of the file with these values, each found by its place. Definitions are no templates."""
    if one["kind"] == "CustomResourceDefinition":
        return one
    text = yaml.safe_dump(copy.deepcopy(one))
    text = text.replace("namespace: kube-system", "namespace: network")
    text = text.replace(f"image: {IMAGE}:{VERSION}", "image: registry.example/felix-py:v9")
    text = text.replace("imagePullPolicy: IfNotPresent", "imagePullPolicy: Always")
    text = text.replace("path: /opt/cni/bin", "path: /usr/lib/cni")
    text = re.sub(r"(?<!mountP)path: /etc/cni/net.d", "path: /etc/elsewhere", text)
    found: Object = yaml.safe_load(text)
    return found


def test_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


# --- what every pod of ours keeps to -----------------------------------------------------------------


@pytest.mark.parametrize("file", ["felix-py.yaml", "cleanup.yaml"])
def test_pod_has_no_more_than_it_needs(file: str) -> None:
    name = {"felix-py.yaml": "felix-py", "cleanup.yaml": "felix-py-cleanup"}[file]
    pod = spec((MANIFESTS / file).read_text(), name)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    with_token = []
    for one in containers(pod):
        context = one["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is (one["name"] == "bgp")
        assert "privileged" not in context
        assert context["capabilities"]["drop"] == ["ALL"]
        assert one["resources"]["requests"].keys() == {"cpu", "memory"}
        assert one["image"] == f"{IMAGE}:{VERSION}"
        mounted = {mount["name"] for mount in one.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}
        if "api-access" in mounted:
            with_token.append(one["name"])
    assert with_token == (["agent"] if name == "felix-py" else ["cleanup"])
    used = {mount["name"] for one in containers(pod) for mount in one.get("volumeMounts", [])}
    assert used == {volume["name"] for volume in pod["volumes"]}


def test_sidecar_sees_nothing_of_the_node() -> None:
    pod = spec((MANIFESTS / "felix-py.yaml").read_text(), "felix-py")
    bgp = next(one for one in pod["containers"] if one["name"] == "bgp")
    assert bgp["volumeMounts"] == [{"name": "bgp", "mountPath": "/run/felix-py/bgp"}]
    assert (bgp["securityContext"]["runAsNonRoot"], bgp["securityContext"]["runAsUser"]) == (True, 65532)
    assert bgp["securityContext"]["capabilities"]["add"] == ["NET_BIND_SERVICE"]


def test_every_volume_says_why() -> None:
    """A comment above each, in the source."""
    lines = (MANIFESTS / "base" / "daemonset.yaml").read_text().split("\n      volumes:\n")[1].splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("        - name:")]
    assert len(starts) > 8
    assert [lines[n] for n in starts if not lines[n - 1].strip().startswith("#")] == []


def test_probes_ask_the_agent_on_its_node() -> None:
    pod = spec((MANIFESTS / "felix-py.yaml").read_text(), "felix-py")
    agent = next(one for one in pod["containers"] if one["name"] == "agent")
    asked = {name: agent[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    for one in asked.values():
        assert (one["host"], one["port"]) == ("127.0.0.1", 9099)
    assert {name: one["path"] for name, one in asked.items()} == {
        "startup": "/livez",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert pod["hostNetwork"] is True
    assert pod["terminationGracePeriodSeconds"] > 10, "the agent may take ten seconds to end"
