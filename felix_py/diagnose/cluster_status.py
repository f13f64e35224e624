"""The health of all nodes by what the API server has of them: Nodes, NodeNetworkStatus objects, felix-py's pods.

Pure: objects in, verdicts out. What is not as the schema says is passed over, so that one object does not hide
all others. A NodeNetworkStatus is written on change only, so its age says nothing: it counts while the agent that
keeps it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from felix_py.diagnose.node_status import Problem, counted

Json = Mapping[str, Any]

AGENT = "agent"
"""The name of the agent's container."""

_RESTARTED_WITHIN = 900.0
"""Seconds for which a restart that nobody asked for is shown."""

_MOST = 5
"""Notices of one node that are listed; the rest is counted."""

_CONDITIONS = {
    "Ready": ("not ready", "No pod starts there until it is; {status} says more."),
    "PolicyInForce": ("policy is not wholly in force", "It is tried again; {status} says what is missing."),
    "RoutesInstalled": ("routes are missing", "They are tried again; {status} says what is missing."),
    "PeersUp": ("BGP peers are down", "Look at the router's side, and at {logs} -c bgp."),
    "PrefixLimitsKept": (
        "BGP peers announce too many prefixes",
        "Filter at the router, or raise prefixLimit of the BGPPeer.",
    ),
    "PrefixesAnnounced": (
        "prefixes cannot be announced",
        "Have the router agree on the family, or on RFC 8950; {status} says which.",
    ),
}
"""Type of a condition -> what it means if it is not True, and what to do."""

