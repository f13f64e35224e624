"""The simulator walks a ruleset as the kernel does, and says when it cannot tell."""

from __future__ import annotations

import pytest

from felix_py.ruleset.decode_save import decode
from felix_py.ruleset.run import Outcome, Path, Result, Sets, Transit, simulate
from felix_py.ruleset.sets import TextSet
from policy.model import Family, Packet, Protocol

TCP80 = Packet("10.0.0.1", "10.0.0.2", Protocol.TCP, 80)
FLOW = Transit(TCP80, "felix1", "eth0")
ACCEPT, DROP, UNKNOWN = Outcome


def filter_table(text: str, policy: str = "DROP") -> str:
    """FORWARD and other chains from lines such as ``FORWARD -j A``."""
    lines = [line.strip() for line in text.strip().splitlines()]
    names = dict.fromkeys(line.split(" ", 1)[0] for line in lines)
    chains = [f":{name} {policy if name == 'FORWARD' else '-'} [0:0]" for name in ("FORWARD", *names)]
    return "\n".join(["*filter", *chains, *(f"-A {line}" for line in lines), "COMMIT"])


def run(text: str, flow: Transit = FLOW, path: Path = Path.FORWARD, sets: Sets = lambda _name: None) -> Result:
    return simulate(decode(Family.V4, text), sets, flow, path)


def outcome(text: str, flow: Transit = FLOW, /, **sets: TextSet) -> Outcome:
    return run(filter_table(text), flow, sets=sets.get).outcome


MATCHES = {
    "-i felix1": True,
    "-i felix": False,
    "-i felix+": True,
    "! -i felix+": False,
    "-o felix+": False,
    "! -o felix+": True,
    "-s 10.0.0.0/31": True,
    "! -s 10.0.0.0/31": False,
    "-d 10.0.0.1": False,
    "-p tcp": True,
    "! -p tcp": False,
    "-p udp": False,
    "-p icmp": False,
    "-p tcp --dport 79:81": True,
    "-p tcp -m multiport --dports 22,81": False,
    "-p tcp -m multiport ! --dports 22,81": True,
    "-p tcp -m multiport --ports 80": True,
    "-p tcp --syn": True,
    "-p tcp ! --syn": False,
    "-m conntrack --ctstate NEW": True,
    "-m conntrack --ctstate ESTABLISHED,RELATED": False,
    "-m conntrack ! --ctstate ESTABLISHED,RELATED": True,
    "-m mark --mark 0x0/0xff": True,
    "-m mark ! --mark 0x0": False,
    "-m set --match-set ips src": True,
    "-m set --match-set ips dst": False,
    "-m set ! --match-set ips dst": True,
    "-m set --match-set nets dst": True,
    "-m set --match-set nets src": False,
    "-m set --match-set ports dst,dst": True,
    "-m set --match-set ports src,dst": False,
    "-m set --match-set ifaces src,src": True,
    "-m set --match-set ifaces dst,src": False,
    "-m set --match-set ifaces src,dst": False,
    "-m set --match-set ports dst": False,
    "-i felix1 -o felix2": False,
}

SETS = {
    "ips": TextSet("hash:ip", {"10.0.0.1": 0}),
    "nets": TextSet("hash:net", {"10.0.0.2/31": 0}),
    "ports": TextSet("hash:ip,port", {"10.0.0.2,tcp:80": 0, "10.0.0.1,udp:80": 0}),
    "ifaces": TextSet("hash:net,iface", {"10.0.0.0/31,felix1": 0}),
}


@pytest.mark.parametrize("match", MATCHES)
def test_matches(match: str) -> None:
    expected = ACCEPT if MATCHES[match] else DROP
    assert outcome(f"FORWARD {match} -j ACCEPT", **SETS) is expected


CANNOT_TELL = [
    "-p tcp --sport 1024",
    "-m limit --limit 1/s",
    "-m statistic --mode nth --every 2",
    "-m conntrack --ctstate DNAT",
    "-m set --match-set missing src",
    "-m set --match-set list src",
    "-m set --match-set ports dst,src",
    "-m time --timestart 8:00",
]


@pytest.mark.parametrize("match", CANNOT_TELL)
def test_what_is_not_known_is_not_guessed(match: str) -> None:
    text = filter_table(f"FORWARD {match} -j ACCEPT")
    sets = {**SETS, "list": TextSet("list:set", {})}
    found = run(text, sets=sets.get)
    assert found.outcome is UNKNOWN
    assert [step.number for step in found.doubts] == [1]


def test_goto_returns_to_where_the_chain_was_jumped_from() -> None:
    text = """
        FORWARD -j A
        FORWARD -j ACCEPT
        A -g B
        A -j DROP
        B -j MARK --set-xmark 0x4/0x4
    """
    found = run(filter_table(text))
    assert found.outcome is ACCEPT
    assert [(step.chain, step.number) for step in found.trace] == [
        ("FORWARD", 1),
        ("A", 1),
        ("B", 1),
        ("FORWARD", 2),
    ]
    assert found.mark == 4


