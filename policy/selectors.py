"""Matching of label selectors (API: meta/v1 LabelSelector)."""

from __future__ import annotations

from policy.model import Labels, Operator, Requirement, Selector

EVERYTHING = Selector()


def matches(selector: Selector, labels: Labels) -> bool:
    """Whether all requirements of the selector hold for the labels. An empty selector matches everything."""
    return all(_holds(requirement, labels) for requirement in selector.requirements)


def _holds(requirement: Requirement, labels: Labels) -> bool:
    value = next((v for k, v in labels if k == requirement.key), None)
    match requirement.operator:
        case Operator.IN:
            return value in requirement.values
        case Operator.NOT_IN:
            # An object without the key matches NotIn, too.
            return value not in requirement.values
        case Operator.EXISTS:
            return value is not None
        case Operator.DOES_NOT_EXIST:
            return value is None
