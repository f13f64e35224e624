"""An explained packet as text for people, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from felix_py.diagnose.ends import Place
from felix_py.diagnose.packets import Agreement, NodeView
from felix_py.ruleset.run import Outcome, Result, Step
from policy.model import RuleAction, Tier
from policy.oracle.evaluate import RuleRef
from policy.oracle.explain import Asked, End, Explanation


@dataclasses.dataclass(frozen=True, slots=True)
class Explained:
    """One packet: its ends, policy's verdict with reasons, and the nodes on its way."""

    source: Place
    destination: Place
    explanation: Explanation
    nodes: tuple[NodeView, ...] = ()

    @property
    def disagrees(self) -> bool:
        """Whether a kernel that was read does not do what policy says."""
        return any(view.agreement is Agreement.DISAGREES for view in self.nodes)

    @property
    def uncertain(self) -> bool:
        """Whether a kernel's verdict depends on unknown rules."""
        return any(view.agreement is Agreement.UNKNOWN for view in self.nodes)


def text(explained: Explained) -> str:
    """The verdict in one line, then both directions, then the kernel."""
    return "\n".join(_lines(explained))


def _lines(explained: Explained) -> Iterator[str]:
    packet = explained.explanation.packet
    ends = (
        f"{place.name} ({address})" if place.name != address else address
        for place, address in ((explained.source, packet.source), (explained.destination, packet.destination))
    )
    verdict, but = _headline(explained)
    yield f"{verdict} {' -> '.join(ends)} {packet.port}/{packet.protocol}{but}"
    for place in (explained.source, explained.destination):
        if place.note:
            yield f"  note     {place.note}"
    yield from _labelled("egress", _end(explained.explanation.egress, explained.source))
    yield from _labelled("ingress", _end(explained.explanation.ingress, explained.destination))
    for view in explained.nodes:
        yield from _labelled("kernel", _node(view, explained))


def _headline(explained: Explained) -> tuple[str, str]:
    """The verdict in a word, and what contradicts it. It never contradicts a kernel's line below."""
    allowed = explained.explanation.allowed
    policy = f"policy {'allows' if allowed else 'denies'} it"
    for view in explained.nodes:
        if view.agreement is Agreement.DISAGREES and view.outcome is not None:
            return "MISMATCH", f": {policy}, but {view.node} {_OUTCOMES[view.outcome]}"
    for view in explained.nodes:
        if view.agreement is Agreement.UNKNOWN:
            return "UNKNOWN", f": {policy}, but what {view.node} does cannot be foretold"
    if not allowed:
        return "DENIED", ""
    notes = [f": policy allows it, but on {view.node} {view.note}" for view in explained.nodes if view.note]
    return "ALLOWED", next(iter(notes), "")


