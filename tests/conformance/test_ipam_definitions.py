"""IPPool, IPReservation, IPAMBlock and BlockAffinity, with real kubectl: columns, refusals; the agent agrees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from felix_py.agent.block_writer import loans_spec
from felix_py.ipam.parse import Bad, Origin, parse_block, parse_pool, parse_reservation
from felix_py.ipam.resources import IPAMBlock, Loan, LoanRequest
from tests.conformance.conftest import Kubectl, Scenery, emptied, installed
from tests.support.ipam_resources import POOL, RESERVATION

NAMES = ("ippools", "ipreservations", "ipamblocks", "blockaffinities")


@pytest.fixture(scope="module", autouse=True)
def definitions(cluster: Kubectl) -> Iterator[None]:
    with installed(cluster, NAMES):
        yield


@pytest.fixture
def clean(cluster: Kubectl, scenery: Scenery) -> Iterator[Kubectl]:
    with emptied(cluster, scenery, (f"/apis/felixpy.io/v1alpha1/{name}" for name in NAMES)) as found:
        yield found


def refused(kubectl: Kubectl, obj: dict[str, Any]) -> str:
    return kubectl.fails("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=obj)


def resource(kind: str, name: str = "one", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "felixpy.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def test_everything_can_be_set_and_is_read_as_it_was_written(clean: Kubectl) -> None:
    clean.apply(resource("IPPool", **POOL))
    clean.apply(resource("IPReservation", **RESERVATION))
    pool, reservation = (clean.get(f"{name}.felixpy.io", "one")["spec"] for name in NAMES[:2])
    assert (pool, reservation) == (POOL, RESERVATION)
    assert parse_pool("one", pool) == parse_pool("one", POOL)
    assert parse_reservation("one", reservation) == parse_reservation("one", RESERVATION)


def test_what_is_not_set_means_what_the_agents_take_it_for(clean: Kubectl) -> None:
    for name, cidr in (("four", "10.64.0.0/16"), ("six", "fd00::/64")):
        clean.apply(resource("IPPool", name, cidr=cidr))
        found = clean.get("ippools.felixpy.io", name)["spec"]
        assert parse_pool(name, found) == parse_pool(name, {"cidr": cidr})


def test_columns(clean: Kubectl) -> None:
    clean.apply(resource("IPPool", cidr="10.64.0.0/16", blockSize=28, natOutgoing=True))
    spec = {"cidr": "10.64.0.0/28", "node": "n1"}
    clean.apply(resource("IPAMBlock", **spec, nodeUID="u"))
    clean.apply(resource("BlockAffinity", **spec, state="confirmed"))
    rows = [clean("get", f"{name}.felixpy.io").splitlines()[1].split() for name in NAMES if name != NAMES[1]]
    assert rows[0][:5] == ["one", "10.64.0.0/16", "28", "true", "false"]
    assert rows[1][:3] == ["one", "10.64.0.0/28", "n1"]
    assert rows[2][:4] == ["one", "n1", "10.64.0.0/28", "confirmed"]


CANNOT = "cannot be changed: make another pool, and disable this one"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "spec.cidr"),
    ({"cidr": "10.64.0.1/16"}, "write it as a canonical CIDR: 10.64.0.0/16 or fd00::/48"),
    ({"cidr": "10.64.0.0/16", "blockSize": 19}, "should be greater than or equal to 20"),
    ({"cidr": "10.64.0.0/16", "blockSize": 33}, "blockSize is 20 to 32 for IPv4 and 116 to 128 for IPv6"),
    ({"cidr": "fd00::/48", "blockSize": 32}, "blockSize is 20 to 32 for IPv4 and 116 to 128 for IPv6"),
    ({"cidr": "10.64.0.0/27"}, "cidr must have room for a block of blockSize"),
    ({"cidr": "10.64.0.0/29", "blockSize": 28}, "cidr must have room for a block of blockSize"),
    ({"cidr": "fd00::/123"}, "cidr must have room for a block of blockSize"),
    ({"cidr": "10.64.0.0/16", "allowedUses": ["Tunnel"]}, 'supported values: "Workload", "LoadBalancer"'),
    ({"cidr": "10.64.0.0/16", "allowedUses": []}, "should have at least 1 items"),
    ({"cidr": "10.64.0.0/16", "assignmentMode": "Never"}, 'supported values: "Automatic", "Manual"'),
    # "must be of type boolean" of the schema, or "expected boolean" of server-side apply, once it has the schema.
    ({"cidr": "10.64.0.0/16", "natOutgoing": "yes"}, "boolean"),
]


@pytest.mark.parametrize(("spec", "why"), REFUSED, ids=str)
def test_pool_that_is_refused_is_refused_by_agents_too(clean: Kubectl, spec: dict[str, Any], why: str) -> None:
    assert why in refused(clean, resource("IPPool", **spec))
    with pytest.raises(Bad):
        parse_pool("one", spec)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ({"cidr": "10.64.0.0/16"}, {"cidr": "10.65.0.0/16"}, CANNOT),
        ({"cidr": "10.64.0.0/16", "blockSize": 28}, {"cidr": "10.64.0.0/16", "blockSize": 27}, CANNOT),
        ({"cidr": "10.64.0.0/16"}, {"cidr": "10.64.0.0/16", "blockSize": 26}, CANNOT),
    ],
)
def test_what_cannot_be_changed(clean: Kubectl, before: Any, after: Any, why: str) -> None:
    clean.apply(resource("IPPool", **before))
    assert why in refused(clean, resource("IPPool", **after))
    clean.apply(resource("IPPool", **before, disabled=True))


def test_blocks_stay_whose_they_are(clean: Kubectl) -> None:
    spec: dict[str, Any] = {"cidr": "10.64.0.0/28", "node": "n1", "nodeUID": "u"}
    clean.apply(resource("IPAMBlock", **spec))
    assert "cannot be changed" in refused(clean, resource("IPAMBlock", **spec | {"node": "n2"}))
    clean.apply(resource("IPAMBlock", **spec | {"nodeUID": "v"}))
    clean.apply(resource("BlockAffinity", cidr="10.64.0.0/28", node="n1", state="pending"))
    wrong = resource("BlockAffinity", cidr="10.64.0.0/28", node="n1", state="lost")
    assert '"pending", "confirmed", "pendingDeletion"' in refused(clean, wrong)


def test_loans_are_read_as_they_were_written(clean: Kubectl) -> None:
    seen = IPAMBlock(
        name="one",
        cidr="10.64.0.0/28",
        node="n1",
        node_uid="u",
        lent=(Loan("10.64.0.5", "n2", "v", "l1"), Loan("10.64.0.6", "n2", "v", "l2")),
        requests=(LoanRequest(node="n3", node_uid="w", count=8),),
    )
    loans = loans_spec(seen.lent, seen.requests)
    spec: dict[str, Any] = {"cidr": seen.cidr, "node": seen.node, "nodeUID": seen.node_uid}
    clean.apply(resource("IPAMBlock", **spec | loans))
    found = clean.get("ipamblocks.felixpy.io", "one")
    assert parse_block("one", found["spec"], Origin()) == seen
    # As an agent writes it: a merge patch replaces the lists.
    patch = {"spec": loans_spec(seen.lent[:1], ())}
    clean("patch", "ipamblocks.felixpy.io", "one", "--type=merge", f"--patch={json.dumps(patch)}")
    found = clean.get("ipamblocks.felixpy.io", "one")
    assert parse_block("one", found["spec"], Origin()) == replace(seen, lent=seen.lent[:1], requests=())


LOAN = {"address": "10.64.0.5", "node": "n2", "nodeUID": "v", "uid": "l1"}
REQUEST = {"node": "n3", "nodeUID": "w", "count": 1}


@pytest.mark.parametrize(
    ("loans", "why"),
    [
        ({"lent": [LOAN | {"address": "10.64.0.16"}]}, "what is lent must be addresses of the block"),
        ({"lent": [LOAN | {"address": "fd00::5"}]}, "what is lent must be addresses of the block"),
        ({"lent": [LOAN | {"address": "none"}]}, "what is lent must be addresses of the block"),
        ({"lent": [LOAN, LOAN | {"node": "n3"}]}, "duplicate"),
        ({"lent": [{"address": "10.64.0.5", "node": "n2"}]}, "nodeUID"),
        ({"requests": [REQUEST | {"count": 65}]}, "should be less than or equal to 64"),
        ({"requests": [REQUEST, REQUEST]}, "duplicate"),
    ],
    ids=str,
)
def test_loans_that_are_refused(clean: Kubectl, loans: dict[str, Any], why: str) -> None:
    spec: dict[str, Any] = {"cidr": "10.64.0.0/28", "node": "n1", "nodeUID": "u"}
    assert why.lower() in refused(clean, resource("IPAMBlock", **spec | loans)).lower()


def test_a_reservation_that_is_no_cidr(clean: Kubectl) -> None:
    spec: dict[str, Any] = {"reservedCIDRs": ["10.64.1.5"]}
    assert "write it as a canonical CIDR" in refused(clean, resource("IPReservation", **spec))
    with pytest.raises(Bad):
        parse_reservation("one", spec)
