"""Published training throughput: tokens a second of a device, with whole iterations of passes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.execution import Execution
from rlinf_graph.compiler.cost.layout import Layout, hardware_of
from rlinf_graph.compiler.cost.pass_constants import PassConstants
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.compiler.cost.training import train_parts
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Lengths, Train
from validation.fitting import Case
from validation.kind import Kind
from validation.rows import DATA, LeftOut, Row, canonical, shape_named

PRECISIONS = {
    "": "",
    "BF16": "",
    "MXFP8": "mxfp8",
    "FP8-MX": "mxfp8",
    "NVFP4": "nvfp4",
}


@dataclass(frozen=True)
class Run:
    layout: Layout
    work: Train
    tokens: float  # of a step, of one device
    convention: float = 1.0


POWER = {
    "A100": 400,
    "H100": 700,
    "H200": 700,
    "H100-96GB-HBM2e": 500,
    "B200": 1000,
    "GB200": 1200,
    "B300": 1100,
    "GB300": 1400,
}


def as_published(kind, parts):
    return parts


def predict(case: Case, passes: PassConstants) -> float:
    run = case.payload
    layout = replace(run.layout, constants=replace(run.layout.constants, passes=passes))
    seconds = sum(train_parts(layout, run.work, as_published).values())
    return run.tokens / seconds * run.convention


@lru_cache
def _known():
    t = tomllib.loads((DATA / "model_aliases.toml").read_text())
    return (
        {s.lower(): n for n, o in t["models"].items() for s in (n, *o)},
        t["unknown"],
        {s.lower(): n for n, o in t["devices"].items() for s in (n, *o)},
    )


@lru_cache
def _recipes():
    return tomllib.loads((DATA / "training_recipes.toml").read_text())["recipe"]


def container(row):
    m = re.search(r"(\d\d\.\d\d(?:\.\d\d)?) NeMo Container", row.text("notes"))
    return m[1] if m else ""


def cases(rows: Sequence[Row]):
    made, out = [], []
    for row in rows:
        if row.doubtful:
            out.append(LeftOut(row, "CHECK"))
            continue
        try:
            made.append(case_of(row))
        except ValueError as e:
            out.append(LeftOut(row, str(e)))
    return made, out


def case_of(row):
    al, unknown, devices = _known()
    spelled = row.text("model")
    if spelled in unknown or spelled.lower() not in al:
        raise ValueError("unknown model")
    name = al[spelled.lower()]
    from rlinf_graph.compiler.cost.lookup import known_models

    shape = known_models()[name]
    device = devices[row.text("gpu").lower()]
    if row.text("kind") != "pretrain":
        raise ValueError("sft")
    if not row.number("tok_s_gpu"):
        raise ValueError("no tok_s")
    assumed = []
    n = row.whole("n_gpus")
    seq = int(row.number("seq_len") or 8192)
    tp, pp, cp, vp, ep = (row.whole(k) for k in ("tp", "pp", "cp", "vp", "ep"))
    dp = n // (tp * pp * cp)
    mbs = row.whole("mbs")
    gbs = int(row.number("gbs") or mbs * dp)
    titan = row.text("file").startswith("benchmarks/")
    shard = "fsdp" if row.whole("fsdp", 0) > 1 or titan else "optimizer"
    if ep > 1:
        ep = max(1, ep // tp)
    prec = row.text("precision")
    product = PRECISIONS.get(prec, "float8")
    notes = row.text("notes")
    rec = True if "full AC" in notes else "selective" if titan or "SAC" in notes else False
    graphs = 0.0
    eb = fe = False
    cop = "once"
    c = container(row)
    for r in _recipes():
        if r["source"] != row.text("source"):
            continue
        if (
            name not in r.get("models", [name])
            or device not in r.get("devices", [device])
            or product not in r.get("formats", [product])
        ):
            continue
        if c < r.get("since", "") or (r.get("until") and c > r["until"]):
            continue
        if pp not in r.get("stages", [pp]) or (r.get("dropped") and "tokendrop" not in spelled):
            continue
        eb = r.get("experts_beside", eb)
        fe = r.get("fused_experts", fe)
        cop = r.get("dispatch", cop)
        graphs = r.get("graphs", graphs)
        rec = r.get("recompute", rec)
    if name == "deepseek-ai/DeepSeek-V3" and "w/o" not in spelled:
        shape = replace(shape, layers=shape.layers + 1, vocab=2 * shape.vocab)  # MTP
    if "Super" in name:
        shape = replace(shape, layers=shape.layers + 1, vocab=2 * shape.vocab)
    fused = not (titan and "compile" not in notes)
    ex = Execution(
        product=product,
        graphs=graphs,
        fused=fused,
        tensor_beside=not titan or "async TP" in notes,
        experts_beside=eb,
        fused_experts=fe,
        dispatch=cop,
        kernels=0.47 if titan else 1.0,
    )
    parallel = Parallel(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, vp=vp, shard=shard)
    cluster = load_cluster(f"{n}x{device}")
    hw = hardware_of(cluster, range(n), parallel)
    plan = NodePlan(parallel=parallel, engine="megatron", micro_batch=mbs, recompute=rec)
    layout = Layout(shape, "lm", "bfloat16", hw, plan, CONSTANTS["gpu"], ex)
    work = Train(gbs, Lengths.fixed(seq, "published"), 1, 1)
    return Case(
        row,
        name,
        f"{device} x{n} {product or 'bf16'} tp{tp} pp{pp} cp{cp} vp{vp} ep{ep} mbs{mbs} gbs{gbs} s{seq} g{graphs}{'x' if eb else ''}{'f' if fe else ''}{cop[0]} r{rec}",
        row.number("tok_s_gpu"),
        Run(layout, work, gbs * seq / n),
    )


KIND = Kind("training", "tokens/s/GPU", CONSTANTS["gpu"].passes, cases, predict)
