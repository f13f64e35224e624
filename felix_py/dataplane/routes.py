"""Routes with our protocol numbers in the main table: wanted, actual, and the difference.

A route with another protocol number is never replaced. A new destination is added (NLM_F_EXCL), so that the
kernel refuses it where a foreign route is; before a route of ours is replaced, the routes are read again.

To the kernel a route with another metric is another route. So a metric changes by a new route, and then the old
one is deleted; a *surplus* route is one of ours beside the one with the wanted metric, as a crash between the two
leaves it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from felix_py.dataplane.delta import Delta
from felix_py.dataplane.order import Step
from felix_py.dataplane.part import Part, Sweep
from felix_py.dataplane.protocols import Look
from felix_py.layout import ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS
from felix_py.netlink import routes as messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.routes import PROTOCOLS, Destination, Packed, destination_text
from felix_py.netlink.wire import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from felix_py.records import Drift, Failure, Report, Route, Update, bounded
from felix_py.refs import RouteRef, RoutesRef
from policy.model import Family

_AGAIN = 1000
"""Refused routes that one apply tries again, in turn: new pods wait for the apply."""

_TAKEN = "has this destination"
_NAMED = 100
"""Foreign routes that one apply looks up, to name them in failures."""

_SWEPT = {
    Sweep.NOTHING: set(),
    Sweep.ALL_BUT_LEARNED: {*PROTOCOLS} - {ROUTE_PROTOCOL_LEARNED},
    Sweep.ALL: {*PROTOCOLS},
}
"""Protocols whose unwanted routes are removed."""

_Place = tuple[Destination, int]
"""Destination and protocol number."""


class _Write(NamedTuple):
    place: _Place
    route: Packed
    replace: bool


class Routes(Part):
    """All our routes of the given families."""

    looks = Look.ROUTES

    def __init__(
        self, families: Collection[Family], is_gone: Callable[[str], bool] = lambda _interface: False
    ) -> None:
        """``is_gone``: whether an interface is known to be gone. Routes through it wait, which is no failure."""
        self.steps = {Step.REMOVE_ROUTES: self.remove, Step.WRITE_ROUTES: self.write}
        self._is_gone = is_gone
        self._families = tuple(families)
        self._netlink = Netlink(NETLINK_ROUTE)
        self._delta: Delta[_Place, Route, Packed] = Delta(self._is_right)
        self._resolve = _resolver()
        self._refused: dict[RouteRef, Failure] = {}
        self._stuck: dict[_Place, Failure] = {}
        self._drifted: dict[_Place, Drift] = {}
        self._swept: set[int] = set()
        self._surplus: dict[_Place, list[int]] = {}
        """The metrics of further routes of ours."""

    def close(self) -> None:
        self._netlink.close()

    @property
    def port(self) -> int:
        """Netlink port that events caused by our writes carry (netlink(7), nl_pid)."""
        return self._netlink.port

    # --- wanted --------------------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        for key, route in update.routes.items():
            self.route(key, route)

    def route(self, key: RouteRef, route: Route | None) -> None:
        """Note a wanted route; None: the route must not exist."""
        self._refused.pop(key, None)
        try:
            place = (messages.parse_destination(key), key.protocol)
            if key.protocol not in PROTOCOLS:
                raise ValueError(f"protocol number {key.protocol} is not ours")
            if place[0][0] not in self._families:
                raise ValueError(f"IPv{int(place[0][0])} is not programmed on this node")
        except ValueError as error:
            if route is not None:
                self._refused[key] = Failure(key, str(error))
            return
        if route is None:
            self._delta.dismiss(place)
        else:
            # Doubtful even if equal: its interface may have been made anew, which has removed the route.
            self._delta.desire(place, route, doubtful=True)
        self._stuck.pop(place, None)
        self._drifted.pop(place, None)

    def wants(self, destination: Destination) -> bool:
        """Whether a route of ours to this destination is wanted. Any thread may ask."""
        return any((destination, protocol) in self._delta.desired for protocol in PROTOCOLS)

    def sizes(self) -> Mapping[str, int]:
        return {"route": len(self._delta.desired)}

    # --- actual --------------------------------------------------------------------------------------

    def load(self) -> None:
        actual: dict[_Place, Packed] = {}
        settled = self._delta.desired.keys() - self._delta.pending - self._surplus.keys()
        self._surplus = {}
        for family in self._families:
            for protocol in PROTOCOLS:
                for answer in self._netlink.dump(messages.dump(family, protocol)):
                    if route := messages.read(answer):
                        self._read(actual, (route.destination, protocol), route)
        self._resolve = _resolver()
        found = self._delta.load(actual)
        for place in self._surplus.keys() & self._delta.desired.keys():
            self._delta.pending.add(place)
            if place in settled:
                self._drifted[place] = Drift(_ref(place), "there is another one with another metric")
        for place in found.lost:
            self._drifted[place] = Drift(_ref(place), "leads elsewhere" if place in actual else "missing")
        for place in found.strays:
            self._drifted[place] = Drift(_ref(place), f"nobody asked for it (protocol {place[1]})")
        self._swept = set()

    def _read(self, actual: dict[_Place, Packed], place: _Place, route: Packed) -> None:
        """Take over a route; of several with one destination the one with the wanted metric, if any."""
        other = actual.get(place)
        if other is None or other.metric == route.metric:
            actual[place] = route
            return
        wanted = self._delta.desired.get(place)
        metric = messages.normal_metric(place[0][0], wanted.metric) if wanted else 0
        first, second = sorted((other, route), key=lambda one: (one.metric != metric, one.metric))
        actual[place] = first
        self._surplus.setdefault(place, []).append(second.metric)

    def _is_right(self, wanted: Route, actual: Packed) -> bool:
        try:
            return actual.satisfies(messages.pack(wanted, actual.destination, self._resolve))
        except ValueError:
            return False

    def hold(self, base: Update) -> Update:
        held = (messages.unpack(packed) for packed in self._delta.actual.values())
        return Update(routes={route.key: route for route in held if route})

    def release(self) -> None:
        self._delta.release()
        self._refused.clear()

    def take_drift(self) -> list[Drift]:
        """Drift since the last call, without routes that an update has changed since."""
        taken, self._drifted = self._drifted, {}
        return list(taken.values())

    def differences(self) -> list[RouteRef]:
        failures: dict[_Place, Failure] = {}
        planned = [write.place for write in self._plan(self._delta.updates(), failures)]
        surplus = (place for place in self._surplus if self.wants(place[0]))
        return [_ref(place) for place in dict.fromkeys((*planned, *failures, *surplus))]

    def owned(self) -> list[str]:
        return [f"route {destination_text(place[0])} protocol {place[1]}" for place in sorted(self._delta.actual)]

    # --- the steps of an apply -----------------------------------------------------------------------

    def remove(self, sweep: Sweep) -> Report:
        if protocols := _SWEPT[sweep] - self._swept:
            self._delta.sweep(keep={place for place in self._delta.actual if place[1] not in protocols})
            self._swept |= protocols
        todo = self._delta.deletions()
        failures = self._delete_surplus(todo)
        results = self._netlink.request([messages.delete(*p, self._delta.actual[p].metric) for p in todo])
        for place, error in zip(todo, results, strict=True):
            if error and error.errno != errno.ESRCH:
                failures[place] = Failure(_ref(place), error.strerror or str(error))
            else:
                self._delta.removed([place])
        return Report(writes=len(todo) - len(failures), failures=tuple(failures.values()))

    def _delete_surplus(self, places: Iterable[_Place]) -> dict[_Place, Failure]:
        todo = [(place, metric) for place in places for metric in self._surplus.pop(place, ())]
        failures: dict[_Place, Failure] = {}
        results = self._netlink.request([messages.delete(*place, metric) for place, metric in todo])
        for (place, metric), error in zip(todo, results, strict=True):
            if error and error.errno != errno.ESRCH:
                self._surplus.setdefault(place, []).append(metric)
                failures[place] = Failure(_ref(place), error.strerror or str(error))
        return failures

    def write(self, _sweep: Sweep = Sweep.NOTHING) -> Report:
        """Add and replace routes. Also reports routes that can never be written."""
        failures: dict[_Place, Failure] = {}
        due = self._due()
        todo = self._plan(due, failures)
        if any(write.replace for write in todo):
            self.load()
            failures.clear()
            due |= self._due()
            todo = self._plan(due, failures)
        refused = self._carry_out(todo, failures)
        if refused:
            # These destinations were free when the routes were read last: is the new route ours or foreign?
            known = {place for place, failure in self._stuck.items() if _TAKEN in failure.reason}
            if fresh := refused - known:
                self.load()
                due |= self._due()
            again = [w for w in self._plan(due, failures) if w.replace and w.place in refused]
            foreign = (refused & self._delta.pending) - {write.place for write in again} - failures.keys()
            self._give_way(foreign)
            failures |= {place: self._stuck[place] for place in foreign - fresh}
            for number, place in enumerate(foreign & fresh):
                why = self._foreign(place[0]) if number < _NAMED else f"somebody else's route {_TAKEN}"
                failures[place] = Failure(_ref(place), why)
            self._carry_out(again, failures)
        failures |= self._delete_surplus([place for place in self._surplus if self.wants(place[0])])
        for place in due:
            self._stuck.pop(place, None)
        self._stuck |= failures  # last in turn
        written = sum(write.place not in self._delta.pending for write in todo)
        own = [failure for (_, protocol), failure in self._stuck.items() if protocol == ROUTE_PROTOCOL_PODS]
        learned = [failure for (_, protocol), failure in self._stuck.items() if protocol != ROUTE_PROTOCOL_PODS]
        others = bounded((*self._refused.values(), *learned), RoutesRef())
        return Report(writes=written, failures=(*own, *others))

    def _due(self) -> set[_Place]:
        """The places to write now: all new ones, and the next of those that were refused."""
        for place in self._stuck.keys() - self._delta.pending:  # found to be right by a load
            del self._stuck[place]
        fresh = set(self._delta.updates()) - self._stuck.keys()
        pods = {place for place in self._stuck if place[1] == ROUTE_PROTOCOL_PODS}
        return fresh | pods | set(islice((place for place in self._stuck if place not in pods), _AGAIN))

    def _plan(self, places: Collection[_Place], failures: dict[_Place, Failure]) -> list[_Write]:
        """The writes for these places. Those that are right already are noted as written."""
        self._resolve = _resolver()
        todo: list[_Write] = []
        for place in sorted(places, key=lambda place: PROTOCOLS.index(place[1])):
            wanted = self._delta.desired[place]
            if any(self._is_gone(hop.interface) for hop in wanted.next_hops):
                continue
            try:
                route = messages.pack(wanted, place[0], self._resolve)
            except ValueError as error:
                failures[place] = Failure(_ref(place), str(error))
                continue
            ours = {p: self._delta.actual[place[0], p] for p in PROTOCOLS if (place[0], p) in self._delta.actual}
            present = ours.get(place[1])
            first = next(p for p in PROTOCOLS if p in ours or (place[0], p) in self._delta.desired)
            if present and present.satisfies(route):
                self._delta.written({place: present})
            elif first != place[1]:
                self._give_way([place])
                failures[place] = Failure(_ref(place), f"our route of protocol {first} has this destination")
            else:
                replace = any(one.metric == route.metric for one in ours.values())
                todo.append(_Write(place, route, replace))
        return todo

    def _carry_out(self, todo: Sequence[_Write], failures: dict[_Place, Failure]) -> set[_Place]:
        """Write; returns the places of new routes that were refused as their destination is taken (EEXIST)."""
        refused: set[_Place] = set()
        requests = [
            messages.new(w.route, NLM_F_CREATE | (NLM_F_REPLACE if w.replace else NLM_F_EXCL)) for w in todo
        ]
        for write, error in zip(todo, self._netlink.request(requests), strict=True):
            if error is None:
                self._written(write)
            elif error.errno == errno.EEXIST and not write.replace:
                refused.add(write.place)
            else:
                failures[write.place] = Failure(_ref(write.place), error.strerror or str(error))
        return refused

    def _written(self, write: _Write) -> None:
        """Of our other routes to it, one of the same metric is replaced; others are surplus now."""
        destination, _ = write.place
        for place in [(destination, p) for p in PROTOCOLS if (destination, p) in self._delta.actual]:
            metric = self._delta.actual[place].metric
            if metric != write.route.metric:
                self._surplus.setdefault(place, []).append(metric)
            if place != write.place:
                self._delta.removed([place])
        self._delta.written({write.place: write.route})

    def _give_way(self, places: Iterable[_Place]) -> None:
        """What these should be cannot be written, and what they are leads where it must not."""
        for place in places:
            if present := self._delta.actual.get(place):
                self._surplus.setdefault(place, []).append(present.metric)
                self._delta.removed([place])

    def _foreign(self, destination: Destination) -> str:
        try:
            found = messages.read(self._netlink.get(messages.match(destination)))
        except OSError:
            found = None
        if found is None or found.destination != destination:
            return f"somebody else's route {_TAKEN}"
        return f"a route that is not ours {_TAKEN} (protocol {found.protocol})"


def _resolver() -> Callable[[str], int]:
    """Returns a function from interface names to indexes that looks each up once."""
    known: dict[str, int] = {}

    def resolve(name: str) -> int:
        if name not in known:
            try:
                known[name] = socket.if_nametoindex(name)
            except OSError as error:
                if error.errno not in (None, errno.ENODEV, errno.ENXIO):  # None: before Python 3.12
                    raise  # such as EMFILE: no evidence about the interface
                raise ValueError(f"there is no interface {name}") from None
        return known[name]

    return resolve


def _ref(place: _Place) -> RouteRef:
    return RouteRef(destination_text(place[0]), place[1])
