"""The files of the repository that no program imports: locked dependencies, scripts, manifests, pages."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "scripts").iterdir())]
# What kubectl takes: no kustomizations and what they alone read, no chart (tests/golden/test_manifests.py).
MANIFESTS = [
    path
    for path in sorted((ROOT / "manifests").rglob("*.yaml"))
    if path.name not in ("kustomization.yaml", "bgp.yaml") and "helm" not in path.parts
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def requirements(path: Path) -> list[str]:
    """One line for each requirement, continuation lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["run", "build", "lab", "dev"])
def test_locked_dependencies_have_hashes_and_no_index(name: str) -> None:
    lines = requirements(ROOT / "requirements" / f"{name}.txt")
    assert len(lines) > 5
    pinned = re.compile(r"[\w.-]+==[\w.!+-]+( ;[^#@]*?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [line for line in lines if not pinned.fullmatch(line)] == []
    assert "://" not in (ROOT / "requirements" / f"{name}.txt").read_text()


def test_developers_have_what_users_have() -> None:
    """The tests prove something only about the versions that they ran with."""
    run, build, lab, dev = (
        {line.split()[0] for line in requirements(ROOT / "requirements" / f"{name}.txt")}
        for name in ("run", "build", "lab", "dev")
    )
    assert run - lab == set()
    assert lab - dev == set()
    assert build - dev == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_script_is_executable_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("manifest", MANIFESTS, ids=relative)
def test_manifest_is_kubernetes_objects(manifest: Path) -> None:
    objects = [found for found in yaml.safe_load_all(manifest.read_text()) if found]
    assert objects
    for found in objects:
        assert found["apiVersion"]
        assert found["kind"]
        assert found["metadata"]["name"]


def anchors(page: Path) -> set[str]:
    """What a link may name after its #, by the rule of the well-known forges."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_of_page_resolve(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_paths_that_page_names_exist(page: Path) -> None:
    """`felix_py/…`, `manifests/…` and the like in code spans and in commands."""
    folders = "felix_py|bgp|policy|manifests|tests|docs|bench|scripts|requirements"
    words = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./*-]*)", page.read_text())
    missing = [word for word in words if not any(ROOT.glob(word.rstrip("./")))]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_targets_that_page_names_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4}|[#$] )make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named - known == set()
