"""What the parser makes of NetworkPolicies that the API server would not have let in, and of those it would."""

from __future__ import annotations

from typing import Any

import pytest

from policy.model import (
    IPBlock,
    NetworkPolicy,
    Operator,
    PodPeer,
    PolicyRule,
    Port,
    Protocol,
    Requirement,
    Selector,
)
from policy.parse import (
    Invalid,
    Rejected,
    canonical_address,
    parse_labels,
    parse_network_policy,
    parse_selector,
)
from policy.syntax import canonical_cidr
from tests.support.builders import labelled

ANY = PolicyRule()


def parsed(spec: Any) -> NetworkPolicy:
    return parse_network_policy({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})


def from_port(port: Any) -> tuple[PolicyRule, ...]:
    return parsed({"ingress": [{"ports": [port]}]}).ingress or ()


# --- defaults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ({}, (), None),
        (None, (), None),
        ({"podSelector": {}}, (), None),
        ({"podSelector": None, "ingress": None, "policyTypes": None}, (), None),
        ({"policyTypes": []}, (), None),
        ({"egress": []}, (), None),
        ({"egress": [{}]}, (), (ANY,)),
        ({"ingress": [{}]}, (ANY,), None),
        ({"policyTypes": ["Egress"]}, None, ()),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, None, ()),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, (), None),
        ({"policyTypes": ["Egress", "Ingress"], "egress": [{}], "ingress": [{}]}, (ANY,), (ANY,)),
        ({"ingress": [{"from": [], "ports": []}]}, (ANY,), None),
        ({"ingress": [{"from": None, "ports": None}]}, (ANY,), None),
        ({"ingress": [{"ports": [{}]}]}, (PolicyRule(None, (Port(Protocol.TCP),)),), None),
        ({"ingress": [{"ports": [{"protocol": None}]}]}, (PolicyRule(None, (Port(Protocol.TCP),)),), None),
    ],
)
def test_defaults(spec: Any, ingress: Any, egress: Any) -> None:
    assert parsed(spec) == NetworkPolicy("n", "p", Selector(), ingress, egress, "u")


def test_everything_at_once() -> None:
    policy = parsed(
        {
            "podSelector": {"matchLabels": {"b": "2", "a": ""}},
            "ingress": [
                {
                    "from": [
                        {"podSelector": {}},
                        {"namespaceSelector": {"matchExpressions": [{"key": "x.io/y", "operator": "Exists"}]}},
                        {"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}},
                        {"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.9.9.9/16"]}},
                        {"ipBlock": {"cidr": "FD00:0::1/64"}},
                    ],
                    "ports": [
                        {"port": 80},
                        {"port": "web", "protocol": "UDP"},
                        {"port": 1, "endPort": 65535, "protocol": "SCTP"},
                    ],
                }
            ],
        }
    )
    assert policy.problems == ()
    assert policy.selector == Selector(
        (Requirement("a", Operator.IN, ("",)), Requirement("b", Operator.IN, ("2",)))
    )
    assert policy.ingress == (
        PolicyRule(
            (
                PodPeer(None, Selector()),
                PodPeer(Selector((Requirement("x.io/y", Operator.EXISTS),)), None),
                PodPeer(Selector(), labelled(a="b")),
                IPBlock("10.0.0.0/8", ("10.9.0.0/16",)),
                IPBlock("fd00::/64"),
            ),
            (Port(Protocol.TCP, 80), Port(Protocol.UDP, "web"), Port(Protocol.SCTP, 1, 65535)),
        ),
    )


# --- malformed parts: each is named, and allows nothing -------------------------------------------------------

PORTS: list[tuple[Any, str]] = [
    ({"protocol": "ICMP"}, "protocol: unknown protocol 'ICMP'"),
    ({"protocol": "tcp"}, "protocol: unknown protocol 'tcp'"),
    ({"protocol": ""}, "protocol: unknown protocol ''"),
    ({"protocol": 6}, "protocol: must be a string, not 6"),
    ({"port": 0}, "port: 0 is not between 1 and 65535"),
    ({"port": -1}, "port: -1 is not between 1 and 65535"),
    ({"port": 65536}, "port: 65536 is not between 1 and 65535"),
    ({"port": 10**5000}, "port: a huge number is not between 1 and 65535"),
    ({"port": True}, "port: must be a number or a name, not true"),
    ({"port": 80.0}, "port: must be a number or a name, not 80.0"),
    ({"port": [80]}, "port: must be a number or a name, not a list"),
    ({"port": ""}, "port: '' is not a port name"),
    ({"port": "80"}, "port: '80' is not a port name"),
    ({"port": "Web"}, "port: 'Web' is not a port name"),
    ({"port": "a--b"}, "port: 'a--b' is not a port name"),
    ({"port": "-a"}, "port: '-a' is not a port name"),
    ({"port": "web\n"}, "port: 'web\\n' is not a port name"),
    ({"port": "sixteen-letters-"}, "port: 'sixteen-letters-' is not a port name"),
    ({"endPort": 90}, "endPort: needs a numeric port"),
    ({"port": "web", "endPort": 90}, "endPort: needs a numeric port"),
    ({"port": 80, "endPort": 79}, "endPort: 79 is less than port 80"),
    ({"port": 80, "endPort": 65536}, "endPort: 65536 is not between 1 and 65535"),
    ({"port": 80, "endPort": "90"}, "endPort: must be a number, not '90'"),
    ({"port": 80, "endPort": True}, "endPort: must be a number, not true"),
]


