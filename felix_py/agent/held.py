"""The leases of this node's pods whose interfaces are up, by pod and by interface."""

from __future__ import annotations

from collections.abc import Iterator

from felix_py.records import Lease
from policy.model import ObjectKey


class HeldLeases:
    """A sandbox may be made anew before the old one's DEL came: the newest lease stands for the pod."""

    def __init__(self) -> None:
        self._leases: dict[ObjectKey, list[Lease]] = {}
        self._interfaces: dict[str, ObjectKey] = {}

    def add(self, lease: Lease) -> None:
        """A pod's interface is up."""
        key = _pod(lease)
        self._leases[key] = sorted([*self._others(lease), lease], key=lambda held: held.created)
        self._interfaces[lease.interface] = key

    def leaving(self, lease: Lease) -> None:
        """A pod's interface is about to be deleted: nobody must miss it."""
        self._interfaces.pop(lease.interface, None)

    def remove(self, lease: Lease) -> None:
        """A pod's interface goes away. One that never was there is fine."""
        if others := self._others(lease):
            self._leases[_pod(lease)] = others
        else:
            self._leases.pop(_pod(lease), None)
        self._interfaces.pop(lease.interface, None)

    def of(self, pod: ObjectKey) -> Lease | None:
        """The lease that stands for a pod."""
        leases = self._leases.get(pod)
        return leases[-1] if leases else None

    def standing(self) -> Iterator[Lease]:
        """The lease that stands for each pod."""
        return (leases[-1] for leases in self._leases.values())

    def stands(self, lease: Lease) -> bool:
        """Whether this lease is the one that stands for its pod."""
        newest = self.of(_pod(lease))
        return newest is not None and _identity(newest) == _identity(lease)

    def has_newer_than(self, lease: Lease) -> bool:
        """Whether another lease, made later, stands for the pod of this one."""
        return any(other.created > lease.created for other in self._others(lease))

    def has_interface(self, name: str) -> bool:
        """Whether there is to be such an interface of a pod."""
        return name in self._interfaces

    def pod_of(self, interface: str) -> ObjectKey | None:
        """The pod of an interface of this node."""
        return self._interfaces.get(interface)

    def __len__(self) -> int:
        """Pods with an interface on this node."""
        return len(self._leases)

    def _others(self, lease: Lease) -> list[Lease]:
        """The other leases of the same pod, oldest first."""
        held = self._leases.get(_pod(lease), [])
        return [other for other in held if _identity(other) != _identity(lease)]


def _pod(lease: Lease) -> ObjectKey:
    return (lease.namespace, lease.pod)


def _identity(lease: Lease) -> tuple[str, str]:
    return (lease.container, lease.ifname)
