"""Whatever comes over the deny log's socket, and whatever policies there are."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.dataplane.ip_header import parse_ip
from felix_py.dataplane.nflog import Decoder
from felix_py.desired.deny_log import DROP_ALL, DenyLog, Drop, DropKind, parse_prefix
from felix_py.desired.marks import Marks
from felix_py.desired.names import DenyChain, chain_name
from felix_py.desired.render import dispatch_chains, render_chain
from felix_py.desired.static import StaticOptions, static_chains
from felix_py.observe.chain_names import ChainNames
from felix_py.ruleset.model import DROP, Limit, Log, Rules, RuleSpec
from policy.ir import ChainId, ChainKind, Jump
from policy.model import Direction, Family, NetworkPolicy, PolicyRef
from tests.support.clusters import Cluster, clusters
from tests.support.logged import datagram, ipv4, ipv6, logged_message, ports
from tests.support.rules import words
from tests.support.thorough import examples
from tests.support.told import ToldEngine

MARKS = Marks.from_mask(0xFFFF0000)
LOG = DenyLog(88, 10)
DIGEST = st.text("0123456789abcdef", min_size=16, max_size=16)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_a_complaint(data: bytes) -> None:
    for family in Family:
        parse_ip(family, data)
    list(Decoder().decode(memoryview(data)))


@given(st.data())
def test_any_damage_to_a_message_is_read_without_a_complaint(data: st.DataObject) -> None:
    four = logged_message("felix:SOURCE", ipv4("10.1.0.2", "10.1.0.3", 6, ports(1, 2)))
    six = logged_message("felix:HOST", ipv6("fd00::1", "fd00::2", 0, ports(1, 2)), family=10, sequence=1)
    raw = bytearray(datagram(four, six))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for packet in Decoder().decode(memoryview(raw)[:cut]):
        parse_prefix(packet.prefix)


@given(st.sampled_from(list(Direction)), DIGEST, st.integers(-1, 200))
def test_a_prefix_says_again_what_it_was_made_of(direction: Direction, digest: str, rule: int) -> None:
    policy = ChainId(ChainKind.POLICY, direction, digest)
    isolated = Drop(DropKind.ISOLATED, direction, ChainId(ChainKind.CLASS, direction, digest))
    denied = Drop(DropKind.POLICY, direction, policy, rule)
    readable = denied if -1 <= rule <= 99 else replace(denied, rule=-1)
    plain = [
        Drop(DropKind.SOURCE, Direction.EGRESS),
        Drop(DropKind.INVALID),
        Drop(DropKind.ASTRAY, Direction.INGRESS),
        Drop(DropKind.PROXIED),
        Drop(DropKind.HOST, Direction.EGRESS),
    ]
    for drop, again in ((isolated, isolated), (denied, readable), *((drop, drop) for drop in plain)):
        assert parse_prefix(drop.prefix()) == again
        assert len(drop.prefix()) <= 63
        assert drop.prefix().isascii()
    assert parse_prefix(Drop(DropKind.CLASS, direction).prefix()) == Drop(DropKind.CLASS, direction)
    assert len(chain_name(DenyChain.of(policy, rule))) <= 28


@given(st.text(max_size=63))
def test_a_prefix_of_somebody_else_is_nothing_or_spelled_exactly_as_ours(text: str) -> None:
    drop = parse_prefix(text)
    # "…:07" would be another spelling of rule 7.
    assert drop is None or drop.prefix() == text


def engine_of(cluster: Cluster) -> ToldEngine:
    engine = ToldEngine()
    for namespace in cluster.namespaces.values():
        engine.upsert(namespace)
    for pod in cluster.pods.values():
        engine.upsert(pod)
    for policy in cluster.policies.values():
        engine.upsert(policy)
    for endpoint in cluster.endpoints.values():
        engine.lease(endpoint)
    return engine


@settings(max_examples=examples(60), deadline=None)
@given(before=clusters(), after=clusters())
def test_every_chain_has_its_policies_also_when_it_is_gone(before: Cluster, after: Cluster) -> None:
    engine = engine_of(before)
    names = ChainNames(engine.policies_using)

    def flush() -> dict[ChainId, tuple[PolicyRef, ...]]:
        for delta in engine.flush():
            names.note(delta)
        program = engine.program(Family.V4)
        classes = {chain for chosen in program.classes.values() for chain in chosen.values()}
        jumps = {r.action.chain for c in program.chains.values() for r in c.rules if isinstance(r.action, Jump)}
        policies = {chain for chain in jumps if chain.kind is ChainKind.POLICY}
        return {chain: engine.policies_using(chain) for chain in classes | policies}

    known = flush()
    for endpoint in before.endpoints.keys() - after.endpoints.keys():
        engine.detach(endpoint)
    for ref in before.policies.keys() - after.policies.keys():
        engine.told.remove(NetworkPolicy, ref)
    known |= flush()
    for policy in after.policies.values():
        engine.upsert(policy)
    known |= flush()
    assert {chain: names.policies(chain) for chain in known} == known
    for endpoint in after.endpoints.keys() | before.endpoints.keys():
        engine.detach(endpoint)
    flush()
    assert {chain: names.policies(chain) for chain in known} == known
    assert len(names) == 0


@settings(max_examples=examples(60), deadline=None)
@given(cluster=clusters())
def test_every_drop_is_logged_and_nothing_else_differs(cluster: Cluster) -> None:
    engine = engine_of(cluster)
    digests = {"0123456789abcdef": 1, "0123456789abcdee": 127}
    numbers = {ChainId(ChainKind.CLASS, Direction.EGRESS, digest): n for digest, n in digests.items()}
    for family in Family:
        plain: dict[str, Rules] = {}
        logged: dict[str, Rules] = {}
        for log, into in ((None, plain), (LOG, logged)):
            options = StaticOptions(MARKS, endpoint_to_host="DROP", deny_log=log)
            into.update({name: rules for (_, name), rules in static_chains(family, options).items()})
            into.update(dispatch_chains(family, Direction.EGRESS, numbers, MARKS, log))
            for chain in engine.program(family).chains.values():
                into.update(render_chain(family, chain, MARKS, log))
        assert without_log(logged) == plain
        check_logged(logged)


def without_log(chains: dict[str, Rules]) -> dict[str, Rules]:
    """The chains without the rules that log, and with DROP instead of a jump to a chain of denials."""
    denials = {name for name in chains if name.startswith(("FELIX-DE-", "FELIX-DI-"))}
    found = {}
    for name in chains.keys() - denials:
        rules = [rule for rule in chains[name] if not isinstance(rule.target, Log)]
        found[name] = tuple(
            msgspec.structs.replace(r, target=DROP) if r.leads_to in denials else r for r in rules
        )
    for name in denials:
        assert [rule for rule in chains[name] if not isinstance(rule.target, Log)] == [DROP_ALL]
    return found


def check_logged(chains: dict[str, Rules]) -> None:
    """Each rule that drops stands behind the one that says so; no rule that logs stands anywhere else."""
    for name, rules in chains.items():
        for before, rule in zip((RuleSpec(), *rules), rules, strict=False):
            log = before.target
            if rule.target != DROP:
                assert not isinstance(log, Log)
                continue
            if words(rule) in (("-d", "ff00::/8", "-j", "DROP"), ("-s", "fe80::/10", "-j", "DROP")):
                continue  # what every interface says by itself
            assert rule == DROP_ALL, "a match before it would be compared twice"
            assert isinstance(log, Log)
            drop = parse_prefix(log.prefix)
            assert drop is not None
            chain = drop.chain
            if drop.kind is DropKind.POLICY and chain is not None:
                assert name == chain_name(DenyChain.of(chain, drop.rule))
            else:
                assert chain is None or name == chain_name(chain)
            assert isinstance(before.matches[0], Limit)
