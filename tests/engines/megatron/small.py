"""Tiny models of each family, on disk, and samples of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.engine import TrainBatch
from rlinf_graph.nodes.loss import GRPOLoss, Loss, ValueLoss
from rlinf_graph.nodes.optimizer import AdamW
from tests.engines.torch.conftest import CHARACTERS, write_model

VOCABULARY = len(CHARACTERS) + 3
"""Which two processes cannot divide."""

MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16},
    "mixture": {
        "model_type": "qwen3_moe", "tie_word_embeddings": False, "head_dim": 8,
        "norm_topk_prob": True, "decoder_sparse_step": 2, **MIXTURE,
    },
    "scaled": {
        "model_type": "llama", "tie_word_embeddings": False, "head_dim": 8,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    },
}  # fmt: skip
LOSSES: dict[str, Loss] = {"lm": GRPOLoss(kl=0.1, entropy_bonus=0.01), "value": ValueLoss()}
OPTIMIZER = AdamW(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=0.2, warmup_steps=2)


def write(folder: Path, family: str, **settings: Any) -> Path:
    """A folder with random weights, norms and biases among them."""
    write_model(folder, num_hidden_layers=4, **FAMILIES[family], **settings)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for param in model.parameters():
        if param.dim() == 1:
            param.data.add_(torch.randn_like(param) * 0.1)
    model.save_pretrained(folder)
    return folder


def definition(path: Path, head: str = "lm") -> ModelDef:
    return ModelDef("policy", str(path), head, "float32", "pretrained")


def stored(folder: Path) -> dict[str, Tensor]:
    return {k: v for file in folder.glob("model*.safetensors") for k, v in load_file(file).items()}


def rollouts(count: int = 8, seed: int = 0) -> Rollouts:
    draws = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 14, (count,), generator=draws)
    tokens = int(lengths.sum())
    mask = torch.rand(tokens, generator=draws) < 0.7
    index = torch.arange(count)
    return Rollouts(
        index=index,
        group=index,
        lengths=lengths,
        tokens=torch.randint(VOCABULARY, (tokens,), generator=draws),
        mask=mask,
        logprobs=-3 - torch.rand(tokens, generator=draws) * mask,
        versions=torch.zeros(tokens, dtype=torch.int64),
        prompt_lengths=torch.ones(count, dtype=torch.int64),
        finished=torch.ones(count, dtype=torch.bool),
        temperature=torch.linspace(0.7, 1.3, count, dtype=torch.float64),
        prompts=[""] * count,
        responses=[""] * count,
        columns=[{} for _ in range(count)],
    )


def train_batch(samples: Rollouts) -> TrainBatch:
    """Targets that are a function of each sample, so that cutting does not change them."""
    parts = [
        torch.randn(int(n), generator=torch.Generator().manual_seed(int(i)))
        for i, n in zip(samples.index, samples.lengths, strict=True)
    ]
    targets = torch.cat(parts)
    reference = (samples.logprobs - 0.1 * targets.abs()) * samples.mask
    return TrainBatch(
        samples, advantages=targets, returns=targets, old_values=targets / 2, reference=reference
    )


def micro_batches(samples: Rollouts, replica: int = 0, replicas: int = 1) -> list[TrainBatch]:
    """Of one replica: of 3 samples and fewer, so that replicas have different numbers of tokens."""
    mine = range(replica, len(samples), replicas)
    return [train_batch(packed.select(samples, mine[i : i + 3])) for i in range(0, len(mine), 3)]
