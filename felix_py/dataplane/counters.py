"""Packet and byte counters of our rules, read with ``iptables-save -c``."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from msgspec import Struct

from felix_py.dataplane.backend import ToolError, command, run
from felix_py.layout import CHAIN_PREFIX
from felix_py.records import Backend
from felix_py.ruleset.seal import is_seal
from policy.model import Family

_TABLES = ("raw", "filter")
"""Tables whose rules decide about packets; nat, which may be huge, is not read."""

_LOCK = "/run/xtables.lock"
_LOCK_SECONDS = 2.0
_LOCK_PAUSE = 0.01

_LINE = re.compile(rf"^\[([0-9]+):([0-9]+)\] -A ({re.escape(CHAIN_PREFIX)}\S+)(.*)$", re.MULTILINE)
_TARGET = re.compile(r" -[jg] (\S+)$")
_HASH = re.compile(r'--comment "?felix:([0-9a-f]{16})[ "]')


class RuleCount(Struct, frozen=True):
    """Packets and bytes that one rule has matched since it was written.

    ``target`` is empty where the rule's target has options of its own (our NFLOG, MARK and mark matches).
    ``is_seal``: no rule for packets; its hash is that of all rules of its chain.
    """

    chain: str
    hash: str
    target: str
    packets: int
    bytes: int
    is_seal: bool = False


def read_counters(family: Family, backend: Backend) -> list[RuleCount]:
    """The counters of all our rules of one family. Blocks: call it in a thread of its own.

    Raises:
        ToolError: the counters cannot be read, or another program holds the xtables lock too long.
    """
    argv = [command(family, backend, "save"), "-c", "-t"]
    # While a legacy tool replaces a table, all its counters are zero until the tool has added the old ones.
    with _shared_lock() if backend is Backend.LEGACY else nullcontext():
        text = "".join(run([*argv, table]) for table in _TABLES)
    return list(parse_counters(text))


def parse_counters(text: str) -> Iterator[RuleCount]:
    """The counters of our rules in what ``iptables-save -c`` prints."""
    for packets, size, chain, rest in _LINE.findall(text):
        hash_ = _HASH.search(rest)
        seals = is_seal(rest.lstrip())
        target = None if seals else _TARGET.search(rest)
        counted = int(packets), int(size)
        yield RuleCount(chain, hash_[1] if hash_ else "", target[1] if target else "", *counted, seals)


@contextmanager
def _shared_lock() -> Iterator[None]:
    """Hold the xtables lock shared: the legacy tools cannot write meanwhile; several readers may hold it."""
    try:
        fd = os.open(_LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ToolError(f"{_LOCK}: {error.strerror}") from None
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ToolError(f"another program has held the xtables lock for {_LOCK_SECONDS} s") from None
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(fd)
