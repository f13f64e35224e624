"""Every example manifest, on real packets, beside the oracle (issue: "It must show", 3)."""

from __future__ import annotations

import pytest

from felix_py.lab.build import EXAMPLES
from policy.model import Protocol
from tests.support.lab import LabUnderTest, example

pytestmark = [pytest.mark.root, pytest.mark.e2e]

Ports = list[tuple[Protocol | None, int | None]]

# Besides each destination's first port: the ports that the example's own comments speak of.
FURTHER_PORTS: dict[str, Ports] = {
    "20": [(Protocol.TCP, 9187)],
    "22": [(Protocol.TCP, 9100), (Protocol.TCP, 9187)],
    "40": [(Protocol.TCP, 8080), (Protocol.TCP, 9100)],
    "50": [(Protocol.TCP, 7001), (Protocol.TCP, 7002), (Protocol.UDP, 514)],
    "60": [(Protocol.UDP, 53), (Protocol.TCP, 53)],
}
NUMBERS = sorted(path.name[:2] for path in EXAMPLES.glob("*.yaml") if path.name[:2] != "00")


@pytest.mark.parametrize("number", NUMBERS)
def test_example_changes_the_matrix_within_a_second(
    lab: LabUnderTest, number: str, record_property: pytest.RecordProperty
) -> None:
    before, _ = lab.settle()
    with lab.applied("-f", example(number)):
        during, in_force = lab.settle()
        for protocol, port in FURTHER_PORTS.get(number, []):
            lab.settle(protocol, port)
    after, gone = lab.settle()
    reached = [[cell.reached for cell in cells] for cells in (before, during, after)]
    assert reached[0] != reached[1], "the example changes nothing that this test can see"
    assert reached[0] == reached[2]
    record_property("seconds", f"{in_force:.2f} {gone:.2f}")
    assert in_force < 1.0
    assert gone < 1.0


def test_all_examples_together(lab: LabUnderTest) -> None:
    """11 denies all egress of shop, which the others then open again: policies add up."""
    arguments = [word for number in NUMBERS for word in ("-f", example(number))]
    with lab.applied(*arguments):
        cells, _ = lab.settle()
        assert {cell.verdict.allowed for cell in cells} == {True, False}
    lab.settle()


def test_labels_of_pods_and_namespaces_take_effect_at_once(lab: LabUnderTest) -> None:
    with lab.applied("-f", example("20"), "-f", example("21")):
        before, _ = lab.settle()
        lab.kubectl("label", "-n", "shop", "pod", "web-1", "tier=api", "--overwrite")
        relabelled, pod_seconds = lab.settle()
        lab.kubectl("label", "namespace", "dev", "stage=production", "--overwrite")
        moved, namespace_seconds = lab.settle()
        lab.kubectl("label", "-n", "shop", "pod", "web-1", "tier=web", "--overwrite")
        lab.kubectl("label", "namespace", "dev", "stage=development", "--overwrite")
        after, _ = lab.settle()
    lab.settle()
    reached = [[cell.reached for cell in cells] for cells in (before, relabelled, moved, after)]
    assert sum(reached[0]) < sum(reached[1]) < sum(reached[2])
    assert reached[0] == reached[3]
    assert max(pod_seconds, namespace_seconds) < 1.0
