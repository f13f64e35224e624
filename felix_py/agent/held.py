"""The leases of this node's pods whose interfaces are up, by pod and by interface."""

from __future__ import annotations

from collections.abc import Iterator

from felix_py.records import Lease, newest_sandbox
from policy.model import ObjectKey


class HeldLeases:
    """A pod may have several sandboxes, as a new one may precede the old one's DEL: the newest represents it,
    with a lease for each of its interfaces. A container that is no pod's counts as a pod of its own.
    """

    def __init__(self) -> None:
        self._leases: dict[ObjectKey, list[Lease]] = {}
        self._interfaces: dict[str, ObjectKey] = {}

    def add(self, lease: Lease) -> None:
        """Add a lease, whose interface is up."""
        key = lease.owner
        self._leases[key] = sorted([*self._others(lease), lease], key=lambda held: held.created)
        self._interfaces[lease.interface] = key

    def leaving(self, lease: Lease) -> None:
        """Expect the deletion of a lease's interface, which is no drift then."""
        self._interfaces.pop(lease.interface, None)

    def remove(self, lease: Lease) -> None:
        """Remove a lease, if it is there."""
        if others := self._others(lease):
            self._leases[lease.owner] = others
        else:
            self._leases.pop(lease.owner, None)
        self._interfaces.pop(lease.interface, None)

    def of(self, owner: ObjectKey) -> tuple[Lease, ...]:
        """The leases of a pod's newest sandbox, oldest first."""
        return newest_sandbox(self._leases.get(owner, ()))

    def standing(self) -> Iterator[Lease]:
        """The leases of each pod's newest sandbox."""
        return (lease for leases in self._leases.values() for lease in newest_sandbox(leases))

    def stands(self, lease: Lease) -> bool:
        """Whether this lease is of the newest sandbox of its pod."""
        return any(_identity(one) == _identity(lease) for one in self.of(lease.owner))

    def has_newer_than(self, lease: Lease) -> bool:
        """Whether the lease's pod has a newer sandbox."""
        others = (other for other in self._others(lease) if other.container != lease.container)
        return any(other.created > lease.created for other in others)

    def has_interface(self, name: str) -> bool:
        """Whether a pod's interface of this name is expected to exist."""
        return name in self._interfaces

    def pod_of(self, interface: str) -> ObjectKey | None:
        """The pod of an interface of this node."""
        return self._interfaces.get(interface)

    def __len__(self) -> int:
        """Number of pods with an interface on this node."""
        return len(self._leases)

    def _others(self, lease: Lease) -> list[Lease]:
        """The other leases of the same pod, oldest first."""
        held = self._leases.get(lease.owner, [])
        return [other for other in held if _identity(other) != _identity(lease)]


def _identity(lease: Lease) -> tuple[str, str]:
    return (lease.container, lease.ifname)
