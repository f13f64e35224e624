"""Every example manifest, on real packets, beside the oracle.

With the definitions of the cluster-scoped policies, which some examples need.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from lab.build import EXAMPLES
from policy.model import Protocol
from tests.support.lab import LabUnderTest, example

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.usefixtures("definitions")]

Port = tuple[Protocol | None, int | None]

# Ports that show what the example is about; without an entry each destination's first port.
PORTS: dict[str, list[Port]] = {
    "20": [(None, None), (Protocol.TCP, 9187)],
    "22": [(Protocol.TCP, 9100), (Protocol.TCP, 9187), (None, None)],
    "40": [(None, None), (Protocol.TCP, 8080), (Protocol.TCP, 9100)],
    "50": [(Protocol.TCP, 7002), (Protocol.TCP, 7001), (Protocol.UDP, 514), (None, None)],
    "60": [(None, None), (Protocol.UDP, 53), (Protocol.TCP, 53)],
}

NUMBERS = sorted(path.name[:2] for path in EXAMPLES.glob("*.yaml") if path.name[:2] != "00")


def reached(lab: LabUnderTest, port: Port) -> list[bool]:
    """Who is reached on a port, once that is as the oracle says."""
    return [cell.reached for cell in lab.settle(*port)[0]]


def reached_by(lab: LabUnderTest, number: str) -> list[list[bool]]:
    """Likewise, on the example's ports."""
    return [reached(lab, port) for port in ports(number)]


def ports(number: str) -> list[Port]:
    return PORTS.get(number, [(None, None)])


@pytest.fixture(scope="module")
def bare(lab: LabUnderTest) -> Callable[[Port], list[bool]]:
    """Who is reached without policies: measured once for a port, since each test sees that it leaves it so."""
    return cache(lambda port: reached(lab, port))


@pytest.mark.parametrize(
    ("lab", "number"),
    [
        pytest.param(backend, number, marks=() if place % 2 == turn else pytest.mark.heavy)
        for turn, backend in enumerate(("legacy", "nft"))
        for place, number in enumerate(NUMBERS)
    ],
    indirect=["lab"],
)
def test_example_changes_the_matrix(lab: LabUnderTest, bare: Callable[[Port], list[bool]], number: str) -> None:
    before = [bare(port) for port in ports(number)]
    with lab.applied("-f", example(number)):
        during = reached_by(lab, number)
    assert before != during, "the example changes nothing that this test can see"
    assert before == reached_by(lab, number)


def test_all_examples_together(lab: LabUnderTest) -> None:
    """11 denies all egress of shop, which others open again: policies add up, and tiers go before and behind."""
    arguments = [word for number in NUMBERS for word in ("-f", example(number))]
    with lab.applied(*arguments):
        cells, _ = lab.settle()
        assert {cell.verdict.allowed for cell in cells} == {True, False}
    lab.settle()


@pytest.mark.parametrize(
    ("number", "target", "label", "back"),
    [
        ("20", ("-n", "shop", "pod", "web-1"), "tier=api", "tier=web"),
        ("21", ("namespace", "dev"), "stage=production", "stage=development"),
    ],
    ids=["pod", "namespace"],
)
def test_labels_take_effect(
    lab: LabUnderTest, number: str, target: tuple[str, ...], label: str, back: str
) -> None:
    """What the comments of the examples suggest to try."""
    with lab.applied("-f", example(number)):
        before = reached_by(lab, number)
        lab.kubectl("label", *target, label, "--overwrite")
        try:
            during = reached_by(lab, number)
        finally:
            lab.kubectl("label", *target, back, "--overwrite")
        assert sum(map(sum, before)) < sum(map(sum, during))
        assert before == reached_by(lab, number)
    lab.settle()
