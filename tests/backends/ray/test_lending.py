"""Readers take weights straight from a trainer in their process where it cannot go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlinf_graph.backends.ray.lending import Lent, Readers
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.program import Program, WorkerGroup
from tests.backends.ray.test_run import prepared

Cores = Callable[..., Cluster]
ROLLOUT = {("rollout policy", 0), ("rollout policy", 1)}


def nowhere(_group: WorkerGroup) -> bool:
    """All engines are in their rank's process."""
    return False


def readers(program: Program, hosted: Any = nowhere) -> tuple[set[Any], set[Any]]:
    found = Readers.of(program, "policy", hosted)
    return set(found.borrowers), set(found.others)


def test_all_that_take_turns_with_the_trainer_borrow(cores: Cores) -> None:
    assert readers(prepared("collocated", cores()).program) == (ROLLOUT, set())


def test_one_of_a_part_of_the_devices_borrows(cores: Cores) -> None:
    assert readers(prepared("hybrid", cores()).program) == ({("rollout policy", 0)}, set())


@pytest.mark.parametrize("staleness", [0, 1])
def test_nobody_borrows_from_another_process(staleness: int, cores: Cores) -> None:
    program = prepared("disaggregated", cores(), staleness).program
    assert readers(program) == (set(), {("rollout policy", 0)})


def test_nobody_borrows_older_weights(cores: Cores) -> None:
    """The trainer goes on while they are in use."""
    assert readers(prepared("collocated", cores(), staleness=1).program) == (set(), ROLLOUT)


@pytest.mark.parametrize("node", ["rollout policy", "train policy"])
def test_nobody_borrows_where_an_engine_is_elsewhere(node: str, cores: Cores) -> None:
    program = prepared("collocated", cores()).program
    assert readers(program, lambda group: group.name == node) == (set(), ROLLOUT)


def test_nobody_borrows_whose_turn_is_after_the_trainers(cores: Cores) -> None:
    """It may still read when the next iteration's training begins, on another part of a ring."""
    program = prepared("collocated", cores()).program
    (ring,) = program.rings
    turned = type(ring)(ring.name, ring.positions[::-1], ring.devices)
    changed = type(program)(program.name, program.groups, program.channels, (turned,))
    assert readers(changed) == (set(), ROLLOUT)


def test_lent_weights_are_the_trainers_own(cores: Cores) -> None:
    graph = prepared("collocated", cores()).graph
    trainer = TorchEngine(
        graph.model("policy"), seed=0, device="cpu", dtype="float32", trainable=True
    )
    lent, own = Lent(trainer), dict(trainer.weights())
    for name, values in [*lent, *lent]:
        assert values.data_ptr() == own[name].data_ptr()
        assert torch.equal(values, own[name])
