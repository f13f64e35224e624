"""Every example manifest, on real packets, beside the oracle.

With the definitions of the cluster-scoped policies, which some examples need.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.build import EXAMPLES
from policy.model import Protocol
from tests.support.lab import LabUnderTest, example

pytestmark = [pytest.mark.root, pytest.mark.e2e]

Ports = list[tuple[Protocol | None, int | None]]

# Ports that show what the example is about; without an entry each destination's first port.
PORTS: dict[str, Ports] = {
    "20": [(None, None), (Protocol.TCP, 9187)],
    "22": [(Protocol.TCP, 9100), (Protocol.TCP, 9187), (None, None)],
    "40": [(None, None), (Protocol.TCP, 8080), (Protocol.TCP, 9100)],
    "50": [(Protocol.TCP, 7002), (Protocol.TCP, 7001), (Protocol.UDP, 514), (None, None)],
    "60": [(None, None), (Protocol.UDP, 53), (Protocol.TCP, 53)],
}

NUMBERS = sorted(path.name[:2] for path in EXAMPLES.glob("*.yaml") if path.name[:2] != "00")


@pytest.fixture(scope="module", autouse=True)
def definitions(lab: LabUnderTest) -> Iterator[None]:
    with lab.definitions():
        yield


def reached(lab: LabUnderTest, number: str) -> list[list[bool]]:
    """Who is reached on the example's ports, once that is as the oracle says."""
    measured = [lab.settle(*port) for port in PORTS.get(number, [(None, None)])]
    return [[cell.reached for cell in cells] for cells, _ in measured]


@pytest.mark.parametrize("number", NUMBERS)
def test_example_changes_the_matrix(lab: LabUnderTest, number: str) -> None:
    before = reached(lab, number)
    with lab.applied("-f", example(number)):
        during = reached(lab, number)
    assert before != during, "the example changes nothing that this test can see"
    assert before == reached(lab, number)


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
        before = reached(lab, number)
        lab.kubectl("label", *target, label, "--overwrite")
        try:
            during = reached(lab, number)
        finally:
            lab.kubectl("label", *target, back, "--overwrite")
        assert sum(map(sum, before)) < sum(map(sum, during))
        assert before == reached(lab, number)
    lab.settle()
