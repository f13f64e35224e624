"""Annotations on a pod's addresses: which count, in which form, and which are refused."""

from __future__ import annotations

import pytest

from felix_py.ipam.asked import Asked, BadAnnotation, asked
from policy.model import Family

V4, V6 = Family
POOLS = "felixpy.io/ipv4-pools"


@pytest.mark.parametrize(
    "text", ['["web", "10.2.0.0/16"]', "web,10.2.0.0/16", " web , 10.2.0.0/16,", '["web","10.2.0.0/16","web"]']
)
def test_a_json_list_or_commas(text: str) -> None:
    assert asked(((POOLS, text),)) == Asked({V4: ("web", "10.2.0.0/16")})


def test_nothing() -> None:
    assert asked(()) == Asked()
    assert asked((("felixpy.io/ipv4-pools", ""),), (("felixpy.io/mac", "02:00:00:00:00:01"),)) == Asked()


def test_all_of_a_pods() -> None:
    found = asked(
        (
            ("felixpy.io/ip-addresses", '["10.1.0.7", "FD00:1::7"]'),
            ("felixpy.io/ipv6-pools", "fd00:2::/64"),
            ("felixpy.io/keep-address", "true"),
            ("felixpy.io/mac", "02:00:00:AB:cd:ef"),
        )
    )
    assert found == Asked({V6: ("fd00:2::/64",)}, ("10.1.0.7", "fd00:1::7"), "02:00:00:ab:cd:ef", True)


def test_the_pods_own_counts_before_its_namespaces_family_by_family() -> None:
    of_namespace = ((POOLS, "shared"), ("felixpy.io/ipv6-pools", "shared6"))
    assert asked(((POOLS, "own"),), of_namespace).pools == {V4: ("own",), V6: ("shared6",)}


CALICO = (
    ("cni.projectcalico.org/hwAddr", "1c:0c:0a:c0:ff:ee"),
    ("cni.projectcalico.org/ipAddrs", '["10.1.0.9"]'),
    ("cni.projectcalico.org/ipv4pools", '["theirs"]'),
)


def test_calicos_count_where_they_are_asked_for_and_there_is_none_of_ours() -> None:
    assert asked(CALICO, CALICO) == Asked()
    assert asked(CALICO, foreign=True) == Asked({V4: ("theirs",)}, ("10.1.0.9",), "1c:0c:0a:c0:ff:ee")
    assert asked((), CALICO, foreign=True) == Asked({V4: ("theirs",)})
    assert asked((*CALICO, (POOLS, "own")), foreign=True).pools == {V4: ("own",)}
    # A pod's own of either kind counts before its namespace's of either kind.
    assert asked(CALICO, ((POOLS, "shared"),), foreign=True).pools == {V4: ("theirs",)}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (POOLS, "[1]", "not a JSON list of texts"),
        (POOLS, '["web"', "not a JSON list"),
        (POOLS, "[" * 100_000, "not a JSON list"),
        (POOLS, "[]", "names no pool"),
        (POOLS, ",", "names no pool"),
        (POOLS, "Web_1", "not a DNS subdomain"),
        (POOLS, "10.1.0.0/33", "not a CIDR"),
        (POOLS, "fd00::/64", "not an IPv4 CIDR"),
        ("felixpy.io/ipv6-pools", "10.1.0.0/16", "not an IPv6 CIDR"),
        ("felixpy.io/ip-addresses", "10.1.0.0/24", "not an IP address"),
        ("felixpy.io/ip-addresses", "fe80::1%eth0", "not an IP address"),
        ("felixpy.io/ip-addresses", "10.1.0.1,10.1.0.2", "10.1.0.2 is a second IPv4 address"),
        ("felixpy.io/ip-addresses", "[]", "names no address"),
        ("felixpy.io/mac", "02:00:00:00:00", "not a unicast MAC"),
        ("felixpy.io/mac", "01:00:5e:00:00:01", "not a unicast MAC"),
        ("felixpy.io/mac", "00:00:00:00:00:00", "not a unicast MAC"),
        ("felixpy.io/mac", "02-00-00-00-00-01", "not a unicast MAC"),
        ("felixpy.io/keep-address", "yes", '"true" or "false"'),
    ],
)
def test_what_cannot_be_understood_is_named(key: str, value: str, reason: str) -> None:
    with pytest.raises(BadAnnotation, match=reason) as caught:
        asked(((key, value),))
    assert str(caught.value).startswith(f"annotation {key} of the pod (")
    assert len(str(caught.value)) < 1000


def test_it_says_whose_annotation_it_is() -> None:
    with pytest.raises(BadAnnotation, match=r"cni\.projectcalico\.org/ipv4pools of the namespace"):
        asked((), (("cni.projectcalico.org/ipv4pools", "A B"),), foreign=True)
