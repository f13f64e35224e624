"""Owners of addresses, shared by the engine and the agent's view, so that rules and answers use the same pod.

Two pods may claim one address: a pod stuck in Terminating still lists an address that its sandbox has released
and that another pod has by now. Then

- an address that is leased on this node belongs to the endpoint that holds the lease, and to no pod while that
  endpoint's pod is unknown or has ended;
- any other address belongs to the newest claim (:attr:`policy.model.Pod.claim`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from policy.model import LocalEndpoint, ObjectKey, Pod


class Holders:
    """Claims and leases by address. All claims are kept only of disputed addresses, which are rare."""

    def __init__(self) -> None:
        self._owners: dict[str, Pod] = {}
        self._disputed: dict[str, dict[ObjectKey, Pod]] = {}
        self._leases: dict[str, dict[ObjectKey, LocalEndpoint]] = {}
        self.revision = 0
        """Incremented when a dispute begins, changes or ends."""

    # --- whose ---------------------------------------------------------------------------------------

    def pod(self, address: str) -> Pod | None:
        """The pod that owns an address."""
        return self._owners.get(address)

    def endpoint(self, address: str) -> ObjectKey | None:
        """The endpoint of this node that holds an address."""
        leases = self._leases.get(address)
        return min(leases) if leases else None

    def own(self, key: ObjectKey, claimed: tuple[str, ...]) -> tuple[str, ...]:
        """The addresses that a pod claims and owns."""
        if self._disputed.keys().isdisjoint(claimed):
            return claimed
        return tuple([a for a in claimed if (owner := self._owners.get(a)) is not None and owner.key == key])

    def rivals(self, key: ObjectKey, addresses: Iterable[str]) -> list[Pod]:
        """The other pods that claim any of the addresses."""
        found: dict[ObjectKey, Pod] = {}
        for address in addresses:
            if address in self._disputed:
                found.update(self._disputed[address])
            elif (owner := self._owners.get(address)) is not None:
                found[owner.key] = owner
        found.pop(key, None)
        return list(found.values())

    def disputes(self) -> Iterator[tuple[str, Pod | None, list[Pod]]]:
        """Yields each disputed address with its owner and the other claimants."""
        for address, claims in self._disputed.items():
            owner = self._owners.get(address)
            yield address, owner, [pod for pod in claims.values() if pod is not owner]

    # --- events --------------------------------------------------------------------------------------

    def claim(self, key: ObjectKey, before: tuple[str, ...], after: tuple[str, ...], pod: Pod | None) -> None:
        """Replace the claims of a pod, whose current object is ``pod``."""
        for address in before:
            if address not in after:
                self._set_claim(address, key, None)
        for address in after:
            if address not in self._disputed and address not in self._leases:
                held = self._owners.get(address)
                if pod is not None and (held is None or held.key == key):
                    self._owners[address] = pod
                    continue
            self._set_claim(address, key, pod)

    def lease(self, key: ObjectKey, before: LocalEndpoint | None, after: LocalEndpoint | None) -> None:
        """Replace the leases of an endpoint of this node; None: it is new, or gone."""
        addresses: dict[str, None] = {}
        for endpoint in (before, after):
            for address in endpoint.addresses if endpoint else ():
                addresses[address] = None
                leases = self._leases.setdefault(address, {})
                if endpoint is after and after is not None:
                    leases[key] = after
                else:
                    leases.pop(key, None)
        for address in addresses:
            if not self._leases[address]:
                del self._leases[address]
            self._settle(address, self._claims(address))

    # --- decisions -----------------------------------------------------------------------------------

    def _claims(self, address: str) -> dict[ObjectKey, Pod]:
        if address in self._disputed:
            return self._disputed[address]
        owner = self._owners.get(address)
        return {} if owner is None else {owner.key: owner}

    def _set_claim(self, address: str, key: ObjectKey, pod: Pod | None) -> None:
        claims = self._claims(address)
        if pod is None:
            claims.pop(key, None)
        else:
            claims[key] = pod
        self._settle(address, claims)

    def _settle(self, address: str, claims: dict[ObjectKey, Pod]) -> None:
        owner = self._choose(address, claims)
        if owner is None:
            self._owners.pop(address, None)
        else:
            self._owners[address] = owner
        if len(claims) > (owner is not None):
            self._disputed[address] = claims
            self.revision += 1
        elif self._disputed.pop(address, None) is not None:
            self.revision += 1

    def _choose(self, address: str, claims: Mapping[ObjectKey, Pod]) -> Pod | None:
        leases = self._leases.get(address)
        if not leases:
            return max(claims.values(), key=lambda pod: pod.claim(address), default=None)
        holder = leases[min(leases)]
        pod = claims.get(holder.key)
        return pod if pod is not None and holder.stands_for(pod) else None


def claimed(pod: Pod | None, endpoint: LocalEndpoint | None) -> tuple[str, ...]:
    """The addresses that a pod claims: the leases of its ``endpoint`` on this node, else those of its status.

    The status gets an address after the pod has it, and may keep one that the pod has lost. A pod on the host
    network has its node's addresses, and one that has ended has none.
    """
    if pod is None or pod.host_network or not pod.active:
        return ()
    return pod.addresses if endpoint is None or not endpoint.stands_for(pod) else endpoint.addresses
