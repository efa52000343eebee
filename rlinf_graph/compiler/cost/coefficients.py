"""What the seconds of a step are made of, for a model's part on one device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from rlinf_graph.compiler.cost.constants import EngineTraits
from rlinf_graph.compiler.cost.decode_constants import DecodeConstants
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.compiler.cost.served import Formats, made_in
from rlinf_graph.compiler.cost.shapes import ModelShape


class Part(NamedTuple):
    """A model's part on one device, and everything that its steps depend on but their load."""

    shape: ModelShape
    head: str
    formats: Formats
    element: float
    stage: float
    tp: int
    ep: int
    flops: tuple[tuple[str, float], ...]
    memory_bandwidth: float
    host: float
    traits: EngineTraits
    constants: DecodeConstants
    prompt: float


@dataclass(frozen=True)
class Coefficients:
    """Seconds of operations and of moving memory, and bytes, of one device.

    Attributes:
        matrices, experts, head: of operations, for a row.
        spread: experts by how many a token visits, on one rank.
        decode: for an operation of attention that decodes.
        prompt: of attention and images, for a token of a prompt.
        missed: probability that a token does not visit an expert.
        read_matrices, read_experts, read_head: of reading weights, in a step.
        cached: of reading an element of the cache; `split` devices share it.
        logits: for the logits of one position.
        moved: of what lies between products, for a row.
        fixed: of a layer's kernels besides, in a step.
        launches: of the host, to issue all layers one by one.
        replayed: whether steps that only decode need none of that.
        sequence: of the host, for a sequence in a step.
        layers: of two parts each, which is what a stage's collectives are counted by.
        weights: in the matrices of the layers.
        held: bytes of those.
    """

    matrices: float
    experts: float
    head: float
    spread: float
    decode: float
    prompt: float
    missed: float
    read_matrices: float
    read_experts: float
    read_head: float
    cached: float
    logits: float
    moved: float
    fixed: float
    launches: float
    replayed: bool
    sequence: float
    layers: float
    weights: float
    held: float


def coefficients_of(layout: Layout, formats: Formats, prompt: float) -> Coefficients:
    """Of a layout's device, for prompts of so many tokens."""
    hardware, parallel = layout.hardware, layout.parallel
    return _coefficients(
        Part(
            shape=layout.shape,
            head=layout.head,
            formats=formats,
            element=layout.element,
            stage=layout.stage,
            tp=parallel.tp,
            ep=parallel.ep,
            flops=hardware.flops,
            memory_bandwidth=hardware.memory_bandwidth,
            host=layout.host,
            traits=layout.traits,
            constants=layout.constants.decoding,
            prompt=prompt,
        )
    )


@lru_cache(maxsize=4096)
def _coefficients(part: Part) -> Coefficients:
    shape, formats, known = part.shape, part.formats, part.constants
    share = part.stage / part.tp
    mixers = shape.mixer.layers * shape.mixer.matrices(shape.hidden) if shape.mixer else 0
    attention = (shape.attention_layers * shape.attention_matrices + mixers) * share
    dense = shape.dense_matrices * share - attention
    experts = shape.expert_matrices * share / part.ep
    head = shape.head_matrix(part.head) * share
    visited = shape.expert_layers * shape.experts_per_token * shape.expert * share
    busiest = 1 + known.imbalance if part.ep > 1 else 1.0
    body = formats.attention * attention + formats.feed_forward * dense
    rates = _rates(part)
    second = 1 / (part.memory_bandwidth * known.bandwidth)
    layers = _layers(part)
    graphs = part.traits.graphs
    return Coefficients(
        matrices=2 * attention / rates.attention + 2 * dense / rates.feed_forward,
        experts=2 * busiest * visited / (rates.feed_forward * known.grouped),
        head=2 * head / rates.head,
        spread=shape.experts / (part.ep * max(1, shape.experts_per_token)),
        decode=1 / (rates.cache * known.attention),
        prompt=_prompt_flops(part) * share / rates.prompt,
        missed=1 - shape.experts_per_token / max(1, shape.experts),
        read_matrices=body * second,
        read_experts=busiest * formats.feed_forward * experts * second,
        read_head=formats.ends * head * second,
        cached=part.stage * formats.cache * part.traits.cache_touches / split_of(part) * second,
        logits=part.traits.logit_bytes * shape.vocab / part.tp * second,
        moved=_between(part) * second,
        fixed=known.floor * (layers + shape.expert_layers * part.stage),
        launches=part.host * layers * (known.launch if graphs else part.traits.layer_s),
        replayed=graphs,
        sequence=part.host * known.sequence if graphs else 0.0,
        layers=layers,
        weights=attention + dense + experts,
        held=body + formats.feed_forward * experts,
    )


def split_of(part: Part | Layout) -> int:
    """Devices that share the cache of a layer; latents are kept by each."""
    tp = part.tp if isinstance(part, Part) else part.parallel.tp
    return 1 if part.shape.kv_rank else min(tp, part.shape.kv_heads)


@dataclass(frozen=True)
class _Rates:
    """Operations a second that products reach, by what they are made of."""

    attention: float
    feed_forward: float
    cache: float
    prompt: float
    head: float


def _rates(part: Part) -> _Rates:
    """Prompts' attention and, where embedding and head are in it, the head run in bfloat16."""
    known, formats = part.constants, part.formats

    def reached(product: str) -> float:
        name, peak = made_in(part.flops, product)
        return peak * known.matmul * (known.float4 if name == "float4" else 1.0)

    narrow = formats.attention_product in ("float8", "float4")
    wide = "bfloat16" if narrow else formats.attention_product
    return _Rates(
        attention=reached(formats.attention_product),
        feed_forward=reached(formats.feed_forward_product),
        cache=reached(formats.cache_product),
        prompt=reached(wide),
        head=reached(wide),
    )


def _prompt_flops(part: Part) -> float:
    """Operations of a prompt's token besides its matrices."""
    shape, tokens = part.shape, part.prompt
    if not tokens:
        return 0.0
    return (
        shape.causal_flops(tokens, tokens**2) + shape.image_flops(1)
    ) / tokens + shape.scan_flops


def _layers(part: Part) -> float:
    """Layers of a stage; hybrids have layers of one part, of which two count for one."""
    shape = part.shape
    mixers = shape.mixer.layers if shape.mixer else 0
    parts = shape.attention_layers + mixers + shape.feed_forward_layers
    return shape.launches * parts / 2 * part.stage


def _between(part: Part) -> float:
    """Bytes that a row's hidden state costs between products."""
    visits = part.shape.expert_layers * part.shape.experts_per_token / 2
    states = (part.shape.layers + visits) * part.shape.hidden * part.stage
    return part.constants.moves * states * part.element
