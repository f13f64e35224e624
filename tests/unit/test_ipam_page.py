"""What docs/ipam.md prints: its objects are taken by the definitions and the agent, and its tables are whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from felix_py.ipam.asked import ADDRESSES, KEEP, MAC, POOLS, asked
from felix_py.ipam.parse import parse_pool, parse_reservation
from felix_py.ipam.resources import IPPool
from felix_py.layers import from_fields
from lab.apiserver.crd import resource_of
from lab.apiserver.structural import Structural

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ipam.md").read_text()
CRDS = ROOT / "manifests" / "crds"


def objects() -> Iterator[dict[str, Any]]:
    for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        yield from yaml.safe_load_all(text)


OURS = {f"{one['kind']}-{one['metadata']['name']}": one for one in objects() if "felixpy.io" in one["apiVersion"]}


READ: dict[str, Callable[[str, Any], object]] = {
    "IPPool": parse_pool,
    "IPReservation": parse_reservation,
    "FelixConfiguration": lambda _name, spec: from_fields(spec),
}


def schema(kind: str) -> Structural:
    definition = yaml.safe_load((CRDS / f"felixpy.io_{kind.lower()}s.yaml").read_text())
    (version,) = resource_of(definition).versions
    return Structural(version)


@pytest.mark.parametrize("name", OURS)
def test_the_definitions_and_the_agent_take_it(name: str) -> None:
    one = OURS[name]
    structural = schema(one["kind"])
    whole = structural.prune(one)
    structural.default(whole)
    assert structural.unknown == []
    assert structural.validate(whole) == []
    read = READ[one["kind"]]
    assert read(one["metadata"]["name"], whole["spec"]) == read(one["metadata"]["name"], one["spec"])


def test_all_fields_are_printed_with_their_defaults() -> None:
    whole = OURS["IPPool-rack-a"]["spec"]
    assert parse_pool("p", whole) == parse_pool("p", {"cidr": whole["cidr"]})
    fields = schema("IPPool")._schema["properties"]["spec"]["properties"]
    assert set(whole) == set(fields)
    rows = re.findall(r"^\| `(\w+)` \| the same \|", PAGE, re.MULTILINE)
    assert {*rows, "allowedUses"} == set(fields)
    assert isinstance(parse_pool("p", whole), IPPool)


def test_annotations() -> None:
    pods = [one for one in objects() if one["kind"] == "Pod"]
    assert [bool(asked(tuple(pod["metadata"]["annotations"].items()))) for pod in pods] == [True] * len(pods)
    for key in (*POOLS.values(), ADDRESSES, MAC, KEEP):
        assert f"`{key}`" in PAGE
