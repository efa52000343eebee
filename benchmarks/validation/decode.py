"""Published inference throughput: TensorRT-LLM's offline tables and Megatron-core's step times.

TensorRT-LLM's rows are runs of `trtllm-bench throughput`: so many requests of one prompt and one
response length, all queued at once. What its documents and sources say of them is used as it is:
the number of requests by length, attention spread over data ranks for mixtures, the cache's
format, and how the tool chooses the batch and the tokens of a step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.decode_constants import DecodeConstants
from rlinf_graph.compiler.cost.iteration_constants import ALONE
from rlinf_graph.compiler.cost.layout import Hardware, Layout, hardware_of
from rlinf_graph.compiler.cost.rollout import PREFILL, Rollout
from rlinf_graph.compiler.cost.served import FORMATS, Formats
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Generate, Lengths
from validation.devices import cluster_of, device_named
from validation.fitting import Case
from validation.kind import Kind
from validation.rows import LeftOut, Row, canonical, shape_named, without_shape

REQUESTS = {
    (128, 128): 30_000,
    (128, 2048): 3_000,
    (128, 4096): 1_500,
    (500, 2000): 3_000,
    (1000, 1000): 3_000,
    (1000, 2000): 1_500,
    (2048, 128): 3_000,
    (2048, 2048): 1_500,
    (5000, 500): 1_500,
    (20_000, 2000): 1_000,
    (1024, 1024): 3_000,
    (8192, 1024): 1_500,
    (1024, 8192): 1_500,
    (32_768, 1024): 1_000,
    (1024, 32_768): 1_000,
}
"""Requests of a run by prompt and response length (perf-overview.md, "Preparing a Dataset")."""

MOST, MOST_TOKENS, LEAST_TOKENS = 4096, 32_768, 2048
"""`trtllm-bench`: sequences of a batch and tokens of a step at most, and tokens of a step at least
(tensorrt_llm/bench/build/tuning.py)."""

DEFAULT, DEFAULT_TOKENS = 2048, 8192
"""The same where the tool has no rule for a number format, as for MXFP4."""

PRECISIONS = {
    "BF16": "bfloat16",
    "FP16": "bfloat16",
    "FP8": "float8",
    "FP4": "nvfp4",
    "NVFP4": "nvfp4",
}
"""Number formats by what tables print; float16 is as fast as bfloat16."""

LAYOUT = re.compile(r"(DEP|TP|PP|EP|DP)\s*[=:]?\s*(\d+)")
GRAPHS = "hybrid_nanov3"
"""Of Megatron's test cases those that replay graphs (server/model_args: --cuda-graph-impl)."""


@dataclass(frozen=True)
class Served:
    """What a row's throughput is predicted from.

    Attributes:
        layout: of the model, with the engine and the largest batch.
        work: the requests.
        formats: of weights and cache.
        tokens: that a step takes at most; 0 where the engine's default holds.
        steady: whether decode steps alone were measured.
    """

    layout: Layout
    work: Generate
    formats: Formats
    tokens: int
    steady: bool


def predict(case: Case, constants: DecodeConstants) -> float:
    """Response tokens a second of all devices of a case."""
    served: Served = case.payload
    known = replace(served.layout.constants, decoding=constants, iteration=ALONE)
    layout = replace(served.layout, constants=known)
    parts = Rollout(layout, served.work, formats=served.formats, tokens=served.tokens).parts()
    seconds = sum(parts.values()) - (parts[PREFILL] if served.steady else 0.0)
    return served.work.samples * served.work.response.mean / seconds


def cases(rows: Sequence[Row]) -> tuple[list[Case], list[LeftOut]]:
    """Every row whose model, device and layout are known."""
    made: list[Case] = []
    left_out: list[LeftOut] = []
    for row in rows:
        try:
            made.append(_case(row))
        except ValueError as error:
            left_out.append(LeftOut(row, str(error)))
    return made, left_out


def _case(row: Row) -> Case:
    shape, measured = shape_named(row.text("model")), row.number("out_tok_s")
    prompt, response = row.number("isl"), row.number("osl")
    if shape is None:
        raise ValueError(without_shape(row.text("model")))
    if not measured:
        measured = (row.number("out_tok_s_per_gpu") or 0.0) * row.whole("n_gpus")
    if not (measured > 0 and prompt and response):
        raise ValueError("no throughput, or no lengths")
    parallel, assumed = _parallel(row, shape)
    served, more = _served(row, shape, parallel, (prompt, response))
    what = f"{row.text('gpu')} {row.text('precision')} {row.text('layout') or parallel}"
    return Case(
        row=row,
        model=canonical(row.text("model")),
        what=f"{what} {prompt:g}/{response:g}" + (f" × {served.work.samples}"),
        measured=measured,
        payload=served,
        assumed=(*assumed, *more),
        weight=0.0 if row.doubtful else 1.0,
    )


