"""Names of chains and sets say again what they were made of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from felix_py.desired import names
from felix_py.desired.names import ChainName, DenyChain, DispatchChain, Fixed, chain_name, parse_chain_name
from policy.ir import ChainId, ChainKind, SetId
from policy.model import Direction

DIGESTS = st.text("0123456789abcdef", min_size=16, max_size=16)
DIRECTIONS = st.sampled_from(list(Direction))
POLICIES = st.builds(ChainId, st.just(ChainKind.POLICY), DIRECTIONS, DIGESTS)
CHAINS: st.SearchStrategy[ChainName] = (
    st.builds(ChainId, st.sampled_from(list(ChainKind)), DIRECTIONS, DIGESTS)
    | st.builds(DenyChain.of, POLICIES, st.integers(-1, 300))
    | st.sampled_from(Fixed)
    | st.builds(DispatchChain, DIRECTIONS, st.sampled_from(["", "SETS", *map(str, range(8)), "0-1", "7-31"]))
)


@given(CHAINS)
def test_a_chain_s_name_says_again_which_it_is(chain: ChainName) -> None:
    assert parse_chain_name(chain_name(chain)) == chain
    assert len(chain_name(chain)) <= 28
    assert names.parse_name(chain_name(chain)) == (chain if isinstance(chain, ChainId) else None)


@given(st.from_regex(r"FELIX-[A-Z]{1,7}(-[0-9a-fA-Z]{1,16}){0,2}", fullmatch=True) | st.text())
def test_any_other_name_is_nothing_or_spelled_exactly_as_ours(name: str) -> None:
    chain = parse_chain_name(name)
    assert chain is None or chain_name(chain) == name


@given(DIGESTS)
def test_a_set_s_name_says_again_which_it_is(digest: str) -> None:
    assert {names.parse_name(name) for name in names.names_of(SetId(digest))} == {digest}


def test_fixed_names_stand_for_nothing_compiled() -> None:
    assert [parse_chain_name(str(chain)) for chain in Fixed] == list(Fixed)
    assert [chain for chain in Fixed if names.parse_name(chain)] == []
