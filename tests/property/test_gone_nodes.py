"""Blocks are freed only of nodes that nobody has seen for the whole grace."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.ipam.gone import GRACE, Gone
from felix_py.ipam.resources import AffinityState, BlockAffinity, IPAMBlock, Loan
from tests.support.thorough import examples

NODES = ("a", "b", "c")
UIDS = ("1", "2")
CIDRS = ("10.64.0.0/28", "10.64.0.16/28", "10.64.0.32/28")

blocks = st.builds(
    lambda cidr, node, uid, lent: IPAMBlock(
        name=cidr, cidr=cidr, node=node, node_uid=uid, lent=tuple(Loan("10.64.0.1", *to) for to in lent)
    ),
    st.sampled_from(CIDRS),
    st.sampled_from(NODES),
    st.sampled_from(UIDS),
    st.sets(st.tuples(st.sampled_from(NODES), st.sampled_from(UIDS)), max_size=2),
)
affinities = st.builds(
    lambda cidr, node: BlockAffinity(name=cidr, node=node, cidr=cidr, state=AffinityState.CONFIRMED),
    st.sampled_from(CIDRS),
    st.sampled_from(NODES),
)
looks = st.lists(
    st.tuples(
        st.sampled_from((10.0, GRACE / 2, GRACE)),
        st.dictionaries(st.sampled_from(NODES), st.sampled_from(UIDS)),
        st.sets(st.sampled_from(NODES)),
    ),
    min_size=1,
    max_size=8,
)


def absent(node: str, uid: str, nodes: dict[str, str]) -> bool:
    """Whether there is no such Node; without a uid, none of the name."""
    return nodes.get(node) != uid if uid else node not in nodes


@settings(max_examples=examples(2000), deadline=None)
@given(
    st.lists(blocks, unique_by=lambda one: one.cidr),
    st.lists(affinities, unique_by=lambda one: (one.node, one.cidr)),
    looks,
)
def test_only_what_is_gone_for_the_whole_grace_is_freed(
    found: list[IPAMBlock], wanted: list[BlockAffinity], seen: list[tuple[float, dict[str, str], set[str]]]
) -> None:
    """Each look: the time since the last one, the Nodes, and the nodes that have pods."""
    gone, now = Gone(), 0.0
    history: list[tuple[float, dict[str, str], set[str]]] = []
    for after, nodes, pods in seen:
        now += after
        history.append((now, nodes, pods))
        owners = gone.look(found, wanted, nodes, now)
        for owner in owners:
            if owner[0] in pods:
                gone.seen(owner, now)
        due = {(owner, one.cidr) for owner, left in gone.due(now).items() for one in left}

        def certain(node: str, uid: str) -> bool:
            bad = [at for at, there, busy in history if node in busy or not absent(node, uid, there)]
            since = max([history[0][0], *bad])
            return now - since >= GRACE and not (bad and bad[-1] == now)  # noqa: B023

        for (node, uid), cidr in due:
            assert certain(node, uid), (node, uid, history)
            for block in found:
                if (block.cidr, block.node, block.node_uid) == (cidr, node, uid):
                    assert all(certain(loan.node, loan.node_uid) for loan in block.lent)
        kept = {block.cidr: left for block, left in gone.ended(now)}
        for block in found:
            stay = tuple(loan for loan in block.lent if not certain(loan.node, loan.node_uid))
            assert kept.get(block.cidr, block.lent) == stay
