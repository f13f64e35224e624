"""A bundle of texts as a compressed archive: bounded, redacted, and complete as far as each part can be read."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

PART_MOST = 8 << 20
"""Bytes of one part; the rest is cut off."""

MOST = 64 << 20
"""Bytes of all parts together."""

MANIFEST = "MANIFEST"


class NotHere(Exception):
    """A part that does not exist on this node, which is no failure; the message says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the bundle. ``read`` may raise anything; NotHere: there is none. ``end``: keep its end."""

    path: str
    read: Callable[[], str]
    end: bool = False


def write(
    to: IO[bytes], folder: str, parts: Iterable[Part], clean: Callable[[str], str], say: Callable[[str], None]
) -> list[str]:
    """Write all parts below ``folder`` of a .tar.gz, and last its MANIFEST, whose lines are returned.

    ``clean`` takes secrets out of every text; ``say`` is told each path before it is read. Raises OSError if
    ``to`` cannot be written.
    """
    lines: list[str] = []
    left = MOST
    with tarfile.open(fileobj=to, mode="w|gz") as archive:
        for part in parts:
            say(part.path)
            started = time.monotonic()
            state, content, words = _content(part, clean, min(PART_MOST, left))
            if content is not None:
                left -= len(content)
                _add(archive, f"{folder}/{part.path}", content)
            size = len(content) if content is not None else 0
            spent = time.monotonic() - started
            lines.append(clean(f"{state:<6} {part.path} {size} bytes {spent:.2f} s {words}").rstrip())
        _add(archive, f"{folder}/{MANIFEST}", "\n".join([*lines, ""]).encode())
    return lines


def _content(part: Part, clean: Callable[[str], str], most: int) -> tuple[str, bytes | None, str]:
    """A part's state, content and a remark."""
    if most <= 0:
        return "LEFT", None, f"the bundle has {MOST >> 20} MB already"
    try:
        text = clean(part.read())
    except NotHere as absent:
        return "none", None, _one_line(absent)
    except Exception as error:
        return "FAILED", None, _one_line(error) or type(error).__name__
    content = text.encode(errors="replace")
    if len(content) <= most:
        return "ok", content, ""
    kept = content[-most:] if part.end else content[:most]
    return "cut", kept, f"of {len(content)} bytes, the {'last' if part.end else 'first'} are here"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:1000]


def _add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mtime, member.mode = len(content), int(time.time()), 0o600
    archive.addfile(member, io.BytesIO(content))
