"""Lists all objects that policy depends on once, for commands that need a snapshot and no watch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import msgspec

from felix_py.datastore import kinds, wire
from felix_py.datastore.absence import DEFINITIONS, Definition, Word
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.decode import Kind, Unreadable, Unusable
from felix_py.datastore.store import Problem
from felix_py.ipam.resources import IPAMBlock
from felix_py.records import ConfigurationRecord, NodeRecord
from policy.holders import claimed
from policy.model import ClusterPolicy, LocalEndpoint, Namespace, NetworkPolicy, ObjectKey, Pod, Protocol
from policy.oracle.evaluate import Snapshot

R = TypeVar("R")

_PAGE = 500


@dataclass(slots=True)
class Fetched:
    """The cluster's objects at one moment. ``problems``: objects that are not, or not wholly, understood."""

    pods: list[Pod] = field(default_factory=list)
    namespaces: list[Namespace] = field(default_factory=list)
    policies: list[NetworkPolicy | ClusterPolicy] = field(default_factory=list)
    nodes: list[NodeRecord] = field(default_factory=list)
    pools: list[ConfigurationRecord] = field(default_factory=list)
    blocks: list[IPAMBlock] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    """Optional kinds whose CustomResourceDefinitions are not installed."""
    endpoints: tuple[LocalEndpoint, ...] = ()
    """The pod interfaces of the node that the command runs on, if any."""

    def snapshot(self) -> Snapshot:
        """The input of policy evaluation."""
        nodes = [node.as_peer() for node in self.nodes]
        return Snapshot(self.namespaces, self.pods, self.policies, nodes, self.endpoints)

    def claims(self, pod: Pod) -> tuple[str, ...]:
        """The addresses that a pod claims. Two pods may claim the same one; the snapshot knows the holder."""
        return claimed(pod, next((local for local in self.endpoints if local.key == pod.key), None))


def fetch(api: Api) -> Fetched:
    """List every kind, page by page.

    Raises:
        ApiError: the server refuses.
        Unreachable: no answer, or not a list.
    """
    found = Fetched()
    found.namespaces = _list(api, kinds.NAMESPACES, found)
    found.nodes = _list(api, kinds.NODES, found)
    found.policies = [*_list(api, kinds.POLICIES, found)]
    for kind in kinds.CLUSTER_POLICY_KINDS:
        found.policies += [*_list(api, kind, found)]
    found.pods = _list(api, kinds.PODS, found)
    found.pools = _list_if_allowed(api, kinds.IP_POOLS, found)
    found.blocks = _list_if_allowed(api, kinds.IPAM_BLOCKS, found)
    for policy in found.policies:
        if policy.problems:
            found.problems.append(Problem(policy.ref.kind, policy.key, policy.uid, "; ".join(policy.problems)))
    return found


def configurations(api: Api) -> list[ConfigurationRecord]:
    """All FelixConfigurations.

    Raises:
        ApiError: the server refuses; 404: it does not have the kind, or not yet.
        Unreachable: no answer, or not a list.
    """
    into = Fetched()
    found = _list(api, kinds.CONFIGURATIONS, into)
    if into.absent:
        raise ApiError(404, "NotFound", "FelixConfiguration is not installed")
    return found


def container_ports(api: Api, pod: ObjectKey) -> list[tuple[Protocol, int]]:
    """The ports that a pod's containers list, named or not, in order and each once.

    Raises:
        ApiError: the server refuses; 404: the pod is gone.
        Unreachable: no answer, or not a list.
    """
    namespace, name = pod
    query = {"fieldSelector": f"metadata.name={name}"}  # a list: needs no other right than listing pods
    with api.request("GET", f"/api/v1/namespaces/{quote(namespace)}/pods", query) as answer:
        body = answer.read()
    try:
        found = msgspec.json.decode(body, type=wire.ObjectList[wire.WirePod]).items
    except wire.UNDECODABLE as error:
        raise Unreachable(f"not a list of pods: {error}") from error
    if not found:
        raise ApiError(404, "NotFound", f'pods "{name}" not found')
    spec = found[0].spec
    known = {protocol.value for protocol in Protocol}
    ports = [port for container in spec.containers or () for port in container.ports or ()]
    listed = [(Protocol(port.protocol), port.container_port) for port in ports if port.protocol in known]
    return list(dict.fromkeys(listed))


def listed(api: Api, kind: Kind[R]) -> list[R]:
    """All objects of a kind that policy does not depend on, but for those that cannot be used; none if the server
    refuses.

    Raises:
        ApiError: another refusal.
        Unreachable: no answer, or not a list.
    """
    return _list_if_allowed(api, kind, Fetched())


def _list_if_allowed(api: Api, kind: Kind[R], into: Fetched) -> list[R]:
    """All objects of a kind that no policy depends on; none if the server refuses."""
    try:
        return _list(api, kind, into)
    except ApiError as error:
        if error.status != 403:
            raise
        into.absent.add(kind.name)
        return []


def _list(api: Api, kind: Kind[R], into: Fetched) -> list[R]:
    """All objects of a kind; none if an optional kind is absent."""
    found: list[R] = []
    query = {**kind.query, "limit": str(_PAGE)}
    while True:
        try:
            with api.request("GET", kind.path, query) as answer:
                page = kind.listing(answer.read())
        except Unreadable as error:
            raise Unreachable(str(error)) from error
        except ApiError as error:
            if error.status == 404 and kind.optional and not _is_to_come(api, kind):
                into.absent.add(kind.name)
                return []
            raise
        for item in page.found:
            if isinstance(item, Unusable):
                into.problems.append(Problem(kind.name, item.key, item.uid, item.reason))
            else:
                found.append(item)
        if not page.continue_token:
            return found
        query = {**query, "continue": page.continue_token}


def _is_to_come(api: Api, kind: Kind[R]) -> bool:
    """Whether the CRD of a kind that answers 404 says that it is served: the server is just starting."""
    definition = Definition(kind)
    try:
        with api.request("GET", DEFINITIONS, definition.query) as answer:
            return definition.listed(answer.read())[0] is Word.SERVED
    except ApiError:
        return False
