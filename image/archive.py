"""Layers and the archive: an OCI image layout with Docker's ``manifest.json`` beside it, in one tar.

containerd and podman read the layout (OCI Image Specification 1.0, "Image Layout"); ``docker load`` reads
``manifest.json`` (Docker Image Specification 1.2), whose paths lead to the same blobs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_OCI = "application/vnd.oci.image"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's blob. Digests are ``sha256:`` and 64 hex digits; sizes are bytes."""

    blob: Path
    digest: str
    diff_id: str
    size: int
    unpacked: int
    comment: str


class _Hashed:
    """A file that is written, and digested on the way."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def make_layer(
    root: Path, blob: Path, epoch: int, comment: str, capabilities: Mapping[str, bytes] | None = None
) -> Layer:
    """Pack all below ``root`` into a gzipped tar.

    Everything is root's, of the time ``epoch`` (seconds since 1970), sorted by name, of mode 0755 or 0644.
    ``capabilities``: paths and their file capabilities (the attribute of capabilities(7)).
    """
    with blob.open("wb") as file:
        packed = _Hashed(file)
        with gzip.GzipFile("", "wb", 9, packed, mtime=0) as zipped:
            plain = _Hashed(zipped)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                for path in sorted(root.rglob("*"), key=lambda one: one.relative_to(root).parts):
                    _add(tar, root, path, epoch, capabilities or {})
    unpacked = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() or path.is_symlink())
    return Layer(blob, packed.digest, plain.digest, packed.size, unpacked, comment)


def _add(tar: tarfile.TarFile, root: Path, path: Path, epoch: int, capabilities: Mapping[str, bytes]) -> None:
    name = str(path.relative_to(root))
    entry = tarfile.TarInfo(name)
    entry.mtime = epoch
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
        tar.addfile(entry)
    elif stat.S_ISDIR(status.st_mode):
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name in ("tmp", "var/tmp") else 0o755
        tar.addfile(entry)
    elif stat.S_ISREG(status.st_mode):
        entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
        if value := capabilities.get(name):
            entry.pax_headers = {"SCHILY.xattr.security.capability": value.decode("ascii")}
        with path.open("rb") as file:
            tar.addfile(entry, file)
    else:
        raise ValueError(f"{path}: neither a file nor a folder nor a symbolic link")


def write_archive(target: Path, name: str, layers: Sequence[Layer], config: Mapping[str, Any]) -> str:
    """Write the archive of an image with that reference (``registry/name:tag``); returns its manifest's digest.

    ``config``: the image's configuration (OCI Image Specification, "Image Configuration") without ``rootfs``.
    """
    blobs: dict[str, bytes | Layer] = {layer.digest: layer for layer in layers}
    whole = {**config, "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}}
    configuration = _blob(blobs, whole, f"{_OCI}.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": configuration,
        "layers": [
            {"mediaType": f"{_OCI}.layer.v1.tar+gzip", "digest": one.digest, "size": one.size} for one in layers
        ],
    }
    described = _blob(blobs, manifest, f"{_OCI}.manifest.v1+json")
    described["platform"] = {"architecture": config["architecture"], "os": config["os"]}
    # The first is podman's and containerd's, the second the specification's.
    described["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    paths = [_path(layer.digest) for layer in layers]
    files: dict[str, bytes | Layer] = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": [described]}),
        "manifest.json": _json([{"Config": _path(configuration["digest"]), "RepoTags": [name], "Layers": paths}]),
        **{_path(digest): content for digest, content in sorted(blobs.items())},
    }
    made = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with tarfile.open(made, "w", format=tarfile.USTAR_FORMAT) as tar:
            for folder in ("blobs", "blobs/sha256"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            for path, content in files.items():
                _put(tar, path, content)
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)
    return str(described["digest"])


def _blob(blobs: dict[str, bytes | Layer], document: Mapping[str, Any], media_type: str) -> dict[str, Any]:
    data = _json(document)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs[digest] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _put(tar: tarfile.TarFile, path: str, content: bytes | Layer) -> None:
    entry = tarfile.TarInfo(path)
    if isinstance(content, Layer):
        entry.size = content.size
        with content.blob.open("rb") as file:
            tar.addfile(entry, file)
    else:
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