@pytest.mark.parametrize(("port", "problem"), PORTS)
def test_a_malformed_port_is_named_and_matches_nothing(port: Any, problem: str) -> None:
    policy = parsed({"ingress": [{"ports": [{"port": 443}, port]}, {"ports": [port]}]})
    assert policy.problems == (f"spec.ingress[0].ports[1].{problem}", f"spec.ingress[1].ports[0].{problem}")
    assert policy.ingress == (PolicyRule(None, (Port(Protocol.TCP, 443),)), PolicyRule(None, ()))


CIDR = {"cidr": "10.0.0.0/8"}
PEERS: list[tuple[Any, str]] = [
    (None, ": must be an object, not null"),
    ("10.0.0.0/8", ": must be an object, not '10.0.0.0/8'"),
    ({}, ": must have a podSelector, a namespaceSelector or an ipBlock"),
    ({"podSelector": None}, ": must have a podSelector, a namespaceSelector or an ipBlock"),
    ({"serviceSelector": {}, "podSelector": {}}, ": unknown field 'serviceSelector'"),
    ({"ipBlock": CIDR, "podSelector": {}}, ": must not have an ipBlock beside a selector"),
    ({"ipBlock": CIDR, "namespaceSelector": {}}, ": must not have an ipBlock beside a selector"),
    ({"ipBlock": "10.0.0.0/8"}, ".ipBlock: must be an object, not '10.0.0.0/8'"),
    ({"ipBlock": {}}, ".ipBlock.cidr: must be a string, not null"),
    ({"ipBlock": {"cidr": "10.0.0.1"}}, ".ipBlock.cidr: '10.0.0.1' is not a CIDR"),
    ({"ipBlock": {"cidr": "10.0.0.0/33"}}, ".ipBlock.cidr: '10.0.0.0/33' is not a CIDR"),
    ({"ipBlock": {"cidr": "10.0.0.0/255.0.0.0"}}, ".ipBlock.cidr: '10.0.0.0/255.0.0.0' is not a CIDR"),
    ({"ipBlock": {"cidr": "fe80::1%e;x/64"}}, ".ipBlock.cidr: 'fe80::1%e;x/64' is not a CIDR"),
    (
        {"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}},
        ".ipBlock.cidr: '::ffff:10.0.0.0/104' is an IPv4-mapped IPv6 network",
    ),
    ({"ipBlock": {**CIDR, "except": "10.1.0.0/16"}}, ".ipBlock.except: must be a list, not '10.1.0.0/16'"),
    ({"ipBlock": {**CIDR, "except": ["x"]}}, ".ipBlock.except[0]: 'x' is not a CIDR"),
    (
        {"ipBlock": {**CIDR, "except": ["10.0.0.0/8"]}},
        ".ipBlock.except[0]: '10.0.0.0/8' is not strictly inside 10.0.0.0/8",
    ),
    (
        {"ipBlock": {**CIDR, "except": ["0.0.0.0/0"]}},
        ".ipBlock.except[0]: '0.0.0.0/0' is not strictly inside 10.0.0.0/8",
    ),
    (
        {"ipBlock": {**CIDR, "except": ["11.0.0.0/16"]}},
        ".ipBlock.except[0]: '11.0.0.0/16' is not strictly inside 10.0.0.0/8",
    ),
    (
        {"ipBlock": {**CIDR, "except": ["fd00::/16"]}},
        ".ipBlock.except[0]: 'fd00::/16' is not strictly inside 10.0.0.0/8",
    ),
    ({"podSelector": []}, ".podSelector: must be an object, not a list"),
    ({"podSelector": {"matchLabels": ["a"]}}, ".podSelector.matchLabels: must be an object, not a list"),
    ({"podSelector": {"matchLabels": {"a": 1}}}, ".podSelector.matchLabels['a']: must be a string, not 1"),
    ({"podSelector": {"matchLabels": {"a": "-"}}}, ".podSelector.matchLabels['a']: '-' is not a label value"),
    ({"podSelector": {"matchLabels": {"/a": "b"}}}, ".podSelector.matchLabels: '/a' is not a label key"),
    ({"namespaceSelector": {"matchFields": []}}, ".namespaceSelector: unknown field 'matchFields'"),
    (
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"": ""}}},
        ".podSelector.matchLabels: '' is not a label key",
    ),
]


