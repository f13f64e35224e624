"""IP set commands as packed netlink messages.

A message carries up to 256 members of a set. Each message is acknowledged; a message that fails is sent again
member by member, so that a bad member is named and the others are written. Source: the kernel's
include/uapi/linux/netfilter/ipset/ip_set.h; ipset(8).
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from felix_py.netlink.connection import Netlink
from felix_py.netlink.ipset_members import ATTR_DATA, dumped, writable
from felix_py.netlink.wire import (
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    attr,
    attributes,
    message,
    nested,
)
from felix_py.records import SetSpec, SetType
from policy.model import Family

_SUBSYSTEM = 6 << 8
_CREATE, _DESTROY, _SWAP, _LIST = (_SUBSYSTEM | command for command in (2, 3, 6, 7))
ADD, DELETE = _SUBSYSTEM | 9, _SUBSYSTEM | 10

_PROTOCOL, _NAME, _TYPE, _REVISION, _FAMILY, _FLAGS, _ADT, _LINENO = 1, 2, 3, 4, 5, 6, 8, 9
_NAME2 = _TYPE
_CADT_FLAGS, _MAXELEM, _ELEMENTS = 8, 19, 24
_NET_BYTEORDER = 0x4000
_LIST_NAMES_ONLY, _LIST_HEADER_ONLY = 1 << 1, 1 << 2
_WITH_SKBINFO = 1 << 6
_NFPROTO = {Family.V4: 2, Family.V6: 10}

_REVISIONS = {SetType.IP: 4, SetType.NET: 6, SetType.IP_PORT: 5, SetType.NET_IFACE: 6}
"""The first revision of each type with skbinfo (Linux 3.18). Later kernels still accept it."""

MOST_MEMBERS = 1 << 20  # the kernel allocates memory as members come
_CHUNK = 256
_HEADER = struct.pack(">BBH", 0, 0, 0) + attr(_PROTOCOL, b"\x07")

BUSY, TYPE_MISMATCH, FULL = 4100, 4102, 4352
_ERRORS = {
    errno.ENOENT: "there is no such set",
    4098: "the kernel does not have this set type",
    4099: "the kernel has no room for more sets",
    BUSY: "a rule still uses it",
    TYPE_MISMATCH: "a rule uses it, and sets of such different types cannot be swapped",
    4104: "the kernel does not take this prefix length",
    FULL: "the set is full",
}


class Shape(Struct, frozen=True):
    """What is fixed when a set is created. ``family`` is the kernel's NFPROTO number, ``most`` is maxelem."""

    type: str
    family: int
    marked: bool
    most: int

    @classmethod
    def of(cls, spec: SetSpec) -> Shape:
        """The shape that a spec asks for."""
        return cls(spec.type.value, _NFPROTO[spec.family], bool(spec.mark_mask), MOST_MEMBERS)


class Header(Struct, frozen=True):
    """What the kernel tells of a set without its members. ``members``: how many; None before Linux 4.10."""

    name: str
    shape: Shape
    members: int | None


class Batch(Struct, frozen=True):
    """Members of one set to ADD (also to change their marks) or DELETE, as pairs of key and value."""

    name: str
    command: int
    members: Sequence[tuple[bytes, int]]


