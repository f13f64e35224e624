"""``tests.cluster.assets``: each program is built once and whole, whatever compiler, user or another build do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster import assets

ROOT = Path(__file__).parents[2]
NAMES = {name for module in assets.MODULES for name in module.programs}

# A compiler with state: writes what it is told to, in two halves; what "broken" names it gives up between them.
GO = """#!/bin/bash
if [ "$1" = env ]; then echo go{version}; exit; fi
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
echo "$1" >>"$STATE/built"
printf '#!/bin/sh\\n' >"$out"
if grep -qs "$1" "$STATE/broken"; then echo "$1: cannot find main module" >&2; exit 1; fi
sleep 0.05
echo 'echo it runs' >>"$out"
chmod +x "$out"
"""


class Bench:
    """A machine with that compiler and an empty cache folder."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "bin"
        self.cache = folder / "cache"
        self.state = folder / "state"
        for made in (self._bin, self.state):
            made.mkdir()
        self.install_go("1.26.1")

    def install_go(self, version: str) -> None:
        (self._bin / "go").write_text(GO.replace("{version}", version))
        (self._bin / "go").chmod(0o755)

    def start(self, *words: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if name != "KUBERNETES_ASSETS"}
        path = f"{self._bin}:{os.environ['PATH']}"
        env = {**kept, "PATH": path, "STATE": str(self.state), "XDG_CACHE_HOME": str(self.cache)}
        argv = [sys.executable, "-m", "tests.cluster.assets", *words]
        return subprocess.Popen(
            argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def build(self, *words: str) -> tuple[int, str, str]:
        with self.start(*words) as build:
            said, complained = build.communicate(timeout=60)
            return build.returncode, said, complained

    @property
    def built(self) -> Counter[str]:
        """How often each program was compiled."""
        packages = (self.state / "built").read_text().split()
        names = {package: name for module in assets.MODULES for name, package in module.programs.items()}
        return Counter(names[package] for package in packages)

    @property
    def programs(self) -> dict[str, str]:
        """What each program in the cache says; all files there that are neither program nor lock fail."""
        files = [path for path in self.cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return {
            path.name: subprocess.run([path], capture_output=True, text=True, check=True).stdout for path in files
        }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_each_is_built_once_with_a_line_of_progress(bench: Bench) -> None:
    code, said, complained = bench.build()
    assert (code, complained) == (0, "")
    assert bench.programs == dict.fromkeys(NAMES, "it runs\n")
    assert said.count("\nBuilding ") == len(NAMES)
    assert "\nBuilding kubelet " in said
    assert bench.build() == (0, "", ""), "there is nothing to do any more"
    assert set(bench.built.values()) == {1}


def test_version_is_part_of_the_folder(bench: Bench) -> None:
    """Another version in go.mod is another folder, so nothing old is taken for it."""
    assert bench.build("helm", "kubectl")[0] == 0
    folders = {path.parent.name for path in bench.cache.rglob("*") if path.name in NAMES}
    assert folders == {f"helm-{assets.HELM.version}", f"kubernetes-{assets.KUBERNETES.version}"}
    assert set(bench.programs) == {"helm", "kubectl"}
    _, said, _ = bench.build("--folder")
    assert Path(said.strip()) == bench.cache / "felix-py" / f"kubernetes-{assets.KUBERNETES.version}"


def test_failed_build_leaves_nothing_and_the_next_goes_on(bench: Bench) -> None:
    package = assets.KUBERNETES.programs["kubelet"]
    (bench.state / "broken").write_text(package)
    code, _, complained = bench.build()
    assert code == 1
    assert f"{package}: cannot find main module" in complained
    assert "kubelet" not in bench.programs
    assert "kubectl" in bench.programs
    (bench.state / "broken").unlink()
    assert bench.build()[0] == 0
    assert bench.programs == dict.fromkeys(NAMES, "it runs\n")
    assert {name: times for name, times in bench.built.items() if times > 1} == {"kubelet": 2}


def test_killed_build_leaves_no_half_program(bench: Bench) -> None:
    with bench.start("kubectl") as build:
        assert build.stdout is not None
        build.stdout.readline()
        build.kill()
    assert bench.build("kubectl")[0] == 0
    assert bench.programs["kubectl"] == "it runs\n"


def test_two_at_once_build_each_program_once(bench: Bench) -> None:
    with bench.start() as one, bench.start() as other:
        assert one.communicate(timeout=60)[1] == ""
        assert other.communicate(timeout=60)[1] == ""
    assert bench.built == Counter(NAMES)
    assert bench.programs == dict.fromkeys(NAMES, "it runs\n")


def test_unknown_program_is_named(bench: Bench) -> None:
    code, _, complained = bench.build("kubelt")
    assert code == 2
    assert "no such program: kubelt" in complained
