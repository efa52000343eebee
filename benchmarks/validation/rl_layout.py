"""How a published RL iteration was laid out: from the row, its recipe, or declared defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlinf_graph.compiler.cost.layout import refusal
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Forward, Generate, Lengths
from validation.chosen import Iteration
from validation.devices import cluster_of, device_named
from validation.rows import Row, canonical, plain

GENERATED = re.compile(r"G-GBS=(\d+)")
TRAINED = re.compile(r"T-GBS=(\d+)")
SPLIT = re.compile(r"(\d+)T\s*\+\s*(\d+)G")
DEPTH = re.compile(r"(\d+)-step Off|staleness (\d+)", re.IGNORECASE)
PACKED = 0.9
"""Share of a packed micro-batch that is tokens: what first-fit packing of sequences much shorter
than the micro-batch leaves. Assumed."""


@dataclass(frozen=True)
class Setting:
    """Layouts and sizes.

    Attributes:
        samples, group: responses of an iteration, and of a prompt.
        limit: tokens of prompt and response at most.
        optimizer_steps: of an iteration.
        passes: forward passes besides training: policy, reference.
        sampler, trainer: devices of each side; the same ones where they take turns.
        generation, training: settings of each side.
        depth: iterations that samples may be stale; 0 for synchronous.
        dtypes: number formats of training and of sampling.
        assumed: what the row lacks, and where it was taken from.
    """

    samples: int
    group: int
    limit: float
    optimizer_steps: int
    passes: int
    sampler: range
    trainer: range
    generation: NodePlan
    training: NodePlan
    depth: int
    dtypes: tuple[str, str]
    assumed: tuple[str, ...]


def recipe_of(row: Row, recipes: Sequence[Row]) -> Row | None:
    """The recipe that a row was made with: same version, model, device count and mode."""
    entry = device_named(row.text("gpu"))
    machine = entry.machine if entry else 0
    version = re.search(r"v(\d+\.\d+)", row.text("source"))
    devices = row.whole("n_gpus")
    found = [
        recipe
        for recipe in recipes
        if version
        and recipe.text("tag").startswith(f"v{version[1]}")
        and _same_model(recipe, canonical(row.text("model")))
        and recipe.whole("nodes") * recipe.whole("gpus_per_node") == devices
        and (recipe.text("async_") == "True") == _asynchronous(row)
        and recipe.whole("gpus_per_node") == machine
        and row.number("max_len") in (None, recipe.number("max_len"))
    ]
    same = [r for r in found if ("fp8" in r.text("recipe")) == ("G-FP8" in row.text("notes"))]
    named = [r for r in same if r.text("recipe").startswith(row.text("algo").lower())]
    return (named or same or [None])[0]


def _same_model(recipe: Row, model: str) -> bool:
    """By name, or where a recipe has a path of its own, by the name of its file."""
    named = canonical(recipe.text("model"))
    return named == model or plain(model) in plain(recipe.text("recipe"))


def setting_of(row: Row, recipe: Row | None, shape: ModelShape, prompt: int) -> Setting:
    """Everything about a row that the cost model has to know."""
    assumed: list[str] = []
    mean = row.number("avg_len") or 0.0
    limit = _limit(row, recipe, prompt, mean, assumed)
    devices, depth = row.whole("n_gpus"), _depth(row)
    sampler, trainer = _sides(row, recipe, devices, depth, assumed)
    samples, group = _samples(row, recipe, prompt + mean, assumed)
    steps = max(1, samples // _minibatch(row, recipe, samples, assumed))
    iteration = Iteration(
        model=canonical(row.text("model")),
        cluster=cluster_of(row.text("gpu"), devices),
        prompts=max(1, samples // group),
        group=group,
        prompt=prompt,
        mean=mean,
        limit=round(limit) - prompt,
        optimizer_steps=steps,
        depth=depth,
        sampler=sampler,
        trainer=trainer,
    )
    generation, training = _layouts(row, recipe, iteration, shape, assumed)
    packed = _of(recipe, "seqpack") != "False"
    together = PACKED * limit * row.whole("mbs") / (prompt + mean) if packed else 1
    return Setting(
        samples=samples,
        group=group,
        limit=limit,
        optimizer_steps=steps,
        passes=2 if _of(recipe, "ref_kl") not in ("0.0", "0") else 1,
        sampler=sampler[: generation.parallel.devices],
        trainer=trainer[: training.parallel.devices],
        generation=generation,
        training=training.model_copy(update={"micro_batch": max(1, round(together))}),
        depth=depth,
        dtypes=_formats(row),
        assumed=tuple(assumed),
    )


def _limit(row: Row, recipe: Row | None, prompt: int, mean: float, assumed: list[str]) -> float:
    """Tokens of prompt and response at most; a limit that no response fits in is none."""
    limit = row.number("max_len") or _number(recipe, "max_len") or 0.0
    if limit > prompt:
        return limit
    assumed.append("limit of twice the mean length")
    return prompt + 2 * mean


def _of(recipe: Row | None, column: str) -> Any:
    """A recipe's number, else its text; None without a recipe or an entry."""
    if recipe is None:
        return None
    return (
        recipe.number(column) if recipe.number(column) is not None else recipe.text(column) or None
    )


