"""Connection tracking (conntrack) entries of addresses: find them, delete them.

Entries are found by dumping, since the kernel has no index by address. Each is deleted by its own tuple and id,
so that no other entry is hit, not even one made in between.
"""

from __future__ import annotations

import errno
import ipaddress
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path

from felix_py.netlink import conntrack as messages
from felix_py.netlink.connection import Closing, Netlink
from felix_py.netlink.conntrack import POLICY_ENDS, End
from felix_py.netlink.wire import NETLINK_NETFILTER
from felix_py.records import Flow
from policy.model import Family

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_MOST_ENTRIES = Path("/proc/sys/net/netfilter/nf_conntrack_max")

_TURN, _PAUSE = 128, 0.001
"""Entries parsed at once, which takes a millisecond, and seconds of the pause that follows."""

_MOST_WALKS = 4
_WALK = 4000
"""A filtered dump for one address at one end takes the kernel as long as printing so many entries."""


class Conntrack(Closing):
    """Implements :class:`felix_py.dataplane.protocols.FlowTable` for the network namespace it was made in."""

    def __init__(self) -> None:
        """
        Raises:
            OSError: no netlink: not root, or a kernel without it.
        """
        self._netlink = Netlink(NETLINK_NETFILTER)
        self._filters = True

    def close(self) -> None:
        self._netlink.close()

    def flows(self, addresses: Collection[str]) -> list[Flow]:
        """See FlowTable. Pauses while parsing: many entries at once would hold up all other threads."""
        return self._find(addresses, POLICY_ENDS, patiently=True)

    def forget(self, addresses: Collection[str]) -> int:
        deleted, error = self.delete(self._find(addresses, tuple(End)))
        if error is not None:
            raise error
        return len(deleted)

    def busy(self, networks: Collection[str]) -> set[str]:
        """See FlowTable."""
        wanted = list(map(ipaddress.ip_network, networks))
        families = {Family(network.version) for network in wanted}
        if not families:
            return set()
        ends: set[bytes] = set()
        for entry in self._netlink.stream(messages.dump(families.pop() if len(families) == 1 else None)):
            ends.update(messages.addresses(entry))
        found = map(ipaddress.ip_address, ends)
        return {str(address) for address in found if any(address in network for network in wanted)}

    def delete(self, flows: Sequence[Flow]) -> tuple[list[Flow], OSError | None]:
        results = self._netlink.request([messages.delete(flow) for flow in flows])
        deleted = [flow for flow, error in zip(flows, results, strict=True) if error is None]
        refused = [error for error in results if error is not None and error.errno != errno.ENOENT]
        return deleted, refused[0] if refused else None

    def _find(self, addresses: Collection[str], ends: Sequence[End], *, patiently: bool = False) -> list[Flow]:
        wanted: dict[Family, set[bytes]] = {}
        for address in addresses:
            family, packed = messages.packed(address)
            wanted.setdefault(family, set()).add(packed)
        entries = self._ask(wanted, ends) if self._worthwhile(wanted, ends) else None
        if entries is None:
            entries = self._scan(wanted, ends)
        # A dump may repeat an entry while the table changes, and two filtered dumps may both hold it.
        found: dict[bytes, Flow] = {}
        for number, entry in enumerate(entries):
            flow = messages.read(entry)
            found[flow.entry] = flow
            if patiently and number % _TURN == _TURN - 1:
                time.sleep(_PAUSE)
        return list(found.values())

    def _worthwhile(self, wanted: Mapping[Family, set[bytes]], ends: Sequence[End]) -> bool:
        """Whether filtered dumps are supported and cost less than a dump of all entries."""
        walks = len(ends) * len(wanted.get(Family.V4, ()))
        return self._filters and 0 < walks <= _MOST_WALKS and _number(_COUNT) > _WALK * walks

    def _ask(self, wanted: Mapping[Family, set[bytes]], ends: Sequence[End]) -> Iterable[bytes] | None:
        """One filtered dump for each address and end; None if the kernel does not filter. IPv6 is scanned."""
        entries: list[bytes] = []
        for end, address in product(ends, wanted[Family.V4]):
            try:
                found = list(self._netlink.stream(messages.filtered_dump(Family.V4, end, address)))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._filters = False
                return None
            if not all(map(messages.concerned({Family.V4: {address}}, {end}), found)):
                self._filters = False
                return None
            entries += found
        others = {family: wanted[family] for family in wanted.keys() - {Family.V4}}
        return chain(entries, self._scan(others, ends))

    def _scan(self, wanted: Mapping[Family, set[bytes]], ends: Sequence[End]) -> Iterable[bytes]:
        """One dump of all entries, filtered here."""
        if not wanted:
            return ()
        family = next(iter(wanted)) if len(wanted) == 1 else None
        return filter(messages.concerned(wanted, ends), self._netlink.stream(messages.dump(family)))


def fullness() -> float:
    """Share of this network namespace's nf_conntrack_max that is in use; 0 if it is unknown."""
    most = _number(_MOST_ENTRIES)
    return _number(_COUNT) / most if most else 0.0


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
