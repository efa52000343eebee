"""Who takes a model's weights as they lie in the trainer, because it lives in the same process.

Nothing is copied but into the reader's own memory. The trainer must not go on to its next step
while somebody reads: that is so where reader and trainer take turns on a device, the reader's comes
first in an iteration, and it reads the newest version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from rlinf_graph.backends.ray.waiting import Place, every_instruction, makers
from rlinf_graph.ir.program import Await, Program, WorkerGroup
from rlinf_graph.nodes.engine import Engine


@dataclass(frozen=True)
class Lent:
    """The weights of an engine by name; again each time."""

    trainer: Engine

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """As they are now."""
        return ((shard.name, shard.values) for shard in self.trainer.shards())


@dataclass(frozen=True)
class Readers:
    """The ranks that read a model in training: those that borrow its weights, and the others."""

    borrowers: frozenset[Place]
    others: frozenset[Place]

    @staticmethod
    def of(program: Program, model: str, hosted: Callable[[WorkerGroup], bool]) -> Readers:
        """`hosted` says whether the engines of a group are in processes of their own."""
        trainers = [program.group(name) for name in makers(program, model)]
        lenders = [trainer for trainer in trainers if not hosted(trainer)]
        borrowers, others = set[Place](), set[Place]()
        for group in program.groups:
            found = [i for i in every_instruction(group.body) if isinstance(i, Await)]
            awaits = [awaited for awaited in found if awaited.model == model]
            newest = all(a.staleness == 0 and not a.decay for a in awaits) and not hosted(group)
            for rank in range(group.ranks) if awaits else ():
                lent = newest and any(_lends(program, one, group, rank) for one in lenders)
                (borrowers if lent else others).add((group.name, rank))
        return Readers(frozenset(borrowers), frozenset(others))


def _lends(program: Program, trainer: WorkerGroup, group: WorkerGroup, rank: int) -> bool:
    """Whether a rank of a trainer has the same devices, after the reader in each round."""
    devices = group.devices_of(rank)
    if not devices or devices not in map(trainer.devices_of, range(trainer.ranks)):
        return False
    for ring in program.rings:
        turns = {name: turn for turn, names in enumerate(ring.positions) for name in names}
        if devices[0] in ring.devices and {group.name, trainer.name} <= turns.keys():
            return turns[group.name] < turns[trainer.name]
    return False
