"""``python -m image``: builds ``dist/felix-py.tar`` and ``dist/felix-py.spdx.json``. Needs root, as chroot does."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from felix_py.cni.build import ARCHITECTURES
from image import application, archive, base

SOURCE = Path(__file__).parents[1]
_NET_BIND_SERVICE = 10
_HOMEPAGE = "https://github.com/felix-py/felix-py"


def main(arguments: list[str] | None = None) -> int:
    """Build as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m image", description=__doc__.partition(":")[2].strip())
    parser.add_argument("--output", type=Path, default=SOURCE / "dist", help="folder of the results")
    parser.add_argument("--work", type=Path, default=SOURCE / "build" / "image", help="folder for what lies between")
    parser.add_argument("--suite", default="bookworm", help="Debian's suite of the base")
    parser.add_argument("--mirror", help="Debian's mirror, also one of a day past (default: mmdebstrap's own)")
    options = parser.parse_args(arguments)
    try:
        build(options.output, options.work, options.suite, options.mirror)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


def build(output: Path, work: Path, suite: str, mirror: str | None) -> str:
    """Build the image; returns the digest of its manifest. The errors are those of the layers' modules."""
    if os.geteuid() != 0:
        raise RuntimeError("needs root: file systems are made in a chroot")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    output.mkdir(parents=True, exist_ok=True)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct"))
    os.umask(0o022)

    print(f"Making the base of Debian packages ({suite})")
    below, above = work / "base", work / "application"
    packages = base.make(below, work / "debs", suite, mirror)
    python = base.python_of(below)
    print("Installing the locked dependencies and the application")
    site = application.install(above, python)
    compile_application(below, above, site)

    print("Packing")
    capabilities = {f"usr/bin/{python}": file_capability(_NET_BIND_SERVICE)}
    layers = [
        archive.make_layer(below, work / "base.tar.gz", epoch, "Debian packages", capabilities),
        archive.make_layer(above, work / "application.tar.gz", epoch, "felix-py and its Python packages"),
    ]
    name = f"localhost/felix-py:{version()}"
    digest = archive.write_archive(output / "felix-py.tar", name, layers, configuration(epoch, layers, suite))
    sizes = [sum(layer.unpacked for layer in layers), sum(layer.size for layer in layers)]
    print(f"{output / 'felix-py.tar'}: {name}, {len(packages)} Debian packages")
    print("{:.1f} MB unpacked, {:.1f} MB packed".format(*(size / 1e6 for size in sizes)))
    print(digest)
    return digest


def compile_application(below: Path, above: Path, site: Path) -> None:
    """Compile the application with the base's Python: in the base for a moment, to have the paths of the image."""
    home = below / application.HOME
    home.parent.mkdir(exist_ok=True)
    (above / application.HOME).rename(home)
    try:
        base.compile_python(below, f"/{site.relative_to(above)}")
    finally:
        home.rename(above / application.HOME)
        home.parent.rmdir()


def file_capability(number: int) -> bytes:
    """The attribute ``security.capability`` (linux/capability.h, revision 2) that permits one, and does not raise it."""
    revision = 0x02000000
    return b"".join(word.to_bytes(4, "little") for word in (revision, 1 << number, 0, 0, 0))


def configuration(epoch: int, layers: list[archive.Layer], suite: str) -> dict[str, Any]:
    """The image's configuration, with the labels of the OCI convention (Image Specification, "Annotations")."""
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    project = _project()
    labels = {
        "title": "felix-py",
        "description": project["description"],
        "version": version(),
        "revision": os.environ.get("REVISION") or _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "source": _HOMEPAGE,
        "licenses": project["license"],
        "created": created,
        "base.name": f"debian:{suite}",
    }
    machines = {machine: architecture for architecture, machine in ARCHITECTURES.items()}
    return {
        "created": created,
        "architecture": machines[os.uname().machine],
        "os": "linux",
        "config": {
            "User": "0:0",
            "Entrypoint": ["felix-py"],
            "Env": [f"PATH=/{application.HOME}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"],
            "WorkingDir": "/",
            "Labels": {f"org.opencontainers.image.{key}": value for key, value in sorted(labels.items())},
        },
        "history": [{"created": created, "created_by": "make image", "comment": layer.comment} for layer in layers],
    }


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
