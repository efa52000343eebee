"""Published training throughput: tokens a second of a device, from whole optimizer steps.

Where a row prints TFLOP/s alone, tokens follow from the operations of three forward passes with
causal attention: those of Megatron's tables, whose two columns agree with it within 1 % for models
without further predicted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from rlinf_graph.compiler.cost import memory
from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.iteration_constants import ALONE
from rlinf_graph.compiler.cost.layout import Layout, hardware_of, refusal
from rlinf_graph.compiler.cost.pass_constants import PassConstants
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.compiler.cost.training import train_parts
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Lengths, Train
from validation.devices import cluster_of, device_named
from validation.fitting import Case
from validation.kind import Kind
from validation.rows import LeftOut, Row, canonical, shape_named, without_shape
from validation.training_recipes import Recipe, recipe_of

LENGTH = 8192
"""Tokens of a sequence where a row has none: torchtitan's setting, as the rows' notes say."""

SHARED = ("n_gpus", "gbs", "mbs", "seq_len", "tp", "pp", "cp", "vp", "ep")
ENGINE = "megatron"


@dataclass(frozen=True)
class Run:
    """What a row's prediction is made of.

    Attributes:
        layout: with any constants.
        work: of one optimizer step.
        tokens: of that step, for each device.
    """

    layout: Layout
    work: Train
    tokens: float


@dataclass(frozen=True)
class Step:
    """Sizes of one optimizer step.

    Attributes:
        devices: of the run.
        batch: sequences of a step, on all devices.
        length: tokens of each.
    """

    devices: int
    batch: int
    length: int


def cases(rows: Sequence[Row]) -> tuple[list[Case], list[LeftOut]]:
    """The rows that can be predicted, and why others cannot."""
    made: list[Case] = []
    left_out: list[LeftOut] = []
    for row in rows:
        whole, taken = _completed(row, rows)
        reason = _lacking(whole)
        if reason:
            left_out.append(LeftOut(row, reason))
        else:
            made.append(_case(whole, taken))
    return made, left_out


def predict(case: Case, constants: PassConstants) -> float:
    """Tokens a second of a device."""
    run: Run = case.payload
    layout = replace(run.layout, constants=replace(run.layout.constants, passes=constants))
    return run.tokens / sum(train_parts(layout, run.work, lambda _kind, parts: parts).values())


def _completed(row: Row, rows: Sequence[Row]) -> tuple[Row, list[str]]:
    """A row with TFLOP/s alone, with sizes and layout of the first of its model and device."""
    if row.number("n_gpus") is not None or row.number("tflops_gpu") is None:
        return row, []
    for other in rows:
        same = canonical(other.text("model")) == canonical(row.text("model"))
        if same and other.text("gpu") == row.text("gpu") and other.number("n_gpus"):
            sizes = {column: other.text(column) for column in SHARED}
            return replace(row, fields={**row.fields, **sizes}), [f"sizes of {other.name}"]
    return row, []


def _lacking(row: Row) -> str | None:
    """Why a row cannot be predicted; None where it can."""
    if row.text("kind") == "moe-layer":
        return "a single layer, whose tokens are not published"
    if unknown := without_shape(row.text("model")):
        return unknown
    if row.doubtful:
        return "marked CHECK"
    if device_named(row.text("gpu")) is None:
        return f"unknown device {row.text('gpu')}"
    if row.text("kind") not in ("pretrain", ""):
        return "lengths of samples are not published, only their limit"
    devices = row.number("n_gpus")
    if not devices or devices < 1:
        return "no number of devices"
    if devices % math.prod(row.whole(axis) for axis in ("tp", "pp", "cp")):
        return "a layout that does not divide the number of devices"
    return None if (_measured(row) or 0.0) > 0 else "no throughput"


def _measured(row: Row) -> float | None:
    """Tokens a second of a device."""
    if direct := row.number("tok_s_gpu"):
        return direct
    shape, device = shape_named(row.text("model")), device_named(row.text("gpu"))
    if shape is None or device is None:
        return None
    rate = (row.number("tflops_gpu") or 0.0) * 1e12
    rate = rate or (row.number("mfu") or 0.0) * device.device.peak("bfloat16")
    length = row.number("seq_len") or LENGTH
    return rate / (3 * shape.forward_flops(1.0, length, 1.0, "lm")) or None


def _case(row: Row, taken: list[str]) -> Case:
    recipe, assumed = recipe_of(row), list(taken)
    shape = shape_named(row.text("model"))
    if shape is None:
        raise KeyError(row.name)
    if recipe.predicted:
        more = recipe.predicted
        shape = replace(shape, layers=shape.layers + more, vocab=shape.vocab * (1 + more))
        assumed.append("a further token predicted, with a layer and a head of its own")
    if row.number("tok_s_gpu") is None:
        assumed.append("tokens from TFLOP/s by three forward passes with causal attention")
    if row.number("seq_len") is None:
        assumed.append(f"sequences of {LENGTH}")
    settings, step, chosen = _settings(row, shape, recipe)
    return Case(
        row=row,
        model=canonical(row.text("model")),
        what=_words(row, settings, step, recipe),
        measured=_measured(row) or 0.0,
        payload=_run(row, shape, settings, step, recipe),
        assumed=(*assumed, *chosen),
    )


def _settings(row: Row, shape: ModelShape, recipe: Recipe) -> tuple[NodePlan, Step, list[str]]:
    """Layout and step of a row; the compiler's choice where it prints no layout."""
    devices = row.whole("n_gpus")
    tp, pp, cp = (row.whole(axis) for axis in ("tp", "pp", "cp"))
    dp = devices // (tp * pp * cp)
    micro = row.whole("mbs")
    step = Step(devices, row.whole("gbs", micro * dp), row.whole("seq_len", LENGTH))
    if row.number("tp") is None and row.number("fsdp") is None:
        found, fits = _fastest(row, shape, step, recipe)
        recomputed = ", recomputed" if found.recompute else ""
        why = "the fastest that fits" if fits else "none fits"
        return found, step, [f"{found.parallel}, by 1{recomputed}: {why}"]
    parallel = Parallel(
        dp=dp,
        tp=tp,
        pp=pp,
        cp=cp,
        vp=row.whole("vp"),
        # Megatron spreads experts over tensor ranks too; here those have a part of each expert.
        ep=max(1, row.whole("ep") // tp),
        shard="fsdp" if recipe.sharded else "optimizer",
    )
    return _plan(parallel, micro, recipe.recompute), step, []


def _fastest(row: Row, shape: ModelShape, step: Step, recipe: Recipe) -> tuple[NodePlan, bool]:
    """The settings that take least time with the shipped constants, of those that fit.

    Where none does, weights are sharded over all devices; the second value says which it was.
    """
    seconds: dict[NodePlan, float] = {}
    for parallel in _parallels(shape, step):
        for recompute in (False, True):
            plan = _plan(parallel, 1, recompute)
            run = _run(row, shape, plan, step, recipe)
            if not refusal(shape, run.work, step.devices, plan) and _fits(run):
                parts = train_parts(run.layout, run.work, lambda _kind, parts: parts)
                seconds[plan] = sum(parts.values())
    if not seconds:
        return _plan(Parallel(dp=step.devices, shard="fsdp"), 1, recompute=True), False
    return min(seconds, key=lambda plan: seconds[plan]), True


def _fits(run: Run) -> bool:
    held = sum(memory.resident(run.layout, trained=True).values())
    held += sum(memory.pass_working(run.layout, run.work).values())
    return held < run.layout.hardware.memory


def _parallels(shape: ModelShape, step: Step) -> Iterator[Parallel]:
    for tp in (1, 2, 4, 8):
        for pp in (n for n in range(1, shape.layers + 1) if shape.layers % n == 0):
            dp, rest = divmod(step.devices, tp * pp)
            if dp and not rest and step.batch % dp == 0:
                for vp in (n for n in (1, 2, 3, 4, 6) if shape.layers % (pp * n) == 0):
                    if vp == 1 or pp > 1:
                        yield Parallel(dp=dp, tp=tp, pp=pp, vp=vp, shard="optimizer")


def _plan(parallel: Parallel, micro: int, recompute: Any) -> NodePlan:
    return NodePlan(parallel=parallel, engine=ENGINE, micro_batch=micro, recompute=recompute)


def _run(row: Row, shape: ModelShape, settings: NodePlan, step: Step, recipe: Recipe) -> Run:
    layout = Layout(
        shape=shape,
        head="lm",
        dtype="bfloat16",
        hardware=_hardware(row.text("gpu"), step.devices, settings.parallel),
        settings=settings,
        constants=replace(CONSTANTS["gpu"], iteration=ALONE),
        execution=recipe.execution,
    )
    work = Train(step.batch, Lengths.fixed(step.length, "declared"), 1, 1)
    return Run(layout, work, step.batch * step.length / step.devices)


@cache
def _hardware(spelled: str, devices: int, parallel: Parallel) -> Any:
    return hardware_of(cluster_of(spelled, devices), range(devices), parallel)


def _words(row: Row, settings: NodePlan, step: Step, recipe: Recipe) -> str:
    """Devices, layout and sizes in a few words."""
    parallel = settings.parallel
    experts = f" ep {parallel.ep}" if parallel.ep > 1 else ""
    sizes = f"{step.batch} x {step.length} by {settings.micro_batch}"
    product = recipe.execution.product or "bfloat16"
    name = row.text("gpu").split(" ")[0]
    return f"{step.devices} {name} {parallel}{experts}, {sizes}, {product}"


KIND = Kind(
    name="training",
    unit="tokens/s/GPU",
    shipped=CONSTANTS["gpu"].passes,
    width=CONSTANTS["gpu"].widths.passes,
    file="published_training.csv",
    cases=cases,
    predict=predict,
)
