"""The container images of the tests, as one archive: no registry can be reached from inside.

``localhost/test/pause:1`` is the sandbox's, ``localhost/test/busybox:1`` has a shell and the common tools, and
``localhost/test/agnhost:1`` has them and Kubernetes' own test program (``agnhost netexec``, ``agnhost connect``).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import assets
from tests.cluster.machine import command

PAUSE, BUSYBOX, AGNHOST = (f"localhost/test/{name}:1" for name in ("pause", "busybox", "agnhost"))
_PAUSE_SOURCE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
_APPLETS = (
    "sh ls cat ip ping nc sleep grep ps env id hostname netstat route true false head seq sed awk date kill"
)
_FOLDERS = dict.fromkeys(["bin", "dev", "etc", "proc", "sys", "usr", "usr/bin", "var", "run"], 493) | {
    "tmp": 0o1777,
    "root": 0o700,
}
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Image:
    """An image of one layer: programs by their path in it."""

    tags: Sequence[str]
    programs: Mapping[str, Path]
    entrypoint: Sequence[str] = ()
    arguments: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)


def archive() -> Path:
    """The archive (as ``docker save`` makes them), made anew where it is older than what goes into it.

    Raises:
        CommandFailed: no C compiler.
        FileNotFoundError: a program is missing.
    """
    agnhost = assets.program("agnhost")
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    made = agnhost.with_name("images.tar")
    with agnhost.with_name(".images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max(path.stat().st_mtime for path in (agnhost, busybox, Path(__file__)))
        if not made.exists() or made.stat().st_mtime < newest:
            with tempfile.TemporaryDirectory() as folder:
                source, pause = Path(folder, "pause.c"), Path(folder, "pause")
                source.write_text(_PAUSE_SOURCE)
                command("cc", "-Os", "-static", "-o", str(pause), str(source))
                _write(made.with_suffix(".new"), _images(pause, busybox, agnhost))
            made.with_suffix(".new").replace(made)
    return made


def _images(pause: Path, busybox: Path, agnhost: Path) -> list[Image]:
    links = {f"bin/{applet}": "busybox" for applet in _APPLETS.split()}
    box = {"bin/busybox": busybox}
    return [
        Image([PAUSE], {"pause": pause}, ["/pause"]),
        Image([BUSYBOX], box, (), ["sh"], links),
        Image([AGNHOST], {"agnhost": agnhost, **box}, ["/agnhost"], ["pause"], links),
    ]


def _write(path: Path, images: Sequence[Image]) -> None:
    manifest = []
    with tarfile.open(path, "w") as tar, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for number, image in enumerate(images):
            layer = Path(folder, "layer")
            _write_layer(layer, image)
            with layer.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            _add(tar, f"{number}.json", json.dumps(_config(image, digest)).encode())
            tar.add(layer, f"{number}.tar")
            parts = {"Config": f"{number}.json", "Layers": [f"{number}.tar"]}
            manifest.append({**parts, "RepoTags": list(image.tags)})
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _write_layer(path: Path, image: Image) -> None:
    with tarfile.open(path, "w") as tar:
        for name, mode in sorted(_FOLDERS.items()):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for name, text in _TEXTS.items():
            _add(tar, name, text.encode())
        for name, program in image.programs.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = os.path.getsize(program), 0o755
            with program.open("rb") as file:
                tar.addfile(entry, file)
        for name, target in image.links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)


def _config(image: Image, digest: str) -> dict[str, object]:
    """The image's configuration (OCI image specification, config.md)."""
    return {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint) or None,
            "Cmd": list(image.arguments),
            "Env": ["PATH=/usr/bin:/bin:/"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))
