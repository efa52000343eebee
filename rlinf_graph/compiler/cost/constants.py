"""What hardware and engines reach of their peaks, and what a call costs the host.

Few and rough on purpose: they put plans in order before anything has been measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlinf_graph.compiler.cost.decode_constants import PLAIN_ROOFLINE, DecodeConstants
from rlinf_graph.compiler.cost.iteration_constants import ALONE, IterationConstants
from rlinf_graph.compiler.cost.pass_constants import CPU, PassConstants
from rlinf_graph.compiler.cost.uncertainty import Widths

GRACE = ("GB200", "GB300", "GH200")
"""Devices whose machines have Grace processors. Published throughput that the host decides is a
third less on them than on x86 machines with the same devices."""

COLLECTIVE = 0.8
"""Share of a link's bandwidth that large collectives reach: NCCL's published bus bandwidths on
NVLink 4 (about 360 of 450 GB/s) and InfiniBand (about 46 of 50)."""


@dataclass(frozen=True)
class EngineTraits:
    """How an engine drives a device.

    Attributes:
        layer_s: host seconds to issue one layer's forward pass.
        step_s: host seconds of a decode step besides its layers, for which the device waits:
            sampling, stop rules, scheduling.
        paged: whether it manages its key-value cache itself: sequences that do not fit wait and
            take the places of those that end, and the prompts of a group share their cache.
            Without, a batch is decoded to its end, and halves when half of it has ended.
        graphs: whether steps that only decode are replayed as one graph; their layers then cost
            the host nothing, and those of other steps what `DecodeConstants.launch` says.
        chunked: whether a prompt may be read over several steps.
        tokens: that a step takes at most, of prompts and of sequences that decode.
        reserves: whether a sequence gets the cache of its longest possible form when it starts.
        rest: share of what weights leave of the memory that the cache takes; 0 for engines that
            keep weights and cache together under a share of all memory.
        workspace: bytes that the engine takes besides weights, cache and logits.
        slots: sequences decoded together at most.
        packs: whether training batches are packed; without, they are padded to their longest.
        cache_touches: how often a step moves the cache through memory.
        logit_bytes: moved for one logit of a step: cast, softmax, noise, argmax.
    """

    layer_s: float
    step_s: float
    paged: bool
    graphs: bool
    chunked: bool
    tokens: int
    reserves: bool
    rest: float
    workspace: float
    slots: int
    packs: bool
    cache_touches: int
    logit_bytes: int


PACKED_TOKENS = 8192
"""Tokens of one call where an engine packs sequences itself: prefill, and passes without a
micro-batch in the plan. vLLM's default for chunked prefill."""

# torch: eager decoding of a 7B model with transformers takes about 25 ms a token on a fast GPU,
# 0.8 ms for each of 28 layers; on one core of an AMD EPYC (Zen 5), the difference between 6 and 2
# layers of a 128-wide Qwen2 at one token is 0.26 ms a layer (torch 2.13). Its cache grows by
# concatenation: read, written, read. Keyed noise takes some 50 passes over 64-bit words a logit.
# vllm: a step costs its scheduler milliseconds, for which the device waits.
# trtllm: TensorRT-LLM's PyTorch backend schedules the next step while the device computes, and
# reserves a sequence's cache to its end (the policy GUARANTEED_NO_EVICT).
# megatron-dynamic: Megatron-core's engine with a paged cache; a layer costs its host what it costs
# torch's. megatron-graphs: the same replaying graphs.
_TORCH = EngineTraits(
    layer_s=800e-6,
    step_s=2e-3,
    paged=False,
    graphs=False,
    chunked=False,
    tokens=PACKED_TOKENS,
    reserves=False,
    rest=0.0,
    workspace=0.0,
    slots=2**20,
    packs=False,
    cache_touches=3,
    logit_bytes=400,
)
_VLLM = EngineTraits(
    layer_s=15e-6,
    step_s=2e-3,
    paged=True,
    graphs=True,
    chunked=True,
    tokens=PACKED_TOKENS,
    reserves=False,
    rest=0.0,
    workspace=0.0,
    slots=1024,
    packs=True,
    cache_touches=1,
    logit_bytes=16,
)
_TRTLLM = replace(
    _VLLM,
    step_s=0.0,
    chunked=False,
    reserves=True,
    rest=0.95,
    workspace=2.5e9,
    slots=4096,
    logit_bytes=8,
)
_MEGATRON = replace(_TORCH, paged=True, packs=True, cache_touches=1, logit_bytes=16)
ENGINES: dict[str, dict[str, EngineTraits]] = {
    "gpu": {
        "torch": _TORCH,
        "vllm": _VLLM,
        "trtllm": _TRTLLM,
        "megatron": replace(_TORCH, layer_s=400e-6, packs=True),
        "megatron-dynamic": _MEGATRON,
        "megatron-graphs": replace(_MEGATRON, graphs=True),
    },
    "cpu": {
        "torch": replace(_TORCH, layer_s=260e-6, step_s=0.5e-3),
        "vllm": replace(_VLLM, layer_s=260e-6, graphs=False, slots=256),
    },
}


@dataclass(frozen=True)
class Constants:
    """All constants of one kind of device.

    Attributes:
        passes: of forward and backward passes.
        decoding: of sampling.
        iteration: of what stands between nodes.
        overlap: whether the host prepares the next layers while the device computes.
        process: bytes a device loses to the process that uses it: runtime, kernels,
            communication buffers, fragmentation.
        engines: how each engine drives the device.
        widths: how far off the closed forms may be.
    """

    passes: PassConstants
    decoding: DecodeConstants
    iteration: IterationConstants
    overlap: bool
    process: float
    engines: Mapping[str, EngineTraits]
    widths: Widths


CONSTANTS = {
    # process: a CUDA context and NCCL's buffers.
    "gpu": Constants(
        passes=PassConstants(),
        decoding=DecodeConstants(),
        iteration=IterationConstants(),
        overlap=True,
        process=1.5e9,
        engines=ENGINES["gpu"],
        widths=Widths(sampling=0.4, passes=0.3, sync=0.7, iteration=0.3, compared=0.15),
    ),
    # Measured with the torch engine (torch 2.13) on one core of an AMD EPYC (Zen 5): forward and
    # backward over 2,560 tokens reach 67 GFLOP/s (2 layers of Qwen2, 128 wide), 83 (4 of 256) and
    # 89 (4 of 384) of the catalogue's 100; with half of its 20 GB/s, sampling 64 to 512 sequences
    # of 8 and 32 tokens comes out 23 % too fast to 17 % too slow.
    "cpu": Constants(
        passes=CPU,
        decoding=replace(PLAIN_ROOFLINE, bandwidth=0.5, matmul=0.75),
        iteration=ALONE,
        overlap=False,
        process=0.4e9,
        engines=ENGINES["cpu"],
        widths=Widths(sampling=0.25, passes=0.2, sync=0.7, iteration=0.3, compared=0.15),
    ),
}

HOST_SECONDS = 100e-6
"""Of one core for a sample, where a host node declares nothing."""

STEP_SECONDS = 250e-6
"""Of a node in each step of a loop, whatever its work: to take what comes, and to hand it on.

Measured in one process on one core (an environment of 8 copies, 128 steps: 60 ms for 256 of them);
between workers it is more, which a profile tells as hand-over.
"""

HANDOVER_SECONDS = 1e-6
"""For a sample on its way between workers: the unit in which a profile's correction counts."""
