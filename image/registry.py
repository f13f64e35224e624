"""Registries: the image of another base by the Dockerfile, and pushing. buildah and skopeo, without a daemon."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).parents[1]


def push(archive: Path, reference: str) -> None:
    """Push an archive to a registry (``registry/name:tag``), with the credentials of `skopeo login`.

    Raises:
        RuntimeError: skopeo is not installed.
        subprocess.CalledProcessError: it failed, and has said why.
    """
    _run("skopeo", "copy", "--quiet", f"oci-archive:{archive}", f"docker://{reference}")


def build_on(base: str, archive: Path, name: str, created: int, labels: dict[str, str]) -> None:
    """Build the image by the Dockerfile on a base: a Debian 12 of a registry, say, or of ``oci-archive:PATH``.

    It is not reproducible to the byte: dpkg and apt run in it. Errors as those of :func:`push`.
    """
    archive.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="felix-py-image-") as folder:
        storage = ("--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
        options = ["--isolation", "chroot", "--network", "host", "--timestamp", str(created)]
        options += [word for key, value in sorted(labels.items()) for word in ("--label", f"{key}={value}")]
        _run("buildah", *storage, "build", *options, "--build-arg", f"BASE={base}", "--tag", name, str(SOURCE))
        _run("buildah", *storage, "push", name, f"oci-archive:{archive}:{name}")


def _run(tool: str, *words: str) -> None:
    argv: Sequence[str] = (tool, *words)
    try:
        subprocess.run(argv, check=True, env={**os.environ, "BUILDAH_FORMAT": "oci"})
    except FileNotFoundError:
        raise RuntimeError(f"{tool} is not installed: scripts/debian-packages image-registry") from None
