"""The manifests as kubectl and Helm render them, and the files that are rendered from their sources.

``manifests/felix-py.yaml``, ``manifests/cleanup.yaml`` and the chart's objects come from ``manifests/base`` and
``manifests/cleanup``; ``UPDATE_GOLDEN=1`` writes them anew (``tests/golden/test_manifests.py``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import assets

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
CHART = MANIFESTS / "helm" / "felix-py"
IMAGE = "localhost/felix-py"
Object = dict[str, Any]
Identity = tuple[str, str, str, str]
"""(apiVersion, kind, namespace, name)."""

_OLDEST_KUSTOMIZE = 4
"""Components are of kustomize 3.7; kubectl has had one older than that (2.0) until 1.20, then 4."""


def kubectl() -> str:
    """A kubectl whose kustomize knows components; empty if there is none."""
    for found in (str(assets.program("kubectl")), shutil.which("kubectl") or ""):
        if found and os.access(found, os.X_OK):
            said = subprocess.run(
                [found, "version", "--client"], capture_output=True, text=True, check=False
            ).stdout
            version = re.search(r"Kustomize Version: v(\d+)", said)
            if version and int(version[1]) >= _OLDEST_KUSTOMIZE:
                return found
    return ""


def helm() -> str:
    """Helm 3; empty if there is none."""
    return next(
        (
            found
            for found in (str(assets.program("helm")), shutil.which("helm") or "")
            if os.access(found, os.X_OK)
        ),
        "",
    )


def kustomized(folder: Path) -> str:
    """What ``kubectl kustomize`` prints."""
    return _run(kubectl(), "kustomize", str(folder))


def templated(*options: str, namespace: str = "kube-system") -> str:
    """What ``helm template`` prints, definitions too."""
    argv = [helm(), "template", "felix-py", str(CHART), "--include-crds", "--namespace", namespace]
    # A helm that was built by hand takes itself for one of Kubernetes 1.20.
    return _run(*argv, "--kube-version", "1.36.3", *options)


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> dict[Identity, Object]:
    """The objects of a manifest; none may be there twice."""
    found: dict[Identity, Object] = {}
    for one in yaml.load_all(text, yaml.CSafeLoader):
        if one:
            key = identity(one)
            assert key not in found, f"{key} twice"
            found[key] = one
    return found


def identity(one: Mapping[str, Any]) -> Identity:
    """What an object is told from others by."""
    metadata = one["metadata"]
    return (one["apiVersion"], one["kind"], metadata.get("namespace", ""), metadata["name"])


# --- what is rendered --------------------------------------------------------------------------------


def rendered() -> dict[Path, str]:
    """The files that come from others, and what should be in them."""
    crds = sorted((MANIFESTS / "crds").glob("felixpy.io_*.yaml"))
    return {
        MANIFESTS / "felix-py.yaml": _file(
            "base", "`kubectl apply -f manifests/felix-py.yaml` installs felix-py"
        ),
        MANIFESTS / "cleanup.yaml": _file(
            "cleanup", "`kubectl apply -f manifests/cleanup.yaml` takes it off again"
        ),
        CHART / "templates" / "felix-py.yaml": _template(objects(kustomized(MANIFESTS / "base")).values()),
        **{CHART / "crds" / crd.name: crd.read_text() for crd in crds},
    }


def _file(source: str, what: str) -> str:
    head = f"# {what} (docs/install.md). Rendered from manifests/{source}, where comments say why.\n"
    return head + kustomized(MANIFESTS / source)


def _template(installed: Iterable[Object]) -> str:
    """The objects with the chart's values in place of the defaults."""
    head = "# Rendered from manifests/base: change that, and values.yaml.\n"
    texts = [
        yaml.safe_dump(_with_values(one), width=1000)
        for one in installed
        if one["kind"] != "CustomResourceDefinition"
    ]
    return "---\n".join([head, *(_CLAUSE.sub(r"{{- \1 }}", text) for text in texts)])


_VALUES = {
    "kube-system": "{{ .Release.Namespace }}",
    "IfNotPresent": "{{ .Values.image.pullPolicy }}",
}


_CLAUSE = re.compile(r"^ *- '\{\{- (.*) \}\}'$", re.MULTILINE)
"""A clause of a template in a list, as YAML has it."""

_SIDECAR = ("containers", "volumes", "volumeMounts")
"""Lists with a member ``bgp`` that is there for the sidecar alone."""


def _with_values(it: Any, key: str = "") -> Any:
    if isinstance(it, dict):
        if it.get("name") in ("cni-bin", "cni-conf") and "hostPath" in it:
            value = "{{ .Values.cni.binDir }}" if it["name"] == "cni-bin" else "{{ .Values.cni.confDir }}"
            return {**it, "hostPath": {**it["hostPath"], "path": value}}
        return {name: _with_values(value, name) for name, value in it.items()}
    if isinstance(it, list):
        return [made for one in it for made in _members(one, key)]
    if key == "image":
        return "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
    return _VALUES.get(it, it) if key in ("namespace", "imagePullPolicy") else it


def _members(one: Any, key: str) -> list[Any]:
    """A member of a list with the chart's values, between clauses where the chart may leave it out."""
    if isinstance(one, dict) and one.get("name") == "bgp" and key in _SIDECAR:
        # All of the sidecar is between the clauses, so nothing in it needs any.
        inner = {name: value if name in _SIDECAR else _with_values(value, name) for name, value in one.items()}
        return ["{{- if .Values.bgpSidecar }}", inner, "{{- end }}"]
    return [_with_values(one, key)]
