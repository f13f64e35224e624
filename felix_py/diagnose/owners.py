"""The owner of a kernel object: its policy and rule, its pod, or its purpose."""

from __future__ import annotations

from collections.abc import Iterable

from felix_py.dataplane.iptables_text import BUILTIN_CHAINS
from felix_py.datastore.fetch import Fetched
from felix_py.desired.names import DenyChain, DispatchChain, Fixed, SetNames, parse_chain_name, parse_name
from felix_py.diagnose.intended import Intended
from felix_py.ruleset.model import Rule, RuleSpec
from policy.ir import ChainId, Origin
from policy.model import Direction, Family, ObjectKey, PolicyRef

_NOBODY = "no policy that is known"
_STATIC = {
    Fixed.SOURCE: "source binding of all pods",
    Fixed.SPOOFED: "source binding of all pods",
    Fixed.NEIGHBOUR: "source binding of all pods",
    Fixed.CLASSIFY: "policy classes of all pods",
    Fixed.FORWARD: "policy of all pods",
    Fixed.INPUT: "packets from all pods to this node",
    Fixed.ALLOW: "policy of all pods",
    Fixed.PASS: "policy of all pods",
    Fixed.OUTPUT: "packets from this node to all pods",
    Fixed.POSTROUTING: "masquerading of all pods",
    Fixed.INVALID: "packets that conntrack calls INVALID",
    Fixed.MIDSTREAM: "TCP of which conntrack has not seen the beginning",
    Fixed.PROXIED: "what this node sends in another's name",
    Fixed.ERROR: "ICMP errors of all pods",
    Fixed.ASTRAY: "packets to pods by interfaces that are not theirs",
    **dict.fromkeys(BUILTIN_CHAINS, "what policy has allowed"),
}

_MOST_NAMED = 4


class Owners:
    """Owners of kernel objects, by the cluster and the intended state."""

    def __init__(self, wanted: Intended, cluster: Fetched) -> None:
        self._engine = wanted.facts.engine
        snapshot = cluster.snapshot()
        self._pods = {
            address: f"pod {pod.namespace}/{pod.name}"
            for pod in cluster.pods
            for address in pod.addresses
            if snapshot.pod_at(address) is pod
        }
        self._keys: dict[str, ObjectKey] = {}
        for lease in wanted.leases:
            self._keys |= dict.fromkeys(lease.addresses.values(), lease.owner)
            self._pods |= dict.fromkeys(lease.addresses.values(), lease.owner_text)
        self._nodes = {address: f"node {node.name}" for node in cluster.nodes for address in node.addresses}

    # --- rules ---------------------------------------------------------------------------------------

    def chain(self, name: str) -> str:
        """The purpose of a chain of ours."""
        match parse_chain_name(name):
            case ChainId() as chain:
                return self._compiled(chain) or _NOBODY
            case DenyChain(policy, rule):
                denial = self._compiled(policy)
                return f"{denial} rule {rule}" if denial and rule >= 0 else denial or _NOBODY
            case DispatchChain(direction):
                return f"{direction.lower()} policy of all pods"
        return _STATIC.get(name, _NOBODY)

    def _compiled(self, chain: ChainId) -> str:
        """The policies of a compiled chain; empty: unknown."""
        refs = self._engine.policies_using(chain)
        return f"{_policies(refs)}, {chain.direction.lower()}" if refs else ""

    def wanted_rule(self, chain: str, spec: RuleSpec) -> str:
        """The purpose of a planned rule."""
        return self._rule(chain, spec.why, spec.leads_to)

    def found_rule(self, chain: str, rule: Rule) -> str:
        """The purpose of a rule of the kernel."""
        why = Origin.parse(rule.comment.partition(" ")[2]) if rule.hash else None
        return self._rule(chain, why, RuleSpec((), rule.body.target).leads_to)

    def _rule(self, chain: str, why: Origin | str | None, leads_to: str) -> str:
        """By the policy rule that it was made from, else by the chain that it leads to, else by its chain."""
        if isinstance(why, Origin):
            name = f" ({why.name})" if why.name else ""
            return f"{why.policy}, {why.direction.lower()} rule {why.index}{name}"
        to = parse_chain_name(leads_to)
        return (self._compiled(to) if isinstance(to, ChainId) else "") or self.chain(chain)

    # --- sets and routes -----------------------------------------------------------------------------

    def set(self, family: Family, name: str) -> str:
        """The purpose of an IP set."""
        names = SetNames.of(family)
        purposes = {
            names.source: "source binding",
            names.local: "address of a pod of this node",
            names.egress: "egress policy class",
            names.ingress: "ingress policy class",
            names.pool: "masquerading",
            names.no_masquerade: "masquerading",
        }
        if name in purposes:
            return purposes[name]
        peers = parse_name(name)
        refs = self._engine.policies_using(peers) if peers else ()
        return _policies(refs) if refs else _NOBODY

    def member(self, family: Family, set_name: str, member: str) -> str:
        """The owner of a set member's address, and the member's purpose."""
        address = member.partition(",")[0]
        purpose = self.set(family, set_name)
        names = SetNames.of(family)
        for direction in Direction:
            refs = self._engine.endpoint_policies(self._keys.get(address, ("", "")), direction)
            if set_name == names.class_map(direction) and refs:
                purpose = f"{purpose} ({_policies(refs)})"
        whom = self.address(address)
        return f"{whom}: {purpose}" if whom else purpose

    def address(self, cidr: str) -> str:
        """The owner of an address or full-length CIDR; empty: unknown."""
        address, _, length = cidr.partition("/")
        if length and length not in ("32", "128"):
            return ""
        return self._pods.get(address) or self._nodes.get(address, "")


def _policies(refs: Iterable[PolicyRef]) -> str:
    names = [str(ref) for ref in refs]
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
