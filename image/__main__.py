"""``python -m image``: builds ``dist/felix-py.tar`` and ``dist/felix-py.spdx.json``. Needs root (chroot)."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from felix_py.cni.build import ARCHITECTURES
from image import application, archive, base, registry, sbom

SOURCE = Path(__file__).parents[1]
ARCHIVE, SBOM = "felix-py.tar", "felix-py.spdx.json"
_NET_BIND_SERVICE = 10
_REVISION = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
_LINKED = ("musl-dev", "libc6-dev-arm64-cross", "libgcc-12-dev-arm64-cross")
"""The static libraries in the CNI clients (felix_py/cni/build.py)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to build. ``mirror``: of Debian, also one of a day past (default: mmdebstrap's own); ``source``: the
    repository's URL, for the image's label; ``base``: an image to build on instead, by the Dockerfile; ``push``:
    where to push it to."""

    output: Path
    work: Path
    suite: str
    mirror: str | None
    source: str | None
    base: str | None
    push: str | None


def main(arguments: list[str] | None = None) -> int:
    """Build as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m image", description="Build the container image (as root).")
    parser.add_argument("--output", type=Path, default=SOURCE / "dist", help="folder of the results")
    parser.add_argument(
        "--work", type=Path, default=SOURCE / "build" / "image", help="folder for what lies between"
    )
    parser.add_argument("--suite", default="bookworm", help="Debian's suite of the base")
    parser.add_argument("--mirror", help="Debian's mirror, also one of a day past (default: mmdebstrap's own)")
    parser.add_argument("--source", help="URL of the repository, for the label")
    parser.add_argument("--base", help="build on this image by the Dockerfile, instead of on packages")
    parser.add_argument("--push", metavar="REFERENCE", help="push it to there (registry/name:tag)")
    try:
        wanted = Wanted(**vars(parser.parse_args(arguments)))
        target = build_on_base(wanted) if wanted.base else build(wanted)
        if wanted.push:
            registry.push(target, wanted.push)
            print(f"Pushed {wanted.push}")
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


def build(wanted: Wanted) -> Path:
    """Build archive and SBOM on Debian packages; returns the archive's path.

    Raises:
        RuntimeError: not root, or the wrong Python.
        OSError: a disk that is full, say. Results of an earlier build stay.
        subprocess.CalledProcessError: a tool failed; it has said why on standard error.
    """
    if os.geteuid() != 0:
        raise RuntimeError("needs root: file systems are made in a chroot")
    shutil.rmtree(wanted.work, ignore_errors=True)
    wanted.work.mkdir(parents=True)
    wanted.output.mkdir(parents=True, exist_ok=True)
    created = _created()
    os.umask(0o022)

    print(f"Making the base of Debian packages ({wanted.suite})", flush=True)
    below, above = wanted.work / "base", wanted.work / "application"
    packages = base.make(below, wanted.work / "debs", wanted.suite, wanted.mirror)
    python = base.python_of(below)
    print("Installing the locked dependencies and the application", flush=True)
    site = application.install(above, python)
    compile_application(below, above, site)

    print("Packing", flush=True)
    capabilities = {f"usr/bin/{python}": file_capability(_NET_BIND_SERVICE)}
    layers = [
        archive.make_layer(below, wanted.work / "base.tar.gz", created, "Debian packages", capabilities),
        archive.make_layer(above, wanted.work / "application.tar.gz", created, "felix-py and Python packages"),
    ]
    target = wanted.output / ARCHIVE
    digest = archive.write_archive(target, _name(), layers, configuration(created, layers, wanted))
    entries = [
        *(sbom.of_debian(one, wanted.suite) for one in packages),
        *sbom.of_python(site),
        *sbom.of_linked(_LINKED),
    ]
    text = sbom.document("felix-py", version(), _date(created), digest, entries)
    (wanted.output / SBOM).write_text(text)
    unpacked, packed = sum(one.unpacked for one in layers) / 1e6, sum(one.size for one in layers) / 1e6
    print(f"{target}: {_name()}, {unpacked:.1f} MB unpacked, {packed:.1f} MB packed, {len(entries)} packages")
    print(digest)
    return target


def build_on_base(wanted: Wanted) -> Path:
    """Build the archive on another image; returns its path. There is no SBOM then: what the base has, it says."""
    assert wanted.base
    wanted.output.mkdir(parents=True, exist_ok=True)
    (wanted.output / SBOM).unlink(missing_ok=True)
    target = wanted.output / ARCHIVE
    registry.build_on(wanted.base, target.absolute(), _name(), _created(), labels(_created(), wanted))
    print(f"{target}: {_name()} on {wanted.base}")
    return target


def compile_application(below: Path, above: Path, site: Path) -> None:
    """Compile the application with the base's Python: for a moment in the base, to have the image's paths."""
    home = below / application.HOME
    home.parent.mkdir(exist_ok=True)
    (above / application.HOME).rename(home)
    try:
        base.compile_python(below, f"/{site.relative_to(above)}")
    finally:
        home.rename(above / application.HOME)
        home.parent.rmdir()


def file_capability(number: int) -> bytes:
    """The attribute ``security.capability`` (linux/capability.h, revision 2) that permits one, not raised."""
    revision = 0x02000000
    return b"".join(word.to_bytes(4, "little") for word in (revision, 1 << number, 0, 0, 0))


def labels(created: int, wanted: Wanted) -> dict[str, str]:
    """The image's labels, by the OCI convention (Image Specification, "Annotations")."""
    project = _project()
    found = {
        "title": "felix-py",
        "description": project["description"],
        "version": version(),
        "revision": os.environ.get("REVISION") or _git(*_REVISION),
        "licenses": project["license"],
        "created": _date(created),
        "base.name": wanted.base or f"debian:{wanted.suite}",
        **({"source": wanted.source} if wanted.source else {}),
    }
    return {f"org.opencontainers.image.{key}": value for key, value in sorted(found.items())}


def configuration(created: int, layers: list[archive.Layer], wanted: Wanted) -> dict[str, Any]:
    """The image's configuration (OCI Image Specification, "Image Configuration") without ``rootfs``."""
    machines = {machine: architecture for architecture, machine in ARCHITECTURES.items()}
    made = {"created": _date(created), "created_by": "make image"}
    return {
        "created": _date(created),
        "architecture": machines[os.uname().machine],
        "os": "linux",
        "config": {
            # The agent's; the sidecar's is its container's runAsUser.
            "User": "0:0",
            "Entrypoint": ["felix-py"],
            "Env": [f"PATH=/{application.HOME}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"],
            "WorkingDir": "/",
            "Labels": labels(created, wanted),
        },
        "history": [{**made, "comment": layer.comment} for layer in layers],
    }


def _name() -> str:
    return f"localhost/felix-py:{version()}"


def _created() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct"))


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def version() -> str:
    """The project's version."""
    return str(_project()["version"])


def _project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    return found


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(SOURCE), *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
