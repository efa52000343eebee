"""Every step of every sample as a sample of its own."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import TokenBatch
from rlinf_graph.ir.batches import Transitions

SomeBatch = TypeVar("SomeBatch", bound=TokenBatch)


def each_step(batch: SomeBatch) -> SomeBatch:
    """Cut samples into their steps, sample after sample; `index` counts the steps from 0.

    A field with values beyond a sample's last step gives each step those that come after it: two
    observations, before and after. `group` stays that of the sample. What an object field holds is
    repeated; of `Transitions.finals` each goes to the step that was truncated there.
    """
    lengths = packed.host(batch.lengths)
    total = int(lengths.sum())
    owner = np.repeat(np.arange(len(lengths)), lengths)
    axes = packed.columns(type(batch))
    fields: dict[str, Any] = {n: getattr(batch, n)[owner] for n in axes["sample"]}
    for name, extra in axes["token"].items():
        column = getattr(batch, name)
        if extra:
            first = np.arange(total) + owner * extra
            column = column[(first[:, None] + np.arange(extra + 1)).reshape(-1)]
        fields[name] = column
    for name in axes["object"]:
        if isinstance(batch, Transitions) and name == "finals":
            fields[name] = _finals_of_steps(batch)
            continue
        held = getattr(batch, name)
        fields[name] = [held[sample] for sample in owner.tolist()]
    like = batch.index
    fields["index"] = like.new_ones(total).cumsum(0) - 1
    fields["lengths"] = like.new_ones(total)
    return type(batch)(**fields)


def _finals_of_steps(batch: Transitions) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in range(len(packed.host(batch.truncated)))]
    ended = (final for finals in batch.finals for final in finals)
    for step in packed.host(batch.truncated).nonzero()[0].tolist():
        found[step] = [next(ended)]
    return found
