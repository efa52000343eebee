"""The only file that touches Megatron-core, whose private functions change between releases.

On a CPU, Megatron's modules see a torch whose current CUDA device is the CPU: they allocate on
`torch.cuda.current_device()` and on "cuda" without looking at their inputs. Nothing else in the
process sees it. Attention and norms are torch's: they take packed sequences, any device and any
parallelism, and need no further package.
"""
# Megatron-core may be missing, and its modules are changed here in ways that their types forbid.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlinf_graph.engines.megatron.architecture import Architecture
from rlinf_graph.engines.megatron.attention import PackedAttention
from rlinf_graph.ir.plan import Parallel

VERSION = "0.16.1"

if version("megatron-core") != VERSION:
    raise ImportError(
        f"megatron-core {version('megatron-core')} is installed, and the megatron engine is "
        f"written for {VERSION}: pip install megatron-core=={VERSION}"
    )

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Transformer Engine and Apex are optional
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.tensor_parallel.mappings import (
        gather_from_sequence_parallel_region,
        reduce_from_tensor_model_parallel_region,
    )
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

if not hasattr(moe_utils, "te_general_gemm"):  # 0.16.1 reads it without Transformer Engine too
    moe_utils.te_general_gemm = None

ORDER = "tp-cp-ep-pp-dp"
"""Of the axes in the numbers of processes, as in `Member`."""

ON_CUDA = (
    "models.common.embeddings.rotary_pos_embedding",
    "pipeline_parallel.p2p_communication",
    "pipeline_parallel.schedules",
    "tensor_parallel.layers",
    "tensor_parallel.mappings",
    "transformer.moe.experts",
    "transformer.moe.router",
    "utils",
)
"""Modules that allocate on CUDA whatever the device of their inputs."""


class _Host:
    """torch, with the CPU in the place of CUDA's current device."""

    def __init__(self) -> None:
        self.cuda = SimpleNamespace(
            current_device=lambda: torch.device("cpu"), synchronize=lambda: None
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *size: Any, device: Any = None, **options: Any) -> Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **options)


class _NoDraws:
    """In the place of CUDA's random states: nothing is drawn, since there is no dropout."""

    def get_states(self) -> dict[str, Tensor]:
        return {}

    def set_states(self, states: Any) -> None:
        """Nothing."""

    def fork(self, name: str = "") -> contextlib.AbstractContextManager[None]:  # noqa: ARG002  of what it stands for
        return contextlib.nullcontext()


def join(parallel: Parallel, device: torch.device) -> ProcessGroupCollection:
    """Make Megatron's process groups, once in a process; torch.distributed is initialized.

    Raises:
        RuntimeError: if the process has groups of another layout already.
    """
    sizes = {
        "tensor_model_parallel_size": parallel.tp,
        "pipeline_model_parallel_size": parallel.pp,
        "context_parallel_size": parallel.cp,
        "expert_model_parallel_size": parallel.ep,
    }
    if not parallel_state.model_parallel_is_initialized():
        if device.type == "cpu":
            _use_host()
        parallel_state.initialize_model_parallel(
            **sizes, order=ORDER, create_gloo_process_groups=False
        )
        megatron_random.initialize_rng_tracker(force_reset=True)
        megatron_random._CUDA_RNG_STATE_TRACKER = _NoDraws()
    groups = ProcessGroupCollection.use_mpu_process_groups()
    held = (groups.tp.size(), groups.pp.size(), groups.cp.size(), groups.ep.size())
    if held != tuple(sizes.values()):
        raise RuntimeError(
            f"this process has Megatron groups of (tp, pp, cp, ep) {held}, not "
            f"{tuple(sizes.values())}: a process has one layout"
        )
    return groups


