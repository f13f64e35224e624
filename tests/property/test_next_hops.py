"""Which next hops are chosen, however announcements, filters and links come and go, as if decided at once."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from bgp.decision import Identity, Path, Source, loop, multipath
from bgp.prefixes import PrefixSet
from bgp.rib import ImportFilter, Reached, Rib

PEERS = {
    "10.9.0.2": Source("10.9.0.2", "10.9.0.2", 65001, "10.9.0.1"),
    "10.9.1.2": Source("10.9.1.2", "10.9.1.2", 65001, "10.9.1.1"),
    "10.9.2.2": Source("10.9.2.2", "10.9.2.2", 65001, "10.9.2.1", external=False),
}
HOPS = ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.1.2", "10.244.7.9", "198.51.100.1"]
PREFIXES = ["10.244.7.0/24", "10.244.8.0/24", "10.9.0.2/32", "10.9.0.0/16", "10.0.0.0/8", "172.16.0.0/12"]
FILTERS = [
    ImportFilter(PrefixSet(["10.0.0.0/8"]), PrefixSet(["10.244.8.0/24"])),
    ImportFilter(PrefixSet(["10.0.0.0/8"]), PrefixSet()),
]
ANSWERS = [Reached(problem="it is on no link"), Reached("eth0", 24), Reached("eth1", 24), Reached("eth1", 0)]

reach = st.fixed_dictionaries({hop: st.sampled_from(ANSWERS) for hop in HOPS})
path = st.builds(
    lambda hop, length, med: Path(hop, (65000,) * length, length, med=med),
    st.sampled_from(HOPS),
    st.integers(1, 2),
    st.integers(0, 1),
)
step = st.one_of(
    st.tuples(st.just("announce"), st.sampled_from(sorted(PEERS)), st.sampled_from(PREFIXES), path),
    st.tuples(st.just("withdraw"), st.sampled_from(sorted(PEERS)), st.sampled_from(PREFIXES)),
    st.tuples(st.just("reach"), reach),
    st.tuples(st.just("filter"), st.sampled_from(FILTERS)),
    st.tuples(st.just("take"), st.integers(1, 3)),
)

Paths = dict[str, dict[str, Path]]


def resolves(prefix: str, hop: str, answer: Reached) -> bool:
    """RFC 4271 9.1.2.1 in plain words: reached, and not through the route itself."""
    network = ipaddress.ip_network(prefix)
    through_itself = ipaddress.ip_address(hop) in network and network.prefixlen > answer.length
    return not answer.problem and not through_itself


def decided(
    paths: Paths, accepted: ImportFilter, answers: Mapping[str, Reached]
) -> tuple[dict[str, set[str]], Counter[str]]:
    """The best routes, and for how many prefixes each next hop is left out."""
    best: dict[str, set[str]] = {}
    left_out: Counter[str] = Counter()
    for prefix, by_peer in paths.items():
        if not accepted.accepts(prefix):
            continue
        whole = [
            (PEERS[peer], given) for peer, given in by_peer.items() if not loop(PEERS[peer], given, Identity())
        ]
        good = [c for c in whole if resolves(prefix, c[1].next_hop, answers[c[1].next_hop])]
        left_out.update({c[1].next_hop for c in whole if c not in good})
        if hops := {c[1].next_hop for c in multipath(good)}:
            best[prefix] = hops
    return best, left_out


@given(st.lists(step, max_size=40), reach)
def test_only_the_present_counts(steps: list[tuple], first: dict[str, Reached]) -> None:  # type: ignore[type-arg]
    rib = Rib()
    for source in PEERS.values():
        rib.set_source(source)
    answers, accepted = first, FILTERS[0]
    rib.set_reach(answers.__getitem__)
    rib.set_filter(accepted)
    paths: Paths = {}
    kernel: dict[str, tuple[tuple[str, str], ...]] = {}

    def take(most: int | None = None) -> None:
        """What the kernel is told: each next hop with the interface that leads there now."""
        for prefix, hops in rib.take(most).items():
            kernel[prefix] = tuple((hop, answers[hop].interface) for hop in hops)

    for what, *rest in steps:
        match what:
            case "announce":
                peer, prefix, given_path = rest
                paths.setdefault(prefix, {})[peer] = given_path
                rib.announce(peer, prefix, given_path)
            case "withdraw":
                peer, prefix = rest
                paths.get(prefix, {}).pop(peer, None)
                rib.withdraw(peer, prefix)
            case "reach":
                answers = rest[0]
                rib.set_reach(answers.__getitem__)
            case "filter":
                accepted = rest[0]
                rib.set_filter(accepted)
            case "take":
                take(rest[0])
    take()
    assert not rib.undecided
    best, left_out = decided(paths, accepted, answers)
    assert {prefix: set(hops) for prefix, hops in rib.best.items()} == best
    wanted = {prefix: {(hop, answers[hop].interface) for hop in hops} for prefix, hops in best.items()}
    assert {prefix: set(hops) for prefix, hops in kernel.items() if hops} == wanted
    counted: Counter[str] = Counter()
    for (hop, _), number in rib.unresolved.items():
        counted[hop] += number
    assert counted == left_out
    assert rib.prefixes_without_next_hop() == len(
        {p for p in paths if p not in best and _left(p, paths, accepted)}
    )


def _left(prefix: str, paths: Paths, accepted: ImportFilter) -> bool:
    """Whether it would be a route if only a next hop could be used."""
    return accepted.accepts(prefix) and any(
        not loop(PEERS[peer], one, Identity()) for peer, one in paths[prefix].items()
    )