def test_return_and_the_end_of_a_chain_go_on_behind_the_jump() -> None:
    assert outcome("FORWARD -j A\nFORWARD -j ACCEPT\nA -j RETURN\nA -j DROP") is ACCEPT
    assert outcome("FORWARD -j A\nFORWARD -j ACCEPT\nA -p udp -j DROP") is ACCEPT
    assert outcome("FORWARD -j RETURN\nFORWARD -j ACCEPT") is DROP
    assert outcome("FORWARD -g A\nFORWARD -j ACCEPT\nA -j RETURN") is DROP


def test_a_policy_that_drops_is_the_last_step() -> None:
    found = run(filter_table("FORWARD -p udp -j ACCEPT"))
    assert found.outcome is DROP
    assert found.decided_by is not None
    assert (found.decided_by.chain, found.decided_by.number) == ("FORWARD", 0)
    assert run(filter_table("FORWARD -p udp -j DROP", policy="ACCEPT")).outcome is ACCEPT


def test_mark_targets_are_the_kernel_s_arithmetic() -> None:
    text = """
        FORWARD -j MARK --set-xmark 0xff/0x0f
        FORWARD -j MARK --xor-mark 0x0f
        FORWARD -m mark --mark 0xf0/0xff -j ACCEPT
    """
    assert outcome(text) is ACCEPT
    assert outcome(text, Transit(TCP80, mark=0x10)) is DROP


def test_map_set_writes_the_member_s_mark_under_its_mask() -> None:
    text = """
        FORWARD -j SET --map-set map src --map-mark
        FORWARD -m mark --mark 0x2a0001 -j ACCEPT
    """
    members = TextSet("hash:ip", {"10.0.0.1": 0x2A0000 << 32 | 0xFE0000})
    assert outcome(text, Transit(TCP80, mark=0xFE0001), map=members) is ACCEPT
    assert outcome(text, Transit(TCP80, mark=0xFE0001), map=TextSet("hash:ip", {})) is DROP


def test_tables_come_in_the_kernel_s_order_and_share_the_mark() -> None:
    text = """*filter
:FORWARD DROP [0:0]
-A FORWARD -m mark --mark 0x3 -j ACCEPT
COMMIT
*mangle
:FORWARD ACCEPT [0:0]
-A FORWARD -j MARK --or-mark 2
-A FORWARD -j ACCEPT
-A FORWARD -j DROP
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -o felix9 -j DROP
-A PREROUTING -i felix1 -j MARK --or-mark 1
COMMIT
"""
    assert run(text, Transit(TCP80, "felix1", "felix9")).outcome is ACCEPT
    assert run(text, Transit(TCP80, "eth0", "felix9")).outcome is DROP
    assert run(text, Transit(TCP80, "", "felix9"), Path.OUTPUT).outcome is ACCEPT


def test_what_is_not_understood_but_does_not_decide_is_no_doubt() -> None:
    text = """
        FORWARD -m statistic --mode nth --every 2 -j A
        FORWARD -j LOG --log-prefix x
        FORWARD -m limit --limit 1/s -j NFLOG --nflog-group 3
        FORWARD -j ACCEPT
        A -p tcp -j ACCEPT
    """
    found = run(filter_table(text))
    assert found.outcome is ACCEPT
    assert found.doubts == ()


def test_doubts_name_the_rules_that_decide() -> None:
    text = """
        FORWARD -m statistic --mode nth --every 2 -j A
        FORWARD -m time --timestart 8:00 -j ACCEPT
        FORWARD -j ACCEPT
        A -m recent --name x -j DROP
    """
    found = run(filter_table(text))
    assert found.outcome is UNKNOWN
    assert [step.chain for step in found.doubts] == ["FORWARD", "A"]
    assert "recent" in found.doubts[1].text


def test_any_number_of_rules_that_only_look_is_no_doubt() -> None:
    looks = "\n".join(f"FORWARD -m limit --limit {n}/s -j LOG --log-prefix {n}" for n in range(1, 40))
    assert outcome(f"{looks}\nFORWARD -j ACCEPT") is ACCEPT
    assert outcome(
        f"{looks}\nFORWARD -m limit --limit 1/s -j MARK --set-mark 1\nFORWARD -m mark --mark 1 -j ACCEPT"
    ) is (UNKNOWN)


def test_targets_of_others() -> None:
    assert outcome("FORWARD -j REJECT --reject-with icmp-port-unreachable\nFORWARD -j ACCEPT") is DROP
    assert outcome("FORWARD -j NOTRACK\nFORWARD -j ACCEPT") is ACCEPT
    assert outcome("FORWARD -j CT --notrack\nFORWARD -j ACCEPT") is ACCEPT
    assert outcome("FORWARD -j NFQUEUE --queue-num 1\nFORWARD -j ACCEPT") is UNKNOWN


def test_very_many_doubts_end_in_unknown() -> None:
    rules = "\n".join(f"FORWARD -m statistic --mode nth --every {n} -j A{n}" for n in range(2, 60))
    chains = "\n".join(f"A{n} -m recent --name x -j ACCEPT" for n in range(2, 60))
    assert outcome(f"{rules}\n{chains}") is UNKNOWN
    assert outcome(f"{rules}\nFORWARD -j ACCEPT\n{chains}") is UNKNOWN  # too many to say that it does not matter