@cache
def replica_of(size: int) -> dist.ProcessGroup:
    """The `size` processes that hold a model together, of which this is one; made by all."""
    firsts = range(0, dist.get_world_size(), size)
    groups = [dist.new_group(list(range(first, first + size))) for first in firsts]
    mine = groups[dist.get_rank() // size]
    assert isinstance(mine, dist.ProcessGroup)
    return mine


def leave() -> None:
    """Forget Megatron's process groups and those of replicas, so that others can be made."""
    parallel_state.destroy_model_parallel()
    replica_of.cache_clear()


def release() -> None:
    """Free what Megatron keeps on the device between calls."""
    parallel_state.get_global_memory_buffer().buffer.clear()


def _use_host() -> None:
    host = _Host()
    for name in ON_CUDA:
        importlib.import_module(f"megatron.core.{name}").torch = host
    megatron_random._get_cuda_rng_state = lambda **_: None
    megatron_random._set_cuda_rng_state = lambda *_, **__: None
    MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = host
    MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize = _sizes_to_host


def _sizes_to_host(
    dispatcher: Any, _point: str, tokens_per_expert: Tensor | None = None
) -> Tensor | None:
    """What a dispatcher copies to the CPU on a stream of its own, where it is already there."""
    for name in ("input_splits", "output_splits", "output_splits_tp"):
        sizes = getattr(dispatcher, name, None)
        if isinstance(sizes, Tensor):
            setattr(dispatcher, name, sizes.numpy())
    return tokens_per_expert


class Norm(nn.RMSNorm):
    """Megatron's norms are torch's too, but refuse sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  as Megatron marks parameters


def build(
    made: Architecture,
    parallel: Parallel,
    groups: ProcessGroupCollection,
    dtype: torch.dtype,
    recompute: bool,
) -> GPTModel:
    """This process's part of a model, on the CPU, its weights not set.

    Embeddings that are tied and lie on two pipeline stages are two parameters: see `Reduction`.
    """
    config = _config(made, parallel, dtype, recompute)
    first, last = stage_of(groups)
    return GPTModel(
        config,
        _layers(made, groups),
        vocab_size=padded_vocabulary(made.vocabulary, parallel.tp),
        max_sequence_length=0,
        pre_process=first,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=made.tied and parallel.pp == 1,
        position_embedding_type="rope",
        pg_collection=groups,
    )


def stage_of(groups: ProcessGroupCollection) -> tuple[bool, bool]:
    """Whether this process is in the first, and in the last stage of the pipeline."""
    return groups.pp.rank() == 0, groups.pp.rank() == groups.pp.size() - 1


def padded_vocabulary(size: int, tp: int) -> int:
    """Rows of the embedding, with those that let `tp` divide them."""
    return -(-size // tp) * tp


def _config(
    made: Architecture, parallel: Parallel, dtype: torch.dtype, recompute: bool
) -> TransformerConfig:
    mixture: dict[str, Any] = {}
    if made.experts:
        mixture = {
            "num_moe_experts": made.experts,
            "moe_router_topk": made.chosen,
            "moe_ffn_hidden_size": made.expert_ffn,
            "moe_router_pre_softmax": not made.normalized,
            "moe_router_load_balancing_type": "none",
            "moe_aux_loss_coeff": 0.0,
            "moe_layer_freq": [int(sparse) for sparse in made.sparse],
        }
    if recompute:
        mixture |= {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    return TransformerConfig(
        num_layers=made.layers,
        hidden_size=made.hidden,
        ffn_hidden_size=made.ffn,
        num_attention_heads=made.heads,
        num_query_groups=made.groups,
        kv_channels=made.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=made.norm_eps,
        qk_layernorm=made.qk_norm,
        add_bias_linear=False,
        add_qkv_bias=made.qkv_bias,
        gated_linear_unit=True,
        activation_func=nn.functional.silu,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        sequence_parallel=parallel.tp > 1,
        use_cpu_initialization=True,
        perform_initialization=False,
        persist_layer_norm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        moe_token_dispatcher_type="alltoall",  # the one that takes rows of any length
        variable_seq_lengths=True,
        batch_p2p_comm=False,
        deallocate_pipeline_outputs=True,
        calculate_per_token_loss=True,  # the schedules then leave sums as they are
        **mixture,
    )


def _layers(made: Architecture, groups: ProcessGroupCollection) -> TransformerBlockSubmodules:
    count = made.layers // groups.pp.size()
    first = groups.pp.rank() * count
    specs: list[Any] = []
    for sparse in made.sparse[first : first + count]:
        spec = get_gpt_layer_local_spec(
            num_experts=made.experts if sparse else None,
            qk_layernorm=made.qk_norm,
            normalization="RMSNorm",
        )
        layer, attention = spec.submodules, spec.submodules.self_attention.submodules
        layer.input_layernorm = layer.pre_mlp_layernorm = Norm
        attention.core_attention = PackedAttention
        if made.qk_norm:
            attention.q_layernorm = attention.k_layernorm = Norm
        specs.append(spec)
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=Norm)


def set_frequencies(model: GPTModel, frequencies: Tensor, device: torch.device) -> None:
    """Use these frequencies, of transformers, in the rotary embedding."""
    model.rotary_pos_emb.inv_freq = frequencies.to(device)


def packed_as(lengths: Tensor) -> PackedSeqParams:
    """How attention and rotary embeddings find the sequences in a packed row.

    Args:
        lengths: int64 `(n,)`, of the sequences with padding, on all processes of a cp group.
    """
    ends = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return PackedSeqParams("thd", ends, ends, None, None, longest, longest)


def run(
    model: GPTModel,
    groups: ProcessGroupCollection,
    batches: Sequence[Any],
    forward: Callable[[Any], Tensor],
    finish: Callable[[Any, Tensor], Any],
    *,
    backward: bool,
) -> list[Any]:
    """Forward, and backward if asked for, of one micro-batch behind the other (1F1B).

    Args:
        model: of `build`.
        groups: of `join`.
        batches: micro-batches, at least one.
        forward: calls the model.
        finish: of a micro-batch and the last stage's output: a loss, if `backward`.

    Returns:
        What `finish` returned, in the last stage; else nothing.
    """

    def step(data: Iterator[Any], _model: Any) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(data)
        return forward(batch), partial(done, batch)

    def done(batch: Any, output: Tensor, non_loss_data: bool = False) -> Any:
        made = finish(batch, output)
        if non_loss_data:
            return made
        return made, torch.zeros((), dtype=torch.int, device=output.device), made.detach()

    schedule = get_forward_backward_func(groups.pp.size(), None)
    return schedule(
        forward_step_func=step,
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=1,  # of each micro-batch its own: the stages tell each other
        micro_batch_size=1,
        forward_only=not backward,
        collect_non_loss_data=not backward,
        p2p_communicator=P2PCommunicator(groups.pp, model.config),
        pg_collection=groups,
    )


def gathered_tokens(hidden: Tensor, group: Any) -> Tensor:
    """Hidden states of all tokens, on each rank of tp the same; `(t / tp, …)` to `(t, …)`."""
    return gather_from_sequence_parallel_region(
        hidden, tensor_parallel_output_grad=False, group=group
    )


def summed(values: Tensor, group: Any) -> Tensor:
    """The sum over tp, which all of its ranks go on with alike: gradients pass as they are."""
    return reduce_from_tensor_model_parallel_region(values, group=group)
