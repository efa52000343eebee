"""Make a vLLM engine of a model, or say why that cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlinf_graph.engines.torch.network import is_small
from rlinf_graph.engines.torch.quiet import quiet
from rlinf_graph.engines.vllm.api import (
    EngineArgs,
    LLMEngine,
    ModelRegistry,
    RequestOutputKind,
    SamplingParams,
)
from rlinf_graph.engines.vllm.capabilities import CAPABILITIES
from rlinf_graph.engines.vllm.shared_memory import forget_names, name_for_replica
from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.capabilities import Layout, layout_refusal
from rlinf_graph.nodes.registry import Member

DTYPES = ("float32", "bfloat16")
GPU_SHARE = 0.9
"""Of the GPU memory that is free when an engine is made: what it takes for weights and cache."""
CPU_CACHE = 1 << 30
"""Bytes of key-value cache on a CPU, unless VLLM_CPU_KVCACHE_SPACE says how many GiB."""
CPU_BLOCK = 32
"""Tokens of a block of the cache on a CPU, the fewest that its kernels allow: prefixes are shared
in whole blocks."""
REFUSALS = (ValueError, RuntimeError, NotImplementedError, KeyError, OSError, AssertionError)
"""What vLLM raises for models, devices and layouts that it cannot do."""


def skeleton(model: ModelDef) -> Any:
    """The model of transformers without weights, on `meta`.

    Raises:
        CompileError: RG0503, for a folder that cannot be read, another head than `lm`, and models
            that either library does not know.
    """
    if model.head != "lm" or is_small(model.path):
        what = "a small network" if is_small(model.path) else f"head `{model.head}`"
        message = f"`{model.name}` has {what}; vLLM samples from language models"
        raise fail("RG0503", message, model.span, help=('rl.Model("…", rollout="torch")',))
    try:
        with quiet(), torch.device("meta"):
            made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.path))
    except REFUSALS as error:
        raise _refused(model, "cannot be read", error) from None
    kind = type(made).__name__
    if kind not in ModelRegistry.get_supported_archs():
        message = f"vLLM does not know the architecture {kind} of `{model.name}`"
        raise fail("RG0503", message, model.span, help=('rl.Model("…", rollout="torch")',))
    return made


def make(
    model: ModelDef, kind: str, device: torch.device, dtype: str, member: Member | None
) -> Any:
    """An `LLMEngine` that has sampled once.

    Args:
        model: with random weights it gets any, to be overwritten.
        kind: architecture.
        device: of this process.
        dtype: `float32` or `bfloat16`.
        member: which process of the replica this is, None for the only one.

    Raises:
        CompileError: RG0503, for what vLLM refuses.
    """
    if dtype not in DTYPES:
        message = (
            f"`{model.name}` is to be sampled from in {dtype}; vLLM does {' and '.join(DTYPES)}"
        )
        raise fail("RG0503", message, model.span, help=(f'dtype="{DTYPES[0]}"',))
    arguments = {
        "model": model.path,
        "hf_overrides": {"architectures": [kind]},
        "load_format": "dummy" if model.weights == "random" else "auto",
        "skip_tokenizer_init": True,
        "dtype": dtype,
        "max_model_len": -1,  # the model's, or what the cache has room for
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from
        "generation_config": "vllm",  # no sampling options from the model's folder
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        **_layout(model, "gpu" if device.type == "cuda" else "cpu", member),
        **_memory(device),
    }
    if device.type == "cpu" and member is not None:
        name_for_replica()
    try:
        with quiet(), _local_rank(device.index or 0):
            engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
            _warm_up(engine)
        forget_names()
    except REFUSALS as error:
        raise _refused(model, "cannot be served by vLLM", error) from error
    return engine


@contextmanager
def _local_rank(index: int) -> Iterator[None]:
    """vLLM takes the device with this number, of those that the process sees."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(index)
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _layout(model: ModelDef, kind: str, member: Member | None) -> dict[str, Any]:
    """Each process of a replica is one rank, with a scheduler of its own that decides the same."""
    if member is None or member.settings.parallel.devices == 1:
        return {"distributed_executor_backend": "uni"}
    parallel = member.settings.parallel
    if refusal := layout_refusal(CAPABILITIES.kinds[kind], Layout(member.settings)):
        raise fail("RG0503", f"vLLM cannot spread `{model.name}` like that: {refusal}", model.span)
    return {
        "tensor_parallel_size": parallel.tp,
        "pipeline_parallel_size": parallel.pp,
        "distributed_executor_backend": "external_launcher",
    }


def _memory(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        given = (
            {} if "VLLM_CPU_KVCACHE_SPACE" in os.environ else {"kv_cache_memory_bytes": CPU_CACHE}
        )
        return {"enforce_eager": True, "block_size": CPU_BLOCK, **given}
    free, total = torch.cuda.mem_get_info(device)
    return {"enable_sleep_mode": True, "gpu_memory_utilization": GPU_SHARE * free / total}


def _warm_up(engine: Any) -> None:
    """Sample two tokens: what a device cannot do shows here, and what is compiled is compiled."""
    ends = RequestOutputKind.FINAL_ONLY
    params = SamplingParams(max_tokens=2, detokenize=False, ignore_eos=True, output_kind=ends)
    engine.add_request("warm-up", {"prompt_token_ids": [0]}, params)
    while engine.has_unfinished_requests():
        engine.step()
    engine.reset_prefix_cache()


def _refused(model: ModelDef, what: str, error: Exception) -> CompileError:
    said = next(iter(str(error).strip().splitlines()), "")
    where = "folder" if Path(model.path).is_dir() else "name"
    return fail(
        "RG0503",
        f"`{model.name}` {what}: {model.path}",
        model.span,
        notes=(f"{type(error).__name__}: {said}",),
        help=(f'check the model\'s {where}, or let the torch engine sample: rollout="torch"',),
    )