def _labelled(label: str, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"  {'' if number else label:<8} {line}"


def _end(end: End, place: Place) -> Iterator[str]:
    said = end.verdict
    if said is None:
        assert end.free is not None
        yield f"allowed: {end.free}"
        return
    word = "allowed" if said.allowed else "denied"
    if said.decided_by is not None:
        yield f"{word} by {rule_text(end, said.decided_by)} ({said.tier} tier)"
    elif not said.selected_by:
        yield f"allowed: no policy selects {place.name} in this direction"
    elif said.allowed:
        yield f"allowed: no rule of the policies that select {place.name} decides"
    else:
        yield f"denied: NetworkPolicies isolate {place.name}, and none of them allows this"
    for rule in said.passed_by:
        yield f"passed on by {rule_text(end, rule)}"
    for asked in end.asked:
        yield from (f"{asked.policy}: not understood: {problem}" for problem in asked.problems)
        if not said.allowed:
            yield from _in_vain(end, asked)
    others = [str(ref) for ref in end.not_asked]
    if others:
        yield f"not asked: {', '.join(others)}"


def _in_vain(end: End, asked: Asked) -> Iterator[str]:
    """Why the rules that can allow a packet did not match."""
    if asked.tier is Tier.NETWORK and not asked.tried and not asked.problems:
        yield f"{asked.policy}: has no rules"
    for tried in asked.tried:
        if tried.action is not RuleAction.DENY:
            yield f"{rule_text(end, tried.rule)}: {tried.reason}"


def rule_text(end: End, rule: RuleRef) -> str:
    """The name of a rule in an end's direction."""
    return rule.policy.rule(end.direction, rule.index, rule.name)


_OUTCOMES = {Outcome.ACCEPT: "lets it pass", Outcome.DROP: "drops it"}


def _node(view: NodeView, explained: Explained) -> Iterator[str]:
    places = {p.name: p for p in (explained.source, explained.destination) if p.pod and p.node == view.node}
    whose = " and ".join(places)
    if view.agreement is Agreement.ELSEWHERE:
        yield f"{whose}: on node {view.node}; run the same there"
        return
    assert view.outcome is not None
    match view.agreement:
        case Agreement.AGREES:
            yield f"{view.node} {_OUTCOMES[view.outcome]}, as policy says at the end of {whose}"
        case Agreement.DISAGREES:
            does, says = _OUTCOMES[view.outcome].upper(), "ALLOWS" if view.expected else "DENIES"
            yield f"{view.node} {does}, BUT POLICY {says} IT at the end of {whose}"
        case _:
            yield f"what {view.node} does cannot be foretold; it hangs on rules that are not understood:"
    yield from filter(None, (view.problem, view.note))
    if view.result is not None:
        yield from map(str, _telling(view.agreement, view.result))


def _telling(agreement: Agreement, result: Result) -> tuple[Step, ...]:
    """The rules that explain a node's verdict."""
    if agreement is Agreement.UNKNOWN:
        return result.doubts
    if result.outcome is Outcome.DROP:
        return result.trace[-1:]
    return result.trace if agreement is Agreement.DISAGREES else ()


# --- JSON --------------------------------------------------------------------------------------------


def as_json(explained: Explained) -> dict[str, Any]:
    """The same for programs, with all details."""
    packet = explained.explanation.packet
    return {
        "verdict": _headline(explained)[0].lower(),
        "allowed": explained.explanation.allowed,
        "source": _place_json(explained.source, packet.source),
        "destination": _place_json(explained.destination, packet.destination),
        "protocol": packet.protocol.value,
        "port": packet.port,
        "egress": _end_json(explained.explanation.egress),
        "ingress": _end_json(explained.explanation.ingress),
        "nodes": [_node_json(view) for view in explained.nodes],
    }


def _place_json(place: Place, address: str) -> dict[str, Any]:
    note = {"note": place.note} if place.note else {}
    return {"name": place.name, "address": address, "pod": place.pod is not None, "node": place.node, **note}


def _end_json(end: End) -> dict[str, Any]:
    said = end.verdict
    if said is None:
        return {"allowed": True, "reason": str(end.free)}
    return {
        "allowed": said.allowed,
        "tier": said.tier.value if said.tier else None,
        "decidedBy": _rule_json(said.decided_by) if said.decided_by else None,
        "passedBy": [_rule_json(rule) for rule in said.passed_by],
        "selectedBy": [str(ref) for ref in said.selected_by],
        "notAsked": [str(ref) for ref in end.not_asked],
        "notUnderstood": {str(asked.policy): list(asked.problems) for asked in end.asked if asked.problems},
        "tried": [
            {**_rule_json(tried.rule), "action": tried.action.value, "peers": tried.peers, "ports": tried.ports}
            for asked in end.asked
            for tried in asked.tried
        ],
    }


def _rule_json(rule: RuleRef) -> dict[str, Any]:
    return {"policy": str(rule.policy), "rule": rule.index, "name": rule.name}


def _node_json(view: NodeView) -> dict[str, Any]:
    found: dict[str, Any] = {"node": view.node, "agreement": view.agreement.value, "expected": view.expected}
    if view.outcome is not None:
        found["outcome"] = view.outcome.value
    found |= {key: text for key, text in (("problem", view.problem), ("note", view.note)) if text}
    if view.flow is not None and view.result is not None:
        found |= {
            "in": view.flow.in_interface,
            "out": view.flow.out_interface,
            "trace": [dataclasses.asdict(step) for step in view.result.trace],
            "doubts": [dataclasses.asdict(step) for step in view.result.doubts],
            "mark": f"{view.result.mark:#x}",
        }
    return found