def _number(recipe: Row | None, column: str) -> float | None:
    """A recipe's number; None without a recipe, or where it has none."""
    return recipe.number(column) if recipe is not None else None


def _asynchronous(row: Row) -> bool:
    return "async" in row.text("mode").lower()


def _depth(row: Row) -> int:
    """Iterations that samples may be stale; an asynchronous row without a number has one."""
    if not _asynchronous(row):
        return 0
    found = DEPTH.search(row.text("mode"))
    return int(found[1] or found[2]) if found else 1


def _sides(
    row: Row, recipe: Row | None, devices: int, depth: int, assumed: list[str]
) -> tuple[range, range]:
    """Devices that sample and those that train; all of them in turns where nothing is split."""
    if devices < 2:
        return range(devices), range(devices)
    split = SPLIT.search(row.text("notes")) or SPLIT.search(row.text("mode"))
    if split:
        training = int(split[1])
    elif depth and recipe is not None and recipe.number("gen_nodes"):
        training = devices - recipe.whole("gen_nodes") * recipe.whole("gen_gpus_per_node", 8)
    elif depth:
        training = devices // 2
        assumed.append("half of the devices train")
    else:
        return range(devices), range(devices)
    if not 0 < training < devices:
        training = devices // 2
        assumed.append("half of the devices train: the given split is of others")
    return range(training, devices), range(training)


AXES = ("tp", "pp", "cp", "ep")


def _layouts(
    row: Row, recipe: Row | None, iteration: Iteration, shape: ModelShape, assumed: list[str]
) -> tuple[NodePlan, NodePlan]:
    """Settings of sampling and training: the row's, its recipe's, or the compiler's choice."""
    sampled = {axis: _degree(row, f"gen_{axis}", recipe, f"gen_{axis}") for axis in ("tp", "pp")}
    trained = {axis: _degree(row, f"train_{axis}", recipe, f"t_{axis}") for axis in AXES}
    sizes = len(iteration.sampler), len(iteration.trainer)

    def made() -> tuple[NodePlan, NodePlan]:
        recompute = _of(recipe, "act_ckpt") != "False"
        training = _given_training(trained, sizes[1], shape, recompute=recompute)
        return _given_sampling(sampled, iteration, shape), training

    if sampled["tp"] and any(trained.values()):
        if _runs(shape, sizes, made()):
            return made()
        assumed.append("the given layout cannot run on so many devices")
        sampled, trained = dict.fromkeys(sampled, 0), dict.fromkeys(trained, 0)
    chosen = iteration.choose(_words(sampled), _words(trained))
    if chosen is not None:
        assumed.append("layout chosen by the compiler")
        return chosen
    assumed.append("no layout given, and none found that fits: data parallel")
    if not _runs(shape, sizes, made()):
        sampled, trained = {"tp": 1, "pp": 1}, dict.fromkeys(trained, 0)
    return made()


