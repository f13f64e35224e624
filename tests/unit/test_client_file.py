"""Which CNI client is this node's, and what is none."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from felix_py.cni.build import ARCHITECTURES, client_of
from felix_py.cni.client_file import NotAClient, architecture_of_node, check_client, client_for
from felix_py.cni.conflist import install_client

_X86_64, _AARCH64, _RISCV = 62, 183, 243
HERE = architecture_of_node()
OTHER = "arm64" if HERE == "amd64" else "amd64"
MACHINE = {"amd64": _X86_64, "arm64": _AARCH64}


def program(machine: int, text: bytes = b"\x90" * 100, sections: int = 2) -> bytes:
    """A static ELF program of one segment, with a table of sections at its end."""
    start = 64 + 56
    table = start + len(text)
    magic = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", magic, 2, machine, 1, 0, 64, table, 0, 64, 56, 1, 64, sections, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, start, 0, 0, len(text), len(text), 4096)
    return header + segment + text + b"\0" * 64 * sections


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_program_of_the_architecture(architecture: str) -> None:
    check_client(program(MACHINE[architecture]), architecture)


def test_every_truncation_is_found() -> None:
    for sections in (0, 2):
        whole = program(_X86_64, sections=sections)
        for length in range(len(whole)):
            with pytest.raises(NotAClient):
                check_client(whole[:length], "amd64")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no 64-bit ELF program"),
        (b"#!/bin/sh\n" * 20, "no 64-bit ELF program"),
        (program(_AARCH64), "for arm64, and this node is amd64"),
        (program(_RISCV), "for machine 243, and this node is amd64"),
        (program(_X86_64)[:-1], r"truncated: \d+ bytes of \d+"),
    ],
    ids=["empty", "script", "arm64", "riscv64", "truncated"],
)
def test_what_is_no_client(content: bytes, reason: str) -> None:
    with pytest.raises(NotAClient, match=reason):
        check_client(content, "amd64")


def test_image_has_a_client_for_each_architecture(tmp_path: Path) -> None:
    built = tmp_path / "felix-py-cni"
    assert client_for("amd64", built) == built, "nothing is built: who installs says so"
    for architecture in ARCHITECTURES:
        client_of(architecture, tmp_path).touch()
        assert client_for(architecture, built) == client_of(architecture, tmp_path)
    with pytest.raises(NotAClient, match=r"no CNI client for riscv64 in this image, only for amd64, arm64"):
        client_for("riscv64", built)
    built.touch()
    assert client_for("riscv64", built) == built


@pytest.mark.parametrize(
    "bad", [program(MACHINE[OTHER]), program(MACHINE[HERE])[:-40]], ids=["other", "truncated"]
)
def test_bad_client_replaces_none_that_works(tmp_path: Path, bad: bytes) -> None:
    good = tmp_path / "good"
    good.write_bytes(program(MACHINE[HERE]))
    install_client(tmp_path / "bin", tmp_path / "cni.sock", good)
    (tmp_path / "bad").write_bytes(bad)
    with pytest.raises(NotAClient, match="bad: "):
        install_client(tmp_path / "bin", tmp_path / "cni.sock", tmp_path / "bad")
    assert (tmp_path / "bin/felix-py-cni").read_bytes() == good.read_bytes()


def test_client_that_runs_is_replaced(tmp_path: Path) -> None:
    """A runtime executes it at any moment; what runs goes on with what it was."""
    sleep = shutil.which("sleep")
    assert sleep
    target = install_client(tmp_path / "bin", tmp_path / "cni.sock", Path(sleep))
    with subprocess.Popen([target, "600"]) as running:
        try:
            (tmp_path / "new").write_bytes(program(MACHINE[HERE]))
            install_client(tmp_path / "bin", tmp_path / "cni.sock", tmp_path / "new")
            assert target.read_bytes() == program(MACHINE[HERE])
            assert running.poll() is None
        finally:
            running.kill()
    assert {path.name for path in target.parent.iterdir()} == {"felix-py-cni", "felix-py-cni.socket"}


def test_it_says_what_it_did(tmp_path: Path) -> None:
    said: list[str] = []
    target = tmp_path / "bin/felix-py-cni"
    for text in (b"one", b"one", b"two"):
        (tmp_path / "client").write_bytes(content := program(MACHINE[HERE], text))
        install_client(tmp_path / "bin", tmp_path / "cni.sock", tmp_path / "client", said.append)
        assert target.read_bytes() == content
    assert said == [
        f"installed {target} ({HERE}, {len(content)} bytes)",
        f"{target} is this version already ({HERE})",
        f"replaced {target} ({HERE}, {len(content)} bytes)",
    ]
    target.chmod(0o644)
    install_client(tmp_path / "bin", tmp_path / "cni.sock", tmp_path / "client", said.append)
    assert os.access(target, os.X_OK)
    assert said[-1].startswith("replaced ")
