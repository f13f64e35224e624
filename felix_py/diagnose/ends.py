"""The two ends of a packet as users name them: pods, nodes, addresses, the world; and ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from felix_py.agent.pooled import NO_POOLS, Pooled
from felix_py.datastore.fetch import Fetched
from policy.model import Family, IPBlock, Pod, Protocol
from policy.syntax import canonical_address

_OUTSIDE = {
    Family.V4: ("203.0.113.1", "198.51.100.1", "192.0.2.1", "1.1.1.1", "8.8.8.8", "9.9.9.9", "93.184.216.34"),
    Family.V6: ("2001:db8:ffff::1", "2001:db8::1", "2606:4700:4700::1111", "2001:4860:4860::8888", "2620:fe::9"),
}
"""Addresses that stand for the world: of documentation (RFC 5737, RFC 3849) first, then well-known ones."""

_BROADCAST = "255.255.255.255"
_NODE = "node/"
_MOST_HINTS = 3


class WrongEnd(ValueError):
    """An end does not exist or cannot be explained; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """One end. ``pod``: the pod that it is to policy. ``node``: the node that it is or runs on; empty: outside.

    ``note``: how it was found, where users should know.
    """

    name: str
    addresses: Mapping[Family, str]
    pod: Pod | None = None
    node: str = ""
    note: str = ""


def find(text: str, namespace: str, cluster: Fetched, pooled: Pooled = NO_POOLS) -> Place:
    """Find ``POD``, ``NAMESPACE/POD``, ``node/NAME``, an address, or ``world``. WrongEnd: none, or no address.

    ``pooled``: as a node sees pools that has no block.
    """
    if text == "world":
        return _world(cluster)
    if text.startswith(_NODE):
        return _node(text.removeprefix(_NODE), cluster)
    if ":" in text or text.replace(".", "").isdigit():
        return _address(text, cluster, pooled)
    own, _, name = text.rpartition("/")
    return _pod(own or namespace, name, cluster, pooled)


def _by_family(addresses: Iterable[str]) -> dict[Family, str]:
    """The first address of each family."""
    found: dict[Family, str] = {}
    for address in addresses:
        found.setdefault(Family.V6 if ":" in address else Family.V4, address)
    return found


def _pod(namespace: str, name: str, cluster: Fetched, pooled: Pooled) -> Place:
    pod = next((pod for pod in cluster.pods if pod.key == (namespace, name)), None)
    if pod is None:
        for problem in cluster.problems:
            if (problem.kind, problem.key) == ("Pod", (namespace, name)):
                raise WrongEnd(f"pod {namespace}/{name} is not understood: {problem.reason}")
        raise WrongEnd(f"there is no pod {namespace}/{name}{_hint(namespace, name, cluster)}")
    label = f"{namespace}/{name}"
    if not pod.active:
        raise WrongEnd(f"pod {label} has ended; its addresses may be another pod's by now")
    if pod.host_network:
        record = next((node for node in cluster.nodes if node.name == pod.node), None)
        addresses = _by_family(pod.addresses or (record.addresses if record else ()))
        if not addresses:
            raise WrongEnd(f"pod {label} is on its node's network, and has no address yet")
        note = f"{label} is on the network of {pod.node}: to policy it is the node, not a pod"
        return Place(f"{label} on {pod.node}'s network", addresses, None, pod.node, note)
    claims = cluster.claims(pod)
    if not claims:
        where = f"on {pod.node}; see `kubectl describe pod`" if pod.node else "and is on no node"
        raise WrongEnd(f"pod {label} has no address yet, {where}")
    snapshot = cluster.snapshot()
    own = [address for address in claims if snapshot.pod_at(address) is pod]
    if not own:
        raise WrongEnd(f"pod {label} has no address any more: {_whose(claims[0], snapshot.pod_at(claims[0]))}")
    addresses = _by_family(own)
    return Place(label, addresses, pod, pod.node, _borrowed(addresses.values(), pooled))


def _borrowed(addresses: Iterable[str], pooled: Pooled) -> str:
    """Whose blocks borrowed addresses are out of, or empty."""
    loans = ((address, pooled.borrower_of(address), *pooled.owner_of(address)) for address in addresses)
    return "; ".join(
        f"{address} is out of block {block} of node {owner}, which has lent it to {borrower}"
        for address, borrower, owner, block in loans
        if borrower
    )


def _whose(address: str, owner: Pod | None) -> str:
    if owner is None:
        return f"{address} is leased to another one on this node"
    return f"{address} is {owner.namespace}/{owner.name}'s by now"


def _hint(namespace: str, name: str, cluster: Fetched) -> str:
    """Pods of this name in other namespaces, or pods with a similar name."""
    elsewhere = [f"{pod.namespace}/{name}" for pod in cluster.pods if pod.name == name]
    alike = [
        f"{namespace}/{p.name}" for p in cluster.pods if p.namespace == namespace and p.name.startswith(name)
    ]
    found = sorted(elsewhere or alike)
    if not found:
        return ""
    more = f" and {len(found) - _MOST_HINTS} more" if len(found) > _MOST_HINTS else ""
    return f"; there is {', '.join(found[:_MOST_HINTS])}{more}"


