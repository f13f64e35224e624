"""The container image: what is in it, that it is always the same, and that its commands work in containers of it.

``make test-image`` builds it twice, in other folders, and then runs this, which needs no network and no registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from image.base import SIDECAR_ID
from tests.support.container import Archive, Container, blob

pytestmark = [pytest.mark.root, pytest.mark.image, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SITE = "opt/felix-py/lib/python3.11/site-packages"
NAME = f"localhost/felix-py:{version('felix-py')}"
CLIENT = f"{SITE}/felix_py/cni/client/felix-py-cni"
AGAIN = ROOT / "build" / "image-again"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
UNAME = {"amd64": "x86_64", "arm64": "aarch64"}

IMPORT_ALL = """
import importlib, pkgutil
import bgp, felix_py, policy
for package in (felix_py, bgp, policy):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import exabgp.application.main, exabgp.reactor.loop
import kubernetes.client.rest, kubernetes.config
from iptc import ip4tc, ip6tc
print("all of", len(list(pkgutil.walk_packages(felix_py.__path__))))
"""


@pytest.fixture(scope="module")
def built() -> Path:
    if not shutil.which("runc"):
        pytest.skip("runc is not installed: scripts/debian-packages image-test")
    return ROOT / "dist"


@pytest.fixture(scope="module")
def archive(built: Path) -> Archive:
    return Archive(built / "felix-py.tar")


@pytest.fixture(scope="module")
def root(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    archive.unpack(folder)
    return folder


@pytest.fixture
def container(archive: Archive, root: Path) -> Container:
    return Container(root, archive.config)


@pytest.mark.parametrize("name", ["felix-py.tar", "felix-py.spdx.json"])
def test_two_builds_give_the_same(built: Path, name: str) -> None:
    one, other = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (built, AGAIN))
    assert one == other


def test_docker_and_containerd_read_the_same_image(archive: Archive) -> None:
    """docker load goes by manifest.json; others by the OCI layout, and take the name of its annotations."""
    (docker,) = archive.json("manifest.json")
    assert docker["RepoTags"] == [NAME]
    assert docker["Config"] == blob(archive.manifest["config"]["digest"])
    assert docker["Layers"] == [blob(layer["digest"]) for layer in archive.manifest["layers"]]
    names = archive.described["annotations"]
    assert names == {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME}
    with tarfile.open(archive.path) as tar:
        for name in archive.names:
            if name.startswith("blobs/sha256/"):
                content = tar.extractfile(name)
                assert content is not None
                assert hashlib.sha256(content.read()).hexdigest() == name.rpartition("/")[2]


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def test_labels_and_user(archive: Archive) -> None:
    config = archive.config["config"]
    assert (config["User"], config["Entrypoint"]) == ("0:0", ["felix-py"])
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels.pop("description")
    assert labels == {
        "title": "felix-py",
        "version": version("felix-py"),
        "revision": git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "licenses": "Apache-2.0",
        "created": archive.config["created"],
        "base.name": "debian:bookworm",
    }
    assert datetime.fromisoformat(archive.config["created"]).timestamp() == int(git("log", "-1", "--format=%ct"))
    assert archive.config["architecture"] == MACHINES[os.uname().machine]


def test_sizes(archive: Archive, root: Path) -> None:
    packed = sum(layer["size"] for layer in archive.manifest["layers"])
    unpacked = sum(path.lstat().st_size for path in root.rglob("*"))
    assert packed < 80e6
    assert unpacked < 200e6
    # What it is now, and a tenth more: who adds a large thing is to know.
    assert (packed < 37e6, unpacked < 112e6) == (True, True), (packed, unpacked)


def test_nothing_else_is_in_it(root: Path) -> None:
    programs = {
        path.name for folder in ("bin", "sbin", "usr/bin", "usr/sbin") for path in (root / folder).glob("*")
    }
    tools = r"ip6?tables(-(nft|legacy))?(-(save|restore))?|xtables-(nft|legacy)-multi|ipset|conntrack"
    assert {one for one in programs if not re.fullmatch(tools, one)} == {"python3", "python3.11", "ldconfig"}
    assert {path.name for path in (root / "opt/felix-py/bin").iterdir()} == {"felix-py", "python"}
    packages = {path.name for path in (root / SITE).iterdir()}
    assert {"felix_py", "bgp", "policy", "kubernetes", "exabgp"} <= packages
    assert not packages & {"pip", "setuptools", "lab", "tests", "bench", "image", "pytest", "hatchling"}
    assert not list((root / SITE / "kubernetes").rglob("v1_*.py"))
    every = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in every if path.suffix in (".c", ".h", ".a")] == []
    tests = re.compile(r"/(tests?|idlelib|ensurepip)/|_test\.py$")
    assert [path for path in every if tests.search(str(path.relative_to(root)))] == []
    assert [path for path in every if path.stat().st_mode & 0o6002] == [], "setuid, or writable by everyone"


def test_all_is_root_s_and_of_one_time(archive: Archive, tmp_path: Path) -> None:
    entries = archive.unpack(tmp_path)
    assert {(one.uid, one.gid, one.uname, one.gname) for one in entries} == {(0, 0, "", "")}
    assert len({one.mtime for one in entries}) == 1
    capable = [one.name for one in entries if "SCHILY.xattr.security.capability" in one.pax_headers]
    assert capable == ["usr/bin/python3.11"]


def test_every_library_that_a_program_needs_is_there(container: Container, tmp_path: Path, root: Path) -> None:
    code = (
        "import ctypes, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: ctypes.CDLL(name)\n"
        "    except OSError as error: print(name, error)\n"
    )
    inside = [
        f"/{path.relative_to(root)}"
        for path in (root / "usr/lib").rglob("*.so*")
        if path.is_file() and not path.is_symlink() and "/xtables/" not in str(path)
    ]
    done = container.run(tmp_path / "c", "/usr/bin/python3", "-c", code, *inside)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(inside) > 50


@pytest.mark.parametrize("machine", ["amd64", "arm64"])
def test_clients_of_both_architectures(root: Path, machine: str) -> None:
    content = (root / f"{CLIENT}-{machine}").read_bytes()
    assert content[:6] == b"\x7fELF\x02\x01"
    assert struct.unpack_from("<H", content, 18)[0] == {"amd64": 62, "arm64": 183}[machine]
    program_headers, size, count = *struct.unpack_from("<Q", content, 32), *struct.unpack_from("<HH", content, 54)
    kinds = {struct.unpack_from("<I", content, program_headers + n * size)[0] for n in range(count)}
    assert 3 not in kinds, "PT_INTERP: it is not static"
    assert {path.name for path in (root / CLIENT).parent.iterdir()} == {
        "felix-py-cni-amd64",
        "felix-py-cni-arm64",
    }


@pytest.mark.parametrize("machine", ["amd64", "arm64"])
def test_clients_answer(root: Path, machine: str) -> None:
    """That of the other architecture by emulation."""
    emulator = [] if MACHINES[os.uname().machine] == machine else [f"qemu-{UNAME[machine]}-static"]
    if emulator and not shutil.which(emulator[0]):
        pytest.skip(f"{emulator[0]} is not installed: scripts/debian-packages image-test")
    argv = [*emulator, str(root / f"{CLIENT}-{machine}")]
    call = {"CNI_COMMAND": "VERSION", "PATH": "/usr/bin"}
    done = subprocess.run(
        argv, env=call, input='{"cniVersion": "1.0.0"}', capture_output=True, text=True, check=True
    )
    assert "1.0.0" in json.loads(done.stdout)["supportedVersions"]


@pytest.mark.parametrize("words", [[], ["agent"], ["bgp-sidecar"], ["install-cni"], ["cleanup"]], ids=" ".join)
def test_commands_run(container: Container, tmp_path: Path, words: list[str]) -> None:
    done = container.run(tmp_path / "c", "felix-py", *words, "--help")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"Usage: felix-py {' '.join(words)}".strip())


def test_everything_can_be_imported_and_nothing_is_compiled_for_it(container: Container, tmp_path: Path) -> None:
    argv = ["python", "-v", "-c", IMPORT_ALL]
    done = container.run(tmp_path / "c", "/opt/felix-py/bin/python", *argv[1:])
    assert done.returncode == 0, done.stdout[-3000:]
    assert "all of" in done.stdout
    # `python -v` tells of each module whether its code came from a file of code.
    compiled = re.findall(r"^# code object from (?!')(\S+)", done.stdout, re.MULTILINE)
    assert compiled == []
    assert len(re.findall(r"^# code object from '.*pyc'", done.stdout, re.MULTILINE)) > 500


def test_tools_run(container: Container, tmp_path: Path) -> None:
    container.capabilities = ["NET_ADMIN", "NET_RAW"]
    expected = {
        "iptables": "nf_tables",
        "iptables-legacy": "legacy",
        "ip6tables-nft-restore": "nf_tables",
        "ip6tables-legacy-save": "legacy",
        "ipset": "ipset",
        "conntrack": "conntrack",
    }
    for number, (tool, said) in enumerate(expected.items()):
        done = container.run(tmp_path / str(number), tool, "--version")
        assert (done.returncode, said in done.stdout) == (0, True), f"{tool}: {done.stdout}"


def test_client_is_installed_from_the_image(container: Container, tmp_path: Path, root: Path) -> None:
    (tmp_path / "bin").mkdir()
    container.binds = {"/host/bin": tmp_path / "bin"}
    argv = ["felix-py", "install-cni", "--cni-bin-dir", "/host/bin"]
    first, second = (container.run(tmp_path / name, *argv) for name in ("one", "two"))
    assert first.stdout.startswith("installed /host/bin/felix-py-cni (amd64, ")
    assert second.stdout == "/host/bin/felix-py-cni is this version already (amd64)\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert (tmp_path / "bin/felix-py-cni").read_bytes() == (root / f"{CLIENT}-amd64").read_bytes()


def test_sbom_is_valid_and_complete(built: Path, root: Path, archive: Archive) -> None:
    document = json.loads((built / "felix-py.spdx.json").read_text())
    assert (document["spdxVersion"], document["dataLicense"]) == ("SPDX-2.3", "CC0-1.0")
    assert document["creationInfo"]["created"] == archive.config["created"]
    packages = {package["SPDXID"]: package for package in document["packages"]}
    assert len(packages) == len(document["packages"])
    digest = packages["SPDXRef-image"]["checksums"][0]["checksumValue"]
    assert archive.described["digest"] == f"sha256:{digest}"
    related = {one["relatedSpdxElement"] for one in document["relationships"]}
    assert related == set(packages)
    own = {one["licenseId"] for one in document["hasExtractedLicensingInfos"]}
    for package in packages.values():
        assert re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", package["SPDXID"])
        words = set(re.findall(r"[^\s()]+", package["licenseDeclared"])) - {"AND", "OR", "WITH"}
        assert {word for word in words if word.startswith("LicenseRef-")} <= own
        assert package["licenseDeclared"] != "NOASSERTION" or "licenseComments" in package, package["name"]
    debian = {one["name"]: one["versionInfo"] for key, one in packages.items() if key.startswith("SPDXRef-deb-")}
    status = (root / "var/lib/dpkg/status").read_text()
    installed = dict(re.findall(r"^Package: (\S+)\n(?:.*\n)*?Version: (\S+)", status, re.MULTILINE))
    assert installed.items() <= debian.items()
    assert {"iptables", "ipset", "conntrack", "python3.11-minimal", "libc6", "libssl3"} <= set(installed)
    assert not {"dpkg", "perl-base", "openssl"} & set(installed)
    python = {one["name"]: one["versionInfo"] for key, one in packages.items() if key.startswith("SPDXRef-pypi-")}
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE))
    assert python.pop("felix-py") == version("felix-py")
    assert python == locked


def test_users(root: Path) -> None:
    assert f"felix-py-bgp:x:{SIDECAR_ID}:{SIDECAR_ID}:" in (root / "etc/passwd").read_text()
