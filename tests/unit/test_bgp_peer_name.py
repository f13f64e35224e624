"""How sessions are named: as ``peerIP`` is written, and each name stands for one address, port and interface."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from bgp.fields import BGP_PORT, named_address, peer_address, peer_name

PORTS = st.sampled_from([BGP_PORT]) | st.integers(1, 65535)
ROUTERS = st.sampled_from(["10.0.0.1", "192.0.2.254", "fd00::1", "2001:db8::ffff"])


@given(st.tuples(ROUTERS, PORTS, st.just("")) | st.tuples(st.just("fe80::1"), PORTS, st.just("bond0.7")))
def test_a_name_reads_back_as_the_field_of_a_peer(peer: tuple[str, int, str]) -> None:
    assert peer_address("peerIP", peer_name(*peer)) == peer
    assert named_address(peer_name(*peer)) == peer[0]


@given(
    st.builds(
        str,
        st.builds(IPv4Address, st.integers(0, 2**32 - 1)) | st.builds(IPv6Address, st.integers(0, 2**128 - 1)),
    )
)
def test_the_usual_port_has_the_address_for_a_name(address: str) -> None:
    assert peer_name(address, BGP_PORT) == named_address(address) == address
