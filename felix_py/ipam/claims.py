"""Who wants an address, and who else may have it."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from felix_py.records import Elsewhere
from policy.model import Family

Lookup = Callable[[Family, int, int], Elsewhere | None]
"""Returns the other user (not a pod of this node) of an address in a CIDR of that prefix length, or None."""


def nobody(_family: Family, _number: int, _length: int) -> Elsewhere | None:
    """A :data:`Lookup` that finds no other user."""
    return None


LeaseKey = tuple[str, str]
"""(container, ifname)."""


class Claim(Struct, frozen=True):
    """The owner of a new lease: container id, interface name in it, CNI network name, and the pod."""

    container: str
    ifname: str
    network: str
    namespace: str
    pod: str
    uid: str = ""

    @property
    def key(self) -> LeaseKey:
        return (self.container, self.ifname)