@pytest.mark.parametrize(("peer", "problem"), PEERS)
def test_a_malformed_peer_is_named_and_matches_nothing(peer: Any, problem: str) -> None:
    good = {"ipBlock": {"cidr": "192.0.2.0/24"}}
    policy = parsed({"policyTypes": ["Egress"], "egress": [{"to": [good, peer]}, {"to": [peer]}]})
    assert policy.problems == (f"spec.egress[0].to[1]{problem}", f"spec.egress[1].to[0]{problem}")
    assert policy.egress == (PolicyRule((IPBlock("192.0.2.0/24"),)), PolicyRule(()))


EXPRESSIONS: list[tuple[Any, str]] = [
    ({"operator": "Exists"}, ".key: must be a string, not null"),
    ({"key": "a"}, ".operator: must be a string, not null"),
    ({"key": "a", "operator": "Gt", "values": ["1"]}, ".operator: unknown operator 'Gt'"),
    ({"key": "a", "operator": "In"}, ".values: must not be empty with In"),
    ({"key": "a", "operator": "NotIn", "values": []}, ".values: must not be empty with NotIn"),
    ({"key": "a", "operator": "Exists", "values": ["b"]}, ".values: must be empty with Exists"),
    ({"key": "a", "operator": "DoesNotExist", "values": ["b"]}, ".values: must be empty with DoesNotExist"),
    ({"key": "a", "operator": "In", "values": "b"}, ".values: must be a list, not 'b'"),
    ({"key": "a", "operator": "In", "values": [None]}, ".values[0]: must be a string, not null"),
    ({"key": "a", "operator": "In", "values": ["b" * 64]}, f".values[0]: '{'b' * 64}' is not a label value"),
    ("a", ": must be an object, not 'a'"),
]


@pytest.mark.parametrize(("expression", "problem"), EXPRESSIONS)
def test_a_malformed_pod_selector_denies_to_all_pods_of_the_namespace(expression: Any, problem: str) -> None:
    spec = {"podSelector": {"matchExpressions": [expression]}, "ingress": [{}], "policyTypes": ["Ingress"]}
    policy = parsed(spec)
    assert policy.problems[0] == f"spec.podSelector.matchExpressions[0]{problem}"
    assert (policy.selector, policy.ingress, policy.egress) == (Selector(), (), None)
    with pytest.raises(Invalid, match="^" + "here.matchExpressions"):
        parse_selector(spec["podSelector"], "here")


NOTHING = PolicyRule(())
"""A rule that is not understood: it keeps its place."""

SPECS: list[tuple[Any, Any, Any, list[str]]] = [
    ([], (), (), ["spec: must be an object, not a list"]),
    ({"ingress": "x"}, (), None, ["spec.ingress: must be a list, not 'x'"]),
    ({"egress": "x"}, (), (), ["spec.egress: must be a list, not 'x'"]),
    ({"ingress": [None]}, (NOTHING,), None, ["spec.ingress[0]: must be an object, not null"]),
    ({"ingress": [{"to": []}]}, (NOTHING,), None, ["spec.ingress[0]: unknown field 'to'"]),
    ({"egress": [{"from": []}]}, (), (NOTHING,), ["spec.egress[0]: unknown field 'from'"]),
    (
        {"ingress": [{"from": {}}]},
        (PolicyRule(()),),
        None,
        ["spec.ingress[0].from: must be a list, not an object"],
    ),
    (
        {"ingress": [{"ports": 1}]},
        (PolicyRule(None, ()),),
        None,
        ["spec.ingress[0].ports: must be a list, not 1"],
    ),
    ({"policyTypes": "Egress"}, (), (), ["spec.policyTypes: must be a list, not 'Egress'"]),
    ({"policyTypes": ["egress"], "egress": [{}]}, (), (), ["spec.policyTypes[0]: unknown policy type 'egress'"]),
    (
        {"policyTypes": ["Ingress", 1], "ingress": [{}]},
        (ANY,),
        (),
        ["spec.policyTypes[1]: must be a string, not 1"],
    ),
    ({"priority": 1, "ingress": [{}]}, (), None, ["spec: unknown field 'priority'"]),
    ({"podSelector": 1, "egress": [{}]}, (), (), ["spec.podSelector: must be an object, not 1"]),
]


@pytest.mark.parametrize(("spec", "ingress", "egress", "problems"), SPECS)
def test_a_malformed_spec_denies(spec: Any, ingress: Any, egress: Any, problems: list[str]) -> None:
    policy = parsed(spec)
    assert list(policy.problems) == problems
    assert (policy.ingress, policy.egress) == (ingress, egress)