class Commands:
    """IP set commands in the network namespace where this was made. All errors are OSError with readable text."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)
        self._headers: dict[bytes, Header] = {}

    def close(self) -> None:
        self._netlink.close()

    def names(self) -> list[str]:
        """Names of all sets, also foreign ones."""
        flags = attr(_FLAGS | _NET_BYTEORDER, struct.pack(">I", _LIST_NAMES_ONLY))
        answers = self._netlink.dump(message(_LIST, 0, _HEADER + flags))
        return [bytes(attributes(a[4:])[_NAME]).rstrip(b"\0").decode(errors="replace") for a in answers]

    def headers(self) -> Iterable[Header]:
        """The headers of all sets, also foreign ones; a few milliseconds for 1,000 sets.

        The kernel walks over all members, at some nanoseconds each.
        """
        flags = attr(_FLAGS | _NET_BYTEORDER, struct.pack(">I", _LIST_HEADER_ONLY))
        # Most answers are the same, byte for byte, as the last time; decoding is what takes long.
        before, self._headers = self._headers, {}
        for answer in self._netlink.stream(message(_LIST, 0, _HEADER + flags)):
            self._headers[answer] = before.get(answer) or _header(answer)
        return self._headers.values()

    def read(self, name: str) -> tuple[Shape, dict[bytes, int]] | None:
        """Shape and members (key -> value) of a set; None if it does not exist."""
        return self._list(name, 0)

    def shape(self, name: str) -> Shape | None:
        """The shape of a set, read without its members; None if it does not exist."""
        read = self._list(name, _LIST_HEADER_ONLY)
        return read[0] if read else None

    def _list(self, name: str, flags: int) -> tuple[Shape, dict[bytes, int]] | None:
        asked = attr(_FLAGS | _NET_BYTEORDER, struct.pack(">I", flags)) if flags else b""
        try:
            answers = self._netlink.dump(message(_LIST, 0, _head(name) + asked))
        except FileNotFoundError:
            return None
        shape: Shape | None = None
        members: dict[bytes, int] = {}
        for answer in answers:
            found = attributes(answer[4:])
            if _TYPE in found:
                shape = _shape(found)
            if _ADT in found:
                members.update(dumped(found[_ADT], marked=shape is not None and shape.marked))
        return (shape, members) if shape else None

    def create(self, name: str, spec: SetSpec) -> None:
        """Create an empty set."""
        data = attr(_MAXELEM | _NET_BYTEORDER, struct.pack(">I", MOST_MEMBERS))
        if spec.mark_mask:
            data += attr(_CADT_FLAGS | _NET_BYTEORDER, struct.pack(">I", _WITH_SKBINFO))
        body = (
            _head(name)
            + attr(_TYPE, spec.type.encode() + b"\0")
            + attr(_REVISION, bytes((_REVISIONS[spec.type],)))
            + attr(_FAMILY, bytes((_NFPROTO[spec.family],)))
            + nested(ATTR_DATA, data)
        )
        self._one(message(_CREATE, NLM_F_CREATE | NLM_F_EXCL, body))

    def destroy(self, name: str) -> None:
        """Destroy a set, which need not exist. Fails with BUSY while a rule uses it."""
        with contextlib.suppress(FileNotFoundError):
            self._one(message(_DESTROY, 0, _head(name)))

    def swap(self, one: str, other: str) -> None:
        """Exchange the contents of two sets: rules that name one match the other's contents from then on."""
        self._one(message(_SWAP, 0, _head(one) + attr(_NAME2, other.encode() + b"\0")))

    def write(self, batches: Sequence[Batch]) -> list[tuple[str, bytes, OSError]]:
        """Add and delete members; returns failures as (set, key, error). Idempotent."""
        chunks = [
            Batch(batch.name, batch.command, batch.members[start : start + _CHUNK])
            for batch in batches
            for start in range(0, len(batch.members), _CHUNK)
        ]
        failed: list[tuple[str, bytes, OSError]] = []
        for chunk, error in zip(chunks, self._netlink.request([_pack(chunk) for chunk in chunks]), strict=True):
            if error is None:
                continue
            singles = [Batch(chunk.name, chunk.command, (member,)) for member in chunk.members]
            results = self._netlink.request([_pack(single) for single in singles])
            failed += [
                (chunk.name, key, _readable(why))
                for (key, _), why in zip(chunk.members, results, strict=True)
                if why is not None
            ]
        return failed

    def _one(self, request: bytes) -> None:
        if error := self._netlink.request([request])[0]:
            raise _readable(error)


def _header(answer: bytes) -> Header:
    found = attributes(memoryview(answer)[4:])
    counted = attributes(found[ATTR_DATA]).get(_ELEMENTS)
    members = None if counted is None else int.from_bytes(counted, "big")
    return Header(bytes(found[_NAME]).rstrip(b"\0").decode(errors="replace"), _shape(found), members)


def _shape(found: Mapping[int, memoryview]) -> Shape:
    made = attributes(found[ATTR_DATA])
    marked = bool(int.from_bytes(made.get(_CADT_FLAGS, b"\0"), "big") & _WITH_SKBINFO)
    most = int.from_bytes(made.get(_MAXELEM, b"\0"), "big")
    return Shape(bytes(found[_TYPE]).rstrip(b"\0").decode(), found[_FAMILY][0], marked, most)


def _head(name: str) -> bytes:
    return _HEADER + attr(_NAME, name.encode() + b"\0")


def _pack(batch: Batch) -> bytes:
    members = b"".join([attr(ATTR_DATA | NLA_F_NESTED, writable(key, value)) for key, value in batch.members])
    body = _head(batch.name) + attr(_LINENO, b"\0\0\0\0") + nested(_ADT, members)
    return message(batch.command, 0, body)


def _readable(error: OSError) -> OSError:
    text = _ERRORS.get(error.errno or 0)
    return OSError(error.errno, text) if text else error
