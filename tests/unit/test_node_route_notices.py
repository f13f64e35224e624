"""What is said of nodes whose pods no route leads to, and what the planner gets of both sources."""

from __future__ import annotations

from felix_py.agent.host_gateway import HostGateway
from felix_py.dataplane.reach import Links
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.layout import ROUTE_PROTOCOL_LEARNED
from felix_py.metrics import Metrics
from felix_py.netlink.routes import Connected
from felix_py.notices import NoticeKind, Notices
from felix_py.records import NodeRecord
from felix_py.refs import RouteRef
from policy.model import Family
from tests.support.told import ToldFacts

V4 = Family.V4
SEGMENT = Links({2: ("eth0", True)}, (Connected((V4, bytes([10, 9, 0, 0]), 24), 0, 2),), (), ())
NOWHERE = Links({}, (), (), ())


def node(number: int, segment: int = 0) -> NodeRecord:
    address = f"10.9.{segment}.{number}"
    return NodeRecord(f"n{number:03}", "", (address,), (f"10.244.{number}.0/24",), internal_addresses=(address,))


class Rig:
    """The node n001 on the network 10.9.0.0/24, without kernel."""

    def __init__(self, *nodes: NodeRecord, links: Links = SEGMENT) -> None:
        self._notices = Notices(Metrics())
        self._gateway = HostGateway("n001", (), self._notices, lambda: None)
        self.facts = ToldFacts("n001", (V4,), host_gateway=self._gateway)
        self._planner = Planner((V4,), StaticOptions(Marks.from_mask(0xFFFF0000)), {})
        self._routes: dict[str, set[str]] = {}
        self.facts.upsert(node(1), *nodes)
        self._gateway.on_links(links)

    def on_links(self, links: Links) -> None:
        self._gateway.on_links(links)

    def routes(self) -> dict[str, set[str]]:
        """Routes to other nodes, as the kernel has them after all that was planned so far."""
        while self.facts.collect(self._planner):
            pass
        for key, route in self._planner.take().routes.items():
            if key.protocol == ROUTE_PROTOCOL_LEARNED:
                self._routes.pop(key.destination, None)
                if route is not None:
                    assert route.key == RouteRef(key.destination, ROUTE_PROTOCOL_LEARNED)
                    self._routes[key.destination] = {f"{hop.gateway}%{hop.interface}" for hop in route.next_hops}
        return self._routes

    def said(self) -> dict[str, str]:
        self.routes()
        self._gateway.tell(self.facts.remote)
        return dict(self._notices.of(NoticeKind.NODE_ROUTE))


def test_what_bgp_teaches_is_no_matter() -> None:
    """The podCIDR itself, or an aggregate that it is in."""
    rig = Rig(node(2), node(3, 7), node(4, 7))
    assert rig.routes() == {"10.244.2.0/24": {"10.9.0.2%eth0"}}
    assert rig.said().keys() == {"n003", "n004"}
    rig.facts.learned({"10.244.3.0/24": ("10.9.0.9",)})
    assert rig.said().keys() == {"n004"}
    rig.facts.learned({"10.244.0.0/20": ("10.9.0.9",)})
    assert rig.said() == {}
    rig.facts.learned({"10.244.0.0/20": (), "10.244.3.0/24": ()})
    assert rig.said().keys() == {"n003", "n004"}


def test_a_link_that_comes_and_goes() -> None:
    rig = Rig(node(2), links=NOWHERE)
    assert rig.routes() == {}
    assert "10.9.0.2 is no next hop: it is on no link of this node" in rig.said()["n002"]
    rig.on_links(SEGMENT)
    assert rig.routes() == {"10.244.2.0/24": {"10.9.0.2%eth0"}}
    assert rig.said() == {}
    rig.facts.learned({"10.244.2.0/24": ("10.9.0.9",)})
    assert rig.routes() == {"10.244.2.0/24": {"10.9.0.2%eth0"}}
    rig.on_links(NOWHERE)
    assert rig.routes() == {"10.244.2.0/24": {"10.9.0.9%"}}


def test_a_changed_internal_address_is_followed() -> None:
    rig = Rig(node(2))
    moved = NodeRecord("n002", "", ("10.9.0.77",), ("10.244.2.0/24",), internal_addresses=("10.9.0.77",))
    rig.routes()
    rig.facts.upsert(moved)
    assert rig.routes() == {"10.244.2.0/24": {"10.9.0.77%eth0"}}


def test_an_external_address_is_no_next_hop() -> None:
    """It may be on a network that pods' packets must not be seen on."""
    rig = Rig(NodeRecord("n002", "", ("10.9.0.2",), ("10.244.2.0/24",)))
    assert rig.routes() == {}
    assert "no InternalIP" in rig.said()["n002"]


def test_a_whole_segment_out_of_reach_makes_few_notices() -> None:
    said = Rig(*(node(number, 7) for number in range(2, 60))).said()
    assert len(said) == 21
    assert said["others"] == "there is no route to the pods of 38 further nodes"
