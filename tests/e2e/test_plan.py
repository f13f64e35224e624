"""What ``felix-py plan`` says would change is what changes once the policies are applied, packet by packet."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.matrix import Cell, Kind, Party
from policy.model import Family, Protocol
from tests.support.lab import LabUnderTest, example, one_backend

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.usefixtures("definitions"), one_backend]

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))
PORTS: list[tuple[Protocol | None, int | None]] = [(None, None), (Protocol.TCP, 9100)]


def plan(lab: LabUnderTest, *words: str) -> tuple[int, Any]:
    """Exit code and JSON answer."""
    argv = [FELIX_PY, "plan", "-o", "json", "--no-flows", "--kubeconfig", str(lab.lab.kubeconfig), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def is_there(party: Party, family: Family, side: dict[str, Any]) -> bool:
    """Whether a party is on a side of a group."""
    match party.kind:
        case Kind.POD:
            return party.name in side["pods"]
        case Kind.NODE:
            return party.name in side["nodes"]
    address = ipaddress.ip_address(party.addresses[family])
    return any(
        address in ipaddress.ip_network(one["cidr"])
        and not any(address in ipaddress.ip_network(hole) for hole in one["except"])
        for one in side["world"]
    )


def foretold(places: dict[str, str], cell: Cell, groups: list[dict[str, Any]]) -> list[str]:
    """What a plan says of an attempt; ``places``: each pod's node."""
    attempt = cell.attempt
    protocol, port = attempt.port
    source, destination = attempt.source, attempt.destination
    if source.name in (destination.name, places.get(destination.name)):
        return []
    return [
        group["effect"]
        for group in groups
        if group["family"] in (None, int(attempt.family))
        and is_there(source, attempt.family, group["sources"])
        and is_there(destination, attempt.family, group["destinations"])
        and any(p["protocol"] == protocol and p["first"] <= port <= p["last"] for p in group["ports"])
    ]


def measured(lab: LabUnderTest) -> list[Cell]:
    return [cell for port in PORTS for cell in lab.settle(*port)[0]]


def difference(before: list[Cell], after: list[Cell]) -> list[list[str]]:
    """What became of each attempt, as :func:`foretold` puts it."""
    words = {(False, True): ["allowed"], (True, False): ["denied"]}
    return [words.get((old.reached, new.reached), []) for old, new in zip(before, after, strict=True)]


@pytest.mark.parametrize(
    "numbers", [("30", "50"), ("10", "20", "22", "40"), ("10", "70", "71", "72")], ids="+".join
)
def test_exactly_what_was_foretold_changes(lab: LabUnderTest, numbers: tuple[str, ...]) -> None:
    pods = lab.get("pods")["items"]
    places = {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p["spec"]["nodeName"] for p in pods}
    files = [word for number in numbers for word in ("-f", example(number))]
    before = measured(lab)
    code, answer = plan(lab, *files)
    assert code == 1
    assert lab.get("networkpolicies")["items"] == [], "a plan applies nothing"
    with lab.applied(*files):
        after = measured(lab)
        told = [foretold(places, cell, answer["groups"]) for cell in before]
        assert difference(before, after) == told
        assert any(told)
        assert plan(lab, *files)[0] == 0
        code, answer = plan(lab, *files, "--delete")
        assert code == 1
        told = [foretold(places, cell, answer["groups"]) for cell in after]
    assert difference(after, measured(lab)) == told


def test_connections_of_a_node_that_would_be_denied(lab: LabUnderTest) -> None:
    """On the database's node, whose agent has seen who connected."""
    node = lab.node_of("shop", "db-1")
    lab.settle(Protocol.TCP, 5432)
    done = lab.lab.run(node, "felix-py", "plan", "-o", "json", "-f", example("20"), check=False)
    assert done.returncode == 1, done.stderr
    flows = json.loads(done.stdout)["flows"]
    assert flows["silent"] == {}
    to_the_database = {f["sourceName"] for f in flows["denied"] if f["destinationName"] == "shop/db-1"}
    assert {"shop/web-1", "dev/client-1"} <= to_the_database
    assert not {"shop/api-1", "shop/api-2", f"node {node}"} & to_the_database
