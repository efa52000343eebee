"""Measured kernels of aiconfigurator-core, which the extra `silicon` installs.

Its tables hold matrix products, attention, experts and collectives as they were measured under
vLLM, SGLang and TensorRT-LLM; a model is put together from them. Nothing of it is imported before
a layout is looked up. It would fetch configurations of models that it does not know: such models
are not asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module, util
from typing import Any, Protocol, cast

from rlinf_graph.compiler.cost.kernels import Missing, Surface
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.lookup import known_models
from rlinf_graph.compiler.cost.served import MXFP4, Formats, made_in
from rlinf_graph.compiler.cost.shapes import ModelShape

PACKAGE = "aiconfigurator_core"
INSTALL = "pip install 'rlinf-graph[silicon]'"

SYSTEMS = {
    "H100-SXM-80GB": "h100_sxm",
    "H200": "h200_sxm",
    "A100-80GB": "a100_sxm",
    "L40S": "l40s",
    "B200": "b200_sxm",
    "B300": "b300_sxm",
    "GB200": "gb200",
    "GB300": "gb300",
}
"""Its systems by the names of the catalogue."""

BACKENDS = {"vllm": "vllm", "trtllm": "trtllm"}
"""Its backends by our engines."""

PRODUCTS = {"bfloat16": "bfloat16", "float8": "fp8", "float4": "nvfp4"}
CACHES = {2.0: "bfloat16", 1.0: "fp8"}


class Engine(Protocol):
    """What is used of its compiled engines; milliseconds."""

    def predict_decode_latency(self, bs: int, isl: int, osl: int = 2) -> float:
        """Of the step that yields a second token."""
        ...

    def predict_prefill_latency(self, bs: int, isl: int) -> float:
        """Of reading `bs` prompts."""
        ...


@dataclass(frozen=True)
class EngineTable:
    """An engine as a table of seconds."""

    engine: Engine

    def decode(self, batch: int, context: int) -> float:
        """Of a step."""
        return self.engine.predict_decode_latency(batch, context, 2) / 1e3

    def prefill(self, prompts: int, tokens: int) -> float:
        """Of a call."""
        return self.engine.predict_prefill_latency(prompts, tokens) / 1e3


@dataclass
class Silicon:
    """The tables of the installed package."""

    _known: dict[tuple[object, ...], Surface | Missing] = field(
        default_factory=dict[tuple[object, ...], Surface | Missing]
    )

    def table(self, layout: Layout, formats: Formats) -> Surface | Missing:
        """What it has for a layout; remembered."""
        parallel, device = layout.parallel, layout.hardware.device
        degrees = (parallel.tp, parallel.pp, parallel.ep)
        key = (layout.shape, device, layout.settings.engine, degrees, formats)
        if key not in self._known:
            self._known[key] = _look_up(layout, formats)
        return self._known[key]


def _look_up(layout: Layout, formats: Formats) -> Surface | Missing:
    device, engine = layout.hardware.device, layout.settings.engine
    if util.find_spec(PACKAGE) is None:
        return Missing(f"{PACKAGE} is not installed: {INSTALL}")
    if device not in SYSTEMS:
        return Missing(f"no tables of {device or 'devices of several types'}")
    if engine not in BACKENDS:
        return Missing(f"no tables of the engine {engine}")
    if layout.parallel.pp > 1:
        return Missing("no tables of pipeline stages")
    modes = _modes(layout, formats)
    if isinstance(modes, Missing):
        return modes
    name = _name_of(layout.shape)
    if name is None:
        return Missing("no tables of this model")
    try:
        made = _compiled(name, SYSTEMS[device], BACKENDS[engine], _degrees(layout) | modes)
        surface = Surface(EngineTable(made))
        surface.prepare()
    except Exception as error:  # its classes have no other base in common
        return Missing(f"no tables for this layout: {str(error).splitlines()[0]}")
    return surface


def _modes(layout: Layout, formats: Formats) -> dict[str, str] | Missing:
    """Its names of number formats; prompts' attention runs in bfloat16."""
    cached = CACHES.get(formats.cache)
    attention = PRODUCTS.get(formats.attention_product)
    experts = PRODUCTS.get(formats.feed_forward_product)
    if formats.feed_forward == MXFP4:
        native = made_in(layout.hardware.flops, "float4")[0] == "float4"
        experts = "w4a8_mxfp4_mxfp8" if native else "w4a16_mxfp4"
    if attention is None or experts is None or cached is None:
        return Missing(f"no tables of {formats.attention_product}")
    return {
        "gemm_quant_mode": attention,
        "moe_quant_mode": experts,
        "kvcache_quant_mode": cached,
        "fmha_quant_mode": "bfloat16",
    }


def _degrees(layout: Layout) -> dict[str, int]:
    """Its names of the axes: experts are spread over data ranks, or cut like other matrices."""
    parallel = layout.parallel
    made = {"tp_size": parallel.tp}
    if layout.shape.experts and parallel.ep > 1:
        made |= {"attention_dp_size": parallel.ep, "moe_ep_size": parallel.ep * parallel.tp}
    elif layout.shape.experts:
        made |= {"moe_tp_size": parallel.tp}
    return made


def _name_of(shape: ModelShape) -> str | None:
    """A model of this shape that it knows."""
    common: Any = import_module(f"{PACKAGE}.sdk.common")
    known = frozenset(cast(Iterable[str], common.DefaultHFModels))
    return next((n for n, other in known_models().items() if other == shape and n in known), None)


def _compiled(name: str, system: str, backend: str, options: dict[str, Any]) -> Engine:
    """Its notes on tables that it does not use are of no interest here."""
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    engine: Any = import_module(f"{PACKAGE}.sdk.engine")
    return engine.EngineHandle.compile(name, system, backend, **options)
