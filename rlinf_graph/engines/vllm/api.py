"""All that is used of vLLM. Some of it is not part of vLLM's interface: the release is pinned.

vLLM has an environment of its own, so a type checker does not find it: names are looked up.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its core runs here, one step at a time
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _of(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


CPU_COMMUNICATOR: Any = import_module("vllm.distributed.device_communicators.cpu_communicator")
EngineArgs = _of("vllm", "EngineArgs")
LLMEngine = _of("vllm.v1.engine.llm_engine", "LLMEngine")
ModelRegistry = _of("vllm", "ModelRegistry")
RequestOutputKind = _of("vllm.sampling_params", "RequestOutputKind")
SamplingParams = _of("vllm", "SamplingParams")
finalize_layerwise_reload = _of(
    "vllm.model_executor.model_loader.reload", "finalize_layerwise_reload"
)
groups_by_name = _of("vllm.distributed.parallel_state", "_groups")
get_world_group = _of("vllm.distributed.parallel_state", "get_world_group")
set_current_vllm_config = _of("vllm.config", "set_current_vllm_config")
