"""The wheel: what is in it, and that the command line works from it alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.asked_at_once import Answers, ask
from tests.support.cni import built_client

ROOT = Path(__file__).parents[2]
PACKAGES = {"felix_py", "bgp", "policy"}
CLIENT = "felix_py/cni/client/felix-py-cni"


def run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv, env={**os.environ, **environment}, cwd="/", capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, f"{' '.join(map(str, argv))}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is, with a client and with what may lie around."""
    source = tmp_path_factory.mktemp("source") / "felix-py"
    leave = shutil.ignore_patterns(".*_cache", ".git", ".venv", "__pycache__", ".hypothesis", "build", "dist")
    shutil.copytree(ROOT, source, ignore=leave)
    shutil.copy(built_client(), source / CLIENT)
    (source / "felix_py" / "__pycache__").mkdir()
    (source / "felix_py" / "__pycache__" / "config.cpython-311.pyc").write_bytes(b"stale")
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps",
        "--target", target, wheel)  # fmt: skip
    return target


def test_import_names_are_ours_alone(names: list[str], installed: Path) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    code = "import json; from importlib.metadata import packages_distributions as p; print(json.dumps(p()))"
    owners = json.loads(run(sys.executable, "-c", code, PYTHONPATH=str(installed)).stdout)
    assert {name: set(owners[name]) for name in PACKAGES} == {name: {"felix-py"} for name in PACKAGES}


def test_everything_needed_is_in_and_nothing_else(names: list[str], wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    missing = modules - set(names)
    assert not missing
    assert f"{CLIENT}.c" in names, "`make` could not build the client on the node"
    assert CLIENT in names
    strange = [
        name
        for name in names
        if ".dist-info/" not in name and not name.endswith((".py", ".c")) and name != CLIENT
    ]
    assert strange == []
    assert not [name for name in names if "test" in name.rpartition("/")[2].split("_")]
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in names if str(ROOT).encode() in archive.read(name)] == []
        assert archive.getinfo(CLIENT).external_attr >> 16 & 0o444 == 0o444
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert "felix-py = felix_py.cli:main" in archive.read(entry_points).decode()
        assert any(name.endswith("/licenses/LICENSE") for name in names)


def of_wheel(installed: Path) -> list[str | Path]:
    """An interpreter without ``site``, since this one's has the source tree in its path."""
    path = f"{installed}:{sysconfig.get_path('purelib')}"
    return ["env", f"PYTHONPATH={path}", "COLUMNS=80", sys.executable, "-S"]


def felix(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The wheel's command line."""
    argv = [*of_wheel(installed), installed / "bin" / "felix-py", *words]
    return subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False, timeout=100)


HELP = [
    ["--version"],
    ["--help"],
    *(
        [command, "--help"]
        for command in (
            "agent",
            "bgp-sidecar",
            "install-cni",
            "cleanup",
            "denies",
            "status",
            "explain",
            "verify",
            "plan",
        )
    ),
]
LAB_HELP = [
    ["--help"],
    *(
        ["lab", *command, "--help"]
        for command in (
            [],
            ["up"],
            ["down"],
            ["status"],
            ["explain"],
            ["denies"],
            ["verify"],
            ["plan"],
            ["kubectl"],
            ["exec"],
            ["matrix"],
            ["logs"],
        )
    ),
]


@pytest.fixture(scope="module")
def help_of_wheel(installed: Path) -> Answers:
    return ask(of_wheel(installed), HELP)


@pytest.fixture(scope="module")
def help_of_source() -> Answers:
    return ask(["env", "COLUMNS=80", sys.executable], LAB_HELP)


def assert_is_plain_help(done: subprocess.CompletedProcess[str], words: list[str]) -> None:
    """As it is printed on a terminal of 80 columns."""
    assert done.stderr == ""
    assert done.stdout.startswith("felix-py " if words == ["--version"] else "Usage: felix-py")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout, "something is cut off"
    assert "..." not in done.stdout.partition("Options:")[2], "a summary is cut off"
    assert not re.search("<(str|list|int|path)", done.stdout), "a type of Python's"


def test_it_starts_from_the_wheel(installed: Path) -> None:
    done = felix(installed, "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("felix-py ")


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_command_line_works_from_the_wheel(help_of_wheel: Answers, words: list[str]) -> None:
    done = help_of_wheel[tuple(words)]
    assert done.returncode == 0, done.stderr
    assert_is_plain_help(done, words)
    assert "  lab" not in done.stdout


@pytest.mark.parametrize("words", [["lab"], ["lab", "--help"], ["lab", "up"]], ids=" ".join)
def test_lab_is_not_in_the_wheel_which_says_where_it_is(installed: Path, words: list[str]) -> None:
    done = felix(installed, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("felix-py lab: the lab is part of the source tree")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", LAB_HELP, ids=" ".join)
def test_lab_is_in_the_source_tree(help_of_source: Answers, words: list[str]) -> None:
    done = help_of_source[tuple(words)]
    assert done.returncode == 0, done.stderr
    assert_is_plain_help(done, words)
    assert "lab" in done.stdout


def test_code_comes_from_the_wheel(installed: Path) -> None:
    code = "import felix_py, bgp, policy; print(felix_py.__file__, bgp.__file__, policy.__file__)"
    done = run(sys.executable, "-c", code, PYTHONPATH=str(installed))
    assert [path for path in done.stdout.split() if not Path(path).is_relative_to(installed)] == []


def test_client_is_installed_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    run(installed / "bin" / "felix-py", "install-cni", "--cni-bin-dir", tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "felix-py-cni").read_bytes() == built_client().read_bytes()
    assert os.access(tmp_path / "felix-py-cni", os.X_OK)
