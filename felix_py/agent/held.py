"""The leases of this node's pods whose interfaces are up, by pod and by interface."""

from __future__ import annotations

from collections.abc import Iterator

from felix_py.records import Lease
from policy.model import ObjectKey


class HeldLeases:
    """A pod may have several leases, as a new sandbox may precede the old one's DEL: the newest represents it."""

    def __init__(self) -> None:
        self._leases: dict[ObjectKey, list[Lease]] = {}
        self._interfaces: dict[str, ObjectKey] = {}

    def add(self, lease: Lease) -> None:
        """Add a lease, whose interface is up."""
        key = _pod(lease)
        self._leases[key] = sorted([*self._others(lease), lease], key=lambda held: held.created)
        self._interfaces[lease.interface] = key

    def leaving(self, lease: Lease) -> None:
        """Expect the deletion of a lease's interface, which is no drift then."""
        self._interfaces.pop(lease.interface, None)

    def remove(self, lease: Lease) -> None:
        """Remove a lease, if it is there."""
        if others := self._others(lease):
            self._leases[_pod(lease)] = others
        else:
            self._leases.pop(_pod(lease), None)
        self._interfaces.pop(lease.interface, None)

    def of(self, pod: ObjectKey) -> Lease | None:
        """The newest lease of a pod."""
        leases = self._leases.get(pod)
        return leases[-1] if leases else None

    def standing(self) -> Iterator[Lease]:
        """The newest lease of each pod."""
        return (leases[-1] for leases in self._leases.values())

    def stands(self, lease: Lease) -> bool:
        """Whether this lease is the newest of its pod."""
        newest = self.of(_pod(lease))
        return newest is not None and _identity(newest) == _identity(lease)

    def has_newer_than(self, lease: Lease) -> bool:
        """Whether the lease's pod has another one that is newer."""
        return any(other.created > lease.created for other in self._others(lease))

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
        held = self._leases.get(_pod(lease), [])
        return [other for other in held if _identity(other) != _identity(lease)]


def _pod(lease: Lease) -> ObjectKey:
    return (lease.namespace, lease.pod)


def _identity(lease: Lease) -> tuple[str, str]:
    return (lease.container, lease.ifname)