def _runs(shape: ModelShape, sizes: tuple[int, int], plans: tuple[NodePlan, NodePlan]) -> bool:
    """Whether sampling and training can be laid out so on so many devices."""
    one = Lengths.fixed(1, "any")
    works = Generate(1, 1, one), Forward(1, one)
    return not any(map(refusal, (shape, shape), works, sizes, plans))


def _words(degrees: Mapping[str, int]) -> str:
    """Degrees as a pin has them."""
    return " ".join(f"{axis} {degree}" for axis, degree in degrees.items() if degree)


def _degree(row: Row, column: str, recipe: Row | None, other: str) -> int:
    """A degree of parallelism: the row's, else the recipe's, else 0."""
    return int(row.number(column) or (recipe.number(other) if recipe else None) or 0)


def _given_sampling(
    degrees: Mapping[str, int], iteration: Iteration, shape: ModelShape
) -> NodePlan:
    """Without a degree, the least that leaves half of the memory to the cache."""
    devices, memory = len(iteration.sampler), iteration.cluster.groups[0].device.memory
    tp, pp = (max(1, degrees[axis]) for axis in ("tp", "pp"))
    while not degrees["tp"] and 2 * shape.parameters() / (tp * pp) > memory / 2:
        if devices % (2 * tp * pp):
            break
        tp *= 2
    return NodePlan(engine="vllm", parallel=Parallel(tp=tp, pp=pp, dp=max(1, devices // (tp * pp))))


def _given_training(
    degrees: Mapping[str, int], devices: int, shape: ModelShape, *, recompute: bool
) -> NodePlan:
    """Experts are spread over data and context ranks; over fewer than given where those are."""
    tp, pp, cp, ep = (max(1, degrees[axis]) for axis in AXES)
    dp = max(1, devices // (tp * pp * cp))
    spread = math.gcd(ep, dp * cp) if shape.experts else 1
    shard = "optimizer" if dp * cp > 1 else "none"
    parallel = Parallel(tp=tp, pp=pp, cp=cp, dp=dp, ep=spread, shard=shard)
    return NodePlan(engine="megatron", parallel=parallel, recompute=recompute)


def _samples(row: Row, recipe: Row | None, tokens: float, assumed: list[str]) -> tuple[int, int]:
    """Responses of an iteration, and of a prompt."""
    prompts = row.number("prompts") or _number(recipe, "prompts")
    group = row.number("group") or _number(recipe, "group")
    if prompts and group:
        return int(prompts * group), int(group)
    if given := GENERATED.search(row.text("notes")):
        return int(given[1]), int(group or 16)
    rate, seconds = row.number("tok_s_gpu"), row.number("step_s")
    if rate and seconds:
        assumed.append("batch from the published tokens")
        made = rate * seconds * row.whole("n_gpus") / tokens
        return 2 ** round(math.log2(max(1.0, made))), int(group or 16)
    assumed.append("batch of 512 responses")
    return 512, int(group or 16)


def _minibatch(row: Row, recipe: Row | None, samples: int, assumed: list[str]) -> int:
    """Responses of an optimizer step."""
    if given := TRAINED.search(row.text("notes")):
        return min(samples, int(given[1]))
    if size := _number(recipe, "train_gbs"):
        return min(samples, int(size))
    assumed.append("one optimizer step")
    return samples


def _formats(row: Row) -> tuple[str, str]:
    """Number formats of training and of sampling."""
    notes = row.text("notes")
    train = "float8" if "T-FP8" in notes else "bfloat16"
    sample = "float8" if "G-FP8" in notes else "bfloat16"
    return train, sample
