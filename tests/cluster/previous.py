"""``python -m tests.cluster.previous``: builds the image of the commit before this one: what an upgrade is from.

It is built from that commit's files, by its own ``python -m image``, once, into the user's cache. Where there is
no such commit, or it cannot build an image, this one's image stands in for it, with another label: for container
runtimes another image, with the same programs. The tests do not build: they reach no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.machine import CHECKOUT

NAME = "localhost/felix-py:previous"
"""What the image is called once it is imported."""

Json = dict[str, Any]


def archive(current: Path, scratch: Path) -> tuple[Path, str]:
    """An archive with the image, and what it is; ``current`` is this commit's, ``scratch`` a folder."""
    commit = _commit()
    target = _cache() / f"{commit}.tar"
    if commit and target.exists():
        return target, f"the image of commit {commit[:12]}"
    target = scratch / "relabelled.tar"
    _rewrite(current, target, _relabelled)
    return target, "this commit's image with another label"


def main() -> None:
    """Build it if it can be built and is not there yet."""
    commit = _commit()
    if not commit:
        print("The commit before this one builds no image: upgrades are tried with this one's")
        return
    target = _cache() / f"{commit}.tar"
    with (_cache() / f".{commit}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run builds the same
        if not target.exists():
            print(f"Building the image of the commit before this one, {commit[:12]}", flush=True)
            _build(commit, target)


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "felix-py", "images")
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _commit() -> str:
    """The commit before this one if it builds images, else nothing."""
    commit = _git("rev-parse", "--verify", "-q", "HEAD^1")
    return commit if commit and _git("ls-tree", commit, "image/__main__.py") else ""


def _build(commit: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="felix-py-previous-") as scratch:
        source = Path(scratch, "source")
        tree = subprocess.run(["git", "-C", str(CHECKOUT), "archive", commit], check=True, stdout=subprocess.PIPE)
        source.mkdir()
        subprocess.run(["tar", "-x", "-C", str(source)], check=True, input=tree.stdout)
        # Without a repository it has no commit to ask for these.
        env = {**os.environ, "PYTHONPATH": str(source), "REVISION": commit, "SOURCE_DATE_EPOCH": "1"}
        argv = [sys.executable, "-m", "image", "--output", f"{scratch}/dist", "--work", f"{scratch}/work"]
        subprocess.run(argv, check=True, cwd=source, env=env)
        _rewrite(Path(scratch, "dist/felix-py.tar"), target, lambda config: config)


def _rewrite(source: Path, target: Path, change: Callable[[Json], Json]) -> None:
    """Copy an archive under :data:`NAME`, its image's configuration changed (OCI image layout)."""
    with tarfile.open(source) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}  # type: ignore[union-attr]
    index = json.loads(files["index.json"])
    described = index["manifests"][0]
    manifest = json.loads(files.pop(_path(described["digest"])))
    config = change(json.loads(files.pop(_path(manifest["config"]["digest"]))))
    manifest["config"] |= _blob(files, config)
    described |= _blob(files, manifest)
    described["annotations"] = dict.fromkeys(described["annotations"], NAME)
    files["index.json"] = json.dumps(index).encode()
    listed = json.loads(files["manifest.json"])[0]
    listed |= {"Config": _path(manifest["config"]["digest"]), "RepoTags": [NAME]}
    files["manifest.json"] = json.dumps([listed]).encode()
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    with tarfile.open(unfinished, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    unfinished.replace(target)


def _relabelled(config: Json) -> Json:
    config["config"]["Labels"]["org.opencontainers.image.version"] = "previous"
    return config


def _blob(files: dict[str, bytes], document: Json) -> Json:
    data = json.dumps(document).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    files[_path(digest)] = data
    return {"digest": digest, "size": len(data)}


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(CHECKOUT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
