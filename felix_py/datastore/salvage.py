"""The parts of JSON that its decoder gives up on as a whole: one bad object must not cost the list that it is in.

The decoder stops at the first thing that it does not take, wherever it is: nesting deeper than its stack, a
control character, a number out of range. Here only brackets, commas and strings count, which is enough to tell
one object from the next. It takes a hundred times as long, so it is tried last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)


def members(raw: bytes) -> dict[str, bytes]:
    """The members of an object, each value as its bytes. Of two with the same name the last counts.

    Raises:
        ValueError: it is no object, or its brackets do not match.
    """
    return {text(key): value for key, value in _parts(raw, b"{") if key}


def elements(raw: bytes) -> list[bytes]:
    """The elements of an array, each as its bytes.

    Raises:
        ValueError: it is no array, or its brackets do not match.
    """
    return [value for _, value in _parts(raw, b"[")]


def text(raw: bytes) -> str:
    """A string; empty where it is none, or cannot be read."""
    try:
        return msgspec.json.decode(raw, type=str)
    except ValueError:
        return ""


def _parts(raw: bytes, opening: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each member; the key of an element is empty."""
    if not raw.lstrip().startswith(opening):
        raise ValueError(f"no {opening.decode()}")
    depth = begin = 0
    key = b""
    for token in _TOKEN.finditer(raw):
        sign = token[0]
        if sign in b"{[":
            depth += 1
            if depth == 1:
                begin = token.end()
        elif sign in b"}]":
            depth -= 1
            if depth == 0:
                if value := raw[begin : token.start()].strip():
                    yield key, value
                return
        elif depth == 1 and sign == b",":
            yield key, raw[begin : token.start()].strip()
            begin, key = token.end(), b""
        elif depth == 1 and sign == b":" and not key:
            key = raw[begin : token.start()].strip()
            begin = token.end()
    raise ValueError("brackets do not match")