_WAITING = {
    "CrashLoopBackOff": "{logs} -c {container} --previous",
    "ImagePullBackOff": "Is the image on the node, or in a registry that the node reaches?",
    "ErrImagePull": "Is the image on the node, or in a registry that the node reaches?",
    "ErrImageNeverPull": "Import the image on the node.",
    "CreateContainerConfigError": "Is the ConfigMap felix-py there? {describe}",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """The objects. ``statuses`` None: the kind is not served. ``pods`` None: they cannot be read, for ``why``."""

    nodes: Sequence[Json]
    statuses: Sequence[Json] | None
    pods: Sequence[Json] | None
    namespace: str = "kube-system"
    why: str = ""
    leader: str = ""
    """The node whose agent does what one does for the cluster; empty: none, or it is not known."""


@dataclass(frozen=True, slots=True)
class Line:
    """One node. ``cells``: by column."""

    node: str
    cells: Mapping[str, str]
    problems: tuple[Problem, ...]

    @property
    def fine(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """All nodes, those with problems first. ``problems``: of the installation; ``notes``: what was left out."""

    lines: tuple[Line, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    leader: str = ""

    @property
    def fine(self) -> bool:
        """Whether there is no problem anywhere."""
        return not self.problems and all(line.fine for line in self.lines)


def read(seen: Seen, now: datetime | None = None) -> ClusterStatus:
    """Judge the cluster. ``now``: the time, for ages."""
    now = now or datetime.now(UTC)
    nodes = {name(node): node for node in seen.nodes}
    statuses = {name(status): status for status in seen.statuses or ()}
    pods = _by_node(seen.pods or ())
    by_hand = seen.pods is None or not seen.pods
    judged = [
        _Judge(one, nodes.get(one), statuses.get(one), pods.get(one), seen, by_hand, now).line()
        for one in sorted(nodes.keys() | statuses.keys())
    ]
    notes = []
    if seen.pods is None:
        notes.append(
            f"whether agents run was not looked at: pods of {seen.namespace} cannot be read ({seen.why})"
        )
    elif not seen.pods:
        notes.append(
            f"there are no felix-py pods in {seen.namespace}: agents run by hand, or --namespace is another"
        )
    return ClusterStatus(
        tuple(sorted(judged, key=lambda line: line.fine)), tuple(_installation(seen)), tuple(notes), seen.leader
    )


def _installation(seen: Seen) -> Iterator[Problem]:
    if seen.statuses is None:
        yield Problem(
            "nodes have no status objects: the kind NodeNetworkStatus (felixpy.io/v1alpha1) is not served",
            "Install its definition: kubectl apply -f manifests/crds",
        )


def _by_node(pods: Iterable[Json]) -> dict[str, Json]:
    """The pod of each node: the newest one that is not being deleted, else the newest."""
    found: dict[str, Json] = {}
    for pod in pods:
        node = text_of(part(pod, "spec").get("nodeName")) or _wanted_node(pod)
        if node and (node not in found or _rank(pod) > _rank(found[node])):
            found[node] = pod
    return found


def _wanted_node(pod: Json) -> str:
    """The node that the DaemonSet's controller made a pod for, which is not scheduled yet."""
    affinity = part(part(part(pod, "spec"), "affinity"), "nodeAffinity")
    required = part(affinity, "requiredDuringSchedulingIgnoredDuringExecution")
    for term in items(required.get("nodeSelectorTerms")):
        for field_ in items(term.get("matchFields")):
            values = field_.get("values")
            if field_.get("key") == "metadata.name" and isinstance(values, list) and values:
                return text_of(values[0])
    return ""


def _rank(pod: Json) -> tuple[bool, str]:
    metadata = part(pod, "metadata")
    return "deletionTimestamp" not in metadata, text_of(metadata.get("creationTimestamp"))


@dataclass(slots=True)
class _Judge:
    name: str
    node: Json | None
    status: Json | None
    pod: Json | None
    seen: Seen
    by_hand: bool
    now: datetime
    state: str = field(default="", init=False)

    def line(self) -> Line:
        problems = list(dict.fromkeys(self._problems()))
        told = part(self.status or {}, "status")
        cells = {
            "ENDPOINTS": number_of(told.get("endpoints")),
            "PEERS": text_of(told.get("peers")),
            "ROUTES": number_of(told.get("routes")),
            "BACKEND": text_of(told.get("backend")),
            "VERSION": text_of(told.get("version")),
            "AGENT": self.state or ("?" if self.by_hand else "none"),
        }
        return Line(self.name, {column: cell or "-" for column, cell in cells.items()}, tuple(problems))

    def _problems(self) -> Iterator[Problem]:
        if self.node is None:
            todo = f"kubectl delete nodenetworkstatus {self.name}"
            yield Problem("a status is left of a Node that is not there any more", todo)
            return
        yield from self._of_node(self.node)
        if self.pod is not None:
            yield from self._of_pod(self.pod)
        elif not self.by_hand:
            yield self._absent()
        if self.seen.statuses is None:
            return
        if self.status is None:
            if self.by_hand or self.state == "ready":
                todo = self._say("May the agent write it (ClusterRole felix-py)? {logs} -c agent")
                yield Problem("the agent has written no status", todo)
        elif self._is_of_another(self.node, self.status):
            todo = "The agent writes a new one at its start; else delete it: kubectl delete nns " + self.name
            yield Problem("the status is of an earlier Node of this name", todo)
        elif self.by_hand or self.state in ("ready", "not ready"):
            yield from self._of_status(part(self.status, "status"))

    def _of_node(self, node: Json) -> Iterator[Problem]:
        for condition in items(part(node, "status").get("conditions")):
            if condition.get("type") == "Ready" and condition.get("status") != "True":
                why = text_of(condition.get("reason")) or "no reason given"
                yield Problem(f"the Node is not Ready ({why})", f"kubectl describe node {self.name}")

    def _is_of_another(self, node: Json, status: Json) -> bool:
        uid = text_of(part(node, "metadata").get("uid"))
        owners = [
            text_of(owner.get("uid"))
            for owner in items(part(status, "metadata").get("ownerReferences"))
            if owner.get("kind") == "Node"
        ]
        return bool(uid) and bool(owners) and uid not in owners

    def _absent(self) -> Problem:
        what = "felix-py does not run here"
        if self.status is not None:
            what += "; its status is that of an agent which is gone"
        kubectl = f"kubectl -n {self.seen.namespace} describe daemonset felix-py"
        return Problem(what, f"{kubectl}: do its selector or a taint leave it out?")

    # --- the pod -------------------------------------------------------------------------------------

    def _of_pod(self, pod: Json) -> Iterator[Problem]:
        status = part(pod, "status")
        if "deletionTimestamp" in part(pod, "metadata"):
            self.state = "ending"
            yield Problem("its agent ends, and no other has started", self._say("{describe}"))
            return
        phase = text_of(status.get("phase"))
        containers = items(status.get("initContainerStatuses")) + items(status.get("containerStatuses"))
        agent = next((one for one in containers if one.get("name") == AGENT), {})
        self.state = "ready" if agent.get("ready") is True else "not ready"
        if not (runs := bool(part(part(agent, "state"), "running"))):
            self.state = phase or "?"
        told = False
        for container in containers:
            for problem in self._of_container(container):
                told = True
                yield problem
        if phase == "Failed":
            self.state, told = "Failed", True
            why = text_of(status.get("reason")) or text_of(status.get("message")) or "no reason given"
            yield Problem(f"its pod has failed ({why})", self._say("{describe}"))
        if not told and not runs:
            scheduled = [c for c in items(status.get("conditions")) if c.get("type") == "PodScheduled"]
            why = next((text_of(c.get("message")) for c in scheduled if c.get("status") != "True"), "")
            yield Problem(f"its agent does not run ({why or self.state})", self._say("{describe}"))
        elif not told and self.state == "not ready" and not self._says_why():
            yield Problem("its agent is not ready", self._say("{status} says why."))

    def _says_why(self) -> bool:
        """Whether the status object has the reason why the agent is not ready."""
        conditions = items(part(self.status or {}, "status").get("conditions"))
        return any(c.get("type") == "Ready" and c.get("status") != "True" for c in conditions)

    def _of_container(self, container: Json) -> Iterator[Problem]:
        called = text_of(container.get("name")) or "?"
        state, last = part(container, "state"), part(part(container, "lastState"), "terminated")
        restarts = container.get("restartCount", 0)
        restarts = restarts if isinstance(restarts, int) else 0
        if waiting := part(state, "waiting"):
            reason = text_of(waiting.get("reason")) or "no reason given"
            if reason == "PodInitializing":  # another container is the cause
                return
            if called == AGENT:
                self.state = reason
            how = f", {_ended(last)}" if last else ""
            what = f"container {called} waits: {reason} ({counted(restarts, 'restart')}{how})"
            if not last and (message := text_of(waiting.get("message"))):
                what = f"container {called} waits: {reason} ({message})"
            yield Problem(what, self._say(_WAITING.get(reason, "{describe}"), called))
        elif (ended := part(state, "terminated")) and ended.get("exitCode") != 0:
            yield Problem(f"container {called} has {_ended(ended)}", self._say("{logs} -c {container}", called))
        elif last and restarts and (ago := self._seconds_since(last.get("finishedAt"))) < _RESTARTED_WITHIN:
            minutes = int(ago // 60)
            what = f"container {called} has {_ended(last)} {minutes} min ago ({counted(restarts, 'restart')})"
            yield Problem(what, self._say("{logs} -c {container} --previous", called))

    def _seconds_since(self, when: object) -> float:
        try:
            return (self.now - datetime.fromisoformat(text_of(when))).total_seconds()
        except (ValueError, TypeError):
            return float("inf")

    # --- the status object ---------------------------------------------------------------------------

    def _of_status(self, status: Json) -> Iterator[Problem]:
        conditions = {text_of(one.get("type")): one for one in items(status.get("conditions"))}
        if "Ready" not in conditions:
            yield Problem("the status says nothing of whether the agent is ready", self._say("{status}"))
        said: set[str] = set()
        for kind, (what, todo) in _CONDITIONS.items():
            condition = conditions.get(kind)
            if condition is None or condition.get("status") == "True":
                continue
            why = text_of(condition.get("message")) or text_of(condition.get("reason")) or "no reason given"
            if why not in said:
                said.add(why)
                yield Problem(f"{what}: {why}", self._say(todo))
        wanted = status.get("restartRequired")
        due = [one for one in wanted if isinstance(one, str)] if isinstance(wanted, list) else []
        if due:
            todo = "{delete}" if self.pod is not None else "Restart the agent."
            yield Problem(f"changed settings wait for a restart: {', '.join(due)}", self._say(todo))
        notices = items(status.get("notices"))
        for notice in notices[:_MOST]:
            yield Problem(text_of(notice.get("message")) or f"a notice without words ({notice.get('kind')})", "")
        if (more := len(notices) - _MOST) > 0:
            yield Problem(f"{counted(more, 'more notice')}", self._say("{status}"))

    def _say(self, todo: str, container: str = AGENT) -> str:
        """What to do, with the commands for this node's pod."""
        pod = text_of(part(self.pod or {}, "metadata").get("name"))
        kubectl = f"kubectl -n {self.seen.namespace}"
        if not pod:
            return todo.format(
                status="`felix-py status` on the node",
                logs="the log",
                container=container,
                describe="",
                delete="Restart the agent.",
            )
        return todo.format(
            status=f"`{kubectl} exec {pod} -c agent -- felix-py status`",
            logs=f"{kubectl} logs {pod}",
            describe=f"{kubectl} describe pod {pod}",
            delete=f"{kubectl} delete pod {pod}",
            container=container,
        )


def _ended(terminated: Json) -> str:
    """How a container ended, in words that follow "has"."""
    code, reason = terminated.get("exitCode"), text_of(terminated.get("reason"))
    known = {3: "it did not stop in time", 5: "its event loop stood still"}.get(
        code if isinstance(code, int) else 0
    )
    words = f"ended with exit code {code}"
    if reason and reason != "Error":
        return f"{words} ({reason})"
    return f"{words} ({known})" if known else words


# --- JSON that may be anything -----------------------------------------------------------------------


def part(of: Json, key: str) -> Json:
    """The object at a key, or an empty one."""
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def items(found: object) -> list[Json]:
    """The objects of a list; empty if it is none."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def text_of(found: object) -> str:
    """A text on one line; empty if it is none."""
    return " ".join(found.split()) if isinstance(found, str) else ""


def number_of(found: object) -> str:
    """A whole number as text; empty if it is none."""
    return str(found) if isinstance(found, int) and not isinstance(found, bool) else ""


def name(of: Json) -> str:
    """An object's name."""
    return text_of(part(of, "metadata").get("name")) or "?"


# --- for people and programs -------------------------------------------------------------------------


def text(found: ClusterStatus) -> list[str]:
    """A line a node, with what is wrong and what to do below; the verdict last."""
    lines = [f"! {problem.what}\n  {problem.todo}" for problem in found.problems]
    rows = [("NODE", "STATE", *(found.lines[0].cells if found.lines else ()))]
    for line in found.lines:
        state = "fine" if line.fine else counted(len(line.problems), "problem")
        rows.append((line.node, state, *line.cells.values()))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for at, row in enumerate(rows):
        lines.append("  ".join(cell.ljust(room) for cell, room in zip(row, widths, strict=True)).rstrip())
        for problem in found.lines[at - 1].problems if at else ():
            lines.append(f"  ! {problem.what}")
            if problem.todo:
                lines.append(f"    {problem.todo}")
    lines += [f"Note: {note}" for note in found.notes]
    if found.leader:
        lines.append(f"The agent of {found.leader} leads: addresses of load balancers, blocks of lost nodes")
    fine = sum(line.fine for line in found.lines)
    verdict = "all fine" if fine == len(found.lines) else f"{fine} fine, {len(found.lines) - fine} with problems"
    return [*lines, f"{counted(len(found.lines), 'node')}: {verdict}"]


def as_json(found: ClusterStatus) -> dict[str, Any]:
    """The same for programs."""

    def told(problems: Iterable[Problem]) -> list[dict[str, str]]:
        return [{"what": problem.what, "todo": problem.todo} for problem in problems]

    nodes = [
        {
            "node": line.node,
            "fine": line.fine,
            "problems": told(line.problems),
            "facts": {column.lower(): cell for column, cell in line.cells.items()},
        }
        for line in found.lines
    ]
    return {
        "fine": found.fine,
        "problems": told(found.problems),
        "notes": list(found.notes),
        "leader": found.leader,
        "nodes": nodes,
    }
