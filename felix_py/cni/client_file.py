"""Which CNI client is this node's, and whether a file is one: whole, and for this processor.

A runtime that gets a file of another architecture says "exec format error" for each pod, and a truncated one may
even run until it needs what is missing. So the file is looked at before it replaces one that works.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from felix_py.cni.build import ARCHITECTURES, BUILT, client_of

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
"""Elf64_Ehdr of elf(5): the layout of all 64-bit little-endian machines."""

_PROGRAM = struct.Struct("<IIQQQQQQ")
"""Elf64_Phdr of elf(5)."""

_MACHINES = {62: "amd64", 183: "arm64"}
"""e_machine (EM_X86_64, EM_AARCH64) -> the architecture as Kubernetes names it."""

_64_BIT_LITTLE_ENDIAN = b"\x7fELF\x02\x01"


class NotAClient(OSError):
    """The file is no program for this node; the message says why."""


def architecture_of_node() -> str:
    """This machine's architecture as Kubernetes names it, else as uname(2) does."""
    machine = os.uname().machine
    return next((ours for ours, theirs in ARCHITECTURES.items() if theirs == machine), machine)


def client_for(architecture: str, built: Path = BUILT) -> Path:
    """The client for that architecture, of an image; else the one that `make` has built, which need not exist.

    Raises:
        NotAClient: there are clients, but none for it.
    """
    ours = client_of(architecture, built.parent)
    if ours.is_file() or built.is_file():
        return ours if ours.is_file() else built
    others = [one for one in ARCHITECTURES if client_of(one, built.parent).is_file()]
    if others:
        raise NotAClient(f"no CNI client for {architecture} in this image, only for {', '.join(others)}")
    return built


def check_client(content: bytes, architecture: str) -> None:
    """Check that ``content`` is a whole program for that architecture.

    Raises:
        NotAClient: it is not.
    """
    if len(content) < _HEADER.size or not content.startswith(_64_BIT_LITTLE_ENDIAN):
        raise NotAClient("no 64-bit ELF program")
    header = _HEADER.unpack_from(content)
    machine, programs, sections = header[2], header[5], header[6]
    program_size, program_count, section_size, section_count = header[9:13]
    if (found := _MACHINES.get(machine, f"machine {machine}")) != architecture and architecture in ARCHITECTURES:
        raise NotAClient(f"for {found}, and this node is {architecture}")
    ends = [programs + program_size * program_count, sections + section_size * section_count]
    if program_size == _PROGRAM.size and ends[0] <= len(content):
        for number in range(program_count):
            segment = _PROGRAM.unpack_from(content, programs + number * program_size)
            ends.append(segment[2] + segment[5])  # p_offset, p_filesz
    if max(ends) > len(content):
        raise NotAClient(f"truncated: {len(content)} bytes of {max(ends)}")
