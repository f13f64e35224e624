"""Splits JSON that the decoder rejects into members and elements: one bad object must not cost its list.

The decoder stops at the first error: nesting deeper than its stack, a control character, a number out of range.
This module looks at brackets, commas and strings only, which suffices to separate objects. It takes a hundred
times as long, so it is tried last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)


def members(raw: bytes) -> dict[str, bytes]:
    """The members of an object as bytes, the last of equal names; ValueError: no object, unbalanced brackets."""
    return {text(key): value for key, value in _parts(raw, b"{") if key}


def elements(raw: bytes) -> list[bytes]:
    """The elements of an array as bytes; ValueError: no array, or unbalanced brackets."""
    return [value for _, value in _parts(raw, b"[")]


def text(raw: bytes) -> str:
    """Decode a JSON string; empty if it is not one, or undecodable."""
    try:
        return msgspec.json.decode(raw, type=str)
    except ValueError:
        return ""


def _parts(raw: bytes, opening: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each member; an element's key is empty."""
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
