"""Published peaks of memory: torchtitan's training runs, predicted part by part.

The rows give what torch's allocator reserves at most. What a device loses to the process beside it
(context, kernels, communication libraries) is not in it, so the part `workspace` is left out.
No constant is fitted; which copies live at once was read off the framework's operators with these
rows in sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlinf_graph.compiler.cost import memory
from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.keeps import Copies, Keeps
from rlinf_graph.compiler.cost.layout import Layout, hardware_of
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Lengths, Train
from validation.devices import cluster_of
from validation.fitting import Case
from validation.kind import Kind
from validation.rows import LeftOut, Row, canonical, shape_named

WIDTH = 0.049
"""Half that of an 80 % interval, as a logarithm: of the rows in `benchmarks/data`."""

LOSS_COMPILED = "202506"
"""In the name of a file: torchtitan compiled its loss in those measurements, and not in 202412."""


@dataclass(frozen=True)
class NoConstants:
    """Nothing is fitted: what is kept follows from what the framework does."""


@dataclass(frozen=True)
class Run:
    """What a row's prediction is made of."""

    layout: Layout
    work: Train
    keeps: Keeps


def keeps_of_row(row: Row) -> Keeps:
    """What torchtitan keeps.

    FSDP2 shards float32 weights and gathers them in bfloat16; tensor-parallel ranks share
    activations by sequence; keys and values are repeated before attention. Eager, the loss holds
    the bfloat16 logits, their log-softmax, and two gradients in float32; split by vocabulary, the
    exponential too (torch.distributed.tensor.parallel.loss_parallel). Compiled, it reads the logits
    and writes their gradient. A compiled block does not keep what nobody reads.
    """
    compiled = "compile" in row.text("notes")
    fused = compiled and LOSS_COMPILED in row.text("file")
    return Keeps(
        wide_weights=True,
        by_sequence=True,
        repeats=True,
        fused=compiled,
        last_product=not compiled,
        loss=Copies(2, 0) if fused else Copies(1, 3),
        split_loss=Copies(2, 0) if fused else Copies(1, 4),
        scores=Copies(1, 1),
    )


def cases(rows: Sequence[Row]) -> tuple[list[Case], list[LeftOut]]:
    """Rows with a peak of memory and a model whose shape is known; others are no such rows."""
    made: list[Case] = []
    left_out: list[LeftOut] = []
    for row in rows:
        if row.number("peak_mem_gib") is None:
            continue
        if row.text("kind") == "moe-layer":
            left_out.append(LeftOut(row, "a single layer, whose tokens are not published"))
        elif row.number("mbs") is None or row.number("seq_len") is None:
            left_out.append(LeftOut(row, "no micro-batch or sequence length"))
        elif shape_named(row.text("model")) is None:
            left_out.append(LeftOut(row, f"unknown model {row.text('model')}"))
        else:
            made.append(_case(row))
    return made, left_out


def predict(case: Case, constants: NoConstants) -> float:  # noqa: ARG001  nothing is fitted
    """GiB that the allocator reserves at the worst moment."""
    return sum(size for name, size in parts(case).items() if name != "workspace")


def parts(case: Case) -> dict[str, float]:
    """GiB by what they hold."""
    run: Run = case.payload
    held = memory.resident(run.layout, trained=True, keeps=run.keeps)
    held |= memory.pass_working(run.layout, run.work, run.keeps)
    return {name: size / 2**30 for name, size in held.items()}


def best_constant(measured: Sequence[float]) -> tuple[float, float]:
    """The constant with the least median absolute relative error, and that error.

    The error of a constant changes its order of rows only where two rows are equally far off, so
    a fine grid between the smallest and the largest row finds it.
    """
    rows = np.asarray(measured)
    grid = np.linspace(rows.min(), rows.max(), 10_001)
    errors = np.median(np.abs(grid[:, None] / rows[None, :] - 1), axis=1)
    best = int(np.argmin(errors))
    return float(grid[best]), float(errors[best])


def _case(row: Row) -> Case:
    tp, pp, cp = (row.whole(axis) for axis in ("tp", "pp", "cp"))
    dp = row.whole("fsdp", row.whole("n_gpus") // (tp * pp * cp))
    interleaved = "Interleaved" in row.text("notes")
    batch, length = row.whole("mbs"), row.number("seq_len") or 0.0
    micro, assumed = batch, []
    if pp > 1:
        micro = max(1, batch // pp)
        assumed.append(f"{batch // micro} micro-batches, as many as stages")
    recompute, said = _recompute(row)
    assumed += [] if said else ["selective recomputation, torchtitan's default for this model"]
    settings = NodePlan(
        parallel=Parallel(dp=dp, tp=tp, pp=pp, cp=cp, vp=2 if interleaved else 1, shard="fsdp"),
        engine="torchtitan",
        micro_batch=micro,
        recompute=recompute,
    )
    return Case(
        row=row,
        model=canonical(row.text("model")),
        what=f"{_device(row)} {settings.parallel} seq {length:.0f} × {micro} "
        f"{'eager' if 'compile' not in row.text('notes') else 'compiled'}",
        measured=row.number("peak_mem_gib") or 0.0,
        payload=_run(row, settings, Train(batch * dp, Lengths.fixed(length, "declared"), 1, 1)),
        assumed=tuple(assumed),
    )


def _recompute(row: Row) -> tuple[bool | Literal["selective"], bool]:
    """The mode of recomputation, and whether the row says it."""
    if "full AC" in row.text("notes"):
        return True, True
    return "selective", "selective AC" in row.text("notes")


def _device(row: Row) -> str:
    return row.text("gpu").split(" ")[0]


def _run(row: Row, settings: NodePlan, work: Train) -> Run:
    shape = shape_named(row.text("model"))
    if shape is None:
        raise ValueError(f"{row.name}: unknown model")
    devices = settings.parallel.devices
    cluster = cluster_of(_device(row), devices)
    layout = Layout(
        shape=shape,
        head="lm",
        dtype="bfloat16",
        hardware=hardware_of(cluster, range(devices), settings.parallel),
        settings=settings,
        constants=CONSTANTS["gpu"],
    )
    return Run(layout, work, keeps_of_row(row))


KIND = Kind(
    name="memory",
    unit="GiB",
    shipped=NoConstants(),
    width=WIDTH,
    file="published_training.csv",
    cases=cases,
    predict=predict,
)