def _served(
    row: Row, shape: ModelShape, parallel: Parallel, lengths: tuple[float, float]
) -> tuple[Served, tuple[str, ...]]:
    formats = _formats(row, shape)
    hardware = _hardware(row.text("gpu"), parallel)
    batch = row.number("batch")
    engine = "trtllm"
    if batch:
        engine = "megatron-graphs" if GRAPHS in row.text("file") else "megatron-dynamic"
    settings = NodePlan(engine=engine, parallel=parallel)
    layout = Layout(shape, "lm", "bfloat16", hardware, settings, CONSTANTS["gpu"])
    prompt, response = lengths
    known = REQUESTS.get((int(prompt), int(response)))
    requests = int(batch or known or 3_000)
    work = Generate(requests, prompt, Lengths.fixed(response, "published"))
    assumed = () if batch or known else ("3,000 requests assumed",)
    if batch:
        return Served(layout, work, formats, 0, steady=True), assumed
    layout, tokens = _tuned(layout, work, formats)
    return Served(layout, work, formats, tokens, steady=False), assumed


def _tuned(layout: Layout, work: Generate, formats: Formats) -> tuple[Layout, int]:
    """The largest batch, and the tokens of a step, as `trtllm-bench` chooses them.

    The batch is what the cache holds, at most 4,096; a step takes the prompts that are due while
    such a batch decodes, and always one prompt beside it.
    """
    mixed = formats.feed_forward_product != formats.attention_product == "bfloat16"
    most = DEFAULT if mixed else MOST
    settings = layout.settings.model_copy(update={"micro_batch": most})
    layout = replace(layout, settings=settings)
    many = replace(work, samples=most * layout.parallel.dp)
    slots = Rollout(layout, many, formats=formats).slots
    due = min(slots * (1 + work.prompt_tokens / work.response.mean), MOST_TOKENS)
    tokens = DEFAULT_TOKENS if mixed else max(due, LEAST_TOKENS)
    return layout, math.ceil(max(tokens, work.prompt_tokens + slots))


def _hardware(device: str, parallel: Parallel) -> Hardware:
    if device_named(device) is None:
        raise ValueError(f"unknown device {device}" if device else "no device type")
    return hardware_of(cluster_of(device, parallel.devices), range(parallel.devices), parallel)


def _parallel(row: Row, shape: ModelShape) -> tuple[Parallel, tuple[str, ...]]:
    """From texts such as TP4, DEP8 (attention by data ranks, experts spread), TP1 EP8."""
    devices = row.whole("n_gpus")
    degrees = {name: int(n) for name, n in LAYOUT.findall(row.text("layout").upper())}
    if "DEP" in degrees:
        return Parallel(dp=degrees["DEP"], ep=degrees["DEP"]), ()
    if not degrees:
        return _assumed(row, shape, devices)
    if "EP" in degrees:
        return Parallel(dp=devices, ep=degrees["EP"]), ()
    if "DP" in degrees:
        return Parallel(dp=degrees["DP"]), ()
    if shape.experts and degrees.get("TP", 1) > 1:
        why = "attention by data ranks, as the document's command for mixtures has it"
        return Parallel(dp=degrees["TP"], ep=degrees["TP"]), (why,)
    return Parallel(tp=degrees.get("TP", 1), pp=degrees.get("PP", 1)), ()


def _assumed(row: Row, shape: ModelShape, devices: int) -> tuple[Parallel, tuple[str, ...]]:
    """Data ranks, over which experts are spread; of a dense model as many as its weights let."""
    tp = 1
    if not shape.experts:
        most = _hardware(row.text("gpu"), Parallel()).memory / 2
        fits = (n for n in (1, 2, 4, 8) if 2 * shape.parameters() / n <= most)
        tp = math.gcd(devices, next(fits, 8))
    dp = devices // tp
    if tp == 1:
        return Parallel(dp=dp, ep=dp if shape.experts else 1), (f"{dp} data ranks assumed",)
    return Parallel(tp=tp, dp=dp), (f"tp {tp} assumed, the least that leaves half of the memory",)


def _formats(row: Row, shape: ModelShape) -> Formats:
    """Of the checkpoints that the documents name, as their quantization files have it.

    Sources: the notes of the rows; TensorRT-LLM's perf-overview.md for the cache of GPT-OSS;
    hf_quant_config.json of NVIDIA's DeepSeek checkpoints, whose attention stays in bfloat16 but
    for the output projection in 4 bits: 1.1 bytes a weight and the speed of 8 bits in between.
    """
    if "MXFP4" in row.text("notes") + row.text("precision").upper():
        native = dict(_hardware(row.text("gpu"), Parallel()).flops).get("float4")
        if native:
            return replace(FORMATS["mxfp4"], cache=1, cache_product="float8")
        return FORMATS["mxfp4"]
    name = PRECISIONS.get(row.text("precision").upper() or "BF16")
    if name is None:
        raise ValueError(f"number format {row.text('precision')} is not known")
    if shape.kv_rank and name == "nvfp4":
        return replace(FORMATS[name], attention=1.1, attention_product="float8")
    return FORMATS[name]


KIND = Kind(
    name="decode",
    unit="tokens/s",
    shipped=CONSTANTS["gpu"].decoding,
    width=CONSTANTS["gpu"].widths.sampling,
    file="published_decode.csv",
    cases=cases,
    predict=predict,
)