def test_a_reason_does_not_repeat_a_long_text() -> None:
    (problem,) = parsed({"ingress": [{"ports": [{"protocol": "X" * 100_000}]}]}).problems
    assert len(problem) < 150


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        (None, "metadata: must be an object"),
        ([], "metadata: must be an object"),
        ({}, "metadata: must be an object"),
        ({"metadata": {"name": "p"}}, "metadata.namespace: must be a string, not null"),
        ({"metadata": {"namespace": "n"}}, "metadata.name: must be a string, not null"),
        ({"metadata": {"namespace": "n", "name": ""}}, "metadata.name: '' is not a DNS subdomain"),
        ({"metadata": {"namespace": "n", "name": "a\nb"}}, "metadata.name: 'a\\nb' is not a DNS subdomain"),
        ({"metadata": {"namespace": "n", "name": "a\n"}}, "metadata.name: 'a\\n' is not a DNS subdomain"),
        ({"metadata": {"namespace": "n", "name": "a b"}}, "metadata.name: 'a b' is not a DNS subdomain"),
        ({"metadata": {"namespace": "n.m", "name": "p"}}, "metadata.namespace: 'n.m' is not a DNS label"),
        ({"metadata": {"namespace": "n\x00", "name": "p"}}, "metadata.namespace: 'n\\x00' is not a DNS label"),
    ],
)
def test_what_cannot_be_named_is_rejected(obj: Any, reason: str) -> None:
    with pytest.raises(Rejected) as error:
        parse_network_policy(obj)
    assert str(error.value) == reason


def test_a_uid_with_control_characters_is_left_out() -> None:
    assert parse_network_policy({"metadata": {"name": "p", "namespace": "n", "uid": "a\nb"}}).uid == ""


def test_labels_are_sorted() -> None:
    assert parse_labels({"b": "2", "a": "1"}) == (("a", "1"), ("b", "2"))
    assert parse_labels(None) == ()
    with pytest.raises(Invalid, match=r"^metadata.labels\['a'\]: must be a string, not 1$"):
        parse_labels({"a": 1})


def test_equal_selectors_are_equal() -> None:
    one = {
        "matchLabels": {"a": "b"},
        "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x", "y"]}],
    }
    two = {
        "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y"]},
            {"key": "a", "operator": "In", "values": ["b"]},
        ]
    }
    assert parse_selector(one, "s") == parse_selector(two, "s")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("FD00:0:0::1", "fd00::1"),
        # Decimal, as ParseIPSloppy reads it, not octal.
        ("010.008.011.012", "10.8.11.12"),
        ("00.000.0.00010", "0.0.0.10"),
        ("100.00.200.30", "100.0.200.30"),
        ("fd00:00001::000a", "fd00:1::a"),
        ("64:ff9b::010.0.0.1", "64:ff9b::a00:1"),
        ("::", "::"),
    ],
)
def test_canonical_address(text: str, canonical: str) -> None:
    assert canonical_address(text) == canonical


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.1/32", "fe80::1%eth0", "::ffff:10.0.0.1", "0256.0.0.1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"is (not an IP address|an IPv4-mapped)"):
        canonical_address(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("010.0.0.0/8", "10.0.0.0/8"),
        ("192.168.010.000/024", "192.168.10.0/24"),
        ("010.011.012.013/008", "10.0.0.0/8"),
        ("fd00:0001::/064", "fd00:1::/64"),
        ("0000::/0000", "::/0"),
        ("0.0.0.0/00", "0.0.0.0/0"),
    ],
)
def test_leading_zeros_of_a_stored_cidr_mean_nothing(text: str, canonical: str) -> None:
    """Older API servers took them, and what is stored is served for ever."""
    assert canonical_cidr(text) == canonical
    spec = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": text}}]}]}
    policy = parse_network_policy({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
    assert policy.problems == ()
    assert policy.ingress == (PolicyRule((IPBlock(canonical),)),)


def test_leading_zeros_in_an_exception() -> None:
    block = {"cidr": "010.0.0.0/8", "except": ["010.020.0.0/016", "10.030.0.0/16"]}
    spec = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": block}]}]}
    policy = parse_network_policy({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
    assert policy.problems == ()
    assert policy.ingress == (PolicyRule((IPBlock("10.0.0.0/8", ("10.20.0.0/16", "10.30.0.0/16")),)),)


def test_an_unknown_spec_field_denies_what_the_policy_selects_and_nobody_else() -> None:
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "priority": 1, "ingress": [{}]}
    policy = parse_network_policy({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
    assert policy.selector == labelled(app="web")
    assert (policy.ingress, policy.egress) == ((), None)
