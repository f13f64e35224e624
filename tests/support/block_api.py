"""The API server's part of claiming blocks, in memory: objects, preconditions, an ordered log, and lies.

A write may be refused by its preconditions, be lost, have happened although it was answered by a time-out, or
happen later. What a client sees is a point of the log, which may be an old one, also after it has begun anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from felix_py.ipam.blocks import Act, Step
from felix_py.ipam.known import Known
from felix_py.ipam.names import affinity_name, block_name
from felix_py.ipam.resources import AffinityState, BlockAffinity, IPAMBlock

Object = IPAMBlock | BlockAffinity


class TimedOut(Exception):
    """No answer: the write may have happened, or may happen yet."""


class Refused(Exception):
    """409: there already, or not as the precondition says."""


@dataclass
class BlockApi:
    """``faults``: the share of writes that meet one. ``objects`` by (kind, name)."""

    rng: random.Random
    faults: float = 0.0
    objects: dict[tuple[type, str], Object] = field(default_factory=dict)
    log: list[tuple[tuple[type, str], Object | None]] = field(default_factory=list)
    late: list[Callable[[], None]] = field(default_factory=list)
    requests: int = 0

    def carry_out(self, act: Act, node: str, node_uid: str) -> None:
        """Do one step. Raises Refused or TimedOut."""
        self.requests += 1
        write = partial(self._apply, act, node, node_uid)
        if self.rng.random() >= self.faults:
            write()
            return
        what = self.rng.randrange(3)
        if what == 0:
            self.late.append(write)
        elif what == 1:
            write()
        raise TimedOut

    def settle(self, most: int = 1) -> None:
        """Have some of the writes arrive that nobody waits for any more."""
        for _ in range(min(most, len(self.late))):
            try:
                self.late.pop(self.rng.randrange(len(self.late)))()
            except Refused:
                continue

    def _apply(self, act: Act, node: str, node_uid: str) -> None:
        affinity_key = (BlockAffinity, affinity_name(node, act.cidr))
        block_key = (IPAMBlock, block_name(act.cidr))
        match act.step:
            case Step.WANT:
                state = AffinityState.PENDING
                self._create(
                    affinity_key, BlockAffinity(name=affinity_key[1], node=node, cidr=act.cidr, state=state)
                )
            case Step.TAKE:
                self._create(block_key, IPAMBlock(name=block_key[1], cidr=act.cidr, node=node, node_uid=node_uid))
            case Step.CONFIRM | Step.MARK:
                confirmed = act.step is Step.CONFIRM
                state = AffinityState.CONFIRMED if confirmed else AffinityState.PENDING_DELETION
                held = self._held(affinity_key, act.affinity)
                assert isinstance(held, BlockAffinity)
                self._put(affinity_key, replace(held, state=state))
            case Step.ADOPT:
                held = self._held(block_key, act.block)
                assert isinstance(held, IPAMBlock)
                self._put(block_key, replace(held, node_uid=node_uid))
            case Step.DELETE:
                self._held(block_key, act.block)
                self.delete(block_key)
            case Step.FORGET:
                self._held(affinity_key, act.affinity)
                self.delete(affinity_key)
            case Step.ASK | Step.LEND | Step.WITHDRAW | Step.RETURN:
                held = self._held(block_key, act.block)
                assert isinstance(held, IPAMBlock)
                self._put(block_key, replace(held, lent=act.lent, requests=act.requests))
            case Step.CLOSE | Step.RECLAIM:
                raise AssertionError("is a step of the node's own")

    def _held(self, key: tuple[type, str], seen: Object | None) -> Object:
        held = self.objects.get(key)
        assert seen is not None
        if held is None or (held.uid, held.resource_version) != (seen.uid, seen.resource_version):
            raise Refused
        return held

    def _create(self, key: tuple[type, str], obj: Object) -> None:
        if key in self.objects:
            raise Refused
        self._put(key, replace(obj, uid=f"uid-{len(self.log)}"))

    def _put(self, key: tuple[type, str], obj: Object) -> None:
        self.objects[key] = obj = replace(obj, resource_version=str(len(self.log) + 1))
        self.log.append((key, obj))

    def delete(self, key: tuple[type, str]) -> None:
        """Delete an object, as anybody may."""
        del self.objects[key]
        self.log.append((key, None))

    @property
    def blocks(self) -> list[IPAMBlock]:
        return [one for one in self.objects.values() if isinstance(one, IPAMBlock)]

    @property
    def affinities(self) -> list[BlockAffinity]:
        return [one for one in self.objects.values() if isinstance(one, BlockAffinity)]


class Seen:
    """What one node has seen: a point of the log for blocks, another one for its affinities."""

    def __init__(self, api: BlockApi, node: str, lag: int = 0) -> None:
        """A list from a cache that is ``lag`` changes old at most, of each kind by itself."""
        self._api = api
        self._node = node
        self.known = Known(node)
        self._at: dict[type, int] = {IPAMBlock: 0, BlockAffinity: 0}
        self._objects: dict[tuple[type, str], Object] = {}
        for kind in self._at:
            self.follow(kind, len(api.log) - api.rng.randint(0, lag))

    def follow(self, kind: type, until: int) -> None:
        """See what has happened to a kind up to a point of the log; never back."""
        for key, obj in self._api.log[self._at[kind] : until]:
            if key[0] is kind:
                self._fold(key, obj)
        self._at[kind] = max(self._at[kind], until)

    def catch_up(self, most: int | None = None) -> None:
        """See further changes, some or all."""
        for kind, at in list(self._at.items()):
            self.follow(kind, len(self._api.log) if most is None else min(at + most, len(self._api.log)))

    def _fold(self, key: tuple[type, str], obj: Object | None) -> None:
        before = self._objects.pop(key, None)
        if obj is not None:
            self._objects[key] = obj
        if key[0] is IPAMBlock:
            self.known.fold_block(before, obj)  # type: ignore[arg-type]
        else:
            self.known.fold_affinity(before, obj)  # type: ignore[arg-type]
