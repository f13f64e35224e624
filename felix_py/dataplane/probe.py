"""Tries in an empty network namespace whether this kernel and its tools accept rules."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from felix_py.dataplane.backend import ToolError, command, run
from felix_py.dataplane.iptables_text import render
from felix_py.desired.features import Feature, matches
from felix_py.records import Backend
from felix_py.ruleset.model import RuleSpec
from policy.model import Family

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def refusal(families: Iterable[Family], backend: Backend, rule: RuleSpec) -> str | None:
    """Why a rule cannot be written on this node; None if it can.

    It is written into a temporary network namespace: nothing on the node changes.
    """
    return _refusal(dict.fromkeys(families, (rule,)), backend)


def missing_features(families: Sequence[Family], backend: Backend) -> dict[Feature, str]:
    """Features that this kernel or its tools lack, with the error text. All are tried at once first.

    If not even a rule without matches is accepted, nothing can be told (the lock is held, say): then no feature
    counts as missing, and writing the rules will report the error.
    """
    if _refusal(_rules(families, Feature), backend) is None or refusal(families, backend, RuleSpec()) is not None:
        return {}
    tried = {feature: _refusal(_rules(families, (feature,)), backend) for feature in Feature}
    return {feature: reason for feature, reason in tried.items() if reason is not None}


def _rules(families: Iterable[Family], features: Iterable[Feature]) -> dict[Family, Sequence[RuleSpec]]:
    wanted = tuple(features)
    return {family: [RuleSpec(match) for one in wanted if (match := matches(one, family))] for family in families}


def _refusal(rules: dict[Family, Sequence[RuleSpec]], backend: Backend) -> str | None:
    def attempt() -> None:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        for family, wanted in rules.items():
            # All our matches and targets are valid there; rpfilter is valid hardly anywhere else.
            if text := "".join(f"-A PREROUTING {render(rule).text}\n" for rule in wanted):
                argv = [command(family, backend, "restore"), "--noflush", "-w", "10"]
                run(argv, f"*raw\n{text}COMMIT\n")

    with ThreadPoolExecutor(1, "probe") as thread:  # the namespace ends with the thread that is in it
        try:
            thread.submit(attempt).result()
        except (OSError, ToolError) as error:
            return str(error)
    return None
