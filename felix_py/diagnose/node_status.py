"""The health of a node by its agent's status, and remedies for its problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

_SILENT = 300.0
"""Seconds without any watch event until a problem is reported: a quiet cluster sends few."""

_KIND_SILENT = 900.0
"""The same of one kind while others have events: each watch's server is asked every few minutes."""

_LISTED = 5
"""Problems of one kind that are listed; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem and its remedy."""

    what: str
    todo: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node. ``facts``: label -> text, in the order of display."""

    node: str
    facts: Mapping[str, str]
    problems: tuple[Problem, ...]

    @property
    def fine(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def read(status: Json) -> NodeStatus:
    """Judge an agent's ``/status``. Missing fields are left out."""
    facts = {
        "agent": _agent(status),
        "kernel": _kernel(status),
        "cluster": _cluster(status),
        "bgp": _bgp(status),
        "deny log": _deny_log(status),
    }
    shown = {label: text for label, text in facts.items() if text}
    return NodeStatus(str(status.get("node", "?")), shown, tuple(_problems(status)))


def text(found: NodeStatus) -> list[str]:
    """Lines for people, the verdict first."""
    count = len(found.problems)
    verdict = "fine" if found.fine else f"{count} problem{'s' if count > 1 else ''}"
    lines = [f"{found.node}: {verdict}"]
    for problem, after in zip(found.problems, (*found.problems[1:], None), strict=False):
        lines.append(f"  ! {problem.what}")
        if problem.todo and (after is None or after.todo != problem.todo):
            lines.append(f"    {problem.todo}")
    width = max(map(len, found.facts), default=0)
    return lines + [f"  {label:<{width}}  {words}" for label, words in found.facts.items()]


def as_json(found: NodeStatus) -> dict[str, Any]:
    """The same for programs."""
    problems = [{"what": problem.what, "todo": problem.todo} for problem in found.problems]
    return {"node": found.node, "fine": found.fine, "problems": problems, "facts": dict(found.facts)}


# --- how it is ---------------------------------------------------------------------------------------


def _agent(status: Json) -> str:
    configuration = status.get("configuration", {})
    words = [
        "not ready" if status.get("unready") else "ready, policy is in force",
        counted(status.get("endpoints", 0), "pod"),
        f"iptables {configuration['backend']}" if "backend" in configuration else "",
        " and ".join(f"IPv{family}" for family in configuration.get("families", ())),
        ", ".join(status.get("podCIDRs", ())),
        f"up {_age(status['uptimeSeconds'])}" if "uptimeSeconds" in status else "",
    ]
    return "; ".join(filter(None, words))


def _kernel(status: Json) -> str:
    words = []
    if (age := status.get("comparedAgeSeconds")) is not None:
        words.append(f"compared {_age(age)} ago")
    failures = len(status.get("failures", ()))
    words.append(f"{counted(failures, 'failed write')}" if failures else "nothing failed")
    if drift := status.get("lastDrift"):
        found = drift.get("found", ())
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        words.append(f"put right {_age(drift.get('secondsAgo', 0))} ago: {found[0] if found else '?'}{more}")
    return "; ".join(words)


def _cluster(status: Json) -> str:
    ages = status.get("watchAgeSeconds", {})
    if not ages:
        return ""
    return f"last heard of {min(ages, key=ages.get)} {_age(min(ages.values()))} ago"


def _bgp(status: Json) -> str:
    peers = status.get("peers", ())
    if not peers:
        return "no peers"
    up, routes = sum(bool(peer.get("established")) for peer in peers), len(status.get("routes", ()))
    return f"{up} of {counted(len(peers), 'peer')} established; {counted(routes, 'route')}"


def _deny_log(status: Json) -> str:
    """Its state, and what was denied in the last minute: `felix-py denies` shows it all."""
    log = status.get("denyLog", {})
    state, recent = str(log.get("state", "")), log.get("lastMinute") or {}
    if not (packets := recent.get("packets")):
        return f"{state}; nothing denied in the last minute" if "packets" in recent else state
    pairs = [f"{pair['source']} -> {pair['destination']} ({pair['packets']})" for pair in recent.get("top", ())]
    more = f" and {counted(left, 'more pair')}" if (left := recent.get("pairs", 0) - len(pairs)) > 0 else ""
    return f"{state}; {counted(packets, 'packet')} denied in the last minute: {', '.join(pairs)}{more}"


# --- what is wrong -----------------------------------------------------------------------------------


def _problems(status: Json) -> Iterator[Problem]:
    if reason := status.get("unready"):
        yield Problem(f"not ready: {reason}", "No pod starts here until it is; the agent's log says more.")
    yield from _some(
        [f"{failure.get('what')}: {failure.get('reason')}" for failure in status.get("failures", ())],
        "cannot write to the kernel",
        "It is tried again; `felix-py verify` says what is missing.",
    )
    # A notice's text includes the remedy.
    yield from (Problem(str(notice.get("text", "")), "") for notice in status.get("notices", ()))
    ages = status.get("watchAgeSeconds", {})
    if ages and min(ages.values()) > _SILENT:
        yield Problem(
            f"nothing heard from the API server for {_age(min(ages.values()))}",
            "What was in force stays in force; is the API server up, and reachable from this node?",
        )
    else:
        for kind, age in ages.items():
            if age > _KIND_SILENT:
                todo = "What was in force stays in force; may the agent still watch them? Its log says why."
                yield Problem(f"nothing heard of {kind} objects for {_age(age)}", todo)
    for peer in status.get("peers", ()):
        if not peer.get("established"):
            yield Problem(
                f"BGP peer {peer.get('address')} (AS {peer.get('asNumber')}) is down: "
                f"{peer.get('reason') or 'no reason given'}",
                "Look at the router's side, and at the sidecar's log.",
            )
    yield from _some(
        [_object(problem) for problem in status.get("problems", ())],
        "not understood",
        "What is not understood allows nothing; `kubectl describe` of it shows the same words.",
    )
    if due := status.get("configuration", {}).get("restartRequired"):
        yield Problem(f"changed settings wait for a restart: {', '.join(map(str, due))}", "Restart the agent.")
    log = status.get("denyLog", {})
    if log.get("state") == "unavailable":
        yield Problem(f"denied packets are not logged: {log.get('reason')}", "")


def _some(items: list[str], what: str, todo: str) -> Iterator[Problem]:
    yield from (Problem(f"{what}: {item}", todo) for item in items[:_LISTED])
    if (more := len(items) - _LISTED) > 0:
        yield Problem(f"{what}: {more} more", todo)


def _object(problem: Json) -> str:
    name = "/".join(filter(None, (problem.get("namespace"), problem.get("name"))))
    return f"{problem.get('kind')} {name}: {problem.get('reason')}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 pod, 1,200 pods."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def _age(seconds: float) -> str:
    """As kubectl shows ages."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole}s"
    if whole < 7200:
        return f"{whole // 60}m"
    return f"{whole // 3600}h" if whole < 172800 else f"{whole // 86400}d"