def _node(name: str, cluster: Fetched) -> Place:
    record = next((node for node in cluster.nodes if node.name == name), None)
    if record is None:
        names = ", ".join(sorted(node.name for node in cluster.nodes)[:10])
        raise WrongEnd(f"there is no node {name}; there is {names or 'none'}")
    addresses = _by_family(record.addresses)
    if not addresses:
        raise WrongEnd(f"node {name} has no address")
    return Place(f"node {name}", addresses, None, name)


def _address(text: str, cluster: Fetched, pooled: Pooled) -> Place:
    try:
        address = canonical_address(text)
    except ValueError as error:
        raise WrongEnd(str(error)) from None
    if not _is_routed(address):
        raise WrongEnd(f"{address} is loopback, link-local, multicast or unspecified: name one that is routed")
    own = {Family.V6 if ":" in address else Family.V4: address}
    pod = cluster.snapshot().pod_at(address)
    if pod is not None:
        return Place(f"{pod.namespace}/{pod.name}", own, pod, pod.node, _borrowed([address], pooled))
    for record in cluster.nodes:
        if address in record.addresses:
            return Place(f"node {record.name}", own, None, record.name)
    for record in cluster.nodes:
        if any(_is_in(address, cidr) for cidr in record.pod_cidrs):
            note = f"{address} is one of {record.name}'s pod addresses, but no pod has it"
            return Place(address, own, note=note)
    if note := _borrowed([address], pooled):
        return Place(address, own, note=f"{note}, but no pod has it")
    node, block = pooled.owner_of(address)
    if node:
        return Place(address, own, note=f"{address} is in block {block} of node {node}, but no pod has it")
    note = f"{address} is neither a pod's nor a node's; if it is a Service's, ask for its pods"
    return Place(address, own, note=note)


def _is_routed(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    link_local = ip.version == 6 and ip.is_link_local  # of IPv4's, metadata services are reached by routes
    return not (ip.is_loopback or ip.is_multicast or ip.is_unspecified or link_local or address == _BROADCAST)


def _is_in(address: str, cidr: str) -> bool:
    ip, network = ipaddress.ip_address(address), ipaddress.ip_network(cidr)
    return ip.version == network.version and ip in network


def _world(cluster: Fetched) -> Place:
    """Outside addresses that no policy distinguishes from other outside addresses."""
    taken = {address for pod in cluster.pods for address in pod.addresses}
    taken |= {address for node in cluster.nodes for address in node.addresses}
    own = [cidr for node in cluster.nodes for cidr in node.pod_cidrs]
    blocks = {cidr for cidr in _blocks(cluster) if not cidr.endswith("/0")}

    def cost(address: str) -> int:
        inside = sum(_is_in(address, cidr) for cidr in blocks)
        return inside + 1000 * (address in taken or any(_is_in(address, cidr) for cidr in own))

    chosen = {family: min(candidates, key=cost) for family, candidates in _OUTSIDE.items()}
    special = [address for address in chosen.values() if cost(address)]
    note = f"the world is {' and '.join(chosen.values())} here"
    if special:
        note += f", although policies or the cluster speak of {' and '.join(special)}; name an address to be sure"
    return Place("world", chosen, note=note)


def _blocks(cluster: Fetched) -> set[str]:
    """Every CIDR that policies name, exceptions included."""
    found: set[str] = set()
    for policy in cluster.policies:
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            for peer in rule.peers or ():
                if isinstance(peer, IPBlock):
                    found.update((peer.cidr, *peer.excepts))
    return found


# --- ports -------------------------------------------------------------------------------------------

Port = tuple[Protocol, int]


def find_ports(text: str, destination: Place, listed: Callable[[Pod], Sequence[Port]]) -> list[Port]:
    """Parse ``80``, ``80/tcp``, ``53/udp``, ``http``, ``http/tcp``; empty: all ports that the containers list.

    Raises:
        WrongEnd: not a port, no port of that name, or no ports are listed.
    """
    pod = destination.pod
    if not text:
        if pod is None:
            raise WrongEnd(f"{destination.name} is not a pod: say which --port, such as --port 443/tcp")
        if not (found := list(listed(pod))):
            raise WrongEnd(f"the containers of {destination.name} list no ports: say which --port")
        return found
    name, slash, protocol = text.partition("/")
    if slash and protocol.upper() not in {p.value for p in Protocol}:
        raise WrongEnd(f"--port {text}: the protocol must be tcp, udp or sctp")
    wanted = Protocol(protocol.upper()) if slash else None
    if name.isdigit():
        if not 1 <= int(name) <= 65535:
            raise WrongEnd(f"--port {text}: ports go from 1 to 65535")
        return [(wanted or Protocol.TCP, int(name))]
    if pod is None:
        raise WrongEnd(f"--port {text}: {destination.name} is not a pod, and only pods have named ports")
    named = [(p.protocol, p.port) for p in pod.ports if p.name == name and wanted in (None, p.protocol)]
    if not named:
        names = ", ".join(dict.fromkeys(f"{p.name}/{p.protocol.lower()}" for p in pod.ports))
        raise WrongEnd(f"--port {text}: {destination.name} has no such port; it has {names or 'no named ports'}")
    return list(dict.fromkeys(named))
