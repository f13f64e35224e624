"""Policies as nobody should write them: valid documents, broken in every way that JSON allows."""

from __future__ import annotations

import copy
import random
from typing import Any

INJECTIONS = (
    "x\n-A FORWARD -j ACCEPT",
    'a" -j ACCEPT #',
    "-j ACCEPT",
    "$(reboot)",
    "`id`",
    "COMMIT\n*nat",
    "felix:0123456789abcdef",
    "\x00",
    "\x1b[31m",
    "\r\n",
    "\u2028",
    "\udcff",
    "é" * 200,
    "z" * 5000,
)
_LEAVES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    65535,
    65536,
    2**31,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "TCP",
    "tcp",
    "http",
    "Deny",
    "Allow",
    "0.0.0.0/0",
    "::/0",
    "10.0.0.1",
    "10.0.0.0/33",
    "::ffff:1.2.3.4/128",
    "fe80::1%eth0/64",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"matchLabels": {"app": "web"}},
    *INJECTIONS,
)
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


class Writer:
    """Random documents of all policy kinds, mostly valid."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def document(self) -> tuple[str, dict[str, Any]]:
        """A kind and an object of it; three in four are broken somewhere."""
        rng = self._rng
        kind = rng.choice(
            ("NetworkPolicy", "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy")
        )
        metadata = {"name": rng.choice(("p", "q", "default")), "namespace": rng.choice(("shop", "dev"))}
        spec = self._network_policy() if kind == "NetworkPolicy" else self._cluster_policy(kind)
        document: dict[str, Any] = {"metadata": metadata, "spec": spec}
        for _ in range(rng.choice((0, 1, 1, 2, 5))):
            self._break(document)
        return kind, document

    # --- valid parts ---------------------------------------------------------------------------------

    def _some(self, make: Any, most: int = 3) -> list[Any]:
        return [make() for _ in range(self._rng.randint(0, most))]

    def _selector(self) -> dict[str, Any]:
        rng = self._rng
        value = rng.choice(("web", "db", "shop", "dev"))
        key = rng.choice(("app", "team"))
        operator = rng.choice(_OPERATORS)
        values = {"values": [value]} if operator in ("In", "NotIn") else {}
        return rng.choice(
            (
                {},
                {"matchLabels": {key: value}},
                {"matchExpressions": [{"key": key, "operator": operator, **values}]},
            )
        )

    def _peer(self) -> dict[str, Any]:
        block = {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/32"]}
        return self._rng.choice(
            (
                {"podSelector": self._selector()},
                {"namespaceSelector": self._selector(), "podSelector": self._selector()},
                {"ipBlock": block},
                {"ipBlock": {"cidr": "fd00::/64"}},
            )
        )

    def _port(self) -> dict[str, Any]:
        rng = self._rng
        first = rng.randint(1, 65535)
        return rng.choice(
            (
                {},
                {"port": first, "protocol": rng.choice(("TCP", "UDP", "SCTP"))},
                {"port": first, "endPort": rng.randint(first, 65535)},
                {"port": "http"},
            )
        )

    def _network_policy(self) -> dict[str, Any]:
        spec: dict[str, Any] = {"podSelector": self._selector()}
        for direction, far in (("ingress", "from"), ("egress", "to")):
            spec[direction] = self._some(
                lambda far=far: {far: self._some(self._peer), "ports": self._some(self._port, 20)}
            )
        spec["policyTypes"] = self._rng.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        return spec

    def _subject(self) -> dict[str, Any]:
        pods = {"namespaceSelector": self._selector(), "podSelector": self._selector()}
        return self._rng.choice(({"namespaces": self._selector()}, {"pods": pods}))

    def _cluster_peer(self, far: str) -> dict[str, Any]:
        more: list[dict[str, Any]] = [
            {"networks": ["10.0.0.0/8", "::/0"]},
            {"nodes": self._selector()},
            {"domainNames": ["a.example"]},
        ]
        return self._rng.choice([self._subject(), *(more if far == "to" else [])])

    def _cluster_port(self, kind: str) -> dict[str, Any]:
        rng = self._rng
        first = rng.randint(1, 65534)
        if kind == "ClusterNetworkPolicy":
            port = rng.choice(({"number": first}, {"range": {"start": first, "end": 65535}}))
            return rng.choice(
                (
                    {rng.choice(("tcp", "udp", "sctp")): {"destinationPort": port}},
                    {"destinationNamedPort": "http"},
                )
            )
        protocol = rng.choice(("TCP", "UDP", "SCTP"))
        return rng.choice(
            (
                {"portNumber": {"protocol": protocol, "port": first}},
                {"portRange": {"protocol": protocol, "start": first, "end": 65535}},
                {"namedPort": "http"},
            )
        )

    def _cluster_rule(self, kind: str, far: str) -> dict[str, Any]:
        rng = self._rng
        accept = "Accept" if kind == "ClusterNetworkPolicy" else "Allow"
        rule = {
            "action": rng.choice((accept, "Deny", "Pass")),
            far: [self._cluster_peer(far) for _ in range(rng.randint(1, 3))],
            "name": rng.choice(("a-rule", "another one", *INJECTIONS)),
        }
        if rng.random() < 0.6:
            field = "protocols" if kind == "ClusterNetworkPolicy" else "ports"
            rule[field] = [self._cluster_port(kind) for _ in range(rng.randint(1, 20))]
        return rule

    def _cluster_policy(self, kind: str) -> dict[str, Any]:
        rng = self._rng
        spec: dict[str, Any] = {"subject": self._subject()}
        if kind != "BaselineAdminNetworkPolicy":
            spec["priority"] = rng.randint(0, 1000)
        if kind == "ClusterNetworkPolicy":
            spec["tier"] = rng.choice(("Admin", "Baseline"))
        for direction, far in (("ingress", "from"), ("egress", "to")):
            spec[direction] = self._some(lambda far=far: self._cluster_rule(kind, far))
        return spec

    # --- breaking them -------------------------------------------------------------------------------

    def _break(self, document: dict[str, Any]) -> None:
        """Change one place, wherever it is."""
        rng = self._rng
        places = list(_places(document))
        if not places:
            return
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(("unknown", "podSelector", *INJECTIONS))] = copy.deepcopy(rng.choice(_LEAVES))
            case 2 if isinstance(holder[key], list):
                holder[key] = copy.deepcopy(holder[key] * rng.choice((2, 30)))
            case 3:
                holder[key] = [holder[key]]
            case _:
                holder[key] = copy.deepcopy(rng.choice(_LEAVES))


def _places(value: Any) -> Any:
    """Every (container, key) below a value."""
    if isinstance(value, dict):
        for key in value:
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield value, index
            yield from _places(item)
