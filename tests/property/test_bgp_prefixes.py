"""Prefixes as Python's ipaddress reads and writes them, whatever the text."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgp.prefixes import canonical, parse

numbers = st.integers(0, 300).map(str) | st.sampled_from(["00", "01", "", " 1", "1 ", "+1", "٣", "0x1", "-1"])
dotted = st.lists(numbers, min_size=3, max_size=5).map(".".join)
networks = st.builds(
    lambda value, length: str(ipaddress.ip_network((value >> (32 - length) << (32 - length), length))),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
texts = networks | st.builds("/".join, st.tuples(dotted, numbers)) | dotted | st.text(max_size=20)


@given(
    texts | st.ip_addresses(v=6).map(str) | st.builds("{}/{}".format, st.ip_addresses(v=6), st.integers(0, 129))
)
@example("0.0.0.0/0")
@example("10.0.0.0/08")
@example("10.0.0.1/8")
@example("10.0.0.0\0/8")
@example("::ffff:10.0.0.0/104")
def test_as_ipaddress(text: str) -> None:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        for read in (parse, canonical):
            with pytest.raises(ValueError, match=r"."):
                read(text)
        return
    assert parse(text) == (
        network.version,
        network.max_prefixlen,
        network.prefixlen,
        int(network.network_address),
    )
    assert canonical(text) == str(network)
